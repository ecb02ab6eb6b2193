"""Splash attention on meshes of four virtual devices; run as a process of its own with `FLAGS`.

Prints for each mesh how far its results and gradients are from those of `attend_xla` without a
mesh, and how the result is divided, as JSON.
"""

import json

import jax

from imagewam_jax.models.attention import attend_xla
from imagewam_jax.models.attention.splash import make_splash
from imagewam_jax.models.partitioning import MESH_AXES
from tests.models.attention.problems import largest_difference, make_problem, solve

FLAGS = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
MESHES = {  # data, fsdp, tensor, context
    "data": (4, 1, 1, 1),
    "fsdp and tensor": (1, 2, 2, 1),
    "fsdp and context": (1, 2, 1, 2),
}


def main() -> None:
    problem = make_problem(samples=4, lengths=[80, 70, 65, 62])
    expected, splash, found = solve(attend_xla, problem), make_splash(interpret=True), {}
    for name, sizes in MESHES.items():
        auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
        with jax.set_mesh(jax.make_mesh(sizes, MESH_AXES, axis_types=auto)):
            solved = solve(splash, problem)
            shard = solved[1][1][0].k.sharding.shard_shape(problem.segments[0].k.shape)
        found[name] = {"difference": largest_difference(solved, expected), "keys": shard}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
