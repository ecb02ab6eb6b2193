"""The state of a policy before and after every layer of a training step."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagewam_jax.models.attention import attend_xla
from imagewam_jax.models.backbones.flux2 import ACTION_TIME
from imagewam_jax.models.blocks import action_layer
from imagewam_jax.models.imagewam import Context, ImageWAM
from imagewam_jax.models.layers import Rope
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import Kind, NotChecked, Output, having, run_once
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.cases.policy_case import (
    as_tokens,
    joint_inputs,
    training_case,
    with_images,
)

SIGNATURE = ("pre.txt", "pre.img", "pre.action")


@run_once
def _joint_states(policy: ImageWAM, context: Context, target, target_time, actions, action_time):
    """As `ImageWAM.velocities`, with what it goes through: the rotation, the embedded times, the
    tokens of backbone and expert before the layers, and after each, stacked."""
    backbone, expert = policy.backbone, policy.expert
    text, layout = policy.layout(context, target.shape[1:3])
    x = backbone.embed([as_tokens(target), as_tokens(context.references)], text)
    a = expert.action_in(actions)
    rope = backbone.action_rope(actions.shape[1], jnp.dtype(policy.config.coordinate_dtype))
    vectors = backbone.time_in(target_time), expert.time_in(action_time)
    before, after = (x, a), []
    for layers, on, a_layers, a_on in zip(
        backbone.groups,
        backbone.group_conditions(backbone.condition(target_time)),
        expert.groups,
        expert.group_conditions(expert.condition(action_time)),
        strict=True,
    ):

        def step(tokens, layer, on=on, a_on=a_on):
            (x, a), (backbone_layer, expert_layer) = tokens, layer
            x, context_kv = backbone_layer(x, on, layout)
            a = action_layer(
                expert_layer,
                a,
                a_on,
                context_kv,
                rope=rope,
                context_length_b=layout.context_length_b,
                attend=attend_xla,
            )
            return (x, a), (x, a)

        (x, a), states = jax.lax.scan(step, (x, a), (layers, a_layers))
        after.append(states)
    return layout.rope, vectors, before, after


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    policy, case = loaded.module("policy"), training_case(loaded, folder)
    rope, vectors, before, after = _joint_states(policy, *joint_inputs(case, policy.config))
    valid = case.text.valid

    def official(tokens: Float[Array, "b s *c"]) -> tuple[np.ndarray, np.ndarray]:
        """Text, and [reference | target]."""
        tokens = np.asarray(tokens)
        n_target, n_text = case.grid[0] * case.grid[1], valid.shape[1]
        target, reference, text = np.split(tokens, [n_target, tokens.shape[1] - n_text], axis=1)
        return case.text(text), np.concatenate([reference, target], axis=1)

    steps = np.arange(case.sample.actions.shape[1])
    action_ids = np.stack([np.full_like(steps, ACTION_TIME), steps, 0 * steps, 0 * steps], -1)
    action_ids = np.broadcast_to(action_ids, (len(valid), *action_ids.shape)).astype(np.float32)
    yield Output("pre.action_ids", action_ids, limits.EQUAL)
    tables = rotation_matrices(rope)
    tables = np.broadcast_to(tables, (len(valid), *tables.shape[1:]))
    text, image = official(tables)
    yield Output("pre.txt_pe", text[:, None], limits.ROTATION, valid[:, None])
    yield Output("pre.img_pe", image[:, None], limits.ROTATION)
    yield Output("pre.video_vec", vectors[0], limits.VELOCITY)
    yield Output("pre.action_vec", vectors[1], limits.VELOCITY)

    double, single = after
    n_double, n_single = len(double[0]), len(single[0])
    states = [("pre", before)]
    states += [(f"double.{i}", (double[0][i], double[1][i])) for i in range(n_double)]
    for name, (x, a) in states:
        text, image = official(x)
        yield Output(f"{name}.txt", text, limits.VELOCITY, valid)
        yield Output(f"{name}.img", image, limits.VELOCITY)
        yield Output(f"{name}.action", a, limits.VELOCITY)
    for i in range(n_single):
        text, image = official(single[0][i])
        stream = np.concatenate([text, image], axis=1)
        yield Output(f"single.{i}.stream", stream, limits.VELOCITY, with_images(valid, image))
        yield Output(f"single.{i}.action", single[1][i], limits.VELOCITY)


def rotation_matrices(rope: Rope) -> Float[np.ndarray, "b s pairs 2 2"]:
    """Tables of ours as the official code has them."""
    cos, sin = (np.asarray(table)[:, :, 0, ::2] for table in rope)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


KIND = Kind(
    name="every layer of that step",
    part="policy",
    file="trace.safetensors",
    find=having(*SIGNATURE),
    outputs=_outputs,
    inputs=lambda *_: {},  # those of the training step
    case="policy",
)
