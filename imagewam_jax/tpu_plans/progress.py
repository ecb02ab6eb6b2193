"""A line that says what is being done, and for how long: compilers are silent for minutes."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

EVERY = 1.0  # seconds between two looks at the clock, where the line can be written over


@contextlib.contextmanager
def stage(what: str) -> Iterator[None]:
    """Shows `what` and the time since it began on stderr; in a log, that it began and ended."""
    started, done = time.monotonic(), threading.Event()
    is_terminal = sys.stderr.isatty()

    def show(end: str) -> None:
        seconds = time.monotonic() - started
        print(f"\r{what}: {seconds:.0f} s", end=end, file=sys.stderr, flush=True)

    def tick() -> None:
        while not done.wait(EVERY):
            show("")

    if is_terminal:
        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
    else:
        print(f"{what} ...", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        done.set()
        if is_terminal:
            thread.join()
        show("\n")
