"""States that some copies of the QT-Opt data (`kuka`) keep as compressed bytes."""

import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.transforms.base import Standardised, Steps, transform
from imagewam_jax.data.transforms.columns import OPTIONS, columns

if TYPE_CHECKING:
    from imagewam_jax.data.registry.spec import DatasetSpec


class _Inflated(Mapping[str, np.ndarray]):
    """Features, those of bytes decompressed from zlib into rows of float32."""

    def __init__(self, steps: Steps):
        self._steps = steps

    def __getitem__(self, key: str) -> np.ndarray:
        values = self._steps[key]
        if values.dtype.kind != "O" or not all(isinstance(value, bytes) for value in values):
            return values
        try:
            return np.stack([np.frombuffer(zlib.decompress(value), "<f4") for value in values])
        except (zlib.error, ValueError) as error:
            raise DataError(f"feature {key!r} is not zlib-compressed float32: {error}") from error

    def __contains__(self, key: object) -> bool:
        return key in self._steps

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)


@transform(version=1, options=OPTIONS)
def kuka(steps: Steps, spec: "DatasetSpec") -> Standardised:
    """As `columns`, but any feature may be bytes that zlib made of float32."""
    return columns(_Inflated(steps), spec)
