"""The spec of the small set that the tests write, and the shapes of its samples."""

import dataclasses
from pathlib import Path
from typing import Any

from imagewam_jax.config.defaults import defaults
from imagewam_jax.data.dataset_spec import Camera, DatasetSpec, Encoding
from imagewam_jax.data.datasets import Data, open_data
from imagewam_jax.data.index.dataset_index import DatasetIndex, default_index_dir
from imagewam_jax.data.loading.samples import SampleReader, SampleSpec
from imagewam_jax.data.transforms.standardize import standardize

TOY = DatasetSpec(
    name="toy_arm",
    cameras=(
        ("primary", Camera("observation/image")),
        ("wrist", Camera("observation/wrist_image")),
    ),
    action=Encoding("toy", ("x", "y", "speed", "grip"), (True, True, False, False)),
    state=Encoding("toy", ("a", "b", "c", "d", "e"), (False,) * 5),
    control_hz=10.0,
    action_keys=("action",),
    state_keys=("observation/state",),
)
TOY_SAMPLE = SampleSpec(
    cameras=("primary", "wrist"), buffer_size=(32, 48), horizon=16, action_dim=4, state_dim=5
)
# The same spec as users write it.
TOY_ROW = {
    "cameras": {"primary": "observation/image", "wrist": "observation/wrist_image"},
    "action": dataclasses.asdict(TOY.action),
    "state": {"name": "toy", "dims": TOY.state.dims},
    "control_hz": 10.0,
    "action_keys": ("action",),
    "state_keys": ("observation/state",),
}


def toy_reader(
    index: DatasetIndex,
    dataset_dir: Path,
    split: str,
    spec: DatasetSpec = TOY,
    sample: SampleSpec = TOY_SAMPLE,
    **options: Any,
) -> SampleReader:
    standardized = standardize(index, spec, default_index_dir(dataset_dir), progress=False)
    return SampleReader(index.split(split), standardized.splits[split], spec, sample, **options)


def toy_data(directory: Path, **changes: Any) -> Data:
    """The set as a config would have it opened, with other fields of the `data` section."""
    section = defaults().data.to_dict() | {
        "directory": str(directory),
        "dataset": "toy_arm",
        "rows": {"toy_arm": TOY_ROW},
        "cameras": ("primary", "wrist"),
    }
    sizes = {"horizon": 16, "action_dim": 4, "state_dim": 5}
    sizes |= {name: changes.pop(name) for name in sizes.keys() & changes.keys()}
    return open_data(section | changes, **sizes)
