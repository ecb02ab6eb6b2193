"""Rotary positions. Recorded tables are compared in tests/parity."""

import jax.numpy as jnp
import numpy as np

from imagewam_jax.models.layers import rope_tables, rotate


def test_a_position_without_a_table_entry_is_not_silent():
    rope = rope_tables(np.full((1, 1, 1), 5000), (8,), 2000.0, jnp.float32)
    assert jnp.isnan(rope.cos).all()


def test_each_pair_of_halves_is_turned_as_a_complex_number():
    positions = np.arange(12).reshape(2, 3, 2)  # of two axes, 6 and 4 channels wide
    rope = rope_tables(positions, (6, 4), 100.0, jnp.float32)
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 10)).astype(np.float32)
    frequencies = np.concatenate([100.0 ** -(np.arange(3) / 3), 100.0 ** -(np.arange(2) / 2)])
    angles = np.repeat(positions, (3, 2), axis=-1) * frequencies
    expected = (x[..., :5] + 1j * x[..., 5:]) * np.exp(1j * angles)[:, :, None]
    turned = np.asarray(rotate(x, rope))
    np.testing.assert_allclose(turned[..., :5], expected.real, atol=1e-5)
    np.testing.assert_allclose(turned[..., 5:], expected.imag, atol=1e-5)
