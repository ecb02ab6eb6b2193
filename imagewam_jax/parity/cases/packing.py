"""Where the robot state's token goes among the tokens of the text."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from imagewam_jax.models.imagewam import Context
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import (
    Kind,
    NotChecked,
    Output,
    check_width,
    having,
    is_right_padded,
)
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.official_order import official_text, text_layout

SIGNATURE = ("context", "proprio")


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """The text with the token behind the valid text (`pack_true`), and behind the padding."""
    policy, io = loaded.module("policy"), folder.need(*SIGNATURE)
    text, proprio, config = io["context"], io["proprio"], policy.config
    check_width(io.file, "context", text.shape[-1], config.backbone.text_dim, "policy")
    check_width(io.file, "proprio", proprio.shape[-1], config.proprio_dim, "policy")
    image = np.zeros((len(text), 1, 1, 1, config.backbone.in_channels), np.float32)
    for case in [name.removesuffix(".mask") for name in io if name.count(".") == 1]:
        mask = io[f"{case}.mask"]
        if not is_right_padded(mask):
            io.unread -= {name for name in io if name.startswith(f"{case}.pack_")}
            yield NotChecked(f"{case}.pack_*", "valid text of ours stands before all padding")
            continue
        context = Context(text, mask.sum(-1).astype(np.int32), image, proprio)
        for flag, position in (("true", None), ("false", text.shape[1])):
            packing = jax.tree.map(lambda x: x, policy)
            packing.config = dataclasses.replace(config, proprio_position=position)
            layout = text_layout(packing.config, text.shape[1], context.text_length)
            packed, valid = official_text(packing, context, layout)
            name = f"{case}.pack_{flag}"
            yield Output(f"{name}.context", packed, limits.ROUNDING, layout.valid)
            yield Output(f"{name}.mask", valid, limits.EQUAL)


PACKING = Kind(
    name="packing of the robot state",
    part="policy",
    file="proprio_pack.safetensors",
    find=having(*SIGNATURE),
    outputs=_outputs,
)
