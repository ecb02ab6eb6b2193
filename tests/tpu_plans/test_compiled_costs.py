"""The TPU compiler's estimates of programs whose cost is known, on slices that are not here."""

import functools

import jax
import jax.numpy as jnp
import pytest

from imagewam_jax.models.attention import KV, backend
from imagewam_jax.models.partitioning import MESH_AXES
from imagewam_jax.models.sharding import make_mesh, replicated
from imagewam_jax.tpu_plans.compile import compile_afresh
from imagewam_jax.tpu_plans.estimate import Cost, program_cost, slice_links
from imagewam_jax.tpu_plans.flops import function_flops, kernel_flops
from imagewam_jax.tpu_plans.hlo import count_runs, parse_module
from imagewam_jax.tpu_plans.sources import parse_stacks
from imagewam_jax.tpu_plans.topology import slice_sides, tpu_topology
from tests.tpu_compiler import needs_libtpu

pytestmark = [
    pytest.mark.slow(minutes=2),
    pytest.mark.tpu_compile,
    needs_libtpu,
]


def cost(function, *shapes: tuple[int, ...], topology: str = "v5e:1x1") -> Cost:
    """The cost of a function of bfloat16 arrays on one chip."""
    slice_ = tpu_topology(topology)
    mesh = make_mesh(dict.fromkeys((*MESH_AXES, "slices"), 1), slice_.devices[:1])
    here = replicated(mesh)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=here) for shape in shapes]
    with jax.set_mesh(mesh):
        traced = jax.jit(function).trace(*arguments)
        text = compile_afresh(traced.lower()).as_text()
    module = parse_module(text)
    return program_cost(
        module,
        count_runs(module),
        parse_stacks(text),
        kernel_flops(traced.jaxpr),
        slice_.chip,
        slice_links(slice_.chip, slice_sides(topology)),
    )


def chain(x, *weights):
    for weight in weights:
        x = x @ weight
    return x


@functools.cache
def chain_seconds(rows: int, topology: str = "v5e:1x1") -> float:
    kinds = cost(chain, (rows, 4096), (4096, 4096), (4096, 4096), topology=topology).kinds
    assert set(kinds) == {"products"}
    return kinds["products"]


@pytest.mark.parametrize("topology", ["v5e:1x1", "v5p:2x2x1", "v6e:1x1"])
def test_large_products_come_close_to_the_peak(topology):
    """Were a clock wrong, they would be above the peak, or far below it."""
    chip = tpu_topology(topology).chip
    share = 2 * 2 * 4096**3 / chip.flops / chain_seconds(4096, topology)
    assert 0.85 < share < 1.0


def test_more_rows_cost_more_in_proportion():
    seconds = [chain_seconds(rows) for rows in (1024, 2048, 4096)]
    assert seconds[1] / seconds[0] == pytest.approx(2, rel=0.1)
    assert seconds[2] / seconds[1] == pytest.approx(2, rel=0.1)


def test_a_scan_costs_what_its_steps_cost():
    def scan(x, weights):
        return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0]

    few, many = (cost(scan, (2048, 2048), (steps, 2048, 2048)).kinds for steps in (4, 12))
    assert many["products"] == pytest.approx(3 * few["products"], rel=1e-3)
    flops = function_flops(scan, *(jnp.zeros(s) for s in ((2048, 2048), (4, 2048, 2048))))
    assert 0.8 < flops / 197e12 / few["products"] < 1.0


def test_what_only_moves_is_no_product():
    """A norm and a transposed copy of 32 MB; read and written once these take 82 us each."""
    found = cost(
        lambda x: (x.T + jnp.zeros((), x.dtype), x / jnp.max(x, axis=-1, keepdims=True)),
        (4096, 4096),
    )
    assert "products" not in found.kinds
    assert 60e-6 < sum(found.kinds.values()) + found.memory_wait < 1e-3


def test_a_kernel_is_named_and_takes_what_is_assumed():
    """Splash attention of 4 x 512 tokens with 24 heads: two products forward."""

    def attend(q, k, v):
        return backend("splash")(q, [KV(k, v)], None)

    found = cost(attend, *[(4, 512, 24, 128)] * 3)
    (kernel,) = found.kernels
    flops = 2 * 2 * 4 * 24 * 512 * 512 * 128
    assert kernel.name.startswith("splash") and kernel.runs == 1 and kernel.flops == flops
    assert found.assumed["attention"] >= flops / (197e12 / 2)
    assert found.operations[0].is_assumed or found.operations[1].is_assumed
