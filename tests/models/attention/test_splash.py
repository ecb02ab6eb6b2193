"""Splash attention against plain attention, and its way through the TPU compiler."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagewam_jax.models.attention import BACKENDS, KV, attend_xla
from imagewam_jax.models.attention.splash import block_sizes, make_splash
from imagewam_jax.models.partitioning import MESH_AXES
from imagewam_jax.tpu_plans.compile import compile_afresh
from imagewam_jax.tpu_plans.hlo import parse_module
from imagewam_jax.tpu_plans.topology import tpu_topology
from tests.models.attention import meshes
from tests.models.attention.problems import exact, largest_difference, make_problem, solve
from tests.tpu_compiler import needs_libtpu

splash = make_splash(interpret=True)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"lengths": [80, 62]},
        {"keys": (77,), "lengths": [77, 5], "heads": 3},
        {"queries": 128, "keys": (128,)},
        {"keys": (1281,), "lengths": [1100, 7], "heads": 1},  # two blocks of keys, of 768
        {"queries": 600, "keys": (40,), "lengths": [40, 3], "heads": 1},  # two blocks of queries
    ],
    ids=str,
)
def test_float32_is_plain_attention(sizes):
    problem = make_problem(**sizes)
    assert largest_difference(solve(splash, problem), solve(attend_xla, problem)) < 1e-5


def test_bfloat16_is_within_two_roundings_of_exact():
    problem = make_problem(dtype="bfloat16", lengths=[80, 62])
    found, expected = solve(splash, problem), solve(attend_xla, exact(problem))
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}
    assert largest_difference(found, expected) < 2 * 2**-8


def test_padded_keys_have_no_say_whatever_they_are():
    problem = make_problem(keys=(61, 19), lengths=[70, 62])
    first, last = problem.segments
    beyond = np.arange(61, 80) >= np.array([[70], [62]])
    huge = KV(*(jnp.where(beyond[..., None, None], 1e4, x) for x in last))
    found = solve(splash, problem._replace(segments=(first, huge)))
    expected = solve(splash, problem)
    np.testing.assert_array_equal(found[0], expected[0])
    dk, dv = found[1][1][1]
    assert not np.asarray(dk)[beyond].any() and not np.asarray(dv)[beyond].any()


def test_each_device_of_a_mesh_has_its_own_part():
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.attention.meshes"],
        env={**os.environ, **meshes.FLAGS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert {name: f["keys"] for name, f in found.items()} == {
        "data": [1, 61, 2, 128],
        "fsdp and tensor": [2, 61, 1, 128],
        "fsdp and context": [2, 61, 2, 128],
    }
    assert max(f["difference"] for f in found.values()) < 1e-5


def test_a_cpu_is_told_that_it_cannot():
    problem = make_problem()
    with pytest.raises(ValueError, match=r"'splash' runs on TPUs .* platform 'cpu'; choose 'xla'"):
        solve(BACKENDS["splash"], problem)


def test_narrow_heads_are_told_that_they_cannot():
    with pytest.raises(ValueError, match="multiple of 128 channels and these have 64"):
        solve(splash, make_problem(head_dim=64))


@pytest.mark.parametrize(
    ("tokens", "blocks", "one_backward_kernel"),
    [
        ((512, 896), (512, 896), True),
        ((512, 512), (512, 512), True),
        ((128, 512), (128, 512), True),
        ((640, 1152), (128, 384), False),
        ((1024, 2048), (512, 1024), False),
    ],
)
def test_blocks_are_whole_and_as_large_as_they_can_be(tokens, blocks, one_backward_kernel):
    found = block_sizes(*tokens)
    assert (found.block_q, found.block_kv) == blocks
    assert (found.block_q_dkv, found.block_kv_dkv) == blocks
    assert found.use_fused_bwd_kernel is one_backward_kernel


@pytest.mark.slow(minutes=1)
@pytest.mark.tpu_compile
@needs_libtpu
@pytest.mark.parametrize(
    ("slice_", "mesh"), [("v5p:2x2x1", (2, 2, 1, 1)), ("v5e:2x2", (1, 2, 2, 1))]
)
def test_the_tpu_compiler_takes_it_at_the_size_of_libero(slice_, mesh):
    """392 queries of a target over 849 keys, 457 of them the context's, 24 heads."""
    devices = np.array(tpu_topology(slice_).devices).reshape(mesh)
    auto = (jax.sharding.AxisType.Auto,) * 4
    mesh = jax.sharding.Mesh(devices, MESH_AXES, axis_types=auto)
    divided = jax.sharding.NamedSharding(mesh, jax.P(("data", "fsdp"), None, "tensor"))
    batch = jax.sharding.NamedSharding(mesh, jax.P(("data", "fsdp")))

    def array(tokens):
        return jax.ShapeDtypeStruct((8, tokens, 24, 128), jnp.bfloat16, sharding=divided)

    def gradient(q, segments, length_b):
        attended, pull = jax.vjp(lambda q, kv: BACKENDS["splash"](q, kv, length_b), q, segments)
        return attended, pull(attended)

    own, context = (KV(array(n), array(n)) for n in (392, 457))
    length_b = jax.ShapeDtypeStruct((8,), jnp.int32, sharding=batch)
    with jax.set_mesh(mesh):
        lowered = jax.jit(gradient).lower(array(392), (own, context), length_b)
    module = parse_module(compile_afresh(lowered).as_text())
    kernels = [
        instruction.types
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "custom-call" and "tpu_custom_call" in instruction.attributes
    ]
    assert len(kernels) == 2  # forward, and all gradients at once
    samples, heads = 8 // (mesh.shape["data"] * mesh.shape["fsdp"]), 24 // mesh.shape["tensor"]
    forward, backward = sorted({t.shape for t in types if t.dtype == "bf16"} for types in kernels)
    assert (samples, heads, 512, 128) in forward
    assert (samples, heads, 896, 128) in backward
