"""Saves and restores checkpoints.

    <directory>/<step>/params, ema, optimizer           of a policy, or of some of its components
                       autoencoder, text, normalizers   the assets of a policy
                       text_encoder                     of a converted text encoder
                       tokenizer                        its files, by name
                       data                             position of the data iterator
                       metadata                         config, prompts, statistics, provenance
                       checksums                        of every array, to detect damage

The first three lines are trees of arrays, the others are JSON. Any of them can be absent: a run of
training has all but the text encoder, a converted autoencoder has only itself. `metadata` says how
to rebuild the others. A step is complete or absent: Orbax writes it under a temporary name and
renames it at the end, or in object storage (gs://) puts a file last, without which it is no step.
"""

import contextlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding, SingleDeviceSharding

from imagewam_jax.checkpoints.checksums import (
    array_checksums,
    by_path,
    differing,
    dotted,
    keeps_bits,
    not_finite,
)
from imagewam_jax.checkpoints.steps import is_step, names_a_step, step_folders
from imagewam_jax.errors import (
    DISK_FULL,
    CheckpointError,
    ConfigError,
    NotFiniteError,
    StorageError,
    Unreadable,
    UserError,
)
from imagewam_jax.storage.objects import AnyPath, as_path, is_remote
from imagewam_jax.storage.orbax_paths import orbax_path

# Formats before 5 had kernels of three axes, and another order of the channels of heads.
FORMAT = 5
CHECKPOINTS_FOLDER = "checkpoints"  # in a run's folder
JSON_ITEMS = ("metadata", "data", "tokenizer", "checksums")
_METADATA_IN_FORMAT_3 = "about"


class Checkpoints:
    """The checkpoints of one run, written in the background."""

    def __init__(
        self,
        directory: AnyPath | str,
        *,
        keep: int | None = 2,
        read_only: bool = False,
        placement: Sharding | None = None,
    ):
        """Unless it is only read, the folder is made, and half-written steps of a killed run are
        removed. `placement` is where arrays are restored to, by default the first device."""
        self.directory = as_path(directory).absolute()
        self._placement = placement or SingleDeviceSharding(jax.local_devices()[0])
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            # Processes would wait for each other, and one of them may read alone.
            save_root_metadata=not read_only,
        )
        try:
            self._manager = ocp.CheckpointManager(orbax_path(self.directory), options=options)
        except self._failures as error:
            raise CheckpointError(f"{self.directory}: {_in_a_line(error)}") from error

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        """What Orbax raises where it cannot write; in object storage, errors of several clients."""
        return (Exception,) if is_remote(self.directory) else (OSError, ValueError)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def set_aside(self, step: int) -> AnyPath:
        """Rename a checkpoint that cannot be used, so that the run can write its step again, and
        return its new path. One process calls this; the others `reload` after it."""
        names = (self.directory / f"{step}.unreadable{n or ''}" for n in itertools.count())
        target = next(name for name in names if not name.exists())
        orbax_path(self.directory / str(step)).rename(orbax_path(target))
        return target

    def reload(self) -> None:
        """Look again at what is on disk."""
        self._manager.reload()

    def save(
        self,
        step: int,
        trees: Mapping[str, Any],
        metadata: Mapping[str, Any],
        data: Mapping[str, Any] | None = None,
        tokenizer: Mapping[str, str] | None = None,
    ) -> None:
        """Start to write a checkpoint in the background.

        CheckpointError: there is too little free space, or the previous one could not be written.
        NotFiniteError: an array holds a NaN or an infinity; nothing is written.
        """
        self.wait()
        if bad := not_finite(trees):
            kept = self.latest_step
            raise NotFiniteError(
                f"after step {step}, {_shown(bad)} hold NaNs or infinities: it is not saved; "
                + ("there is no checkpoint" if kept is None else f"step {kept} is kept")
            )
        check_space(self.directory, tree_bytes(trees))
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        json_items = {
            "metadata": {"format": FORMAT, **metadata},
            "data": data,
            "tokenizer": tokenizer,
            "checksums": {name: array_checksums(tree) for name, tree in trees.items()},
        }
        items |= {k: ocp.args.JsonSave(dict(v)) for k, v in json_items.items() if v is not None}
        with self._explained():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Wait until everything is on disk. CheckpointError: it could not be written."""
        with self._explained():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """CheckpointError for an error of writing."""
        try:
            yield
        except self._failures as error:
            why = _in_a_line(error)
            advice = "; free some space there" if _means_full(error) else ""
            raise CheckpointError(
                f"{self.directory}: a checkpoint could not be written, the newest complete one is "
                f"of step {self.latest_step}: {why}{advice}"
            ) from error

    def trees(self, step: int) -> set[str]:
        """The names of a step's trees."""
        folder = self.directory / str(step)
        return {path.parent.name for path in folder.glob("*/_METADATA")} - set(JSON_ITEMS)

    def weights(self, step: int, which: str | None = None) -> str:
        """The name of the tree of parameters to use: `which`, else the moving average if there is
        one."""
        return which or ("ema" if "ema" in self.trees(step) else "params")

    def abstract(self, step: int, tree: str) -> dict[str, Any]:
        """Shapes and dtypes of a tree as it was saved.

        CheckpointError: it was not saved. Unreadable: its description is damaged. StorageError:
        nothing is known of it.
        """
        if tree not in self.trees(step):
            raise CheckpointError(
                f"{self.directory / str(step)}: no {tree!r} in it; it has "
                f"{sorted(self.trees(step))}"
            )
        folder = self.directory / str(step) / tree
        try:
            with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
                saved = handler.metadata(orbax_path(folder))
        except Exception as error:  # a damaged file can raise almost anything
            raise self._unreadable(folder, error) from error
        if saved is None:
            raise Unreadable(f"{folder} cannot be read: its description is not whole")
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved.tree)

    def restore(self, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Restore the trees in `abstract`, with its shapes, dtypes and shardings, and verify them.

        An array without a sharding goes to `placement`, whatever devices it was saved from.
        CheckpointError: a tree or an array is missing or has another shape. Unreadable: it is
        damaged.
        """
        saved = {name: by_path(self.abstract(step, name)) for name in abstract}

        def checkable(path: Any, wanted: Any) -> Any:
            tree, array = path[0].key, dotted(path[1:])
            dtype = saved[tree][array].dtype if array in saved[tree] else wanted.dtype
            return wanted if keeps_bits(dtype, wanted.dtype) else _with_dtype(wanted, dtype)

        abstract = dict(abstract)
        as_checked = jax.tree.map_with_path(checkable, abstract)
        restored = self.read(step, as_checked)
        self.check(step, restored)
        return jax.tree.map(
            lambda x, checked, wanted: x if checked is wanted else x.astype(wanted.dtype),
            restored,
            as_checked,
            abstract,
        )

    def read(self, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Restore without verifying checksums: each process reads what its devices hold, and waits
        for no other process."""
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=x.sharding or self._placement
            ),
            dict(abstract),
        )
        for name, tree in abstract.items():
            check_arrays(tree, self.abstract(step, name), f"{self.directory / str(step)}: {name}")
        # The manager's own `restore` makes processes wait for each other, so that one that cannot
        # read would leave the others waiting.
        restored = {}
        for name, tree in abstract.items():
            folder = self.directory / str(step) / name
            try:
                with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
                    wanted = ocp.args.StandardRestore(tree)
                    restored[name] = handler.restore(orbax_path(folder), args=wanted)
            except Exception as error:  # of several types, plain `Exception` among them
                if "RESOURCE_EXHAUSTED" in str(error):  # the devices are too small
                    raise
                raise self._unreadable(folder, error) from error
        return restored

    def check(self, step: int, restored: Mapping[str, Any]) -> None:
        """Compare restored trees with their checksums. Unreadable, in all processes alike: an array
        is not what was saved, or holds a NaN or an infinity. One whose dtype has lost the bits that
        were saved is not compared."""
        folder, checksums = self.directory / str(step), self.checksums(step)
        for name, tree in restored.items():
            saved = {path: x.dtype for path, x in by_path(self.abstract(step, name)).items()}
            arrays = {p: x for p, x in by_path(tree).items() if keeps_bits(saved[p], x.dtype)}
            damaged = differing(arrays, checksums.get(name, {}), saved)
            if damaged:
                raise Unreadable(
                    f"{folder}: {len(damaged)} arrays of {name} are not what was saved, such as "
                    f"{damaged[0]}"
                )
        if bad := not_finite(restored):
            raise Unreadable(
                f"{folder}: {_shown(bad)} hold NaNs or infinities; take an earlier checkpoint"
            )

    def checksums(self, step: int) -> dict[str, dict[str, int]]:
        """The checksums of each tree's arrays; none for a tree that was saved without them.

        Unreadable: the file that holds them is damaged.
        """
        there = self._item(step, "checksums").is_dir()
        return self.restore_json(step, "checksums") if there else {}

    def restore_json(self, step: int, name: str) -> dict[str, Any]:
        """Read one of JSON_ITEMS of a step.

        Unreadable: it is missing or damaged. CheckpointError: it is the metadata of a checkpoint in
        a format that this version does not read.
        """
        where = self.directory / str(step)
        try:
            found = ocp.JsonCheckpointHandler().restore(orbax_path(self._item(step, name)))
        except Exception as error:
            raise self._unreadable(f"{where}: {name}", error) from error
        if name == "metadata" and found.get("format") != FORMAT:
            raise CheckpointError(
                f"{where}: checkpoint format {found.get('format')}, this version reads {FORMAT}; "
                "with the version that wrote it, run `imagewam export --format official`, and "
                "`imagewam convert` the result with this one"
            )
        return found

    def _item(self, step: int, name: str) -> AnyPath:
        """The folder of one of JSON_ITEMS, under the name that it was saved with."""
        folder = self.directory / str(step)
        earlier = folder / _METADATA_IN_FORMAT_3
        return earlier if name == "metadata" and earlier.is_dir() else folder / name

    def _unreadable(self, what: object, error: Exception) -> UserError:
        """The error to raise where a part of a checkpoint could not be read: Unreadable, unless an
        object storage did not give it, which says nothing of the part."""
        if isinstance(error, ConfigError):
            return error
        kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
        no_answer = is_remote(self.directory) and _NO_ANSWER.search(f"{kinds} {error}")
        kind = StorageError if no_answer else Unreadable
        return kind(f"{what} cannot be read: {_in_a_line(error)}")

    def close(self) -> None:
        """Wait until everything is on disk. CheckpointError: it could not be written."""
        with self._explained():
            self._manager.close()


def open_checkpoint(
    path: AnyPath | str, placement: Sharding | None = None
) -> tuple[Checkpoints, int]:
    """Open the checkpoints at a path (a run's folder, its `checkpoints`, or one step) and return
    them with the step that is meant, by default the latest. `placement` is that of `Checkpoints`.

    CheckpointError: there is no checkpoint.
    """
    path = as_path(path).absolute()
    step = None
    gone = names_a_step(path) and not path.exists() and step_folders(path.parent)
    if is_step(path) or gone:
        path, step = path.parent, int(path.name)
    elif (path / CHECKPOINTS_FOLDER).is_dir():
        path = path / CHECKPOINTS_FOLDER
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory, expected a run or a checkpoint in it")
    steps = step_folders(path)
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise CheckpointError(f"{path}: no {wanted}; it has {steps}")
    checkpoints = Checkpoints(path, read_only=True, placement=placement)
    chosen = steps[-1] if step is None else step
    try:
        checkpoints.restore_json(chosen, "metadata")
    except CheckpointError:
        checkpoints.close()
        raise
    return checkpoints, chosen


# How Orbax, TensorStore and Google's clients say that a storage does not answer, or refuses to.
_NO_ANSWER = re.compile(
    "UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|ABORTED"
    "|HttpError|ClientError|ConnectionError|Timeout|Forbidden|Unauthorized|TooManyRequests"
    "|ServiceUnavailable|InternalServerError|CredentialsError|RefreshError|RetryError"
)


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _means_full(error: Exception) -> bool:
    """Whether an error of Orbax or TensorStore, which tells it in words, is that of a full disk."""
    words = ("No space left", "Disk quota exceeded")
    return getattr(error, "errno", None) in DISK_FULL or any(x in str(error) for x in words)


def tree_bytes(tree: Any) -> int:
    """The size of all arrays of a tree, concrete or abstract, in bytes."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def check_space(directory: AnyPath, needed: int, copies: int = 1) -> None:
    """CheckpointError unless `copies` checkpoints of `needed` bytes fit into the free space, which
    in object storage has no end."""
    if is_remote(directory):
        return
    existing = next(p for p in (directory, *directory.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < copies * needed:
        raise CheckpointError(
            f"{directory}: {copies} checkpoint(s) of {needed / 1e6:.0f} MB do not fit: "
            f"{free / 1e6:.0f} MB are free; free some space there"
        )


def check_arrays(wanted: Any, saved: Any, where: str) -> None:
    """CheckpointError unless both trees have the same arrays; their dtypes may differ."""
    wanted, saved = (
        {path: leaf.shape for path, leaf in by_path(tree).items()} for tree in (wanted, saved)
    )
    differing = [path for path in sorted({*wanted, *saved}) if wanted.get(path) != saved.get(path)]
    if differing:
        shown = [f"{path} is {saved.get(path)}, not {wanted.get(path)}" for path in differing[:4]]
        raise CheckpointError(
            f"{where}: {len(differing)} arrays are not those that the config speaks of: "
            f"{'; '.join(shown)}"
        )


def _shown(paths: Sequence[str]) -> str:
    """How many arrays these are, and some of their names, for messages."""
    return f"{len(paths)} arrays ({', '.join(paths[:4])}{', ...' if len(paths) > 4 else ''})"


def _with_dtype(x: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)


METRICS_FILE = "metrics.jsonl"  # in a run's folder


def read_metrics(path: AnyPath) -> list[dict]:
    """The rows of a metrics file, none if there is no file. An unfinished last line, which a killed
    run can leave, is ignored."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]
