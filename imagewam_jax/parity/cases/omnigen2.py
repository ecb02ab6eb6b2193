"""What only recordings of policies on OmniGen2 have: the tokens of every layer of a step."""

from collections.abc import Iterator

import numpy as np

from imagewam_jax.models.backbones.omnigen2 import OmniGen2Config
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import Kind, NotChecked, Output, having
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.layers import joint_states
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.cases.policy_case import joint_inputs, training_case
from imagewam_jax.parity.cases.transformer import complex_factors
from imagewam_jax.parity.stacks.omnigen2 import one_sequence, valid_rows

LAYERS_SIGNATURE = ("pre.video", "pre.video_freqs_real", "pre.action")


def _layers_outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    policy, case = loaded.module("policy"), training_case(loaded, folder)
    ropes, conditions, before, after = joint_states(policy, *joint_inputs(case, policy.config))
    n_reference = int(np.prod(case.sample.context.references.shape[1:4]))
    sizes = n_reference, int(np.prod(case.grid))
    valid = valid_rows(case.text, *sizes)

    for name, rope in zip(("video", "action"), ropes, strict=True):
        for part, table in zip(("real", "imag"), complex_factors(rope), strict=True):
            table = np.broadcast_to(table, (len(valid), *table.shape[1:]))
            rows = None
            if name == "video":
                table, rows = one_sequence(table, case.text, *sizes), valid
            yield Output(f"pre.{name}_freqs_{part}", table, limits.ROTATION, rows)
    for name, condition in zip(("video", "action"), conditions, strict=True):
        yield Output(f"pre.{name}_temb", condition.time[:, 0], limits.VELOCITY)
    ((x, a),) = after
    states = [("pre", before), *((f"layer.{i}", (x[i], a[i])) for i in range(len(x)))]
    for name, (tokens, action) in states:
        tokens = one_sequence(tokens, case.text, *sizes)
        yield Output(f"{name}.video", tokens, limits.VELOCITY, valid)
        yield Output(f"{name}.action", action, limits.VELOCITY)


def _inputs(loaded: Loaded, *_) -> dict[str, np.ndarray] | None:
    """No inputs beyond those of the training step; None, so that nothing is recorded, for another
    backbone."""
    return {} if isinstance(loaded.config("backbone"), OmniGen2Config) else None


LAYERS = Kind(
    name="every layer of that step",
    part="policy",
    file="trace.safetensors",
    find=having(*LAYERS_SIGNATURE),
    outputs=_layers_outputs,
    inputs=_inputs,
    case="policy",
)
