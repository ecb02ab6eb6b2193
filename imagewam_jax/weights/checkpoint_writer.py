"""Writes a checkpoint that is larger than memory.

Its arrays come in pieces, in any order; a piece is one layer of a stacked array, or a whole small
array. Each piece is written when it comes and then dropped, so that only a few are in memory at a
time. The files are those that Orbax writes for arrays in memory, in chunks of at most a layer, and
are restored in the same way.

Orbax's public interface saves only whole arrays from memory, and TensorStore's would leave Orbax's
metadata files and the atomic step to code of our own; so this is a type handler inside Orbax. It
relies on these names, which are not part of the documented interface and pin a minor version:
`type_handlers.create_type_handler_registry`, `TypeHandler.serialize` and `ParamInfo` (with
`await_path_creation`, `is_ocdbt_checkpoint` and `ts_context`), `get_json_tspec_write`,
`future.CommitFutureAwaitingContractedSignals`, and `finalize` of a handler, which Orbax calls when
all items are written and before the step gets its name.
"""

import asyncio
import contextlib
import json
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from orbax.checkpoint import future, type_handlers
from tqdm import tqdm

from imagewam_jax.checkpoints.checksums import checksum, joined
from imagewam_jax.checkpoints.steps import is_step, step_folders
from imagewam_jax.checkpoints.store import CHECKPOINTS_FOLDER, FORMAT, check_space, tree_bytes
from imagewam_jax.errors import CheckpointError, UserError
from imagewam_jax.models.parameters import flatten
from imagewam_jax.storage.objects import AnyPath, as_path, is_remote
from imagewam_jax.storage.orbax_paths import orbax_path
from imagewam_jax.weights.layouts.mapping import Piece

# The size of a chunk on disk, which is the least that can be read: small enough for a host of a pod
# to read little more than its own slice of an array, and large enough for object stores.
CHUNK_BYTES = 16 * 2**20
# The most bytes of pieces that are being written while others are made.
PENDING_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Stream:
    """A tree of arrays that `pieces` yields, with their shapes and dtypes in `abstract`.

    `stacked` has the dotted paths of the arrays that come layer by layer.
    """

    abstract: Mapping[str, Any]
    stacked: frozenset[str]
    pieces: Callable[[], Iterable[Piece]]
    # Of each array, by its dotted path; a sum over the pieces that have been written.
    checksums: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def stream_of(tree: Mapping[str, Any]) -> Stream:
    """The stream of a small tree that is in memory."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(tree))
    whole = [Piece(path, None, np.asarray(leaf)) for path, leaf in flatten(tree).items()]
    return Stream(abstract, frozenset(), lambda: whole)


def write_streams(
    directory: AnyPath | str,
    step: int,
    streams: Mapping[str, Stream],
    metadata: Mapping[str, Any],
    **json_items: Mapping[str, Any],
) -> None:
    """Write one checkpoint; `checkpoints.store` describes the trees, `metadata` and other items.

    The step appears when it is complete. Remains of killed runs are removed first, and so are those
    of an error. CheckpointError: the step exists, there is too little space, or writing failed.
    ConversionErrors of the pieces are passed on.
    """
    directory = as_path(directory).absolute()
    check_absent(directory, step)
    check_space(directory, sum(tree_bytes(stream.abstract) for stream in streams.values()))
    interrupted = threading.Event()
    registry = type_handlers.create_type_handler_registry(
        (_Leaf, _StreamHandler(interrupted)), (jax.Array, type_handlers.ArrayHandler())
    )
    options = ocp.CheckpointManagerOptions(
        create=True, cleanup_tmp_directories=True, enable_async_checkpointing=False
    )
    items: dict[str, Any] = {name: _save_args(stream, name) for name, stream in streams.items()}
    # A file per chunk is written several times faster than Orbax's database of chunks (OCDBT);
    # compression would save a fifth of bfloat16 weights and halve the speed of reading them.
    handlers: dict[str, ocp.CheckpointHandler] = {
        name: ocp.PyTreeCheckpointHandler(
            type_handler_registry=registry, use_ocdbt=False, use_compression=False
        )
        for name in streams
    }
    for name, value in {"metadata": {"format": FORMAT, **metadata}, **json_items}.items():
        items[name] = ocp.args.JsonSave(dict(value))
        handlers[name] = ocp.JsonCheckpointHandler()
    items["checksums"] = _ChecksumsOf(streams)
    handlers["checksums"] = _ChecksumsHandler()
    try:
        with (
            _set_by_an_interrupt(interrupted),
            ocp.CheckpointManager(
                orbax_path(directory), options=options, item_handlers=handlers
            ) as manager,
        ):
            manager.save(step, args=ocp.args.Composite(**items), force=True)
    except BaseException as error:
        for unfinished in _unfinished(directory, step):
            with contextlib.suppress(Exception):  # or the first error would be hidden
                unfinished.rmtree()
        if interrupted.is_set():
            raise KeyboardInterrupt from None
        expected = Exception if is_remote(directory) else (OSError, ValueError)
        if isinstance(error, expected) and not isinstance(error, UserError):
            message = f"{directory}: the checkpoint could not be written: {error}"
            raise CheckpointError(message) from error
        raise


def _unfinished(directory: AnyPath, step: int) -> Iterable[epath.Path]:
    """What an interrupted step has left."""
    if is_remote(directory):
        return [] if is_step(directory / str(step)) else [orbax_path(directory / str(step))]
    return orbax_path(directory).glob(f"{step}.*tmp*")


def check_absent(directory: AnyPath, step: int) -> None:
    """CheckpointError: a checkpoint cannot be written to this folder, or would not be the one that
    is found there, or the step is no step of training."""
    if type(step) is not int or step < 0:
        raise CheckpointError(f"{directory}: {step!r} is no step of training")
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory} is a file, expected a folder to write a checkpoint in")
    folder = directory / str(step)
    if is_step(folder) if is_remote(directory) else folder.exists():
        raise CheckpointError(f"{directory} has a checkpoint of step {step} already")
    # A folder is opened at its newest step, and a run's folder at that of its `checkpoints`.
    there = [str(number) for number in step_folders(directory)]
    there += ["a run"] if (directory / CHECKPOINTS_FOLDER).is_dir() else []
    there += ["the items of a step"] if is_step(directory) else []
    if there:
        raise CheckpointError(
            f"{directory} has other checkpoints ({', '.join(there)}), and a folder that is named "
            f"without a step stands for its newest: write step {step} to another folder"
        )


@contextlib.contextmanager
def _set_by_an_interrupt(event: threading.Event) -> Iterator[None]:
    """A first Ctrl-C within sets an event. It would end the main thread alone, while threads still
    write what is to be removed."""

    def hear(*_: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.getsignal(signal.SIGINT)
    # Only the main thread may change handlers, and a background job does not hear Ctrl-C.
    hears = threading.current_thread() is threading.main_thread() and callable(before)
    if hears:
        signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        if hears:
            signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class _Leaf:
    """One array of a stream, as a leaf of the tree that Orbax saves."""

    tree: str
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    stream: Stream


def _save_args(stream: Stream, tree: str) -> ocp.args.PyTreeSave:
    def leaf(path, x):
        path = jax.tree_util.keystr(path, simple=True, separator=".")
        return _Leaf(tree, path, x.shape, np.dtype(x.dtype), stream)

    return ocp.args.PyTreeSave(jax.tree.map_with_path(leaf, dict(stream.abstract)))


class _ChecksumsHandler(ocp.JsonCheckpointHandler):
    """Writes the checksums of streams, which are known once all of their pieces are written."""

    async def async_save(self, directory, item=None, args=None):
        self._streams = args.streams
        return []

    def finalize(self, directory):
        checksums = {name: dict(stream.checksums) for name, stream in self._streams.items()}
        (directory / self._filename).write_text(json.dumps(checksums))


@ocp.args.register_with_handler(_ChecksumsHandler, for_save=True, for_restore=True)
@dataclass
class _ChecksumsOf(ocp.args.CheckpointArgs):
    streams: Mapping[str, Stream]


class _StreamHandler(type_handlers.TypeHandler):
    """Writes the pieces of a stream where Orbax expects whole arrays. It cannot read."""

    def __init__(self, interrupted: threading.Event):
        self._interrupted = interrupted

    def typestr(self) -> str:
        return type_handlers.NumpyHandler().typestr()  # the handler that restores these arrays

    async def metadata(self, infos):
        raise NotImplementedError("a stream is read as the arrays that it wrote")

    async def deserialize(self, infos, args=None):
        raise NotImplementedError("a stream is read as the arrays that it wrote")

    async def serialize(
        self,
        values: Sequence[_Leaf],
        infos: Sequence[type_handlers.ParamInfo],
        args: Sequence[type_handlers.SaveArgs] | None = None,
    ) -> Sequence[future.Future]:
        work = _write(values, infos, self._interrupted)
        return [future.CommitFutureAwaitingContractedSignals(work, name="stream")]


async def _write(
    leaves: Sequence[_Leaf], infos: Sequence[type_handlers.ParamInfo], interrupted: threading.Event
) -> None:
    created = await asyncio.gather(*map(_create, leaves, infos))
    arrays = dict(zip((leaf.path for leaf in leaves), created, strict=True))
    missing = {(leaf.path, layer) for leaf in leaves for layer in _layers(leaf)}
    total = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    writing: dict[ts.Future, int] = {}
    bar = tqdm(total=total, unit="B", unit_scale=True, desc=f"writing {leaves[0].tree}")
    try:
        for piece in leaves[0].stream.pieces():
            if interrupted.is_set():
                raise asyncio.CancelledError  # which Orbax does not log as an error
            array = arrays[piece.path]
            target = array if piece.layer is None else array[piece.layer]
            if (piece.path, piece.layer) not in missing or target.shape != piece.array.shape:
                raise ValueError(f"unexpected {piece.path}, layer {piece.layer}")
            missing.remove((piece.path, piece.layer))
            checksums = leaves[0].stream.checksums
            checksums[piece.path] = joined(checksums[piece.path], checksum(piece.array))
            write = target.write(piece.array, can_reference_source_data_indefinitely=True)
            writing[write.commit] = piece.array.nbytes
            while sum(writing.values()) > PENDING_BYTES:
                oldest = next(iter(writing))
                await oldest
                bar.update(writing.pop(oldest))
        for write, size in writing.items():
            await write
            bar.update(size)
    finally:
        # Also after an error, since files that are still being written cannot be removed.
        await asyncio.gather(*writing, return_exceptions=True)
        bar.close()
    if missing:
        raise ValueError(f"{len(missing)} pieces did not come, such as {min(missing, key=str)}")


def _layers(leaf: _Leaf) -> Iterable[int | None]:
    return range(leaf.shape[0]) if leaf.path in leaf.stream.stacked else [None]


async def _create(leaf: _Leaf, info: type_handlers.ParamInfo) -> ts.TensorStore:
    await info.await_path_creation()
    layer = leaf.shape[1:] if leaf.path in leaf.stream.stacked else None
    spec = type_handlers.get_json_tspec_write(
        info,
        use_ocdbt=info.is_ocdbt_checkpoint,
        global_shape=leaf.shape,
        local_shape=leaf.shape if layer is None else (1, *layer),
        dtype=leaf.dtype,
        process_index=0,
        arg=type_handlers.SaveArgs(chunk_byte_size=CHUNK_BYTES),
    )
    return await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)
