"""What differs between the recordings of policies on different backbones."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from jaxtyping import Array, Float, Int

from imagewam_jax.models.flow_matching import Schedule
from imagewam_jax.models.imagewam import Cache, Context, ImageWAM, ImageWAMConfig, Sample
from imagewam_jax.parity.cases.base import Output, Sizes, check_width, run_once
from imagewam_jax.parity.cases.folder import Tensors
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.official_order import TextLayout, text_layout

_imagine = run_once(ImageWAM.imagine)


class Stack(Protocol):
    """The recordings of policies on one backbone: a recorded image is in the form in which the
    official code of that backbone has it, and ours is a grid of cells."""

    name: ClassVar[str]  # what the official code calls it
    backbone: ClassVar[type]  # the type of the backbone's configuration
    reference: ClassVar[str]  # the tensor of a reference image that a policy acts on
    # The tensors of what the networks get for a timestep, in training and when acting.
    training_time: ClassVar[str]
    acting_times: ClassVar[str]
    # Whether the transformer alone is recorded, with padded text "masked" or read like the "whole".
    transformer_alone: ClassVar[Literal["", "masked", "whole"]]

    def network_time(self, timestep: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """What the official networks get for a timestep."""

    def text_layout(
        self, config: ImageWAMConfig, tokens: int, length_b: Int[np.ndarray, " b"]
    ) -> TextLayout:
        """The official order of `tokens` padded tokens, of which `length_b` are valid, with the
        robot state's."""
        return text_layout(config, tokens, length_b)

    def cells(self, config: Any, io: Tensors, name: str, ids: str) -> Float[Array, "b h w c"]:
        """A recorded image, as the backbone of `config` takes it; the tensor `ids` has the
        positions of its tokens, where they are recorded. ConversionError: it is of another model.
        """
        cells = self.latents(config, io, name, ids)
        check_width(io.file, name, cells.shape[-1], config.in_channels, "policy")
        return cells

    def latents(self, config: Any, io: Tensors, name: str, ids: str) -> Float[Array, "b h w c"]:
        """A recorded image, as the autoencoder of `config` decodes it; `ids` is that of `cells`."""

    def recorded(self, config: Any, cells: Float[Array, "b h w c"]) -> Float[np.ndarray, "b ..."]:
        """The inverse of `cells`."""

    def sampled(
        self,
        config: Any,
        cells: Float[Array, "b h w c"],
        moments: Float[Array, "b H W moments"] | None,
        io: Tensors,
        noise: str,
    ) -> Float[np.ndarray, "b ..."] | None:
        """The recorded form of what an autoencoder of `config` encodes; `noise` names the noise
        that a posterior was sampled with. None: that is not recorded."""

    def posterior_noise(
        self, config: Any, sizes: Sizes, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Noise to sample the posteriors of a training step's two frames with, by name."""

    def imagined_reference(self, loaded: Loaded, io: Tensors) -> Float[Array, "b h w c"] | None:
        """The reference image of what the first sample's policy imagines, as the backbone takes it.
        None: the checkpoint lacks the autoencoder that it was encoded with."""

    def imagined(
        self,
        policy: ImageWAM,
        context: Context,
        noise: Float[Array, "1 h w c"],
        schedule: Schedule,
    ) -> Float[Array, "steps 1 h w c"]:
        """The image after each Euler step of the official code."""
        return _imagine(policy, context, noise, schedule)[1].state

    def training_inputs(self, policy: ImageWAM, sizes: Sizes) -> dict[str, np.ndarray]:
        """Inputs of a training step that only these recordings have."""

    def training_outputs(
        self, policy: ImageWAM, sample: Sample, text: TextLayout
    ) -> Iterator[Output]:
        """Positions and lengths that follow from the inputs of a training step."""

    def acting_outputs(
        self, policy: ImageWAM, context: Context, cache: Cache, text: TextLayout, prefix: str
    ) -> Iterator[Output]:
        """The keys and values that the context leaves to the action, and what of its positions and
        tokens is recorded beside them."""
