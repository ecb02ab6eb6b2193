"""Noise is each sample's own."""

import numpy as np

from imagewam_jax.policy.noise import sample_noise


def test_noise_belongs_to_the_sample():
    """Noise depends neither on the batch nor on a sample's place in it."""
    together = sample_noise([3, [0, 7], 5], (2, 4))
    np.testing.assert_array_equal(together[2], sample_noise([5], (2, 4))[0])
    assert together.dtype == np.float32 and len(np.unique(together)) == together.size
