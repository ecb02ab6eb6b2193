"""Instructions that are stored as numbers."""

import numpy as np
from jaxtyping import Int32


def text_of_codes(codes: Int32[np.ndarray, "n width"]) -> np.ndarray:
    """UTF-8 text (object array of bytes [n]) of rows of Unicode code points, ended by a 0.

    The form of Language-Table's observation/instruction, int32[512].
    """
    texts = np.empty(len(codes), object)
    for number, row in enumerate(codes):
        length = int(np.argmax(row == 0)) if (row == 0).any() else len(row)
        texts[number] = "".join(map(chr, row[:length].tolist())).encode()
    return texts
