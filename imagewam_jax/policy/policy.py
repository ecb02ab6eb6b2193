"""A trained policy in the units of the world: raw images and states in, raw actions out."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
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
from imagewam_jax.models.imagewam import ImageWAM
from imagewam_jax.models.parameters import abstract_params, policy_builder
from imagewam_jax.preprocess.images import ImageSpec
from imagewam_jax.preprocess.inputs import (
    Observations,
    PolicyAssets,
    encode_images,
    image_spec,
    make_context,
)
from imagewam_jax.text.encoders import check_kind, check_width, make_prompt
from imagewam_jax.text.tables import TextTableFile, open_text_table


class Policy:
    """A policy restored from a checkpoint. Compiled once per batch size and image size."""

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
        rows = np.array([row])
        self.config = metadata["config"]
        self._model = model
        self._assets = dataclasses.replace(  # of this dataset alone, so that its `dataset_id` is 0
            assets, actions=assets.actions.of(rows), state=assets.state.of(rows)
        )
        self._images = image_spec(self.config["data"])
        self._rows = {prompt: row for row, prompt in enumerate(metadata["prompts"])}

    @property
    def horizon(self) -> int:
        return self._model.config.horizon

    @property
    def action_dim(self) -> int:
        return self._model.config.expert.action_dim

    def text_ids(self, instructions: Sequence[str]) -> Int[np.ndarray, " b"]:
        """Rows of `PolicyAssets.text` for some instructions: the `text_id` of `Observations`.

        CheckpointError names an instruction that is not known.
        """
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
        return np.asarray(
            compute_actions(self._model, self._assets, observations, noise, self._images, steps)
        )

    def imagine(
        self,
        observations: Observations,
        noise: Float[Array, "b h w c"],
        euler_steps: int | None = None,
    ) -> Float[np.ndarray, "b h w c"]:
        """Latents of the image that the policy expects at the end of the chunk."""
        steps = euler_steps or self.config["acting"]["euler_steps"]
        return np.asarray(
            _imagine(self._model, self._assets, observations, noise, self._images, steps)
        )

    def attention_on_reference(
        self, observations: Observations, noise: Float[Array, "b s a"], time: float = 0.5
    ) -> Float[np.ndarray, "b layer h w"]:
        """How much the action stream attends to each cell of the first reference image: see
        `ImageWAM.action_attention`."""
        return np.asarray(
            _attention(self._model, self._assets, observations, noise, time, self._images)
        )

    def encode(
        self, images: UInt8[Array, "b camera h w 3"]
    ) -> Float[np.ndarray, "b rows columns channels"]:
        """Latents of images, as training has them for its target."""
        return np.asarray(_encode(self._assets, images, self._images))

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[np.ndarray, "b H W 3"]:
        """Images in [-1, 1], not clamped."""
        return np.asarray(_decode(self._assets, latent))

    def latent_shape(self, images: UInt8[Array, "b camera h w 3"]) -> tuple[int, ...]:
        """The shape of what `encode` returns, without computing it."""
        return jax.eval_shape(
            lambda assets, images: _encode(assets, images, self._images), self._assets, images
        ).shape


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


def _dataset(metadata: Mapping[str, Any], name: str | None) -> tuple[str, int]:
    """The name and number of the dataset in whose units a policy acts.

    Without a name it is the only dataset, or the first where all share one normalization.
    """
    known = metadata["datasets"]
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
    time_b = jnp.full(noise.shape[0], time)
    return model.action_attention(make_context(assets, images, observations), noise, time_b)


@partial(jax.jit, static_argnames=("spec",))
def _encode(assets, images, spec):
    return encode_images(assets, spec, images[:, :, None])[:, 0, 0]


@jax.jit
def _decode(assets, latent):
    return assets.autoencoder.decode(latent)
