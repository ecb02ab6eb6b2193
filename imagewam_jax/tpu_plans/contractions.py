"""FLOPs of single matrix products and convolutions, 2 for each multiplication and addition."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """How a convolution's kernel moves along one axis of its input.

    `size` is the kernel's, `low` and `high` the padding in front and behind (negative: cut off).
    """

    size: int
    stride: int = 1
    low: int = 0
    high: int = 0
    input_dilation: int = 1
    kernel_dilation: int = 1


def product_flops(output: Sequence[int], contracted: Sequence[int]) -> int:
    """Of a product of matrices with an output of this shape and these contracted axes."""
    return 2 * math.prod(output) * math.prod(contracted)


def convolution_flops(
    samples: int, outputs: int, inputs_per_output: int, axes: Sequence[tuple[int, Window]]
) -> int:
    """Of a convolution over `axes`, each an input's length and its window.

    samples: of the batch. outputs: channels. inputs_per_output: channels that each of them is made
    of. Products with padding do not count, as in XLA's own analysis.
    """
    pairs = math.prod(_pairs(length, window) for length, window in axes)
    return 2 * samples * outputs * inputs_per_output * pairs


def _pairs(length: int, window: Window) -> int:
    """How many pairs of an output's position and a kernel's meet a number of the input."""
    dilated = (length - 1) * window.input_dilation + 1
    reach = (window.size - 1) * window.kernel_dilation + 1
    count = (window.low + dilated + window.high - reach) // window.stride + 1
    starts = window.stride * np.arange(max(count, 0))[:, None] - window.low
    positions = starts + window.kernel_dilation * np.arange(window.size)
    inside = (positions >= 0) & (positions < dilated)
    return int((inside & (positions % window.input_dilation == 0)).sum())
