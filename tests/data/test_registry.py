"""The registry's rows."""

from pathlib import Path

import numpy as np
import pytest

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.index_builder import build_index
from imagewam_jax.data.registry import REGISTRY, dataset_spec
from imagewam_jax.data.samples import SampleReader, SampleSpec

SHIPPED = Path(__file__).parents[2] / "data/metaworld_faucet/sample/metaworld_faucet/1.0.0"


def test_rows_are_found_by_name():
    for name in REGISTRY:
        assert dataset_spec(name).name == name
    with pytest.raises(DataError, match=r"no dataset 'x' in the registry, which has \['metaworld"):
        dataset_spec("x")


def test_the_shipped_sample_is_read_by_its_row(tmp_path):
    """Real episodes: clean 64 x 64 images, actions within the simulator's limits, both tasks."""
    spec = dataset_spec("metaworld_faucet")
    index = build_index(SHIPPED, spec, tmp_path / "index", progress=False)
    assert index.instructions == ("close the faucet", "open the faucet")
    assert index.splits.keys() == {"train", "val"}
    for name, split in index.splits.items():
        sample = SampleSpec(("primary",), (64, 64), horizon=16, action_dim=4, state_dim=4)
        reader = SampleReader(index, name, spec, sample)
        batch = reader.read(np.arange(split.num_frames))
        assert set(batch["text_id"]) == {0, 1}
        assert np.abs(batch["actions"]).max() <= 1
        assert batch["images"].std() > 10
        assert (batch["images"][:, 0, 0] != batch["images"][:, 0, 1]).any()
        last = batch["target_is_pad"] & batch["action_is_pad"][:, 1:].all(axis=1)
        assert last.sum() == split.num_episodes
        reader.close()
