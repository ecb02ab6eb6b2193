"""A progress bar: steps done, time left, and the latest numbers."""

import sys
from collections.abc import Mapping

from tqdm import tqdm

SHOWN = ("target_loss", "action_loss", "samples_per_second", "mfu")
LOG_SECONDS = 30.0  # between two lines where they go to a file


def progress_bar(first: int, steps: int, *, enabled: bool = True) -> tqdm:
    """To be iterated over: the steps of a run from `first`. Disabled, it shows nothing."""
    return tqdm(
        range(first, steps),
        initial=first,
        total=steps,
        unit="step",
        disable=not enabled,
        mininterval=0.1 if sys.stderr.isatty() else LOG_SECONDS,
    )


def show(bar: tqdm, latest: Mapping[str, float]) -> None:
    """Beside the bar, the next time that it is drawn."""
    bar.set_postfix({k: f"{latest[k]:.3g}" for k in SHOWN if k in latest}, refresh=False)
