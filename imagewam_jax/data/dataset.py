"""One RLDS dataset, opened the way a config's `data` section says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from imagewam_jax.data.index import META_FILE, DatasetIndex, default_index_dir, open_index
from imagewam_jax.data.index_builder import build_index
from imagewam_jax.data.registry import DatasetSpec, dataset_spec
from imagewam_jax.data.samples import SampleReader, SampleSpec


class Dataset(NamedTuple):
    """An opened dataset and what its samples look like."""

    index: DatasetIndex
    spec: DatasetSpec
    sample: SampleSpec

    def reader(self, split: str) -> SampleReader:
        return SampleReader(self.index, split, self.spec, self.sample)


def open_dataset(
    section: Mapping[str, Any], *, horizon: int, action_dim: int, state_dim: int
) -> Dataset:
    """Opens the dataset, indexing it first if nobody has. DataError: it does not fit."""
    spec = dataset_spec(section["dataset"])
    sample = SampleSpec(
        cameras=tuple(section["cameras"]),
        image_size=tuple(section["image_size"]),
        horizon=horizon,
        action_dim=action_dim,
        state_dim=state_dim,
        stride=section["stride"],
    )
    directory = Path(section["directory"])
    has_index = (default_index_dir(directory, spec) / META_FILE).exists()
    index = open_index(directory, spec) if has_index else build_index(directory, spec)
    return Dataset(index, spec, sample)
