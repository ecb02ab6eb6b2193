"""The official order and form of tokens: text stands before images there, and last here."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.imagewam import Context, ImageWAM, ImageWAMConfig
from imagewam_jax.parity.cases.base import check_axes, run_once
from imagewam_jax.parity.cases.folder import Tensors


class TextLayout(NamedTuple):
    """The official order of the text's rows, with the robot state's token.

    source: for each official row, the one of ours. valid: those that are not padding.
    """

    source: Int[np.ndarray, "b t"]
    valid: Bool[np.ndarray, "b t"]

    def __call__(self, rows: Float[Array, "b t *c"]) -> Float[np.ndarray, "b t *c"]:
        """Our rows in the official order; zeros at padding, whose values mean nothing."""
        rows = np.asarray(rows)[np.arange(len(self.source))[:, None], self.source]
        rows[~self.valid] = 0
        return rows


def text_layout(config: ImageWAMConfig, tokens: int, length_b: Int[np.ndarray, " b"]) -> TextLayout:
    """The layout of `tokens` padded tokens, of which `length_b` are valid."""
    if config.proprio_dim is None:
        index = np.broadcast_to(np.arange(tokens), (len(length_b), tokens))
        return TextLayout(index, index < length_b[:, None])
    index = np.broadcast_to(np.arange(tokens + 1), (len(length_b), tokens + 1))
    if config.proprio_position is None:
        return TextLayout(index, index <= length_b[:, None])
    # Behind the padding; ours is behind the valid text, with the position of the last row.
    last, is_text = index == tokens, index < length_b[:, None]
    source = np.where(last, length_b[:, None], np.where(is_text, index, index + 1))
    return TextLayout(source, last | is_text)


def official_text(
    policy: ImageWAM, context: Context, layout: TextLayout
) -> tuple[Float[np.ndarray, "b t c"], Bool[np.ndarray, "b t"]]:
    """The text with the robot state's token, and which rows of it are valid, in official order."""
    text, length_b = _context(policy, context)
    references = np.prod(context.references.shape[1:4])
    valid = np.arange(text.shape[1]) < np.asarray(length_b - references)[:, None]
    return layout(text), np.take_along_axis(valid, layout.source, axis=1)


@run_once
def _context(policy: ImageWAM, context: Context):
    text, layout = policy.layout(context, None)
    return text, layout.context_length_b


def grid_of(io: Tensors, ids: str) -> tuple[int, int]:
    """Rows and columns of an image, from the positions [b, n, 4] of its tokens."""
    positions = check_axes(io.file, ids, io[ids], "batch", "tokens", "4")
    rows, columns = (int(positions[..., axis].max()) + 1 for axis in (1, 2))
    if rows * columns != positions.shape[1]:
        raise ConversionError(f"{io.file}: {ids} are not those of one whole image")
    return rows, columns


def as_grid(tokens: Float[Array, "b n c"], grid: tuple[int, int]) -> Float[Array, "b h w c"]:
    return tokens.reshape(tokens.shape[0], *grid, tokens.shape[-1])


def as_tokens(latent: Float[Array, "b h w c"]) -> Float[Array, "b n c"]:
    return latent.reshape(latent.shape[0], -1, latent.shape[-1])


def with_images(
    valid: Bool[np.ndarray, "b t"], images: Float[np.ndarray, "b n c"]
) -> Bool[np.ndarray, "b t+n"]:
    """The valid entries of [text | images]."""
    return np.concatenate([valid, np.ones(images.shape[:2], bool)], axis=1)
