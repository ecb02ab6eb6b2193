"""Recordings of policies on FLUX.2: an image is tokens [b, row column, c] with positions."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from imagewam_jax.models.backbones.flux2 import Flux2Config
from imagewam_jax.models.flow_matching import TIMESTEPS
from imagewam_jax.models.imagewam import Cache, Context, ImageWAM, Sample
from imagewam_jax.models.layer_runner import run_layers
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import (
    Output,
    Sizes,
    check_axes,
    image_ids,
    run_once,
)
from imagewam_jax.parity.cases.folder import Tensors
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.official_order import (
    TextLayout,
    as_grid,
    as_tokens,
    grid_of,
    with_images,
)
from imagewam_jax.parity.stacks.base import Stack


class Flux2Stack(Stack):
    """What the methods do is written in `stacks.base`."""

    name = "flux2"
    backbone = Flux2Config
    reference = "ref_tokens"
    training_time = "unit_timestep"
    acting_times = "timesteps_unit"
    transformer_alone = ""

    def network_time(self, timestep: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return timestep / TIMESTEPS

    def latents(self, config, io: Tensors, name: str, ids: str):
        tokens = check_axes(io.file, name, io[name], "batch", "tokens", "channels")
        return as_grid(tokens, grid_of(io, ids))

    def recorded(self, config: Flux2Config, cells: Float[Array, "b h w c"]):
        return np.asarray(as_tokens(cells))

    def sampled(self, config, cells, moments, io: Tensors, noise: str):
        """The official code takes the mean, too."""
        return self.recorded(config, cells)

    def posterior_noise(self, config, sizes: Sizes, rng) -> dict[str, np.ndarray]:
        return {}

    def imagined_reference(self, loaded: Loaded, io: Tensors) -> Float[Array, "b h w c"]:
        """The reference that the policy acts on, which FLUX.2 encodes once."""
        return self.cells(loaded.config("backbone"), io, "infer0.ref_tokens", "infer0.ref_img_ids")

    def training_inputs(self, policy: ImageWAM, sizes: Sizes) -> dict[str, np.ndarray]:
        backbone = policy.backbone
        return {
            "ref_img_ids": image_ids(sizes, backbone.reference_positions(sizes.grid)),
            "target_img_ids": image_ids(sizes, backbone.target_positions(sizes.grid)),
        }

    def training_outputs(
        self, policy: ImageWAM, sample: Sample, text: TextLayout
    ) -> Iterator[Output]:
        backbone, references = policy.backbone, sample.context.references
        for name, positions in (
            ("ref_img_ids", backbone.reference_positions(references.shape[2:4])),
            ("target_img_ids", backbone.target_positions(sample.target.shape[1:3])),
        ):
            positions = np.broadcast_to(positions, (len(sample.target), *positions.shape))
            yield Output(name, positions, limits.EQUAL)

    def acting_outputs(
        self, policy: ImageWAM, context: Context, cache: Cache, text: TextLayout, prefix: str
    ) -> Iterator[Output]:
        """Positions, keys and values of every layer, heads side by side, and the tokens after the
        last one.

        Officially the channels of a key are in adjacent pairs, those that a rotation turns.
        """
        rows, columns = context.references.shape[2:4]
        positions = policy.backbone.reference_positions((rows, columns))[None]
        yield Output(f"{prefix}ref_img_ids", positions, limits.EQUAL)

        def official(tokens: Float[Array, "1 s c"]) -> tuple[np.ndarray, np.ndarray]:
            reference, words = np.split(np.asarray(tokens), [rows * columns], axis=1)
            return text(words), reference

        for kind, group in zip(("double", "single"), cache.groups, strict=True):
            for layer, kv in enumerate(zip(*map(np.asarray, group), strict=True)):
                for part, tokens in zip("kv", side_by_side(*kv), strict=True):
                    words, reference = official(tokens)
                    tokens = np.concatenate([words, reference], axis=1)
                    valid = with_images(text.valid, reference)
                    yield Output(f"{prefix}kv.{kind}.{layer}.{part}", tokens, limits.CACHE, valid)
        words, reference = official(last_state(policy, context))
        yield Output(f"{prefix}prefix_final_img", reference, limits.VELOCITY)
        yield Output(f"{prefix}prefix_final_txt", words, limits.VELOCITY, text.valid)


def side_by_side(
    k: Float[np.ndarray, "b s n h"], v: Float[np.ndarray, "b s n h"]
) -> tuple[Float[np.ndarray, "b s width"], Float[np.ndarray, "b s width"]]:
    """Keys and values with their heads side by side, channels in the official order."""
    k = rearrange(k, "b s n (two pair) -> b s (n pair two)", two=2)
    return k, rearrange(v, "b s n h -> b s (n h)")


@run_once
def last_state(policy: ImageWAM, context: Context) -> Float[Array, "b s d"]:
    """The tokens [reference | text] after the last layer of `ImageWAM.prefill`."""
    text, layout = policy.layout(context, None)
    timestep_b = jnp.zeros(len(text), policy.config.coordinate_dtype)
    stack = policy.backbone_stack(None, context.references, text, layout, timestep_b)
    (x, _), _ = run_layers(stack)
    return x
