"""Normalisation of actions and states: the official modes (spec imagewam_flux2 7.5).

Everything is elementwise and works on NumPy arrays and, inside jit, on JAX arrays.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imagewam_jax.errors import DataError
from imagewam_jax.preprocess.statistics import FieldStatistics, select_statistics

CLAMP = 5.0
STD_EPSILON = 1e-8
# A range below this counts as constant: it is only shifted to 0.
RANGE_TOLERANCE = 1e-4

_RANGES = {"min/max": ("min", "max"), "q01/q99": ("q01", "q99")}
# Parts of a vector by key, in the vector's order.
Fields = Mapping[str, Float[Array, "... _"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normalizer:
    """y = (x - center) * scale. `scale`, `center` float32 [d], or [t, d] for stepwise statistics.

    The official form is x * scale + offset. For a constant dimension under z-score the scale is
    1e8, and XLA fuses that form into one multiply-add, which turns the rounding of the product into
    a value of up to 4 where the official one is 0. Subtracting first is exact.
    """

    scale: Float[Array, "*t d"]
    center: Float[Array, "*t d"]

    def of(self, rows: Int[Array, "*b"]) -> "Normalizer":
        """Of the normaliser of several datasets, [dataset, d], those of some rows."""
        return Normalizer(self.scale[rows], self.center[rows])

    @property
    def offset(self) -> Float[Array, "*t d"]:
        """The official form's offset."""
        return -self.center * self.scale

    def normalize(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Real units to about [-1, 1], clamped to [-5, 5]."""
        return ((x - self.center) * self.scale).clip(-CLAMP, CLAMP)

    def denormalize(self, y: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Back to real units, without a clamp."""
        return y / self.scale + self.center


def make_normalizer(statistics: FieldStatistics, mode: str) -> Normalizer:
    """mode: "z-score", "min/max", "q01/q99", or two constants as in "-1.0/1.0".

    Computed in float64, kept in float32. Raises DataError for another mode.
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
    """One of several datasets, [dataset, width]; dimensions that one lacks stay as they are."""
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
    except ValueError:
        raise DataError(
            f"normalisation mode {mode!r}; expected z-score, {', '.join(_RANGES)}, or 'low/high' "
            "numbers"
        ) from None
    return low, high


def make_normalizers(
    official: Mapping,
    default_mode: str,
    exception_mode: Mapping[str, Mapping[str, str]] | None = None,
    *,
    stepwise_actions: bool = False,
) -> dict[str, dict[str, Normalizer]]:
    """{"action": {key: ...}, "state": {key: ...}} from official statistics.

    official: the content of a `dataset_stats.json`, or one entry of its "embodiments".
    exception_mode: modes of single keys, for instance {"action": {"gripper": "z-score"}}.
    stepwise_actions: one normaliser per step of the chunk; states always use global statistics.
    """
    exceptions = exception_mode or {}
    for field, keys in exceptions.items():
        unknown = sorted(keys.keys() - official.get(field, {}).keys())
        if unknown:
            raise DataError(
                f"exception_mode names {field} {unknown}, the statistics have "
                f"{sorted(official.get(field, {}))}"
            )
    return {
        field: {
            key: make_normalizer(
                select_statistics(entry, stepwise_actions and field == "action"),
                exceptions.get(field, {}).get(key, default_mode),
            )
            for key, entry in official[field].items()
        }
        for field in ("action", "state")
    }


def zero_padded_steps(
    actions: Float[Array, "... t d"],
    step_is_pad: Bool[Array, "... t"],
    relative_mask: Bool[Array, " d"],
) -> Float[Array, "... t d"]:
    """Sets relative dimensions of steps beyond the episode to 0, in real units: stand still."""
    xp = actions.__array_namespace__()
    return xp.where(step_is_pad[..., None] & xp.asarray(relative_mask), 0.0, actions)


def zero_missing_dims(
    values: Float[Array, "... d"], dim_is_pad: Bool[Array, "... d"]
) -> Float[Array, "... d"]:
    """Sets dimensions that an embodiment lacks to 0, after normalising."""
    return values.__array_namespace__().where(dim_is_pad, 0.0, values)


def pack_fields(
    fields: Fields, target_dim: int
) -> tuple[Float[Array, "... target"], Bool[np.ndarray, " target"]]:
    """Concatenates the fields and appends zeros up to `target_dim`; and which dimensions those are.

    Raises DataError when the fields are wider than `target_dim`.
    """
    parts = list(fields.values())
    xp = parts[0].__array_namespace__()
    width = sum(part.shape[-1] for part in parts)
    if width > target_dim:
        raise DataError(f"fields {list(fields)} have {width} dimensions, the target {target_dim}")
    zeros = xp.zeros((*parts[0].shape[:-1], target_dim - width), parts[0].dtype)
    return xp.concatenate([*parts, zeros], axis=-1), np.arange(target_dim) >= width


def unpack_fields(packed: Float[Array, "... d"], widths: Mapping[str, int]) -> Fields:
    """Cuts a vector into fields of the given widths and drops what is left of it."""
    ends = np.cumsum(list(widths.values()))
    return {
        key: packed[..., end - width : end]
        for (key, width), end in zip(widths.items(), ends.tolist(), strict=True)
    }
