"""Counts images that cannot be read, and stops a run that has too many of them."""

import logging
import threading

from imagewam_jax.data.errors import BadFrameError, DataError

_LOG = logging.getLogger(__name__)


class BadFrames:
    """The distinct bad frames that a stream met. Safe to use from threads.

    Which ones it has met is no part of a stream's state: after a resume, counting starts anew.
    """

    def __init__(self, share: float, frames: int):
        """share: how many of all `frames` may be bad, 0 to 1. DataError: it is no share."""
        if not 0 <= share <= 1:
            raise DataError(f"the share of bad frames is {share}, expected 0 to 1")
        self._limit, self._share, self._frames = int(share * frames), share, frames
        self._met: set[str] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._met)

    def count(self, error: BadFrameError) -> None:
        """Logs a frame when it is met first. DataError: it is one too many."""
        with self._lock:
            if str(error) in self._met:
                return
            self._met.add(str(error))
        _LOG.warning("%s; the next sample of its dataset is taken instead", error)
        if len(self._met) > self._limit:
            raise DataError(
                f"{len(self._met)} bad frames among {self._frames}, more than the allowed share of "
                f"{self._share:g} (data.bad_frames), the last one: {error}; see all of them with: "
                "imagewam data check DIRECTORY"
            ) from error
