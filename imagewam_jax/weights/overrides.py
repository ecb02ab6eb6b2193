"""What `imagewam convert --set NAME=VALUE` can give, in place of a file beside the weights."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """How a value is read, and what it is."""

    parse: Callable[[str], Any]  # ValueError: it is not one
    help: str


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _boolean(text: str) -> bool:
    choices = {"true": True, "false": False}
    if text not in choices:
        raise ValueError(text)
    return choices[text]


def _dtype(text: str) -> str:
    if text not in ("bfloat16", "float32"):
        raise ValueError(text)
    return text


SETTABLE = {
    "rope_axes": Setting(_integers, "channels of a head that each axis turns: 32,32,32,32"),
    "rope_theta": Setting(float, "base of the RoPE wavelengths"),
    "lora_alpha": Setting(float, "alpha of LoRA factors; the files do not hold it"),
    "horizon": Setting(int, "actions per chunk"),
    "max_horizon": Setting(int, "the expert's limit of it"),
    "expert_dim": Setting(int, "width of a new action expert"),
    "expert_mlp_ratio": Setting(float, "inner width of its MLPs over that"),
    "expert_scale": Setting(_boolean, "false: its first weights are resized without scaling"),
    "pack_proprio_after_text": Setting(
        _boolean, "false: the robot state stands behind the padded text"
    ),
    "proprio_position": Setting(int, "the padded text length, where it does"),
    "coordinate_dtype": Setting(_dtype, "of positions and times: bfloat16 or float32"),
    "feature_layers": Setting(_integers, "layers that text features are taken after: 9,18,27"),
    "normalization": Setting(
        str, "of actions and states: min/max, z-score, q01/q99 or low/high numbers"
    ),
    "embodiment": Setting(str, "of per-embodiment statistics, the one to take"),
}
