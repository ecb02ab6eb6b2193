"""Rotary positions. Recorded tables are compared in tests/parity."""

import jax.numpy as jnp
import numpy as np

from imagewam_jax.models.layers import rope_tables


def test_a_position_without_a_table_entry_is_not_silent():
    rope = rope_tables(np.full((1, 1, 1), 5000), (8,), 2000.0, jnp.float32)
    assert jnp.isnan(rope.cos).all()
