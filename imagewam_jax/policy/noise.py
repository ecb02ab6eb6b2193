"""The noise that action chunks and images are drawn from."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def sample_noise(seeds: Sequence, shape: tuple[int, ...]) -> Float[np.ndarray, "n ..."]:
    """Draws standard normal noise that depends on each sample's own seed, not on its batch."""
    rows = [np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in seeds]
    return np.stack(rows)
