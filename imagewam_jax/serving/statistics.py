"""How long the parts of a request take, of late."""

import collections
from collections.abc import Sequence

import numpy as np

STAGES = ("decode", "queue", "device", "reply", "total")
_KEPT = 2000  # requests


class Latencies:
    """Seconds of each stage of the last requests."""

    def __init__(self) -> None:
        self._seconds = {stage: collections.deque(maxlen=_KEPT) for stage in STAGES}

    def add(self, **seconds: float) -> None:
        for stage, value in seconds.items():
            self._seconds[stage].append(value)

    def percentiles(self, stage: str) -> tuple[float, float, float] | None:
        """p50, p95 and p99 of a stage in milliseconds; None before the first request."""
        seconds = list(self._seconds[stage])
        return percentiles_ms(seconds) if seconds else None


def percentiles_ms(seconds: Sequence[float]) -> tuple[float, float, float]:
    """p50, p95 and p99 in milliseconds."""
    p50, p95, p99 = 1000 * np.percentile(seconds, (50, 95, 99))
    return float(p50), float(p95), float(p99)
