"""Small programs compiled for four virtual devices; run as a process of its own with `FLAGS`.

Prints, as JSON by name, what is counted in each.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from imagewam_jax.tpu_plans.collectives import collective_volumes
from imagewam_jax.tpu_plans.flops import module_flops
from imagewam_jax.tpu_plans.hlo import count_runs, parse_module

FLAGS = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
ROWS, WIDTH, STEPS = 64, 128, 5


def shard_map(function, mesh, inputs, output):
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=output, check_vma=False)
    )


def programs() -> dict:
    auto = jax.sharding.AxisType.Auto
    four = jax.make_mesh((4,), ("x",), axis_types=(auto,))
    two = jax.make_mesh((2, 2), ("x", "y"), axis_types=(auto, auto))
    shape = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    ring = [(i, (i + 1) % 4) for i in range(4)]

    def looped(x):
        def step(carry, _):
            return jnp.sin(jax.lax.psum(carry, "x")), None

        return jax.lax.scan(step, x, None, length=STEPS)[0]

    def nested(x):
        def step(carry, _):
            return jnp.cos(looped(carry)), None

        return jax.lax.scan(step, x, None, length=3)[0]

    def products(x):
        def step(carry, _):
            return jnp.sin(carry @ carry.T @ carry), None

        return jax.lax.scan(step, x, None, length=STEPS)[0]

    return {
        "gather": shard_map(lambda x: jax.lax.all_gather(x, "x"), four, P("x"), P()).lower(shape),
        "scatter": shard_map(
            lambda x: jax.lax.psum_scatter(x, "x", tiled=True), four, P(), P("x")
        ).lower(shape),
        "reduce": shard_map(lambda x: jax.lax.psum(x, "x"), four, P("x"), P()).lower(shape),
        "reduce_in_pairs": shard_map(
            lambda x: jax.lax.psum(x, "x"), two, P("x", "y"), P(None, "y")
        ).lower(shape),
        "exchange": shard_map(
            lambda x: jax.lax.all_to_all(x, "x", 1, 0, tiled=True), four, P("x"), P("x")
        ).lower(shape),
        "permute": shard_map(lambda x: jax.lax.ppermute(x, "x", ring), four, P("x"), P("x")).lower(
            shape
        ),
        "loop": shard_map(looped, four, P("x"), P("x")).lower(shape),
        "nested": shard_map(nested, four, P("x"), P("x")).lower(shape),
        "products": shard_map(products, four, P("x"), P("x")).lower(shape),
        "partitioned": jax.jit(
            lambda x, w: x @ w,
            in_shardings=(
                jax.NamedSharding(four, P(None, "x")),
                jax.NamedSharding(four, P("x", None)),
            ),
            out_shardings=jax.NamedSharding(four, P()),
        ).lower(shape, jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)),
    }


def counted(lowered) -> dict:
    module = parse_module(lowered.compile().as_text())
    runs = count_runs(module)
    volumes = collective_volumes(module, runs)
    return {
        "volumes": {kind: dataclasses.asdict(volume) for kind, volume in volumes.items()},
        "flops": module_flops(module, runs),
        "unknown": runs.unknown,
    }


if __name__ == "__main__":
    print(json.dumps({name: counted(lowered) for name, lowered in programs().items()}))
