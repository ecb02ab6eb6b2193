"""Normalization of actions and states: the official modes (docs/spec/imagewam_flux2.md, 7.5).

Everything is elementwise and works on NumPy arrays and, inside jit, on JAX arrays.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imagewam_jax.errors import DataError
from imagewam_jax.preprocess.statistics import FieldStatistics

CLAMP = 5.0
STD_EPSILON = 1e-8
# A range below this counts as constant: it is only shifted to 0.
RANGE_TOLERANCE = 1e-4

_RANGES = {"min/max": ("min", "max"), "q01/q99": ("q01", "q99")}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normalizer:
    """y = (x - center) * scale. Both are float32: [d], or [dataset, d] for several datasets.

    The official form is x * scale + offset. For a constant dimension under z-score the scale is
    1e8, and XLA fuses that form into one multiply-add, which turns the rounding of the product into
    a value of up to 4 where the official one is 0. Subtracting first is exact.
    """

    scale: Float[Array, "*t d"]
    center: Float[Array, "*t d"]

    def of(self, rows: Int[Array, "*b"] | int) -> "Normalizer":
        """The normalizers of some datasets, by their rows in a stack of several."""
        return Normalizer(self.scale[rows], self.center[rows])

    @property
    def offset(self) -> Float[Array, "*t d"]:
        """The offset of the official form."""
        return -self.center * self.scale

    def normalize(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Converts real units to about [-1, 1], clamped to [-5, 5]."""
        return self.scaled(x).clip(-CLAMP, CLAMP)

    def scaled(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Converts real units as `normalize` does, without a clamp: `denormalize` backwards."""
        return (x - self.center) * self.scale

    def denormalize(self, y: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Converts back to real units, without a clamp."""
        return y / self.scale + self.center


def make_normalizer(statistics: FieldStatistics, mode: str) -> Normalizer:
    """A normalizer in float32, computed in float64.

    mode: "z-score", "min/max", "q01/q99", or two constants as in "-1.0/1.0". DataError: another.
    """
    if mode == "z-score":
        scale = 1.0 / (np.asarray(statistics["std"], np.float64) + STD_EPSILON)
        center = np.asarray(statistics["mean"], np.float64)
    else:
        low, high = _range(statistics, mode)
        constant = high - low < RANGE_TOLERANCE
        width = np.where(constant, 2.0, high - low)
        scale = 2.0 / width
        center = np.where(constant, low, low + width / 2)
    return Normalizer(scale.astype(np.float32), center.astype(np.float32))


def stack_normalizers(normalizers: Sequence[Normalizer], width: int) -> Normalizer:
    """Stacks the normalizers of several datasets: [dataset, width].

    Dimensions that a dataset lacks are left as they are.
    """
    shape = (len(normalizers), width)
    scale, center = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    for row, normalizer in enumerate(normalizers):
        dims = len(normalizer.scale)
        scale[row, :dims], center[row, :dims] = normalizer.scale, normalizer.center
    return Normalizer(scale, center)


def check_mode(mode: str) -> None:
    """DataError unless it is a mode of `make_normalizer`."""
    if mode != "z-score" and mode not in _RANGES:
        _constants(mode)


def _range(statistics: FieldStatistics, mode: str) -> tuple[np.ndarray, np.ndarray]:
    if mode in _RANGES:
        low, high = (np.asarray(statistics[name], np.float64) for name in _RANGES[mode])
        return low, high
    low, high = _constants(mode)
    shape = np.shape(statistics["min"])
    return np.full(shape, low), np.full(shape, high)


def _constants(mode: str) -> tuple[float, float]:
    try:
        low, high = (float(number) for number in mode.split("/"))
        if not -np.inf < low < high < np.inf:
            raise ValueError
    except ValueError:
        raise DataError(
            f"normalisation mode {mode!r}; expected z-score, {', '.join(_RANGES)}, or 'low/high' "
            "numbers, such as -1/1"
        ) from None
    return low, high


def zero_missing_dims(
    values: Float[Array, "... d"], dim_is_pad: Bool[Array, "... d"]
) -> Float[Array, "... d"]:
    """Sets normalized dimensions that an embodiment lacks to 0."""
    return values.__array_namespace__().where(dim_is_pad, 0.0, values)
