"""A kind of recording: its description, and helpers that several kinds need."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from imagewam_jax.errors import ConversionError
from imagewam_jax.parity.cases.folder import Folder, Tensors
from imagewam_jax.parity.cases.limits import Limit
from imagewam_jax.parity.cases.loaded import Loaded


class Output(NamedTuple):
    """A tensor that our side computes, under its recorded name and in its recorded layout.

    valid: which entries of the leading axes mean something; None: all.
    file: the file that it is recorded in; None: that of its kind.
    expected: the tensor to compare it with, if no file holds it in this form.
    """

    name: str
    array: Array | np.ndarray
    limit: Limit
    valid: Bool[np.ndarray, "..."] | None = None
    file: str | None = None
    expected: np.ndarray | None = None


class NotChecked(NamedTuple):
    """Something that was recorded but is not compared, and why."""

    what: str
    why: str


class Sizes(NamedTuple):
    """Sizes of our own recordings; `grid` is rows and columns of latent cells."""

    batch: int = 2
    grid: tuple[int, int] = (2, 3)
    text_tokens: int = 7
    gradients: bool = False

    @property
    def text_lengths(self) -> np.ndarray:
        """Valid tokens of each text: unequal where they can be, the longest without padding."""
        shortest = (self.text_tokens + 1) // 2
        return np.linspace(shortest, self.text_tokens, self.batch).round().astype(int)


Inputs = dict[str, np.ndarray]


class Kind(NamedTuple):
    """One kind of recording.

    name: a description for people.
    part: the part of a checkpoint that computes it.
    file: the name of the file that our side records it in.
    find: finds its file in a folder by the tensors in it; None: there is none.
    outputs: computes all of its tensors that follow from the inputs in the folder.
    inputs: makes random inputs for a new recording, beside those that its folder has already. If
    it is None, or returns None, the kind is not recorded.
    case: the folder that it is recorded in.
    counted: whether tensors that are equal bit for bit are counted instead of listed.
    """

    name: str
    part: str
    file: str
    find: Callable[[Folder], Tensors | None]
    outputs: Callable[[Loaded, Folder], Iterator[Output | NotChecked]]
    inputs: Callable[[Loaded, Folder, Sizes, np.random.Generator], Inputs | None] | None = None
    case: str = ""
    counted: bool = False


# Programs here run once or a few times: most of the time goes into compiling them.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def run_once(function: Callable, **options: Any) -> Callable:
    """Like `jax.jit`, but without optimizations, so that compiling takes a fifth of the time."""
    return jax.jit(function, compiler_options=_QUICK, **options)


def having(*names: str) -> Callable[[Folder], Tensors | None]:
    """The `find` of a kind whose file has some tensors that no other has together."""
    return lambda folder: folder.having(*names)


def normal(rng: np.random.Generator, *shape: int) -> Float[np.ndarray, "..."]:
    """Standard normal numbers in float32."""
    return rng.standard_normal(shape, np.float32)


def text_inputs(width: int, sizes: Sizes, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random features of text, and the mask of valid tokens."""
    mask = np.arange(sizes.text_tokens) < sizes.text_lengths[:, None]
    return {
        "text_hidden_states": normal(rng, sizes.batch, sizes.text_tokens, width),
        "text_attention_mask": mask,
    }


def image_ids(sizes: Sizes, positions: Int[np.ndarray, "n axes"]) -> Float[np.ndarray, "b n axes"]:
    """The positions of an image's tokens, for each sample of the batch."""
    return np.broadcast_to(positions.astype(np.float32), (sizes.batch, *positions.shape))


def nchw(image: Float[Array, "*b h w c"]) -> Float[np.ndarray, "*b c h w"]:
    return np.moveaxis(np.asarray(image), -1, -3)


def nhwc(image: Float[Array, "*b c h w"]) -> Float[np.ndarray, "*b h w c"]:
    return np.moveaxis(np.asarray(image), -3, -1)


def valid_lengths(io: Tensors, name: str) -> Int[np.ndarray, " b"]:
    """The number of valid tokens of each text, from a recorded mask [b, t].

    ConversionError: padding stands before valid tokens.
    """
    mask = check_axes(io.file, name, io[name], "batch", "tokens")
    if not is_right_padded(mask):
        raise ConversionError(
            f"{io.file}: {name} has padding before valid text; text of ours is padded behind it"
        )
    return mask.sum(-1).astype(np.int32)


def is_right_padded(mask: Shaped[np.ndarray, "b t"]) -> bool:
    return bool((np.diff(mask.astype(int), axis=-1) <= 0).all())


def check_axes(
    file: str, name: str, array: Shaped[np.ndarray, "..."], *axes: str
) -> Shaped[np.ndarray, "..."]:
    """The array. ConversionError unless it has as many axes as are named: others would be broadcast
    or taken for each other."""
    if array.ndim != len(axes):
        raise ConversionError(
            f"{file}: {name} has shape {list(array.shape)}, expected [{', '.join(axes)}]"
        )
    return array


def check_width(file: str, name: str, found: int, expected: int | None, what: str) -> None:
    """ConversionError unless a tensor is as wide as that part of the checkpoint expects."""
    if found != expected:
        raise ConversionError(
            f"{file}: {name} is {found} wide, the checkpoint's {what} takes {expected}: it was "
            "recorded of another model"
        )
