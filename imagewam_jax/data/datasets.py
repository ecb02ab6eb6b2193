"""The datasets of a run, opened as the `data` section of a config says."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from imagewam_jax.config.defaults import defaults
from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.index.build import build_index
from imagewam_jax.data.index.dataset_index import (
    META_FILE,
    DatasetIndex,
    default_index_dir,
    open_index,
)
from imagewam_jax.data.index.kept_index import index_here
from imagewam_jax.data.index.tfds_folder import read_tfds_folder
from imagewam_jax.data.index.version_folder import version_folder
from imagewam_jax.data.loading.dataset import Dataset
from imagewam_jax.data.loading.loader import Source
from imagewam_jax.data.loading.samples import SampleSpec
from imagewam_jax.data.loading.splits import shared_episodes
from imagewam_jax.data.registry import dataset_spec
from imagewam_jax.data.registry.config import spec_from_config
from imagewam_jax.data.registry.mixtures import (
    MIXTURES,
    Entry,
    Mixture,
    mixture_from_config,
    shares,
)
from imagewam_jax.data.transforms.standardize import NO_TEXT, StandardizedDataset, standardize
from imagewam_jax.errors import DataError, raise_all
from imagewam_jax.storage.objects import CONCURRENT_READS, AnyPath, as_path

SPLIT_FIELDS = ("train_split", "eval_split")


@dataclasses.dataclass(frozen=True)
class Data:
    """The datasets of a run, at least one."""

    mixture: Mixture
    scale_by_size: bool
    datasets: tuple[Dataset, ...]

    @property
    def instructions(self) -> tuple[str, ...]:
        """The distinct instructions of all datasets, sorted."""
        return self.datasets[0].instructions

    def __getitem__(self, name: str) -> Dataset:
        for dataset in self.datasets:
            if dataset.name == name:
                return dataset
        raise DataError(f"no dataset {name!r} among {[d.name for d in self.datasets]}")

    @property
    def fills_buffer(self) -> bool:
        """Whether every image fills its buffer, so that image sizes need not go to the device."""
        sample = self.datasets[0].sample
        return all(
            (split.images[camera.key].size_ehw == sample.buffer_size).all()
            for dataset in self.datasets
            for split in dataset.index.splits.values()
            for role, camera in dataset.spec.cameras
            if role in sample.cameras
        )

    def sources(self, split: str) -> list[Source]:
        """The datasets of a training stream over this split of each."""
        start_frames = {d.name: d.start_frames(split) for d in self.datasets}
        sizes = {name: len(frames) for name, frames in start_frames.items()}
        share = shares(self.mixture, sizes, self.scale_by_size)
        return [
            Source(d.reader(split), start_frames[d.name], share[d.name], d.identity(split))
            for d in self.datasets
        ]


def shared_splits(datasets: Sequence[Dataset], section: Mapping[str, Any]) -> list[str]:
    """A sentence for each dataset whose training split shares episodes with the held-out one."""
    train, held_out = (section[name] for name in SPLIT_FIELDS)
    found = []
    for dataset in datasets:
        one, other = dataset.select(train), dataset.select(held_out)
        if shared := shared_episodes(one, other):
            found.append(
                f"{dataset.name}: {shared} of the {len(other.episodes)} episodes of "
                f"data.eval_split={held_out!r} are in data.train_split={train!r}, too: they are "
                "not held out"
            )
    return found


def open_data(section: Mapping[str, Any], *, horizon: int, action_dim: int, state_dim: int) -> Data:
    """Opens the dataset or the mixture of a config and indexes datasets that have no index.

    DataError: a dataset does not fit its spec, the model's widths or the cameras of the config.
    """
    mixture = config_mixture(section)
    opened = [_open_one(section, entry) for entry in mixture.entries]
    specs = [spec for spec, *_ in opened]
    check_cameras(section["cameras"], specs)
    check_widths(action_dim, state_dim, specs)
    sample = SampleSpec(
        cameras=tuple(section["cameras"]),
        buffer_size=_buffer_size(section["cameras"], [(spec, index) for spec, index, *_ in opened]),
        horizon=horizon,
        action_dim=action_dim,
        state_dim=state_dim,
        stride=section["stride"],
    )
    texts = [
        ("",) if entry.blank_language else standardized.instructions
        for entry, (*_, standardized) in zip(mixture.entries, opened, strict=True)
    ]
    blank = {""} if section["unlabelled"] == "blank" else set()
    instructions = tuple(sorted(blank.union(*texts)))
    datasets = tuple(
        Dataset(
            number=number,
            index=index,
            index_folder=folder,
            spec=spec,
            standardized=standardized,
            sample=sample,
            instructions=instructions,
            text_rows=_text_rows(standardized, instructions, entry),
            every=section["sample_every"],
            unlabelled="blank" if entry.blank_language else section["unlabelled"],
            not_finite=section.get("not_finite", "error"),  # older checkpoints do not say
            split_fields=_split_fields(section),
            # Older checkpoints do not say it, either.
            concurrent_reads=section.get("concurrent_reads", CONCURRENT_READS),
        )
        for number, (entry, (spec, index, folder, standardized)) in enumerate(
            zip(mixture.entries, opened, strict=True)
        )
    )
    return Data(mixture, section["scale_by_size"], datasets)


def config_mixture(section: Mapping[str, Any]) -> Mixture:
    """The datasets that the `data` section of a config names. DataError: it names none, or one that
    is not there."""
    named, single = section["mixture"], section["dataset"]
    if bool(named) == bool(single):
        raise DataError("give either data.dataset, one dataset, or data.mixture, several")
    if single:
        return Mixture((Entry(single, 1.0),))
    own = section["mixtures"]
    if named in own:
        return mixture_from_config(own[named])
    if named not in MIXTURES:
        raise DataError(f"no mixture {named!r}, there are {sorted([*own, *MIXTURES])}")
    return MIXTURES[named]


def entry_spec(section: Mapping[str, Any], entry: Entry) -> DatasetSpec:
    """How an entry of a mixture is read: its row in the config's `data` section, else that of the
    registry. DataError: there is none, or it is not one."""
    name, rows, root = entry.dataset, section["rows"], section["directory"]
    if name in rows:
        return spec_from_config({"name": name, **rows[name]})
    return dataset_spec(name, as_path(root) / name if section["mixture"] else root)


def _open_one(
    section: Mapping[str, Any], entry: Entry
) -> tuple[DatasetSpec, DatasetIndex, Path, StandardizedDataset]:
    spec = entry_spec(section, entry)
    folder, place = dataset_folders(section, entry)
    with index_here(place) as index_folder:
        if (index_folder / META_FILE).exists():
            index = open_index(folder, index_folder)
        else:
            index = build_index(folder, index_folder, if_absent=True)
        return spec, index, index_folder, standardize(index, spec, index_folder)


def dataset_folders(section: Mapping[str, Any], entry: Entry) -> tuple[AnyPath, AnyPath]:
    """The folders of an entry's dataset and of its index. DataError: the first is not there."""
    root = as_path(section["directory"])
    folder = version_folder(root, entry.dataset, entry.version, entry.config)
    if section["index_directory"]:  # for datasets that lie where nothing can be written
        return folder, as_path(section["index_directory"]) / entry.dataset
    return folder, default_index_dir(folder)


def check_cameras(roles: Sequence[str], specs: Sequence[DatasetSpec]) -> None:
    """DataError for each role that no dataset has, and each dataset that has none of the roles."""
    known = {spec.name: [role for role, _ in spec.cameras] for spec in specs}
    errors = [
        DataError(f"no dataset has a camera {role!r}; they have {known}")
        for role in roles
        if not any(role in cameras for cameras in known.values())
    ]
    for name, cameras in known.items() if not errors else ():
        if not set(roles) & set(cameras):
            error = f"{name!r} has none of the cameras {list(roles)}, it has {cameras}"
            errors.append(DataError(error))
    raise_all(errors)


def check_widths(action_dim: int, state_dim: int, specs: Sequence[DatasetSpec]) -> None:
    """DataError for each width that is not the largest of the datasets: more would be all
    padding."""
    errors = []
    for what, configured, field in (
        ("action_dim", action_dim, "action"),
        ("state_dim", state_dim, "state"),
    ):
        widths = {spec.name: len(getattr(spec, field).dims) for spec in specs}
        if max(widths.values()) != configured:
            error = (
                f"the configured {what} is {configured}, the datasets have {widths} (-1 takes it "
                "from there)"
            )
            errors.append(DataError(error))
    raise_all(errors)


def _split_fields(section: Mapping[str, Any]) -> dict[str, str]:
    fields: dict[str, list[str]] = {}
    for name in SPLIT_FIELDS:
        fields.setdefault(section[name], []).append(f"data.{name}")
    return {split: " and ".join(names) for split, names in fields.items()}


def _buffer_size(
    roles: Sequence[str], opened: Sequence[tuple[DatasetSpec, DatasetIndex]]
) -> tuple[int, int]:
    """The height and width that hold every image of these cameras."""
    largest = np.zeros(2, int)
    for spec, index in opened:
        for role, camera in spec.cameras:
            for split in index.splits.values() if role in roles else ():
                if camera.key not in split.images:
                    skipped = f"; not indexed: {index.skipped}" if index.skipped else ""
                    raise DataError(
                        f"{index.name}: the spec {spec.name!r} has camera {role!r} at "
                        f"{camera.key!r}, images are {sorted(split.images)}{skipped}"
                    )
                column = split.images[camera.key]
                if column.dtype != "uint8":
                    raise DataError(
                        f"{index.name}: the spec {spec.name!r} has camera {role!r} at "
                        f"{camera.key!r}, whose pixels are {column.dtype}, expected uint8"
                    )
                sizes = column.size_ehw
                largest = np.maximum(largest, sizes.max(0, initial=0))
    if not largest.all():
        raise DataError(f"the cameras {list(roles)} have no image in any episode")
    return int(largest[0]), int(largest[1])


def _text_rows(
    standardized: StandardizedDataset, instructions: Sequence[str], entry: Entry
) -> Int32[np.ndarray, " n"]:
    row = {text: number for number, text in enumerate(instructions)}
    texts = [*standardized.instructions, ""]
    return np.array(
        [row.get("" if entry.blank_language else text, NO_TEXT) for text in texts], np.int32
    )


ROW_WIDTH = -1  # a width in a config that is to be the one of the dataset's row


def resolve_widths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with numbers for the widths of actions and states that are -1: those of its
    dataset's row, of a mixture the largest.

    Whatever makes arrays of these widths, or keeps the config, takes it from here. DataError: the
    config names no dataset.
    """
    model = config["model"]
    action_dim = model["expert"].get("action_dim", ROW_WIDTH)
    widths = {"action": action_dim, "state": model["proprio_dim"]}
    if ROW_WIDTH in widths.values():
        section = config["data"]
        specs = [entry_spec(section, entry) for entry in config_mixture(section).entries]
        for field, width in widths.items():
            if width == ROW_WIDTH:
                widths[field] = max(len(getattr(spec, field).dims) for spec in specs)
        expert = {**model["expert"], "action_dim": widths["action"]}
        model = {**model, "expert": expert, "proprio_dim": widths["state"]}
    return {**config, "model": model}


def config_data(config: Mapping[str, Any]) -> Data:
    """The datasets of a config. DataError: they do not fit it."""
    model = resolve_widths(config)["model"]
    return open_data(
        config["data"],
        horizon=model["horizon"],
        action_dim=model["expert"]["action_dim"],
        state_dim=model["proprio_dim"] or 0,  # a converted policy without a state has None
    )


def dataset_config(directory: AnyPath | str, name: str | None = None) -> dict[str, Any]:
    """A config for one dataset alone, with all cameras and the widths of its registered spec.

    name: the name of the spec; by default the dataset's own. DataError: there is no such spec, or
    no dataset.
    """
    directory = as_path(directory)
    folder = read_tfds_folder(version_folder(directory, name or directory.name))
    spec, config = dataset_spec(name or folder.name, directory), defaults().to_dict()
    config["data"] |= {
        "directory": str(folder.path),
        "dataset": spec.name,
        "cameras": tuple(role for role, _ in spec.cameras),
        "train_split": "train" if "train" in folder.splits else next(iter(folder.splits)),
        "unlabelled": "blank",
        "not_finite": "drop_steps",
    }
    config["model"]["expert"]["action_dim"] = len(spec.action.dims)
    config["model"]["proprio_dim"] = len(spec.state.dims)
    return config
