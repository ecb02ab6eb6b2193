"""A trained policy in the units of the world: raw images and states in, raw actions out."""

import contextlib
import dataclasses
import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from imagewam_jax.checkpoints.assets import ASSET_TREES, read_autoencoder, restore_assets
from imagewam_jax.checkpoints.merged_lora import merged_params, without_lora
from imagewam_jax.checkpoints.store import check_arrays, open_checkpoint
from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import CheckpointError
from imagewam_jax.models.imagewam import ImageWAM
from imagewam_jax.models.parameters import abstract_params, policy_builder
from imagewam_jax.models.sharding import (
    param_shardings,
    replicate,
    replicated,
    with_shardings,
)
from imagewam_jax.models.text_encoders.base import TextEncoder
from imagewam_jax.policy.checks import (
    check_euler_steps,
    check_image_size,
    check_images,
    check_instructions,
    check_numbers,
    check_observations,
    check_previous,
    check_time,
    clamped_dims,
)
from imagewam_jax.policy.met_instructions import PLACES, MetInstructions
from imagewam_jax.policy.placement import Placement
from imagewam_jax.policy.programs import (
    compute_actions,
    compute_attention,
    compute_images,
    compute_imagined,
    compute_latents,
    compute_next_actions,
    compute_seen,
    with_text,
)
from imagewam_jax.policy.real_time import METHODS, Previous, check_method, longest_delay
from imagewam_jax.policy.text_assets import (
    check_table,
    encoder_of,
    no_text,
    table_tree,
    with_tokens,
)
from imagewam_jax.preprocess.inputs import (
    Observations,
    PolicyAssets,
    image_spec,
)
from imagewam_jax.text.encoders import make_prompt
from imagewam_jax.text.tables import open_text_table

_LOG = logging.getLogger(__name__)


class Policy:
    """A policy restored from a checkpoint. Compiled once per batch size and image size.

    On a mesh it computes on all devices; who gives which rows there is told in `policy.placement`.

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
        text_encoder: TextEncoder | None = None,
        mesh: Mesh | None = None,
    ):
        """`dataset` names the one in whose units the policy sees and acts, if it was trained on
        several. With `text_encoder` it takes any instruction. Where there is a mesh, the arrays of
        model and assets lie on it."""
        self.metadata, self.step, self.mesh = metadata, step, mesh
        self.dataset, row = _dataset(metadata, dataset)
        self.statistics = metadata["statistics"][metadata["datasets"][row]]
        rows = np.array([row])
        self.config = metadata["config"]
        self._model, self._all_assets, self.placement = model, assets, Placement(mesh)
        self._text_encoder = text_encoder
        self._assets = dataclasses.replace(  # of this dataset alone, so that its `dataset_id` is 0
            assets, actions=assets.actions.of(rows), state=assets.state.of(rows)
        )
        self._images = image_spec(self.config["data"])
        self._state = jax.tree.map(np.asarray, self._assets.state.of(0))
        self._warned: set[int] = set()  # the state's dimensions that were warned of
        self._rows = {prompt: row for row, prompt in enumerate(metadata["prompts"])}
        self._met: MetInstructions | None = None
        if text_encoder is not None:
            # Two instructions may have become one prompt: there can be more rows than prompts.
            rows, tokens, _ = self._assets.text.shape
            section = self.config["text"]
            self._met = MetInstructions(text_encoder, section, first=rows, tokens=tokens)
            self._assets = dataclasses.replace(
                self._assets,
                text=jnp.pad(self._assets.text, ((0, PLACES), (0, 0), (0, 0))),
                text_length=jnp.pad(self._assets.text_length, (0, PLACES), constant_values=1),
            )

    def of(self, dataset: str) -> "Policy":
        """The same policy in the units of another dataset that it was trained on; parameters are
        shared. CheckpointError: it was not."""
        return Policy(
            self._model,
            self._all_assets,
            self.metadata,
            self.step,
            dataset,
            text_encoder=self._text_encoder,
            mesh=self.mesh,
        )

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

    @property
    def instructions(self) -> tuple[str, ...]:
        """The instructions saved in the checkpoint, in the order of their `text_id`."""
        before, _, after = self.config["text"]["template"].partition("{}")
        return tuple(prompt.removeprefix(before).removesuffix(after) for prompt in self._rows)

    @property
    def encodes_text(self) -> bool:
        """Whether it takes instructions that it was not saved with."""
        return self._met is not None

    def knows(self, instruction: str) -> bool:
        """Whether the text features of an instruction are known already."""
        (prompt,) = self._prompts([instruction])
        return prompt in self._rows or (self._met is not None and prompt in self._met)

    def text_ids(self, instructions: Sequence[str]) -> Int[np.ndarray, " b"]:
        """The `text_id` of `Observations` for some instructions.

        A policy with a text encoder encodes those that are new, logs how long that took, and keeps
        the last `met_instructions.PLACES`. Without one, CheckpointError names an instruction that
        is not known, to the letter. InputError: one is too long.
        """
        prompts = self._prompts(instructions)
        if self._met is None and (unknown := sorted(set(prompts).difference(self._rows))):
            known = list(self._rows)
            if len(known) > 8:
                close = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0)
                known = f"{len(known)}, the closest are {close}"
            raise CheckpointError(
                f"the checkpoint has no text features of {unknown}; it knows {known}. {_NEW_TEXT}"
            )
        return np.array([self._text_id(prompt) for prompt in prompts], np.int32)

    def _prompts(self, instructions: Sequence[str]) -> list[str]:
        template = self.config["text"]["template"]
        return [make_prompt(template, text) for text in check_instructions(instructions)]

    def _text_id(self, prompt: str) -> int:
        """The number of a prompt, which is encoded if it is new."""
        if prompt in self._rows:
            return self._rows[prompt]
        number = self._met.number(prompt)
        if number is None:
            encoded = self._met.encode(prompt)
            number, row = self._met.keep(prompt)
            text, length = with_text(
                self._assets.text,
                self._assets.text_length,
                row,
                jnp.asarray(encoded.features, self._assets.text.dtype),
                encoded.length,
            )
            self._assets = dataclasses.replace(self._assets, text=text, text_length=length)
            _LOG.info("encoded %r in %.3f s", prompt, encoded.seconds)
        return number

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
        steps = self._euler_steps(euler_steps)
        return self._run(
            compute_actions, observations, noise, images=self._images, euler_steps=steps
        )

    def act_real_time(
        self,
        observations: Observations,
        noise: Float[Array, "b s a"],
        previous: Previous,
        method: str,
        euler_steps: int | None = None,
    ) -> Float[np.ndarray, "b s a"]:
        """Action chunks as those of `act`, which go on from what robots execute in the meantime.

        Compiled once for each method (`real_time.METHODS`), whatever the delays.
        """
        observations, noise = self._checked(observations, noise)
        steps = self._euler_steps(euler_steps)
        check_method(self.config, method, steps)
        previous = check_previous(
            previous,
            batch=len(noise),
            horizon=self.horizon,
            action_dim=self.action_dim,
            max_delay=longest_delay(self.config, self.horizon, method),
        )
        return self._run(
            compute_next_actions,
            observations,
            noise,
            previous,
            images=self._images,
            euler_steps=steps,
            guidance=METHODS[method],
        )

    def normalized_actions(self, actions: Float[np.ndarray, "... a"]) -> Float[np.ndarray, "... a"]:
        """Actions in the units in which the model has them, without a clamp."""
        return jax.tree.map(np.asarray, self._assets.actions.of(0)).scaled(actions)

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
        return self._run(
            compute_imagined, observations, noise, images=self._images, euler_steps=steps
        )

    def attention_on_reference(
        self, observations: Observations, noise: Float[Array, "b s a"], time: float = 0.5
    ) -> Float[np.ndarray, "b layer h w"]:
        """How much the action stream attends to each cell of the first reference image: see
        `ImageWAM.action_attention`. The noise is that of `act`."""
        observations, noise = self._checked(observations, noise)
        time = check_time(time)
        return self._run(compute_attention, observations, noise, time=time, images=self._images)

    def seen(
        self,
        images: UInt8[Array, "b camera h w 3"],
        image_size: Int[Array, "b camera 2"] | None = None,
    ) -> UInt8[np.ndarray, "b reference H W 3"]:
        """Images as the model sees them, resized and arranged: one mosaic, or each camera where
        the layout is "references". `image_size` is that of `Observations`."""
        seen = partial(compute_seen, spec=self._images)
        return self.placement.run(seen, *self._checked_images(images, image_size))

    def encode(
        self,
        images: UInt8[Array, "b camera h w 3"],
        image_size: Int[Array, "b camera 2"] | None = None,
    ) -> Float[np.ndarray, "b rows columns channels"]:
        """Latents of images, as training has them for its target."""
        encode = partial(compute_latents, self._assets, spec=self._images)
        return _host(self.placement.run(encode, *self._checked_images(images, image_size)))

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[np.ndarray, "b H W 3"]:
        """Images in [-1, 1], not clamped."""
        axes = "[batch, row, column, channel]"
        latent = check_numbers(latent, "latent", axes, (None, *self._latent))
        return _host(self.placement.run(partial(compute_images, self._assets), latent))

    def latent_shape(self, images: UInt8[Array, "b camera h w 3"]) -> tuple[int, ...]:
        """The shape of what `encode` returns, without computing it."""
        return len(check_images(images, self.cameras)), *self._latent

    @cached_property
    def _latent(self) -> tuple[int, int, int]:
        """Rows, columns and channels of a latent: they do not depend on the size of the images."""
        images = jax.ShapeDtypeStruct((1, len(self.cameras), 1, 1, 3), jnp.uint8)
        encode = partial(compute_latents, image_size=None, spec=self._images)
        return jax.eval_shape(encode, self._assets, images).shape[1:]

    def _run(
        self, function: Callable[..., Array], *batch: Any, **settings: Any
    ) -> Float[np.ndarray, "b ..."]:
        """What a compiled function of model, assets and a batch makes of one."""
        function = partial(function, self._model, self._assets, **settings)
        return _host(self.placement.run(function, *batch))

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
            prompts=self._met.numbers if self._met else len(self._assets.text),
        )
        if self._met:
            observations = observations._replace(text_id=self._met.rows(observations.text_id))
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
    mesh: Mesh | None = None,
    average: bool = True,
    autoencoder: Path | str | None = None,
    text_table: Path | str | None = None,
    text_encoder: Path | str | None = None,
    text_tokens: int | None = None,
    dataset: str | None = None,
) -> Policy:
    """The policy of a run's newest checkpoint, or of the step that `path` names.

    Weights keep the dtype that they were saved in; low-rank additions are merged into them.

    mesh: the devices that share the policy (`models.sharding.make_mesh`), of several hosts too,
        which all load it; None is the first device. Each parameter is read where it lies, so that
        no device or host needs to hold the whole policy.
    average: take the moving average of the weights, where there is one.
    autoencoder, text_table: a checkpoint and a file that replace these assets, which a converted
        policy can lack. The known prompts are then those of the table.
    text_encoder: a checkpoint of the encoder that the policy was trained with, or "config" for
        the one that its config names: the policy then takes any instruction.
    text_tokens: that an instruction may have, if more than those that the policy knows.
    dataset: the one in whose units the policy acts, if it was trained on several.
    CheckpointError: there is no policy, or it is not whole. ConfigError: the mesh cannot divide it.
    """
    placement = None if mesh is None else replicated(mesh)
    checkpoints, step = open_checkpoint(path, placement)
    with contextlib.closing(checkpoints):
        metadata, trees = checkpoints.restore_json(step, "metadata"), checkpoints.trees(step)
        if "horizon" not in metadata["config"].get("model", {}):
            raise CheckpointError(f"{path}: not a whole policy; it has {sorted(trees)}")
        config = policy_config(metadata["config"]["model"])
        which = checkpoints.weights(step, None if average else "params")
        saved = checkpoints.abstract(step, which)
        check_arrays(abstract_params(config), saved, f"{path}: {which}")
        if mesh is not None:
            saved = with_shardings(saved, param_shardings(mesh, config))
        params = checkpoints.restore(step, {which: saved})[which]
        params, config = merged_params(params, config.lora), without_lora(config)
        section, instead = metadata["config"]["autoencoder"], {}
        dtype = jax.tree.leaves(params["backbone"])[0].dtype
        if autoencoder is not None:
            instead["autoencoder"] = read_autoencoder(autoencoder, section)
        if text_table is not None:
            file = open_text_table(text_table)
            check_table(file, metadata, config.backbone.text_dim)
            instead["text"], metadata["prompts"] = table_tree(file, dtype), list(file.prompts)
            metadata.setdefault("text_encoder", file.encoder)
        encoder = None
        if text_encoder is not None:
            encoder = encoder_of(text_encoder, metadata, config.backbone.text_dim)
            if "text" not in trees | set(instead):
                instead["text"], metadata["prompts"] = no_text(config, text_tokens, dtype), []
        if lacking := sorted(set(ASSET_TREES) - trees - set(instead)):
            raise CheckpointError(f"{path}: the policy cannot act without {lacking}: {_ADVICE}")
        if placement is not None:
            instead = replicate(instead, placement)
        assets = restore_assets(checkpoints, step, section, instead)
    if text_tokens is not None:
        assets = with_tokens(assets, text_tokens)
    model = policy_builder(config)(params)
    return Policy(model, assets, metadata, step, dataset, text_encoder=encoder, mesh=mesh)


def _host(result: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
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


_NEW_TEXT = (
    "For others, load it with a table that `imagewam encode-text` made (--text-table), or with its "
    "text encoder (--text-encoder), which encodes what it meets"
)

_ADVICE = (
    "an autoencoder can be converted with it, or taken from another checkpoint; text comes from a "
    "table that `imagewam encode-text` makes; normalizers need dataset_stats.json beside the "
    "weights and a known mode when they are converted"
)
