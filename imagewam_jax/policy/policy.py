"""A trained policy in the units of the world: raw images and states in, raw actions out."""

import contextlib
import dataclasses
import difflib
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from imagewam_jax.checkpoints.assets import ASSET_TREES, read_autoencoder, restore_assets
from imagewam_jax.checkpoints.merged_lora import merged_params, without_lora
from imagewam_jax.checkpoints.store import check_arrays, open_checkpoint
from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import CheckpointError
from imagewam_jax.models.autoencoders import to_uint8
from imagewam_jax.models.flow_matching import TIMESTEPS
from imagewam_jax.models.imagewam import ImageWAM
from imagewam_jax.models.parameters import abstract_params, policy_builder
from imagewam_jax.policy.checks import (
    check_euler_steps,
    check_image_size,
    check_images,
    check_instructions,
    check_numbers,
    check_observations,
    check_time,
    clamped_dims,
)
from imagewam_jax.preprocess.images import REFERENCES, ImageSpec, prepare_images
from imagewam_jax.preprocess.inputs import (
    Observations,
    PolicyAssets,
    encode_images,
    image_spec,
    make_context,
)
from imagewam_jax.text.encoders import check_kind, check_width, make_prompt
from imagewam_jax.text.tables import TextTableFile, open_text_table

_LOG = logging.getLogger(__name__)


class Policy:
    """A policy restored from a checkpoint. Compiled once per batch size and image size.

    Its methods take NumPy or JAX arrays. Images are uint8 RGB, channels last, and of any height and
    width: they are resized as training resized the stored ones, stretched to `data.image_size` or,
    for the cameras in `data.letterbox`, within black borders. What does not fit the policy is an
    InputError that names the field, what was expected and what was found (`policy.checks`). A state
    so far from the data that its normalization cuts it off is logged, once for each dimension.
    """

    def __init__(
        self,
        model: ImageWAM,
        assets: PolicyAssets,
        metadata: Mapping[str, Any],
        step: int,
        dataset: str | None = None,
    ):
        """`dataset` names the one in whose units the policy sees and acts, if it was trained on
        several."""
        self.metadata, self.step = metadata, step
        self.dataset, row = _dataset(metadata, dataset)
        self.statistics = metadata["statistics"][metadata["datasets"][row]]
        rows = np.array([row])
        self.config = metadata["config"]
        self._model = model
        self._assets = dataclasses.replace(  # of this dataset alone, so that its `dataset_id` is 0
            assets, actions=assets.actions.of(rows), state=assets.state.of(rows)
        )
        self._images = image_spec(self.config["data"])
        self._state = jax.tree.map(np.asarray, self._assets.state.of(0))
        self._warned: set[int] = set()  # the state's dimensions that were warned of
        self._rows = {prompt: row for row, prompt in enumerate(metadata["prompts"])}

    @property
    def horizon(self) -> int:
        return self._model.config.horizon

    @property
    def action_dim(self) -> int:
        return self._model.config.expert.action_dim

    @property
    def cameras(self) -> tuple[str, ...]:
        """The roles of the cameras, in the order of the images."""
        return tuple(self.config["data"]["cameras"])

    @property
    def state_dim(self) -> int:
        """Numbers in the state of the robot; 0 if the policy takes none."""
        return self._model.config.proprio_dim or 0

    def text_ids(self, instructions: Sequence[str]) -> Int[np.ndarray, " b"]:
        """Rows of `PolicyAssets.text` for some instructions: the `text_id` of `Observations`.

        CheckpointError names an instruction that is not known, to the letter.
        """
        template = self.config["text"]["template"]
        prompts = [make_prompt(template, text) for text in check_instructions(instructions)]
        if unknown := sorted(set(prompts) - set(self._rows)):
            known = list(self._rows)
            if len(known) > 8:
                close = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0)
                known = f"{len(known)}, the closest are {close}"
            raise CheckpointError(
                f"the checkpoint has no text features of {unknown}; it knows {known}. For others, "
                "load it with a table that `imagewam encode-text` made"
            )
        return np.array([self._rows[prompt] for prompt in prompts], np.int32)

    def act(
        self,
        observations: Observations,
        noise: Float[Array, "b s a"],
        euler_steps: int | None = None,
    ) -> Float[np.ndarray, "b s a"]:
        """Action chunks in real units from standard normal noise [b, `horizon`, `action_dim`].

        euler_steps: by default `acting.euler_steps` of the config.
        """
        observations, noise = self._checked(observations, noise)
        return _host(
            compute_actions(
                self._model,
                self._assets,
                observations,
                noise,
                self._images,
                self._euler_steps(euler_steps),
            )
        )

    def imagine(
        self,
        observations: Observations,
        noise: Float[Array, "b h w c"],
        euler_steps: int | None = None,
    ) -> Float[np.ndarray, "b h w c"]:
        """Latents of the image that the policy expects at the end of the chunk, from standard
        normal noise of their shape (`latent_shape`)."""
        observations = self._observed(observations)
        shape = (len(observations.state), *self._latent)
        noise = check_numbers(noise, "noise", "[batch, row, column, channel]", shape)
        steps = self._euler_steps(euler_steps)
        return _host(_imagine(self._model, self._assets, observations, noise, self._images, steps))

    def attention_on_reference(
        self, observations: Observations, noise: Float[Array, "b s a"], time: float = 0.5
    ) -> Float[np.ndarray, "b layer h w"]:
        """How much the action stream attends to each cell of the first reference image: see
        `ImageWAM.action_attention`. The noise is that of `act`."""
        observations, noise = self._checked(observations, noise)
        time = check_time(time)
        return _host(_attention(self._model, self._assets, observations, noise, time, self._images))

    def seen(
        self,
        images: UInt8[Array, "b camera h w 3"],
        image_size: Int[Array, "b camera 2"] | None = None,
    ) -> UInt8[np.ndarray, "b reference H W 3"]:
        """Images as the model sees them, resized and arranged: one mosaic, or each camera where
        the layout is "references". `image_size` is that of `Observations`."""
        return np.asarray(_seen(*self._checked_images(images, image_size), self._images))

    def encode(
        self,
        images: UInt8[Array, "b camera h w 3"],
        image_size: Int[Array, "b camera 2"] | None = None,
    ) -> Float[np.ndarray, "b rows columns channels"]:
        """Latents of images, as training has them for its target."""
        images, image_size = self._checked_images(images, image_size)
        return _host(_encode(self._assets, images, image_size, self._images))

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[np.ndarray, "b H W 3"]:
        """Images in [-1, 1], not clamped."""
        axes = "[batch, row, column, channel]"
        latent = check_numbers(latent, "latent", axes, (None, *self._latent))
        return _host(_decode(self._assets, latent))

    def latent_shape(self, images: UInt8[Array, "b camera h w 3"]) -> tuple[int, ...]:
        """The shape of what `encode` returns, without computing it."""
        return len(check_images(images, self.cameras)), *self._latent

    @cached_property
    def _latent(self) -> tuple[int, int, int]:
        """Rows, columns and channels of a latent: they do not depend on the size of the images."""
        images = jax.ShapeDtypeStruct((1, len(self.cameras), 1, 1, 3), jnp.uint8)
        encode = partial(_encode, image_size=None, spec=self._images)
        return jax.eval_shape(encode, self._assets, images).shape[1:]

    def _checked(
        self, observations: Observations, noise: Any
    ) -> tuple[Observations, Float[np.ndarray, "b s a"]]:
        observations = self._observed(observations)
        shape = (len(observations.state), self.horizon, self.action_dim)
        axes = "[batch, step, action dimension]"
        return observations, check_numbers(noise, "noise", axes, shape)

    def _observed(self, observations: Observations) -> Observations:
        observations = check_observations(
            observations,
            cameras=self.cameras,
            state_dim=self.state_dim,
            prompts=len(self._assets.text),
        )
        clamped = set(clamped_dims(observations.state, self._state).tolist())
        if new := sorted(clamped - self._warned):
            self._warned |= clamped
            _LOG.warning(
                "state dimensions %s are so far outside the data that they are cut off: %s",
                new,
                observations.state[:, new].tolist(),
            )
        return observations

    def _checked_images(self, images: Any, image_size: Any) -> tuple[Any, Any]:
        images = check_images(images, self.cameras)
        return images, check_image_size(image_size, images.shape)

    def _euler_steps(self, given: int | None) -> int:
        return check_euler_steps(self.config["acting"]["euler_steps"] if given is None else given)


def load_policy(
    path: Path | str,
    *,
    average: bool = True,
    autoencoder: Path | str | None = None,
    text_table: Path | str | None = None,
    dataset: str | None = None,
) -> Policy:
    """The policy of a run's newest checkpoint, or of the step that `path` names.

    Weights keep the dtype that they were saved in; low-rank additions are merged into them.

    average: take the moving average of the weights, where there is one.
    autoencoder, text_table: a checkpoint and a file that replace these assets, which a converted
        policy can lack. The known prompts are then those of the table.
    dataset: the one in whose units the policy acts, if it was trained on several.
    CheckpointError: there is no policy, or it is not whole.
    """
    checkpoints, step = open_checkpoint(path)
    with contextlib.closing(checkpoints):
        metadata, trees = checkpoints.restore_json(step, "metadata"), checkpoints.trees(step)
        if "horizon" not in metadata["config"].get("model", {}):
            raise CheckpointError(f"{path}: not a whole policy; it has {sorted(trees)}")
        config = policy_config(metadata["config"]["model"])
        which = checkpoints.weights(step, None if average else "params")
        saved = checkpoints.abstract(step, which)
        check_arrays(abstract_params(config), saved, f"{path}: {which}")
        params = checkpoints.restore(step, {which: saved})[which]
        params, config = merged_params(params, config.lora), without_lora(config)
        section, instead = metadata["config"]["autoencoder"], {}
        if autoencoder is not None:
            instead["autoencoder"] = read_autoencoder(autoencoder, section)
        if text_table is not None:
            file = open_text_table(text_table)
            _check_text(file, metadata, config.backbone.text_dim)
            dtype = jax.tree.leaves(params["backbone"])[0].dtype
            instead["text"], metadata["prompts"] = _text(file, dtype), list(file.prompts)
        if lacking := sorted(set(ASSET_TREES) - trees - set(instead)):
            raise CheckpointError(f"{path}: the policy cannot act without {lacking}: {_ADVICE}")
        assets = restore_assets(checkpoints, step, section, instead)
    return Policy(policy_builder(config)(params), assets, metadata, step, dataset)


def _host(result: Array) -> Float[np.ndarray, "..."]:
    """The result in float32, whatever the policy computes in."""
    return np.asarray(result, np.float32)


def _dataset(metadata: Mapping[str, Any], name: str | None) -> tuple[str, int]:
    """The name and number of the dataset in whose units a policy acts.

    Without a name it is the only dataset, or the first where all share one normalization. The
    statistics of an official checkpoint are those of all datasets that it was trained on.
    """
    known = metadata["datasets"]
    source = metadata["statistics"][known[0]].get("source", {})
    if name is not None and source.get("official"):
        return name, 0
    if name is None and (len(known) == 1 or metadata["config"]["data"].get("pool_statistics")):
        name = known[0]
    if name not in known:
        raise CheckpointError(
            f"the policy was trained on {known}; say whose units it acts in, not {name!r}"
        )
    return name, known.index(name)


_ADVICE = (
    "an autoencoder can be converted with it, or taken from another checkpoint; text comes from a "
    "table that `imagewam encode-text` makes; normalizers need dataset_stats.json beside the "
    "weights and a known mode when they are converted"
)


def _check_text(file: TextTableFile, metadata: Mapping[str, Any], text_dim: int) -> None:
    """DataError or ConfigError unless the encoder that the policy was trained with made a table.

    A converted policy tells only the kind of its encoder.
    """
    if "text_encoder" in metadata:
        file.check_encoder(metadata["text_encoder"])
    else:
        check_kind(metadata["config"]["text"]["encoder"], file)
    check_width(text_dim, file.channels)


def _text(file: TextTableFile, dtype: jnp.dtype) -> dict[str, Array]:
    """All features of a table, as the tree "text" of a checkpoint."""
    table = file.select(file.prompts)
    return {"features": jnp.asarray(table.features, dtype), "length": jnp.asarray(table.lengths)}


@partial(jax.jit, static_argnames=("images", "euler_steps"))
def compute_actions(
    model: ImageWAM,
    assets: PolicyAssets,
    observations: Observations,
    noise: Float[Array, "b s a"],
    images: ImageSpec,
    euler_steps: int,
) -> Float[Array, "b s a"]:
    """Action chunks in real units, of the first dataset that `assets` have."""
    cache = model.prefill(make_context(assets, images, observations))
    actions, _ = model.act(cache, noise, model.action_schedule(euler_steps))
    return assets.actions.of(0).denormalize(actions)


@partial(jax.jit, static_argnames=("images", "euler_steps"))
def _imagine(model, assets, observations, noise, images, euler_steps):
    context = make_context(assets, images, observations)
    return model.imagine(context, noise, model.target_schedule(euler_steps))[0]


@partial(jax.jit, static_argnames=("images",))
def _attention(model, assets, observations, noise, time, images):
    timestep_b = jnp.full(noise.shape[0], TIMESTEPS * time)
    return model.action_attention(make_context(assets, images, observations), noise, timestep_b)


@partial(jax.jit, static_argnames=("spec",))
def _seen(images, image_size, spec):
    prepared = prepare_images(images[:, :, None], image_size, spec, None)[:, 0]
    return to_uint8(prepared if spec.layout == REFERENCES else prepared[:, None])


@partial(jax.jit, static_argnames=("spec",))
def _encode(assets, images, image_size, spec):
    return encode_images(assets, spec, images[:, :, None], image_size)[:, 0, 0]


@jax.jit
def _decode(assets, latent):
    return assets.autoencoder.decode(latent)
