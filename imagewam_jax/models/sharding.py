"""Where arrays lie: a mesh of devices, and the shardings that follow from it.

What each axis of a mesh divides is told in `models.partitioning`. Slices of a multi-slice pod are
whole parts of `data`, the axis that communicates least.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int64

from imagewam_jax.errors import ConfigError
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import abstract_params, flatten, parameter_axes, unflatten
from imagewam_jax.models.partitioning import MESH_AXES, RULES, partition_spec


def make_mesh(section: Mapping[str, Any], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a config's `mesh` section over all devices of all hosts.

    One axis can be -1: what the others leave. ConfigError: the sizes are not those of the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: section[axis] for axis in MESH_AXES}
    slices = section["slices"]
    if unknown := sorted(set(section) - {*MESH_AXES, "slices"}):
        raise ConfigError(f"mesh has unknown fields {unknown}; it has {[*MESH_AXES, 'slices']}")
    for name, size in {**sizes, "slices": slices}.items():
        if type(size) is not int or not (size > 0 or (size == -1 and name != "slices")):
            raise ConfigError(f"mesh.{name} is {size!r}, expected a positive number")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ConfigError(f"mesh has -1 for {free}; only one axis can take what the others leave")
    given = math.prod(size for size in sizes.values() if size != -1)
    shown = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    if len(devices) % given or (not free and given != len(devices)):
        raise ConfigError(f"a mesh of {shown} is not one of {len(devices)} devices")
    for axis in free:
        sizes[axis] = len(devices) // given
    if sizes["data"] % slices:
        raise ConfigError(f"mesh.data {sizes['data']} does not divide over {slices} slices")
    try:
        array = _arrange(tuple(sizes.values()), slices, devices)
    except (ValueError, NotImplementedError, AssertionError) as error:
        raise ConfigError(f"a mesh of {shown} cannot be made: {error}") from error
    return Mesh(array, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _arrange(sizes: tuple[int, ...], slices: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices such that axes that communicate much are near each other."""
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices)
    within = (sizes[0] // slices, *sizes[1:])
    between = (slices, *(1 for _ in sizes[1:]))
    # Hosts without TPUs have no slices, or say that all are in one; there processes stand for them.
    by_process = len({getattr(device, "slice_index", 0) for device in devices}) == 1
    return mesh_utils.create_hybrid_device_mesh(
        within, between, devices, process_is_granule=by_process
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The samples of a batch, the leading axis of all its arrays."""
    return NamedSharding(mesh, partition_spec(["batch"]))


def batch_rows(mesh: Mesh, global_batch: int, accumulate: int) -> Int64[np.ndarray, " rows"]:
    """The samples of a global batch of training that this host's devices hold, in order.

    ConfigError: the batch cannot be divided over the devices and `accumulate` parts.
    """
    if global_batch % (batch_parts(mesh) * accumulate):
        sizes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in RULES["batch"])
        raise ConfigError(
            f"train.batch_size {global_batch} does not divide over {sizes} of the mesh and "
            f"{accumulate} of train.accumulate"
        )
    return rows_here(mesh, global_batch)


def batch_parts(mesh: Mesh) -> int:
    """The number of parts that a mesh divides a batch into."""
    return _parts(mesh, "batch")


def rows_here(mesh: Mesh, global_batch: int) -> Int64[np.ndarray, " rows"]:
    """The samples of a global batch, a multiple of `batch_parts`, that this host's devices hold, in
    order. Hosts that share what is computed for a sample hold the same ones."""
    held = batch_sharding(mesh).addressable_devices_indices_map((global_batch,))
    rows = np.arange(global_batch)
    return np.unique(np.concatenate([rows[index] for index in held.values()]))


def param_shardings(mesh: Mesh, policy: ImageWAMConfig) -> dict[str, Any]:
    """The sharding of each parameter. ConfigError names one that the mesh cannot divide."""
    # Kernels have all channels of all heads on one axis, which would be divided within a head.
    heads, parts = policy.backbone.kv_heads, _parts(mesh, "heads")
    if heads % parts:
        raise ConfigError(
            f"the backbone has {heads} heads, which do not divide over {_shown(mesh, 'heads')}"
        )
    axes, shapes = flatten(parameter_axes(policy)), flatten(abstract_params(policy))
    return unflatten(
        {path: _sharding(mesh, path, names, shapes[path].shape) for path, names in axes.items()}
    )


def cache_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """How an array of a cache, [layer, robot, token, head, ...], lies where attention reads it.

    Heads that are fewer than the queries' lie whole on each device if they cannot be divided.
    """
    heads = None if shape[3] % _parts(mesh, "heads") else RULES["heads"]
    return NamedSharding(mesh, PartitionSpec(None, RULES["batch"], None, heads))


def _sharding(mesh: Mesh, path: str, names: Sequence[str], shape: Sequence[int]) -> NamedSharding:
    for name, size in zip(names, shape, strict=True):
        if size % _parts(mesh, name):
            raise ConfigError(
                f"{path} has {size} {name}, which do not divide over {_shown(mesh, name)}"
            )
    return NamedSharding(mesh, partition_spec(names))


def _parts(mesh: Mesh, name: str) -> int:
    """The number of parts that a mesh divides a logical axis into."""
    return math.prod(mesh.shape[axis] for axis in RULES[name])


def _shown(mesh: Mesh, name: str) -> str:
    """What divides a logical axis, for messages."""
    return ", ".join(f"mesh.{axis} {mesh.shape[axis]}" for axis in RULES[name])


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Abstract arrays that say where they lie."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def shardings_of(abstract: Any) -> Any:
    """The shardings that abstract arrays say."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def replicate(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays that every process holds, as global ones that lie on every device."""

    def put(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)
