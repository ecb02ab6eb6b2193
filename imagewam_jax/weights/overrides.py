"""`imagewam convert --set NAME=VALUE`: values that no file beside the weights gives."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from imagewam_jax.errors import ConversionError


class Override(NamedTuple):
    """A value that can be set. `parse` raises ValueError or KeyError for any other text."""

    parse: Callable[[str], Any]
    help: str


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


_boolean = {"true": True, "false": False}.__getitem__
_dtype = {"bfloat16": "bfloat16", "float32": "float32"}.__getitem__

OVERRIDES = {
    "rope_axes": Override(_integers, "channels of a head that each axis turns: 32,32,32,32"),
    "rope_theta": Override(float, "base of the RoPE wavelengths"),
    "timestep_scale": Override(float, "what OmniGen2 multiplies a timestep by: 1000"),
    "lora_alpha": Override(float, "alpha of LoRA factors; the files do not hold it"),
    "horizon": Override(int, "actions per chunk"),
    "max_horizon": Override(int, "the expert's limit of it"),
    "expert_dim": Override(int, "width of a new action expert"),
    "expert_mlp_ratio": Override(float, "inner width of its MLPs over that"),
    "expert_scale": Override(
        _boolean, "whether its first weights are scaled when they are resized"
    ),
    "pack_proprio_after_text": Override(
        _boolean, "false: the robot state stands behind the padded text"
    ),
    "proprio_position": Override(int, "the padded text length, where it does"),
    "coordinate_dtype": Override(_dtype, "of positions and times: bfloat16 or float32"),
    "feature_layers": Override(_integers, "layers that text features are taken after: 9,18,27"),
    "normalization": Override(
        str, "of actions and states: min/max, z-score, q01/q99 or low/high numbers"
    ),
    "embodiment": Override(str, "of per-embodiment statistics, the one to take"),
    "weights": Override(
        str, "of several sets of weights in a file, the prefix of that to take; . for no prefix"
    ),
}


def parse_overrides(settings: Sequence[str]) -> dict[str, Any]:
    """The values of `NAME=VALUE` texts. ConversionError: a name is unknown or given twice, or a
    value cannot be parsed."""
    overrides: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in OVERRIDES:
            raise ConversionError(
                f"--set {setting}: expected NAME=VALUE with one of {[*OVERRIDES]}"
            )
        if name in overrides:
            raise ConversionError(f"--set {setting}: {name} is given twice")
        try:
            overrides[name] = OVERRIDES[name].parse(text)
        except (KeyError, ValueError):
            raise ConversionError(
                f"--set {setting}: not a value of {name} ({OVERRIDES[name].help})"
            ) from None
    return overrides
