"""Builds the sidecar index of an RLDS dataset: one pass over its shards, in parallel, resumable."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from imagewam_jax.data.index.dataset_index import (
    META_FILE,
    DatasetIndex,
    default_index_dir,
    open_index,
)
from imagewam_jax.data.index.shard_parts import PARTS_DIR, make_part, part_file
from imagewam_jax.data.index.tfds_folder import TfdsFolder, check_shards, read_tfds_folder
from imagewam_jax.data.index.writer import write_index
from imagewam_jax.errors import DISK_FULL, DataError, WriteError
from imagewam_jax.files import elsewhere, lock_beside, only_writer, partial_path
from imagewam_jax.storage.objects import AnyPath, as_path

# Starting a process takes about as long as indexing this many bytes.
_BYTES_PER_WORKER = 2**30


def build_index(
    dataset_dir: AnyPath | str,
    index_dir: Path | str | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
    available_shards: bool = False,
    if_absent: bool = False,
) -> DatasetIndex:
    """Indexes a TFDS version folder, replaces an index that is there, and opens the new one.

    Every checksum of every record is verified on the way. Finished shards are kept in the folder
    `parts` until the index is complete, and a build that was stopped goes on from them. The index
    appears under its name only when it is complete. `workers` is the number of processes; by
    default one per GiB, at most one per core. `available_shards` leaves out shards that are not
    there, which the index then names in `left_out`. With `if_absent`, an index that another process
    is building is waited for and taken. Raises DataError when the folder is not RLDS, a shard is
    missing, the index cannot be written, or a record is corrupt or disagrees with features.json;
    InUseError when another process builds it.
    """
    folder = check_shards(read_tfds_folder(as_path(dataset_dir)), available_shards)
    index_dir = Path(index_dir) if index_dir else default_index_dir(folder.path)
    parts_dir = index_dir / PARTS_DIR
    with only_builder(folder, index_dir, wait=if_absent):
        if if_absent and (index_dir / META_FILE).is_file():
            return open_index(folder.path, index_dir)
        try:
            parts_dir.mkdir(parents=True, exist_ok=True)
            _make_parts(folder, parts_dir, workers, progress)
        except OSError as error:
            raise explain_write_error(error, folder, parts_dir) from error
        return finish_index(folder, index_dir)


@contextlib.contextmanager
def only_builder(folder: TfdsFolder, index_dir: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock of an index; it lies beside the index, which is replaced as a whole.

    InUseError names another process that builds it; with `wait` this one waits. DataError: nothing
    can be written there.
    """
    with contextlib.ExitStack() as stack:
        try:
            what = f"indexing {folder.name}"
            stack.enter_context(only_writer(lock_beside(index_dir), what, wait=wait))
        except WriteError as error:
            raise explain_write_error(error.__cause__, folder, index_dir / PARTS_DIR) from error
        yield


def finish_index(folder: TfdsFolder, index_dir: Path) -> DatasetIndex:
    """Merges the parts of all shards into the index, removes them, and opens the index."""
    partial = partial_path(index_dir)
    try:
        write_index(folder, index_dir / PARTS_DIR, partial)
        _replace_folder(partial, index_dir)
    except OSError as error:
        raise explain_write_error(error, folder, index_dir / PARTS_DIR) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_index(folder.path, index_dir)


def explain_write_error(error: OSError, folder: TfdsFolder, parts_dir: Path) -> DataError:
    """An error that says what could not be written, how much space is missing and what is kept."""
    shards = folder.shards()
    parts = [part_file(parts_dir, path) for path in shards]
    done = [i for i, part in enumerate(parts) if part.is_file()]
    kept = f"{len(done)} of {len(shards)} finished shards are kept in {parts_dir}"
    missing = ""
    if remedy := elsewhere(error):
        return DataError(f"could not write the index {parts_dir.parent}: {error}{remedy}")
    if error.errno in DISK_FULL:
        missing = "; free some space there"
        if done:
            sizes = folder.shard_bytes()
            held = sum(parts[i].stat().st_size for i in done)
            whole = held / max(1, sum(sizes[i] for i in done)) * sum(sizes)
            # All parts, and once more their size for the index itself.
            missing = f"; about {(2 * whole - held) / 1e6:.1f} MB more are needed there"
    return DataError(
        f"could not write the index {parts_dir.parent}: {error}{missing}; {kept}: the same command "
        "goes on from them"
    )


def _make_parts(folder: TfdsFolder, parts_dir: Path, workers: int | None, progress: bool) -> None:
    jobs = [(path, folder.features, parts_dir) for path in folder.shards()]
    sizes = folder.shard_bytes()
    for _ in run_over_shards(make_part, jobs, sizes, workers, progress, "indexing"):
        pass


def run_over_shards(
    function,
    jobs: list[tuple],
    sizes: list[int],
    workers: int | None,
    progress: bool,
    what: str,
) -> Iterable[tuple[int, object]]:
    """Calls `function(*job)` for every shard's job and yields (job number, result) as jobs end.

    sizes: of the shards in bytes, which the progress bar counts. One worker runs in this process.
    Raises DataError when a process dies.
    """
    if workers is None:
        workers = max(1, min(len(jobs), os.cpu_count() or 1, sum(sizes) // _BYTES_PER_WORKER))
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, desc=what, disable=not progress) as bar:
        if workers == 1:
            for number, job in enumerate(jobs):
                yield number, function(*job)
                bar.update(sizes[number])
            return
        # Spawned, because a forked copy of a process that runs JAX's threads can deadlock.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            try:  # a process can die before all jobs are given out
                with ended_when_left():
                    with without_interrupts():
                        futures = {pool.submit(function, *job): n for n, job in enumerate(jobs)}
                    for future in concurrent.futures.as_completed(futures):
                        yield futures[future], future.result()
                        bar.update(sizes[futures[future]])
            except concurrent.futures.process.BrokenProcessPool as error:
                raise DataError(
                    f"a process ({what}) died: out of memory, or the calling program cannot be "
                    "imported again (a notebook, a script without a __main__ guard); use workers=1"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the end, and processes that are started within never hear it: a terminal
    sends it to all of them, and one of them alone is to say so."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def ended_when_left() -> Iterator[None]:
    """Ends the processes that are started within on Ctrl-C, or when a generator that started them
    is left: a pool would wait for their jobs."""
    others = set(multiprocessing.active_children())
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise


def _replace_folder(new: Path, target: Path) -> None:
    """Moves the folder `new` to `target`, in place of what may be there already."""
    if not target.exists():
        os.replace(new, target)
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old)
