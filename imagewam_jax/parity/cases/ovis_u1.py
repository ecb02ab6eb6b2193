"""What only recordings of policies on Ovis-U1 have: the tokens of every layer of a training step,
and what the text's refiner makes of its text."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Array, Float

from imagewam_jax.models.backbones.ovis_u1 import OvisU1Config, TextRefiner
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import (
    Kind,
    NotChecked,
    Output,
    having,
    run_once,
    valid_lengths,
)
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.layers import SIGNATURE, joint_states
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.cases.policy_case import TRAINING, joint_inputs, training_case
from imagewam_jax.parity.cases.transformer import rotation_matrices
from imagewam_jax.parity.official_order import with_images
from imagewam_jax.parity.stacks import having_of
from imagewam_jax.parity.stacks.ovis_u1 import OvisU1Stack

REFINER_SIGNATURE = ("refiner_masked_txt", "refiner_masked_global")


def _layers_outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """States before the layers, after each single layer, and after the last."""
    policy, case = loaded.module("policy"), training_case(loaded, folder)
    (rope, _), vectors, before, after = joint_states(policy, *joint_inputs(case, policy.config))
    valid = case.text.valid

    def official(tokens: Float[Array, "b s *c"]) -> tuple[np.ndarray, np.ndarray]:
        """Text, and [target | reference]."""
        images, text = np.split(np.asarray(tokens), [tokens.shape[1] - valid.shape[1]], axis=1)
        return case.text(text), images

    def every_sample(array: Float[Array, "..."]) -> Float[np.ndarray, "b ..."]:
        return np.broadcast_to(array, (len(valid), *array.shape[1:]))

    positions = policy.backbone.action_positions(case.sample.actions.shape[1])
    yield Output("pre.action_ids", every_sample(positions[None].astype(np.float32)), limits.EQUAL)
    text, images = official(every_sample(rotation_matrices(rope)))
    yield Output("pre.txt_pe", text[:, None], limits.ROTATION, valid[:, None])
    yield Output("pre.img_pe", images[:, None], limits.ROTATION)
    for name, vector in zip(("video", "action"), vectors, strict=True):
        yield Output(f"pre.{name}_vec", vector[:, 0], limits.VELOCITY)
    _, (x, a) = after
    for name, tokens, action in (("pre", *before), ("final", x[-1], a[-1])):
        text, images = official(tokens)
        yield Output(f"{name}.txt", text, limits.VELOCITY, valid)
        yield Output(f"{name}.img", images, limits.VELOCITY)
        yield Output(f"{name}.action", action, limits.VELOCITY)
    for i, (tokens, action) in enumerate(zip(x, a, strict=True)):
        text, images = official(tokens)
        stream = np.concatenate([text, images], axis=1)
        yield Output(f"single.{i}.stream", stream, limits.VELOCITY, with_images(valid, images))
        yield Output(f"single.{i}.action", action, limits.VELOCITY)


def _inputs(loaded: Loaded, *_) -> dict[str, np.ndarray] | None:
    """No inputs beyond those of the training step; None, so that nothing is recorded, for another
    backbone."""
    return {} if isinstance(loaded.config("backbone"), OvisU1Config) else None


LAYERS = Kind(
    name="every layer of that step",
    part="policy",
    file="trace.safetensors",
    find=having_of(OvisU1Stack, *SIGNATURE),
    outputs=_layers_outputs,
    inputs=_inputs,
    case="policy",
)

_refine = run_once(TextRefiner.__call__)


def _refiner_outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """The recorded text, without the robot state's token."""
    backbone, io = loaded.module("backbone"), folder.need(*TRAINING)
    if not isinstance(backbone.config, OvisU1Config):
        yield NotChecked(REFINER.name, "of another backbone than the checkpoint's")
        return
    text, length_b = io["text_hidden_states"], valid_lengths(io, "text_attention_mask")
    refined, class_token = _refine(backbone.refiner, text, length_b)
    yield Output("refiner_masked_txt", refined, limits.CACHE)
    yield Output("refiner_masked_global", class_token, limits.CACHE)


REFINER = Kind(
    name="the refiner of the text",
    part="backbone",
    file="train.safetensors",
    find=having(*REFINER_SIGNATURE),
    outputs=_refiner_outputs,
    inputs=_inputs,
    case="policy",
)
