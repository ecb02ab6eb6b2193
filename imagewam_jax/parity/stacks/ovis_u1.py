"""Recordings of policies on Ovis-U1: an image is tokens [b, row column, c] with positions, as on
FLUX.2; the target stands before the reference, and the robot state's token behind all of the text.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Array, Float, Int

from imagewam_jax.models.autoencoders.base import to_cells
from imagewam_jax.models.backbones.ovis_u1 import OvisU1Config
from imagewam_jax.models.flow_matching import Schedule
from imagewam_jax.models.imagewam import Cache, Context, ImageWAM, ImageWAMConfig
from imagewam_jax.parity import posteriors
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import Output, Sizes, nhwc
from imagewam_jax.parity.cases.folder import Tensors
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.native import native_rollout
from imagewam_jax.parity.official_order import TextLayout, as_tokens, with_images
from imagewam_jax.parity.stacks.flux2 import Flux2Stack, last_state, side_by_side


class OvisU1Stack(Flux2Stack):
    """What the methods do is written in `stacks.base`."""

    name = "ovis_u1"
    backbone = OvisU1Config
    transformer_alone = "whole"

    def text_layout(
        self, config: ImageWAMConfig, tokens: int, length_b: Int[np.ndarray, " b"]
    ) -> TextLayout:
        """Text has no positions, so that the place of the robot state's token changes no number."""
        behind = dataclasses.replace(config, proprio_position=tokens)
        return super().text_layout(behind, tokens, length_b)

    def sampled(self, config, cells, moments, io: Tensors, noise: str):
        latent = posteriors.sample(config, moments, io, noise, self.name)
        return None if latent is None else as_tokens(to_cells(nhwc(latent), config.patch))

    def posterior_noise(self, config, sizes: Sizes, rng) -> dict[str, np.ndarray]:
        return posteriors.noises(config, sizes, rng)

    def imagined_reference(self, loaded: Loaded, io: Tensors) -> Float[Array, "b h w c"] | None:
        if posteriors.IMAGINED in io:
            return posteriors.imagined_reference(loaded, io, self.name)
        return super().imagined_reference(loaded, io)

    def imagined(self, policy: ImageWAM, context: Context, noise, schedule: Schedule):
        """Officially text and reference see the noisy target, and all see padded text: the
        transformer imagines as it was before training masked that. `ImageWAM.imagine` keeps the
        masks of training."""
        text, (length,) = np.asarray(context.text), np.asarray(context.text_length)
        if policy.proprio_in is not None:
            # Without positions, where padding is makes no difference; here it is behind all.
            proprio = np.asarray(policy.proprio_in(context.proprio))[:, None]
            text = np.concatenate([text[:, :length], proprio, text[:, length:]], axis=1)
            length += 1
        reference = context.references[:, 0]
        return native_rollout(policy.backbone, noise, reference, text, np.array([length]), schedule)

    def acting_outputs(
        self, policy: ImageWAM, context: Context, cache: Cache, text: TextLayout, prefix: str
    ) -> Iterator[Output]:
        """Positions, keys and values of every layer, heads side by side: two pairs in each double
        layer; and the tokens after the last layer."""
        rows, columns = context.references.shape[2:4]
        positions = policy.backbone.reference_positions((rows, columns))[None]
        yield Output(f"{prefix}ref_img_ids", positions, limits.EQUAL)

        def official(tokens: Float[Array, "1 s c"]) -> tuple[np.ndarray, np.ndarray]:
            reference, words = np.split(np.asarray(tokens), [rows * columns], axis=1)
            return text(words), reference

        double, single = cache.groups
        for name, group in (("double.{}.joint_", double.joint), ("single.{}.", single)):
            for layer, kv in enumerate(zip(*map(np.asarray, group), strict=True)):
                for part, tokens in zip("kv", side_by_side(*kv), strict=True):
                    words, reference = official(tokens)
                    tokens = np.concatenate([words, reference], axis=1)
                    valid = with_images(text.valid, reference)
                    full_name = f"{prefix}kv.{name.format(layer)}{part}"
                    yield Output(full_name, tokens, limits.CACHE, valid)
        for layer, kv in enumerate(zip(*map(np.asarray, double.image), strict=True)):
            for part, tokens in zip("kv", side_by_side(*kv), strict=True):
                yield Output(f"{prefix}kv.double.{layer}.image_{part}", tokens, limits.CACHE)
        words, reference = official(last_state(policy, context))
        yield Output(f"{prefix}prefix_final_img", reference, limits.VELOCITY)
        yield Output(f"{prefix}prefix_final_txt", words, limits.VELOCITY, text.valid)
