"""The sums of an evaluation of recorded episodes, on disk: one that was killed goes on from them.

Samples are added in a fixed order, so the sums and the number of samples added are the whole state;
its size depends on the number of episodes alone. Restored sums are bit-exact: a resumed evaluation
ends with the same numbers.
"""

import json
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagewam_jax.distributed import from_first, is_first
from imagewam_jax.errors import ConfigError
from imagewam_jax.evaluation.journal import check_identity
from imagewam_jax.files import writing, written_whole

SAVE_EVERY_S = 30.0
WRITING_SHARE = 0.05  # of the time, at most, goes into writing
_IDENTITY = "identity"


class Snapshot:
    """Sums of one evaluation in a file, which the first process writes now and then.

    path: the file. identity: all that decides the sums, as JSON.
    resume: sums that are there are gone on with. Otherwise they are replaced.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, resume: bool):
        self._path, self._resume = path, resume
        self._identity = identity
        self._next_save = time.monotonic() + SAVE_EVERY_S

    def restore(self, sums: Mapping[str, np.ndarray]) -> int:
        """Fills the arrays with what the first process finds in the file, in all processes, and
        returns the number of samples that are in them: 0 where there is no file.

        ConfigError: the file is of another evaluation.
        """
        found, done = dict(sums), 0
        if is_first() and self._resume and self._path.exists():
            found, done = self._read()
        # Bytes, since the devices may lack float64.
        whole = from_first({name: _bytes(x) for name, x in found.items()})
        for name, x in sums.items():
            x[...] = np.asarray(whole[name]).view(x.dtype).reshape(x.shape)
        return int(from_first(np.array(done, np.int32)))

    def save(self, sums: Mapping[str, np.ndarray], done: int, *, at_once: bool = False) -> None:
        """Writes the sums of the first `done` samples, if it is time. WriteError: it cannot."""
        began = time.monotonic()
        if not is_first() or (began < self._next_save and not at_once):
            return
        identity = np.array(json.dumps(self._identity))
        with writing(self._path), written_whole(self._path) as file:
            np.savez(file, **{_IDENTITY: identity, "done": np.array(done)}, **sums)
        took = time.monotonic() - began
        self._next_save = began + took + max(SAVE_EVERY_S, took / WRITING_SHARE)

    def _read(self) -> tuple[dict[str, np.ndarray], int]:
        try:
            # Opened here, since NumPy does not close a file that it cannot read.
            with self._path.open("rb") as opened, np.load(opened) as file:
                found = {name: file[name] for name in file.files}
                identity, done = json.loads(str(found.pop(_IDENTITY))), int(found.pop("done"))
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{self._path}: not the sums of an evaluation: {error}; remove it, or evaluate "
                "without --resume"
            ) from error
        check_identity(self._path, "sums", identity, self._identity)
        return found, done


def _bytes(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)
