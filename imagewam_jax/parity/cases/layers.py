"""The tokens of a policy on FLUX.2 before and after every layer of a training step."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Array, Float

from imagewam_jax.models.backbones.flux2 import Flux2Config
from imagewam_jax.models.flow_matching import TIMESTEPS
from imagewam_jax.models.imagewam import Context, ImageWAM
from imagewam_jax.models.layer_runner import Stack, run_layers
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import Kind, NotChecked, Output, run_once
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.cases.policy_case import joint_inputs, training_case
from imagewam_jax.parity.cases.transformer import rotation_matrices
from imagewam_jax.parity.official_order import with_images
from imagewam_jax.parity.stacks import having_of
from imagewam_jax.parity.stacks.flux2 import Flux2Stack

SIGNATURE = ("pre.txt", "pre.img", "pre.action")


@run_once
def joint_states(
    policy: ImageWAM, context: Context, target, target_timestep, actions, action_timestep
):
    """What `ImageWAM.velocities` goes through, of (backbone, expert): the rotations of their
    tokens, their conditions, their tokens before the layers, and those after each, stacked."""
    text, layout = policy.layout(context, target.shape[1:3])
    backbone = policy.backbone_stack(target, context.references, text, layout, target_timestep)
    expert = Stack(
        policy.expert,
        policy.expert.action_in(actions),
        policy.expert.condition(action_timestep),
        policy.action_layout(actions.shape[1], layout.context_length_b),
    )
    _, after = run_layers(backbone, expert, tap=lambda seen: (seen.x, seen.a))
    ropes = layout.rope, expert.layout.rope
    conditions = backbone.condition, expert.condition
    return ropes, conditions, (backbone.tokens, expert.tokens), after


@run_once
def _embedded_times(policy: ImageWAM, *timesteps: Float[Array, " b"]):
    networks = policy.backbone, policy.expert
    return [n.time_in(t / TIMESTEPS)[:, 0] for n, t in zip(networks, timesteps, strict=True)]


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    policy, case = loaded.module("policy"), training_case(loaded, folder)
    inputs = joint_inputs(case, policy.config)
    (rope, _), _, before, after = joint_states(policy, *inputs)
    times = _embedded_times(policy, inputs[2], inputs[4])
    valid = case.text.valid

    def official(tokens: Float[Array, "b s *c"]) -> tuple[np.ndarray, np.ndarray]:
        """Text, and [reference | target]."""
        tokens = np.asarray(tokens)
        n_target, n_text = case.grid[0] * case.grid[1], valid.shape[1]
        target, reference, text = np.split(tokens, [n_target, tokens.shape[1] - n_text], axis=1)
        return case.text(text), np.concatenate([reference, target], axis=1)

    action_ids = policy.backbone.action_positions(case.sample.actions.shape[1])
    action_ids = np.broadcast_to(action_ids, (len(valid), *action_ids.shape)).astype(np.float32)
    yield Output("pre.action_ids", action_ids, limits.EQUAL)
    tables = rotation_matrices(rope)
    tables = np.broadcast_to(tables, (len(valid), *tables.shape[1:]))
    text, image = official(tables)
    yield Output("pre.txt_pe", text[:, None], limits.ROTATION, valid[:, None])
    yield Output("pre.img_pe", image[:, None], limits.ROTATION)
    yield Output("pre.video_vec", times[0], limits.VELOCITY)
    yield Output("pre.action_vec", times[1], limits.VELOCITY)

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


def _inputs(loaded: Loaded, *_) -> dict[str, np.ndarray] | None:
    """No inputs beyond those of the training step; None, so that nothing is recorded, for another
    backbone."""
    return {} if isinstance(loaded.config("policy").backbone, Flux2Config) else None


LAYERS = Kind(
    name="every layer of that step",
    part="policy",
    file="trace.safetensors",
    find=having_of(Flux2Stack, *SIGNATURE),
    outputs=_outputs,
    inputs=_inputs,
    case="policy",
)
