"""Recordings of policies on OmniGen2: an image is a latent [b, c, row, column], and a sequence is
`[valid text | reference | target]` without gaps, padded at its end."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from imagewam_jax.models.autoencoders.base import from_cells, to_cells
from imagewam_jax.models.autoencoders.kl import AutoencoderKLConfig
from imagewam_jax.models.backbones.omnigen2 import OmniGen2Config
from imagewam_jax.models.imagewam import Cache, Context, ImageWAM, Sample
from imagewam_jax.parity import posteriors
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import (
    Output,
    Sizes,
    check_axes,
    nchw,
    nhwc,
    run_once,
)
from imagewam_jax.parity.cases.folder import Tensors
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.official_order import TextLayout
from imagewam_jax.parity.stacks.base import Stack
from imagewam_jax.parity.stacks.flux2 import side_by_side


class OmniGen2Stack(Stack):
    """What the methods do is written in `stacks.base`."""

    name = "omnigen2"
    backbone = OmniGen2Config
    reference = "ref_latent"
    training_time = "model_timestep"
    acting_times = "model_timesteps"
    transformer_alone = "masked"

    def network_time(self, timestep: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return timestep

    def latents(
        self, config: OmniGen2Config | AutoencoderKLConfig, io: Tensors, name: str, ids: str
    ):
        latent = check_axes(io.file, name, io[name], "batch", "channels", "rows", "columns")
        return to_cells(nhwc(latent), config.patch)

    def recorded(self, config: OmniGen2Config, cells: Float[Array, "b h w c"]):
        return nchw(from_cells(cells, config.patch))

    def sampled(
        self, config: AutoencoderKLConfig, cells, moments, io: Tensors, noise: str
    ) -> Float[np.ndarray, "b c h w"] | None:
        return posteriors.sample(config, moments, io, noise, self.name)

    def posterior_noise(
        self, config: AutoencoderKLConfig, sizes: Sizes, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        return posteriors.noises(config, sizes, rng)

    def imagined_reference(self, loaded: Loaded, io: Tensors) -> Float[Array, "b h w c"] | None:
        if posteriors.IMAGINED in io:
            return posteriors.imagined_reference(loaded, io, self.name)
        return self.cells(loaded.config("backbone"), io, "infer0.ref_latent", "")

    def training_inputs(self, policy: ImageWAM, sizes: Sizes) -> dict[str, np.ndarray]:
        return {}

    def training_outputs(
        self, policy: ImageWAM, sample: Sample, text: TextLayout
    ) -> Iterator[Output]:
        lengths = text.valid.sum(-1)
        images = np.prod(sample.context.references.shape[1:4]) + np.prod(sample.target.shape[1:3])
        yield Output("encoder_seq_lengths", lengths, limits.EQUAL)
        yield Output("seq_lengths", lengths + images, limits.EQUAL)

    def acting_outputs(
        self, policy: ImageWAM, context: Context, cache: Cache, text: TextLayout, prefix: str
    ) -> Iterator[Output]:
        """Keys and values of every layer, heads side by side, and the tokens before the first."""
        n_reference = int(np.prod(context.references.shape[1:4]))
        (group,) = cache.groups
        for layer, kv in enumerate(zip(*map(np.asarray, group), strict=True)):
            for part, tokens in zip("kv", side_by_side(*kv), strict=True):
                tokens = one_sequence(tokens, text, n_reference)
                yield Output(f"{prefix}kv.{layer}.{part}", tokens, limits.CACHE)
        tokens = one_sequence(_first_state(policy, context), text, n_reference)
        yield Output(f"{prefix}prefix_tokens_before_layers", tokens, limits.CACHE)


def one_sequence(
    tokens: Float[Array, "b s *c"], text: TextLayout, n_reference: int, n_target: int = 0
) -> Float[np.ndarray, "b longest *c"]:
    """Our tokens `[target | reference | text]` in the official order; zeros at padding."""
    tokens = np.asarray(tokens)
    target, reference, words = np.split(tokens, [n_target, n_target + n_reference], axis=1)
    words, lengths = text(words), text.valid.sum(-1)
    longest = lengths.max() + n_reference + n_target
    official = np.zeros((len(tokens), longest, *tokens.shape[2:]), tokens.dtype)
    for i, n in enumerate(lengths):
        parts = [words[i][text.valid[i]], reference[i], target[i]]
        official[i, : n + n_reference + n_target] = np.concatenate(parts)
    return official


def valid_rows(text: TextLayout, n_reference: int, n_target: int) -> Bool[np.ndarray, "b longest"]:
    """The rows of `one_sequence` that are no padding."""
    lengths = text.valid.sum(-1) + n_reference + n_target
    return np.arange(lengths.max()) < lengths[:, None]


@run_once
def _first_state(policy: ImageWAM, context: Context) -> Float[Array, "b s d"]:
    """The tokens [reference | text] before the first layer of `ImageWAM.prefill`."""
    text, layout = policy.layout(context, None)
    timestep_b = jnp.zeros(len(text), policy.config.coordinate_dtype)
    return policy.backbone_stack(None, context.references, text, layout, timestep_b).tokens
