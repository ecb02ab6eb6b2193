"""What a server knows of itself, for whoever asks."""

import time
from collections.abc import Hashable

from imagewam_jax.serving.contract import Contract
from imagewam_jax.serving.metrics import Metrics
from imagewam_jax.serving.sessions import Sessions
from imagewam_jax.serving.statistics import Latencies


class State:
    """contract: of the policy, once it is loaded. connections: each with its sessions. is_ready:
    everything is compiled, and it does not shut down."""

    def __init__(self) -> None:
        self.contract: Contract | None = None
        self.metrics = Metrics()
        self.latencies = Latencies()
        self.connections: dict[Hashable, Sessions] = {}
        self.started = time.monotonic()
        self.is_ready = False

    def set_ready(self, ready: bool) -> None:
        self.is_ready = ready
        self.metrics.ready.set(ready)
