"""Are the datasets there, and do they have what the config asks of them?

A small set is indexed on the way, as training would. A large one is opened if it has been indexed;
otherwise its description alone is read, and what only its episodes can tell is not checked.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.datasets import (
    ROW_WIDTH,
    SPLIT_FIELDS,
    Data,
    check_cameras,
    check_widths,
    config_data,
    config_mixture,
    dataset_folders,
    entry_spec,
    resolve_widths,
    shared_splits,
)
from imagewam_jax.data.index.dataset_index import META_FILE
from imagewam_jax.data.index.tfds_folder import TfdsFolder, check_shards, read_tfds_folder
from imagewam_jax.data.loading.loader import BadFrames, Source
from imagewam_jax.data.loading.splits import parse_split
from imagewam_jax.data.loading.start_frames import check_unlabelled
from imagewam_jax.data.registry.mixtures import Entry
from imagewam_jax.data.statistics.exact import check_same_encodings
from imagewam_jax.data.transforms.standardize import CACHE_DIR
from imagewam_jax.errors import DataError, UserError, collecting, raise_all
from imagewam_jax.preflight.model import SELECTION
from imagewam_jax.preflight.run import NotChecked, Run, about
from imagewam_jax.storage.folders import copy_of
from imagewam_jax.storage.objects import AnyPath, is_remote
from imagewam_jax.training.batches import validates

SMALL_BYTES = 2**29  # of all shards: indexed within some seconds
# The size of an index with standardized episodes beside the shards': it is that of the sample that
# ships with the project, whose pictures are small, and less where they are larger.
INDEX_SHARE = 0.08


class Folder(NamedTuple):
    """One dataset of the run, as its folder describes it."""

    spec: DatasetSpec
    tfds: TfdsFolder
    index: AnyPath

    @property
    def shard_bytes(self) -> int:
        return sum(self.tfds.shard_bytes())

    @property
    def indexed(self) -> bool:
        return (self.index / META_FILE).exists()

    @property
    def standardized(self) -> bool:
        folder = self.index / CACHE_DIR
        found = folder.iterdir() if folder.is_dir() else ()
        return any(path.name.startswith(f"{self.spec.name}-") for path in found)


class Opened(NamedTuple):
    """The datasets, with the config's cameras; or with others and the reason why."""

    data: Data
    error: UserError | None


def rows(run: Run) -> list[tuple[Entry, DatasetSpec]]:
    """The config names a dataset or a mixture, and each has a row that can be used."""
    section = run.config(*SELECTION)["data"]
    with about("data.mixture" if section["mixture"] else "data.dataset"):
        entries = config_mixture(section).entries
        found, errors = [], []
        for entry in entries:
            with collecting(errors):
                found.append((entry, entry_spec(section, entry)))
        raise_all(errors)
    return found


def _specs(run: Run) -> list[DatasetSpec]:
    return [spec for _, spec in run.of(rows)]


def cameras(run: Run) -> None:
    """The rows have the config's cameras."""
    with about("data.cameras"):
        check_cameras(run.config("data.cameras")["data"]["cameras"], _specs(run))


def widths(run: Run) -> None:
    """Actions and states are as wide as the widest row."""
    specs = _specs(run)
    model = resolve_widths(run.config("model.expert.action_dim", "model.proprio_dim"))["model"]
    with about("model.expert.action_dim, model.proprio_dim"):
        check_widths(model["expert"]["action_dim"], model["proprio_dim"], specs)


def pooled_statistics(run: Run) -> None:
    """Statistics over all datasets are wanted only of numbers that mean the same."""
    if run.config("data.pool_statistics")["data"]["pool_statistics"]:
        with about("data.pool_statistics"):
            check_same_encodings(_specs(run))


def unlabelled_steps(run: Run) -> None:
    with about("data.unlabelled"):
        check_unlabelled(run.config("data.unlabelled")["data"]["unlabelled"])


def bad_frames(run: Run) -> None:
    with about("data.bad_frames"):
        BadFrames(run.config("data.bad_frames")["data"]["bad_frames"], frames=0)


def folders(run: Run) -> list[Folder]:
    """Each dataset is RLDS, all of whose shards are there."""
    section = run.config("data.directory", "data.index_directory")["data"]
    found, errors = [], []
    for entry, spec in run.of(rows):
        with collecting(errors), about("data.directory"):
            if not section["directory"]:
                raise DataError("data.directory is empty, expected the folder of the dataset")
            folder, index = dataset_folders(section, entry)
            dataset = Folder(spec, read_tfds_folder(folder), index)
            if not dataset.indexed:  # an index can be of those shards alone that are there
                check_shards(dataset.tfds)
            found.append(dataset)
    raise_all(errors)
    return found


def room_for_the_index(run: Run) -> None:
    """Indexes that are not there can be written."""
    errors: list[UserError] = []
    for folder in run.of(folders):
        if folder.indexed and folder.standardized:
            continue
        place = copy_of(folder.index) if is_remote(folder.index) else folder.index
        existing = next(p for p in (place, *place.parents) if p.exists())
        free, needed = shutil.disk_usage(existing).free, INDEX_SHARE * folder.shard_bytes
        if not _writable(existing):
            what = "nothing can be written there; name a folder for all indexes"
        elif free < needed:
            what = f"{free / 1e9:.1f} GB are free, expected {needed / 1e9:.1f} GB; name another"
        else:
            continue
        errors.append(DataError(f"data.index_directory: the index {folder.index}: {what}"))
    raise_all(errors)


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def datasets(run: Run) -> Opened:
    """All datasets, opened with their own widths and with cameras that are there, so that a width
    or a camera which does not fit keeps nothing else from being checked."""
    found = run.of(folders)
    run.of(room_for_the_index)
    _check_quick(found)
    section = dict(run.config("data.scale_by_size", "data.stride", "data.sample_every")["data"])
    if isinstance(run.outcome(unlabelled_steps), UserError | NotChecked):
        section["unlabelled"] = "drop"
    stored, error = _stored_roles(found), None
    if run.outcome(cameras) is None:
        try:
            return Opened(_open(run, section, section["cameras"]), None)
        except DataError as wrong:
            error = wrong
            if not stored or set(stored) == set(section["cameras"]):
                raise
    if not stored:
        raise NotChecked("no camera of the rows is stored")
    return Opened(_open(run, section, stored), error)


def _check_quick(found: Sequence[Folder]) -> None:
    """NotChecked: to open a dataset would take long."""
    for folder in found:
        if not (folder.indexed and folder.standardized) and folder.shard_bytes > SMALL_BYTES:
            raise NotChecked(
                f"{folder.tfds.path} is large ({folder.shard_bytes / 1e9:.0f} GB) and not yet "
                f"indexed; index it with: imagewam data index {folder.tfds.path}"
            )


def _open(run: Run, section: dict[str, Any], roles: Sequence[str]) -> Data:
    horizon = run.config()["model"]["horizon"] if run.usable("model.horizon") else 1
    model = {"horizon": horizon, "expert": {"action_dim": ROW_WIDTH}, "proprio_dim": ROW_WIDTH}
    return config_data({"data": {**section, "cameras": tuple(roles)}, "model": model})


def _stored_roles(found: Sequence[Folder]) -> tuple[str, ...]:
    """The roles of cameras whose images are stored."""
    roles: dict[str, None] = {}
    for folder in found:
        keys = {f.key for f in folder.tfds.features.steps if f.kind == "image"}
        roles |= {role: None for role, camera in folder.spec.cameras if camera.key in keys}
    return tuple(roles)


def stored_images(run: Run) -> None:
    """The images of the config's cameras are stored, and can be read."""
    run.of(cameras)
    error = run.of(datasets).error
    if error is not None:
        raise error


def training_samples(run: Run) -> list[Source]:
    """The training split is there, and has samples."""
    with about("data.train_split"):
        return _sources(run, "train_split")


def stored_keys(run: Run) -> None:
    """The features that the rows name are declared, of datasets that are not opened."""
    errors: list[UserError] = []
    for folder in _not_opened(run):
        features = folder.tfds.features
        images = {f.key for f in features.steps if f.kind == "image"}
        others = {f.key for f in (*features.steps, *features.episodes)} - images
        spec = folder.spec
        cameras_used = {
            camera.key
            for role, camera in spec.cameras
            if not run.usable("data.cameras") or role in run.config()["data"]["cameras"]
        }
        texts_and_numbers = {*spec.language, *spec.action_keys, *spec.state_keys}
        for what, named, there in (
            ("image", cameras_used, images),
            ("feature", texts_and_numbers, others),
        ):
            if missing := sorted(named - there):
                error = (
                    f"{folder.tfds.path}: the row {spec.name!r} names {missing}, its {what}s are "
                    f"{sorted(there)}"
                )
                errors.append(DataError(error))
    raise_all(errors)


def _not_opened(run: Run) -> list[Folder]:
    """The datasets of which only the description is read."""
    found = run.of(folders)
    return found if isinstance(run.outcome(datasets), NotChecked) else []


def split_names(run: Run) -> None:
    """The splits are declared, of datasets that are not opened."""
    found = _not_opened(run)
    errors: list[UserError] = []
    for field in SPLIT_FIELDS if found else ():
        with collecting(errors), about(f"data.{field}"):
            text = run.config(f"data.{field}")["data"][field]
            names = {term.name for term in parse_split(text)} - {"all"}
            for folder in found:
                if unknown := sorted(names - folder.tfds.splits.keys()):
                    raise DataError(
                        f"{folder.tfds.path} has no split {unknown[0]!r}, it has "
                        f"{sorted(folder.tfds.splits)}"
                    )
    raise_all(errors)


def validation_samples(run: Run) -> None:
    """The held-out split is there, and has samples, if the run looks at them."""
    if validates(run.config("train.validate_every", "train.validation_samples")):
        with about("data.eval_split"):
            _sources(run, "eval_split")


def held_out_samples(run: Run) -> None:
    """The held-out split is there, and has samples."""
    with about("data.eval_split"):
        _sources(run, "eval_split")
    if not isinstance(run.outcome(training_samples), UserError | NotChecked):
        for shared in shared_splits(run.of(datasets).data.datasets, run.config()["data"]):
            run.note(shared)


def _sources(run: Run, field: str) -> list[Source]:
    opened, section = run.of(datasets), run.config(f"data.{field}")["data"]
    return opened.data.sources(section[field])


def episode_lengths(run: Run) -> None:
    """Most episodes are longer than a chunk of actions."""
    run.of(training_samples)
    config = run.config("model.horizon", "data.stride", "data.train_split")
    horizon, stride = config["model"]["horizon"], config["data"]["stride"]
    for dataset in run.of(datasets).data.datasets:
        selected = dataset.select(config["data"]["train_split"])
        steps = selected.standardized.episode_steps[selected.episodes]
        short = int((steps <= horizon * stride).sum())
        if 2 * short > len(steps):
            run.note(
                f"{dataset.name}: {short} of {len(steps)} episodes are no longer than a chunk, "
                f"model.horizon {horizon} x data.stride {stride} steps; the future image is then "
                "that of an episode's end"
            )
