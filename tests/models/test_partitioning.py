"""Arrays are divided by the mesh under which a function is traced, and never by another."""

import json
import os
import subprocess
import sys

SCRIPT = """
import json
import jax
import jax.numpy as jnp
from imagewam_jax.models.partitioning import MESH_AXES, constrain, is_divided

traced = []

@jax.jit
def hidden(x):
    traced.append(is_divided("batch"))
    return constrain(2 * x, "batch", "tokens", "mlp")

x = jnp.arange(64.0).reshape(4, 4, 4)
found = []
meshes = [None, (4, 1, 1, 1), (1, 1, 4, 1), (1, 2, 1, 2), (4, 1, 1, 1), None]
for sizes in meshes:
    if sizes is None:
        y = hidden(x)
    else:
        auto = (jax.sharding.AxisType.Auto,) * 4
        with jax.set_mesh(jax.make_mesh(sizes, MESH_AXES, axis_types=auto)):
            y = hidden(x)
    assert (y == 2 * x).all()
    found.append(sorted({tuple(s.data.shape) for s in y.addressable_shards}))
print(json.dumps([found, traced]))
"""


def test_a_function_traced_under_one_mesh_is_not_used_under_another():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    shards, traced = json.loads(done.stdout)
    whole, by_sample, by_channel = [[4, 4, 4]], [[1, 4, 4]], [[4, 4, 1]]
    assert shards == [whole, by_sample, by_channel, [[2, 2, 4]], by_sample, whole]
    # Each mesh has one trace of its own; that of the first is found again.
    assert traced == [False, True, False, True]
