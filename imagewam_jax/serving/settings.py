"""What may be set of a server, and its limits (docs/spec/serving.md, 3 and 7)."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Settings(NamedTuple):
    """host, port: where it listens; port 0 takes a free one. tokens: name -> token. tokens_file,
    certificate, key: are read again at SIGHUP. buckets: sizes of batches. seed: of the noise, where
    a request has none. connections, rate: at most so many connections, and requests per second of
    each. record: the folder of a recording of all robots, if there is to be one."""

    host: str = "127.0.0.1"
    port: int = 8000
    tokens: Mapping[str, str] = {}
    tokens_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    buckets: tuple[int, ...] = (1, 2, 4, 8)
    seed: int = 0
    connections: int = 64
    rate: float = 60.0
    record: Path | None = None


HANDSHAKE_SECONDS = 10.0
WRITE_SECONDS = 5.0  # for a client to take a reply
IDLE_SECONDS = 300.0
UNFINISHED_SECONDS = 10.0  # for the rest of a message that has begun
PING_SECONDS, PONG_SECONDS = 20.0, 60.0
SHUTDOWN_SECONDS = 5.0  # for the batches that run or wait
BURST_SECONDS = 2.0  # of requests that may come at once
BAD_REQUESTS = 8  # in a row, after which a connection is closed
