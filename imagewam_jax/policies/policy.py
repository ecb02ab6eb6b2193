"""A trained policy in the units of the world: raw images and states in, raw actions out."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from imagewam_jax.models.imagewam import Context, ImageWAM
from imagewam_jax.policies.checkpoint import open_checkpoint
from imagewam_jax.policies.config import policy_config
from imagewam_jax.policies.errors import CheckpointError
from imagewam_jax.policies.frozen import Frozen, encode_images, make_context, restore_frozen
from imagewam_jax.policies.parameters import abstract_params, policy_builder
from imagewam_jax.policies.text import make_prompt


class Observations(NamedTuple):
    """A batch of what robots see and are told; `text_id` comes from `Policy.text_ids`."""

    images: UInt8[Array, "b camera h w 3"]
    state: Float[Array, "b p"]
    text_id: Int[Array, " b"]


class Policy:
    """A policy restored from a checkpoint. Compiled once per batch size and image size."""

    def __init__(self, model: ImageWAM, frozen: Frozen, about: Mapping[str, Any], step: int):
        self.about, self.step = about, step
        self.config = about["config"]
        self._model, self._frozen = model, frozen
        self._layout = self.config["data"]["layout"]
        self._rows = {prompt: row for row, prompt in enumerate(about["prompts"])}

    @property
    def horizon(self) -> int:
        return self._model.config.horizon

    @property
    def action_dim(self) -> int:
        return self._model.config.expert.action_dim

    def text_ids(self, instructions: Sequence[str]) -> Int[np.ndarray, " b"]:
        """Rows of the text features; CheckpointError names an instruction that is not known."""
        template = self.config["text"]["template"]
        prompts = [make_prompt(template, instruction) for instruction in instructions]
        if unknown := sorted(set(prompts) - set(self._rows)):
            raise CheckpointError(
                f"the checkpoint has no text features of {unknown}; it knows {list(self._rows)}"
            )
        return np.array([self._rows[prompt] for prompt in prompts], np.int32)

    def act(
        self,
        observations: Observations,
        noise: Float[Array, "b s a"],
        euler_steps: int | None = None,
    ) -> Float[np.ndarray, "b s a"]:
        """Action chunks in real units from standard normal noise."""
        steps = euler_steps or self.config["acting"]["euler_steps"]
        return np.asarray(_act(self._model, self._frozen, observations, noise, self._layout, steps))

    def imagine(
        self,
        observations: Observations,
        noise: Float[Array, "b h w c"],
        euler_steps: int | None = None,
    ) -> Float[np.ndarray, "b h w c"]:
        """Latents of the image that the policy expects at the end of the chunk."""
        steps = euler_steps or self.config["acting"]["euler_steps"]
        return np.asarray(
            _imagine(self._model, self._frozen, observations, noise, self._layout, steps)
        )

    def attention_on_reference(
        self, observations: Observations, noise: Float[Array, "b s a"], time: float = 0.5
    ) -> Float[np.ndarray, "b layer h w"]:
        """Where the action stream looks in the first reference image: see
        `ImageWAM.action_attention`."""
        return np.asarray(
            _attention(self._model, self._frozen, observations, noise, time, self._layout)
        )

    def encode(self, images: UInt8[Array, "b camera h w 3"]) -> Float[np.ndarray, "b h w c"]:
        """Latents as the target of training has them."""
        return np.asarray(_encode(self._frozen, images, self._layout))

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[np.ndarray, "b H W 3"]:
        """Images in [-1, 1], not clamped."""
        return np.asarray(_decode(self._frozen, latent))

    def latent_shape(self, images: UInt8[Array, "b camera h w 3"]) -> tuple[int, ...]:
        """The shape of `encode`, without computing it."""
        return jax.eval_shape(
            lambda frozen, images: _encode(frozen, images, self._layout), self._frozen, images
        ).shape


def load_policy(path: Path | str, *, average: bool = True) -> Policy:
    """The policy of a run's newest checkpoint, or of the step that `path` names.

    `average` takes the moving average of the weights. CheckpointError: there is none.
    """
    checkpoints, step = open_checkpoint(path)
    about = checkpoints.restore_json(step, "about")
    config = policy_config(about["config"]["model"])
    which = "ema" if average else "params"
    params = checkpoints.restore(step, {which: abstract_params(config)})[which]
    frozen = restore_frozen(checkpoints, step, about["config"]["autoencoder"])
    checkpoints.close()
    return Policy(policy_builder(config)(params), frozen, about, step)


def _context(frozen: Frozen, observations: Observations, layout: str) -> Context:
    references = encode_images(frozen, layout, observations.images[:, None])[:, 0]
    return make_context(frozen, references, observations.text_id, observations.state)


@partial(jax.jit, static_argnames=("layout", "euler_steps"))
def _act(model, frozen, observations, noise, layout, euler_steps):
    cache = model.prefill(_context(frozen, observations, layout))
    actions, _ = model.act(cache, noise, model.action_schedule(euler_steps))
    return frozen.actions.denormalize(actions)


@partial(jax.jit, static_argnames=("layout", "euler_steps"))
def _imagine(model, frozen, observations, noise, layout, euler_steps):
    context = _context(frozen, observations, layout)
    return model.imagine(context, noise, model.target_schedule(euler_steps))[0]


@partial(jax.jit, static_argnames=("layout",))
def _attention(model, frozen, observations, noise, time, layout):
    time_b = jnp.full(noise.shape[0], time)
    return model.action_attention(_context(frozen, observations, layout), noise, time_b)


@partial(jax.jit, static_argnames=("layout",))
def _encode(frozen, images, layout):
    return encode_images(frozen, layout, images[:, None])[:, 0, 0]


@jax.jit
def _decode(frozen, latent):
    return frozen.autoencoder.decode(latent)
