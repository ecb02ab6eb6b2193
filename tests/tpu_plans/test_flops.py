"""FLOPs of jaxprs: XLA's own count where there are no loops, and multiplied by hand where there
are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from imagewam_jax.tpu_plans.flops import UnknownTripCount, function_flops, kernel_flops

MATRIX = jax.ShapeDtypeStruct((16, 16), jnp.float32)
ROWS = jax.ShapeDtypeStruct((8, 16), jnp.float32)
ONCE = 2 * 8 * 16 * 16


def xla_flops(function, *arguments) -> float:
    """XLA's count, for a function without elementwise operations."""
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(8, 16), (16, 4)]),
        ("bij,bkj->bik", [(3, 8, 16), (3, 4, 16)]),
        ("bsnh,btnh->bnst", [(2, 5, 3, 4), (2, 7, 3, 4)]),
        ("abc,abd->cd", [(2, 3, 4), (2, 3, 5)]),
    ],
)
def test_products_of_matrices(equation, shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def product(*x):
        return jnp.einsum(equation, *x)

    assert function_flops(product, *arguments) == xla_flops(product, *arguments)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 1), (0, 1)), ((2, 0), (1, 3))])
@pytest.mark.parametrize(
    ("strides", "input_dilation", "kernel_dilation"),
    [((1, 1), (1, 1), (1, 1)), ((2, 2), (1, 1), (1, 1)), ((1, 2), (2, 3), (1, 2))],
)
def test_convolutions(groups, padding, strides, input_dilation, kernel_dilation):
    image = jax.ShapeDtypeStruct((2, 9, 12, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 4 // groups, 6), jnp.float32)

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image,
            kernel,
            strides,
            padding,
            # JAX has no names for the padding of a dilated input.
            lhs_dilation=None if isinstance(padding, str) else input_dilation,
            rhs_dilation=kernel_dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    assert function_flops(convolve, image, kernel) == xla_flops(convolve, image, kernel)


def test_a_gradient_of_convolutions():
    def loss(image, kernel):
        y = jax.lax.conv_general_dilated(
            image, kernel, (2, 2), ((0, 1), (0, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.vdot(y, y, precision="highest")

    image = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.float32)
    gradient = jax.grad(loss, (0, 1))
    assert function_flops(gradient, image, kernel) == pytest.approx(
        xla_flops(gradient, image, kernel), rel=0.01
    )


def scanned(rows, matrix):
    return jax.lax.scan(lambda x, _: (x @ matrix, None), rows, None, length=5)[0]


def test_a_scan_is_its_body_as_often_as_it_runs():
    assert function_flops(scanned, ROWS, MATRIX) == 5 * ONCE
    assert function_flops(jax.jit(scanned), ROWS, MATRIX) == 5 * ONCE
    assert xla_flops(scanned, ROWS, MATRIX) < 2 * ONCE  # why this is counted here

    def twice(rows, matrix):
        return jax.lax.scan(lambda x, _: (scanned(x, matrix), None), rows, None, length=3)[0]

    assert function_flops(twice, ROWS, MATRIX) == 15 * ONCE


def test_recomputation_counts():
    def loss(rows, matrix, policy):
        # The product's result is what its gradient does not need, and that of the sine does.
        body = jax.checkpoint(lambda x, _: (jnp.sin(x @ matrix), None), policy=policy)
        return jax.lax.scan(body, rows, None, length=5)[0].sum()

    policies = jax.checkpoint_policies
    for policy, passes in ((policies.everything_saveable, 3), (policies.nothing_saveable, 4)):
        gradient = jax.grad(lambda x, m, policy=policy: loss(x, m, policy), (0, 1))
        assert function_flops(gradient, ROWS, MATRIX) == passes * 5 * ONCE


def test_calls_and_custom_derivatives():
    @jax.custom_vjp
    def product(rows, matrix):
        return rows @ matrix

    product.defvjp(lambda r, m: (r @ m, (r, m)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))

    def loss(rows, matrix):
        return jax.jit(product)(rows, matrix).sum()

    assert function_flops(loss, ROWS, MATRIX) == ONCE
    assert function_flops(jax.grad(loss, (0, 1)), ROWS, MATRIX) == pytest.approx(3 * ONCE)


def test_of_branches_the_most_expensive_counts():
    def either(which, rows, matrix):
        return jax.lax.cond(which, lambda x: x @ matrix @ matrix, lambda x: x @ matrix, rows)

    assert function_flops(either, jax.ShapeDtypeStruct((), bool), ROWS, MATRIX) == 2 * ONCE


@pytest.mark.parametrize(
    ("start", "stop", "step", "times"), [(0, 7, 1, 7), (1, 8, 2, 4), (3, 3, 1, 0)]
)
def test_loops_that_count(start, stop, step, times):
    def loop(rows, matrix):
        def body(carry):
            return carry[0] @ matrix, carry[1] + step

        return jax.lax.while_loop(lambda carry: carry[1] < stop, body, (rows, start))[0]

    assert function_flops(loop, ROWS, MATRIX) == times * ONCE


def test_fori_loop():
    def loop(rows, matrix):
        return jax.lax.fori_loop(2, 6, lambda _, x: x @ matrix, rows)

    assert function_flops(loop, ROWS, MATRIX) == 4 * ONCE


def test_a_loop_until_something_holds_is_an_error():
    def loop(rows, matrix):
        return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x @ matrix, rows)

    with pytest.raises(UnknownTripCount):
        function_flops(loop, ROWS, MATRIX)
    # Without products in it, it does not matter how often it runs.
    assert not function_flops(
        lambda x: jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: 2 * x, x), ROWS
    )


def test_a_sharded_map_is_what_all_its_devices_do():
    mesh = jax.sharding.AbstractMesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(
        lambda rows, matrix: rows @ matrix,
        mesh=mesh,
        in_specs=(spec, jax.sharding.PartitionSpec()),
        out_specs=spec,
    )
    assert function_flops(mapped, ROWS, MATRIX) == ONCE


def blocked_product(rows, matrix):
    def body(rows, matrix, out):
        out[...] = rows[...] @ matrix[...]

    return pl.pallas_call(
        body,
        grid=(4,),
        in_specs=[
            pl.BlockSpec((2, 16), lambda i: (i, 0)),
            pl.BlockSpec((16, 16), lambda i: (0, 0)),
        ],
        out_specs=pl.BlockSpec((2, 16), lambda i: (i, 0)),
        out_shape=ROWS,
        name="blocked",
    )(rows, matrix)


def test_a_kernel_is_its_body_on_every_cell_of_its_grid():
    assert function_flops(blocked_product, ROWS, MATRIX) == ONCE


def test_kernels_are_counted_by_name_in_loops_and_branches():
    def step(rows, matrix):
        rows = jax.lax.scan(lambda x, _: (blocked_product(x, matrix), None), rows, length=3)[0]
        return jax.lax.cond(
            rows[0, 0] > 0, lambda: blocked_product(rows, matrix) @ matrix, lambda: rows
        )

    assert kernel_flops(jax.make_jaxpr(step)(ROWS, MATRIX)) == {"blocked": 4 * ONCE}
    assert kernel_flops(jax.make_jaxpr(jnp.matmul)(ROWS, MATRIX)) == {}


def test_of_real_arrays():
    assert function_flops(jnp.matmul, np.ones((8, 16)), np.ones((16, 16))) == ONCE
