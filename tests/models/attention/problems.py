"""Attention problems, and what a kernel makes of them: its result and all gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagewam_jax.models.attention import KV


class Problem(NamedTuple):
    q: jax.Array
    segments: tuple[KV, ...]
    length_b: jax.Array | None
    cotangent: jax.Array  # of the result


def make_problem(
    *, queries=37, keys=(61, 19), lengths=None, samples=2, heads=2, head_dim=128, dtype="float32"
) -> Problem:
    draw = np.random.default_rng(0).normal

    def array(tokens):
        return jnp.asarray(draw(size=(samples, tokens, heads, head_dim)), dtype)

    segments = tuple(KV(array(count), array(count)) for count in keys)
    length_b = None if lengths is None else jnp.asarray(lengths, jnp.int32)
    return Problem(array(queries), segments, length_b, array(queries))


def solve(attend, problem: Problem):
    """The result of a kernel and its gradients with respect to q and all keys and values."""

    @jax.jit
    def run(q, segments, length_b, cotangent):
        attended, pull = jax.vjp(lambda q, kv: attend(q, kv, length_b), q, segments)
        return attended, pull(cotangent)

    return run(*problem)


def exact(problem: Problem) -> Problem:
    """The same numbers in float32."""
    return jax.tree.map(
        lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, problem
    )


def largest_difference(found, expected) -> float:
    """The largest of the differences between arrays, relative to the largest number of each."""

    def difference(x, y):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        return float(np.abs(x - y).max() / np.abs(y).max())

    return max(jax.tree.leaves(jax.tree.map(difference, found, expected)))
