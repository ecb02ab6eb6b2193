"""Tells weights from the zeros of a download that stopped after its size had been reserved.

Such a file is as long as it should be and has a whole header, so that nothing but the numbers shows
what is missing.
"""

import json
import re
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from imagewam_jax.errors import ConversionError

AGAIN = "a download that stopped looks so: get the file again"
_BLOCK = 2**16
_TAIL = 4096  # bytes, a block of a file system
# Matrices of which rows at the end may well be zero: those of a vocabulary beyond its tokens, and
# the factor of LoRA that starts at zero.
_ENDS_IN_ZEROS = re.compile(r".*(embed_tokens|lm_head|lora_B)(\.\w+)*")


def refuse_zeros(array: Shaped[np.ndarray, "..."], name: str, file: str) -> None:
    """ConversionError: all numbers of an array are zero."""
    flat = array.reshape(-1)
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    if flat.size and not any(np.any(block != 0) for block in blocks):
        raise ConversionError(f"{file}: {name} is zero in all of its numbers: {AGAIN}")


def refuse_zero_end(path: Path) -> None:
    """ConversionError: a safetensors file ends in zeros that begin within a matrix."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        if not header:
            return
        name = max(header, key=lambda name: header[name]["data_offsets"][1])
        start, end = header[name]["data_offsets"]
        if len(header[name]["shape"]) < 2 or end - start <= _TAIL or _ENDS_IN_ZEROS.fullmatch(name):
            return
        file.seek(8 + length + end - _TAIL)
        if not any(file.read(_TAIL)):
            raise ConversionError(f"{path}: ends in zeros, from within {name}: {AGAIN}")
