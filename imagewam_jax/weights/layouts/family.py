"""What the official code calls the parts of the policies of one backbone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.weights.layouts.mapping import Rule
from imagewam_jax.weights.layouts.metadata import Metadata, Specs


@dataclass(frozen=True)
class Family:
    """The policies of one backbone in the official layout.

    title: the backbone's name for people.
    backbone: the type of the backbone's configuration.
    factory: the function that makes such a policy, as training configs name it.
    first: a tensor that every transformer has.
    expert: tensors that every expert of this family has, also first weights without embedding and
        head. The first of them is in no expert of another family.
    aliases: the prefix of a tensor's second name in a checkpoint -> the prefix of its name in the
        transformer.
    modules: the names of the modules of a transformer and of an expert, in the order in which the
        official model registers them.
    transformer_config, transformer_rules: sizes of a transformer, and its mapping.
    expert_config, expert_rules: the same for its action expert.
    check_expert: raises a ConversionError where the training config has another expert.
    initial_name: the transformer's tensor that a tensor of a new expert is made from.
    scaled: whether the official script scales what it resizes.
    initial_config: sizes of a new expert for a transformer.
    unpacked: what it means where the robot state's token stands behind padded text: that it is at
        another position ("elsewhere"), that padding is read ("refused"), or nothing ("same").
    settings: the sections of a training config that describe the networks: those of its section
        `model`, and those beside it.
    """

    title: str
    backbone: type
    factory: str
    first: str
    expert: tuple[str, ...]
    aliases: Mapping[str, str]
    modules: tuple[tuple[str, ...], tuple[str, ...]]
    transformer_config: Callable[[Specs, Metadata], Any]
    transformer_rules: Callable[[Any], list[Rule]]
    expert_config: Callable[[Specs, Metadata], ActionExpertConfig]
    expert_rules: Callable[[ActionExpertConfig, Any], list[Rule]]
    check_expert: Callable[[ActionExpertConfig, Any, Metadata], None]
    initial_name: Callable[[str], str]
    scaled: bool
    initial_config: Callable[[Metadata, Any], ActionExpertConfig]
    unpacked: Literal["elsewhere", "refused", "same"]
    settings: Callable[[ImageWAMConfig], tuple[dict[str, Any], dict[str, Any]]]
