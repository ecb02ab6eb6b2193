"""Can the run write to its folder, and is the folder its own?"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from imagewam_jax.checkpoints.store import CHECKPOINTS_FOLDER, Checkpoints
from imagewam_jax.data.datasets import resolve_widths
from imagewam_jax.errors import CheckpointError, UserError
from imagewam_jax.files import LOCK_FILE
from imagewam_jax.preflight.data import rows, stored_images, training_samples, widths
from imagewam_jax.preflight.devices import batch, training_state
from imagewam_jax.preflight.run import NotChecked, Run
from imagewam_jax.storage.objects import AnyPath, ObjectPath, is_remote
from imagewam_jax.storage.orbax_paths import orbax_path
from imagewam_jax.training.batches import train_iterator
from imagewam_jax.training.resume import check_same
from imagewam_jax.training.train import check_new_or_resumed, check_room, only_run


def run_folder(run: Run) -> list[int]:
    """The folder can be written, no other run writes there, and it has no checkpoints unless the
    run goes on from them; returns their steps."""
    workdir = _workdir(run)
    if is_remote(workdir):
        _check_bucket(workdir)
    else:
        _check_folder(workdir)
    with _checkpoints(workdir) as checkpoints:
        steps = checkpoints.steps if checkpoints else []
        try:
            check_new_or_resumed(workdir, steps, run.resume)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {_with_resume(run, checkpoints)}") from None
    return steps


def _check_folder(workdir: Path) -> None:
    existing = next(p for p in (workdir, *workdir.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "cannot be written to" if existing.is_dir() else "is a file"
        raise CheckpointError(f"{workdir}: {existing} {what}, expected a folder for the run")
    if (workdir / LOCK_FILE).exists():  # which a run that was killed leaves behind
        with only_run(workdir):
            pass


def _check_bucket(workdir: ObjectPath) -> None:
    """Write an object and remove it: whether that is allowed shows in no other way."""
    orbax_path(workdir)
    tried = workdir / ".can_be_written"
    tried.write_bytes(b"imagewam")
    tried.unlink()


def _with_resume(run: Run, checkpoints: Checkpoints) -> str:
    """What `--resume` would do."""
    try:
        _check_same(run, checkpoints)
    except NotChecked:
        return "whether it can be resumed depends on the fields above"
    except UserError as error:
        return f"--resume would end with: {error}"
    return f"--resume would go on from step {checkpoints.steps[-1]}"


def _check_same(run: Run, checkpoints: Checkpoints) -> None:
    """CheckpointError: the newest checkpoint is of another config, or cannot be read."""
    run.of(rows)
    sections = ("seed", "data", "text", "autoencoder", "model", "train", "optimizer")
    config = resolve_widths(run.config(*sections))
    saved = checkpoints.restore_json(checkpoints.steps[-1], "metadata")["config"]
    check_same(saved, config, _workdir(run))


def resumed_config(run: Run) -> None:
    """The checkpoint to go on from is of this config."""
    steps = run.of(run_folder)
    if steps:
        with _checkpoints(_workdir(run)) as checkpoints:
            _check_same(run, checkpoints)


def resumed_data(run: Run) -> None:
    """The data is what it was when the checkpoint was written."""
    steps = run.of(run_folder)
    if not steps:
        return
    for check in (widths, stored_images):
        run.of(check)
    config = run.config(
        "data.threads", "data.prefetch", "data.concurrent_reads", "data.bad_frames", "seed"
    )
    stream = train_iterator(config, run.of(training_samples), run.of(batch))
    with contextlib.closing(stream), _checkpoints(_workdir(run)) as checkpoints:
        stream.set_state(checkpoints.restore_json(steps[-1], "data"))


def room_for_checkpoints(run: Run) -> None:
    """The disk has room for the checkpoints that are kept at a time."""
    config, workdir = run.config("train.keep_checkpoints"), _workdir(run)
    if is_remote(workdir):  # which has room for any number
        return
    with _checkpoints(workdir) as checkpoints:
        kept = len(checkpoints.steps) if checkpoints else 0
    check_room(config, workdir, run.of(training_state), kept)


def _workdir(run: Run) -> AnyPath:
    if run.workdir is None:
        raise NotChecked("no --workdir is given")
    return run.workdir.absolute()


@contextlib.contextmanager
def _checkpoints(workdir: AnyPath) -> Iterator[Checkpoints | None]:
    """The checkpoints in a run's folder, which stays as it is; None: it has no folder of them."""
    folder = workdir / CHECKPOINTS_FOLDER
    if not folder.is_dir():
        yield None
        return
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        yield checkpoints
