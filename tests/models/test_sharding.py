"""The mesh of a config, and what it cannot divide."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import ConfigError
from imagewam_jax.models.parameters import flatten, parameter_axes
from imagewam_jax.models.partitioning import MESH_AXES, RULES
from imagewam_jax.models.sharding import (
    batch_rows,
    batch_sharding,
    cache_sharding,
    make_mesh,
    param_shardings,
)
from imagewam_jax.training.batches import put_batch
from tests.training.tiny import one_device, tiny_config

MESH = {"data": 1, "fsdp": -1, "tensor": 1, "context": 1, "slices": 1}


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh is made of; nothing is computed on it."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"

    @property
    def process_index(self):
        return self.id


def devices(count, slices=1):
    return [Device(n, n * slices // count) for n in range(count)]


@pytest.mark.parametrize(
    ("count", "given", "sizes"),
    [
        (1, {}, (1, 1, 1, 1)),
        (8, {}, (1, 8, 1, 1)),
        (8, {"tensor": 2}, (1, 4, 2, 1)),
        (8, {"data": -1, "fsdp": 2, "context": 2}, (2, 2, 1, 2)),
        (8, {"data": 8, "fsdp": 1}, (8, 1, 1, 1)),
        (8, {"data": 2, "slices": 2}, (2, 4, 1, 1)),
    ],
)
def test_sizes(count, given, sizes):
    found = make_mesh({**MESH, **given}, devices(count, given.get("slices", 1)))
    assert tuple(found.shape.items()) == tuple(zip(MESH_AXES, sizes, strict=True))
    assert sorted(device.id for device in found.devices.flat) == list(range(count))


def test_slices_are_whole_parts_of_data():
    found = make_mesh({**MESH, "data": 4, "slices": 2}, devices(8, 2))
    of_slice = [{d.slice_index for d in part.flat} for part in found.devices]
    assert of_slice == [{0}, {0}, {1}, {1}]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tensor": 3}, "data 1 x fsdp -1 x tensor 3 x context 1 is not one of 8 devices"),
        ({"fsdp": 4}, "data 1 x fsdp 4 x tensor 1 x context 1 is not one of 8 devices"),
        ({"data": -1}, r"mesh has -1 for \['data', 'fsdp'\]"),
        ({"tensor": 0}, "mesh.tensor is 0, expected a positive number"),
        ({"context": 1.5}, "mesh.context is 1.5, expected a positive number"),
        ({"slices": -1}, "mesh.slices is -1, expected a positive number"),
        ({"slices": 2}, "mesh.data 1 does not divide over 2 slices"),
        ({"data": 2, "slices": 2}, "cannot be made"),  # all devices are of one slice
        ({"model": 2}, r"mesh has unknown fields \['model'\]"),
    ],
)
def test_what_is_no_mesh(given, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh({**MESH, **given}, devices(8))


def sized(**sizes):
    """A mesh of which only the sizes matter."""
    return SimpleNamespace(shape={**dict.fromkeys(MESH_AXES, 1), **sizes})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": 4}, r"the backbone has 2 heads, which do not divide over mesh.tensor 4"),
        ({"fsdp": 3}, r"\w+\.\w+ has 16 embed, which do not divide over mesh.fsdp 3"),
    ],
)
def test_what_a_mesh_cannot_divide_is_named(sizes, message):
    with pytest.raises(ConfigError, match=message):
        param_shardings(sized(**sizes), policy_config(tiny_config("").to_dict()["model"]))


def test_a_batch_that_cannot_be_divided():
    with pytest.raises(ConfigError, match="batch_size 12 does not divide over data 2 x fsdp 4"):
        batch_rows(sized(data=2, fsdp=4), 12, 1)
    with pytest.raises(ConfigError, match=r"data 2 x fsdp 1 .* and 5 of train.accumulate"):
        batch_rows(sized(data=2), 12, 5)


def test_a_cache_is_shared_by_robots_and_heads():
    mesh = AbstractMesh((2, 2, 2, 1), MESH_AXES)
    shared = cache_sharding(mesh, (5, 8, 40, 6, 16))
    assert shared.shard_shape((5, 8, 40, 6, 16)) == (5, 2, 40, 3, 16)
    few_heads = (5, 8, 40, 1, 16)
    assert cache_sharding(mesh, few_heads).shard_shape(few_heads) == (5, 2, 40, 1, 16)


def test_every_axis_of_a_parameter_has_a_rule():
    config = tiny_config("").to_dict()["model"]
    config["lora"] = {"rank": 2, "alpha": 2.0}
    axes = flatten(parameter_axes(policy_config(config)))
    assert {name for names in axes.values() for name in names} <= RULES.keys()
    found = flatten(param_shardings(one_device(), policy_config(config)))
    assert found["expert.single_layers.q.kernel"].spec == PartitionSpec(
        None, ("fsdp",), ("tensor",)
    )


def test_a_host_puts_its_rows_where_they_belong():
    mesh = one_device()
    rows = batch_rows(mesh, 6, 2)
    np.testing.assert_array_equal(rows, np.arange(6))
    batch = {"x": np.arange(12.0, dtype=np.float32).reshape(6, 2), "y": np.arange(6)}
    found = put_batch(batch, ["x", "y"], batch_sharding(mesh), 6)
    for key, value in batch.items():
        assert isinstance(found[key], jax.Array)
        np.testing.assert_array_equal(found[key], value)
