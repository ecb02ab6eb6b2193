"""What a server counts, for Prometheus (docs/spec/serving.md, 6). No label comes from a client."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=_SECONDS, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self.requests = counter("imagewam_requests", "Requests answered", "code")
        self.request_seconds = seconds("imagewam_request_seconds", "From message to reply")
        self.queue_seconds = seconds("imagewam_queue_seconds", "Before a batch began")
        self.device_seconds = seconds(
            "imagewam_device_seconds", "Of a batch on the device", "stage", "bucket"
        )
        self.batch_rows = Histogram(
            "imagewam_batch_rows", "Robots in a batch", buckets=_ROWS, registry=registry
        )
        self.padding_rows = counter("imagewam_padding_rows", "Rows that no robot asked for")
        self.sessions = Gauge("imagewam_sessions", "Connections", registry=registry)
        self.received_bytes = counter("imagewam_received_bytes", "Bytes of messages")
        self.rejected = counter("imagewam_rejected", "Requests and connections refused", "reason")
        self.deadline_missed = counter("imagewam_deadline_missed", "Requests begun too late")
        self.clipped_actions = counter(
            "imagewam_clipped_actions", "Action values beyond the range of the data"
        )
        self.recorder_dropped = counter(
            "imagewam_recorder_dropped", "Steps that were left out of the record"
        )
        self.compile_seconds = Gauge(
            "imagewam_compile_seconds", "Compiling", ["program"], registry=registry
        )
        self.ready = Gauge("imagewam_ready", "1 once everything is compiled", registry=registry)

    def text(self) -> bytes:
        """All counters in the text format 0.0.4."""
        return generate_latest(self._registry)
