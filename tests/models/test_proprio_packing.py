"""Where the robot state's token goes among the text tokens, against the recorded packing."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from imagewam_jax.models.imagewam import Context
from tests.goldens import golden
from tests.models import official


def packed(policy, io, case):
    mask = io[f"{case}.mask"]
    grid = np.zeros((mask.shape[0], 1, 2, 2, policy.config.backbone.in_channels), np.float32)
    context = Context(io["context"], mask.sum(-1), grid, io["proprio"])
    return policy.layout(context, None)


@pytest.mark.parametrize("case", ["right_padded", "full", "one_empty"])
def test_the_token_at_a_fixed_position(case):
    """The unpacked official variant: the token is the last row, whatever the text's length.

    Here it follows the valid text, with the rotation of that last row.
    """
    folder = golden("imagewam_flux2")
    io = load_file(folder / "proprio_pack.safetensors")
    expected, valid = io[f"{case}.pack_false.context"], io[f"{case}.pack_false.mask"]
    last = expected.shape[1] - 1
    policy = official.load_policy(folder, proprio_position=last)
    text, layout = packed(policy, io, case)
    by_position = (
        official.load_policy(folder)
        .layout(
            Context(
                expected, np.full(len(expected), last), np.zeros((2, 1, 2, 2, 16)), io["proprio"]
            ),
            None,
        )[1]
        .rope
    )
    for row, is_valid in enumerate(valid):
        n = is_valid.sum()
        np.testing.assert_allclose(text[row, :n], expected[row, is_valid], atol=2e-6, rtol=0)
        ours = np.asarray(layout.rope.cos)[row, 4 : 4 + n]
        theirs = np.asarray(by_position.cos)[0, 4 : 4 + last + 1][is_valid]
        np.testing.assert_array_equal(ours, theirs)
