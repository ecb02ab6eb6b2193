"""The largest errors that a tensor may have against a recorded one.

The recordings are of float32 runs on a CPU; values are near 1 unless said otherwise. Two correct
runs differ by about 1e-6 in the outputs of a transformer, 5e-6 in those of an autoencoder, and
1.6e-5 in a text encoder of 28 layers. One error is larger without being wrong: the embedding of
time takes the sine of numbers up to 1000, so that the last bit of a frequency moves it by 3e-5.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

ABSOLUTE = "absolute"
LARGEST = "of the largest entry"
RELATIVE = "relative"  # of each entry by itself


class Limit(NamedTuple):
    """The largest error that passes, and the kind of error that it limits."""

    value: float
    kind: str

    def error(self, actual: Float[np.ndarray, " n"], expected: Float[np.ndarray, " n"]) -> float:
        """NaN where `actual` has one."""
        difference = np.abs(actual - expected)
        if self.kind == ABSOLUTE:
            return float(difference.max())
        size = np.abs(expected)
        if self.kind == LARGEST:
            size = np.full_like(size, size.max())
        # Where nothing differs there is no error, also in a tensor of zeros.
        with np.errstate(divide="ignore"):
            return float(np.divide(difference, size, where=difference != 0, out=0 * size).max())

    def __str__(self) -> str:
        return "equal" if self.value == 0 else f"{self.value:.0e} {self.kind}"


# Positions, masks, and values that are copied or rounded in the same way bit for bit.
EQUAL = Limit(0.0, ABSOLUTE)
# Single products and sums in float32: noised samples, a merged weight, a packed token.
ROUNDING = Limit(1e-6, LARGEST)
# Everything behind the embedding of time, which moves velocities by up to 1.1e-5, ...
VELOCITY = Limit(5e-5, ABSOLUTE)  # also the states of layers, and Euler steps of an image
# ... losses by 8e-6, and an action of ten Euler steps by 3e-6.
LOSS = Limit(1e-5, RELATIVE)
ACTION = Limit(2e-5, ABSOLUTE)
# When acting, the context is at time 0, whose sines are exact.
CACHE = Limit(2e-5, ABSOLUTE)
# Gradients have any magnitude.
GRADIENT = Limit(2e-4, LARGEST)
# Angles up to 511, from frequencies that differ in the last bit.
ROTATION = Limit(5e-5, ABSOLUTE)
AUTOENCODER = Limit(5e-5, ABSOLUTE)
TEXT = Limit(1e-4, ABSOLUTE)  # its values are near 5
# Weights that are interpolated at positions which the official script has in float32.
FIRST_WEIGHTS = Limit(5e-5, ABSOLUTE)
# The scheduler: 1e-6 of its values; timesteps are near 1000. Weights are differences that cancel
# towards both ends of time.
TIMESTEP = Limit(1e-4, ABSOLUTE)
TIME = Limit(1e-6, RELATIVE)
TIME_WEIGHT = Limit(1e-6, LARGEST)
