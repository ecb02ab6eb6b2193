"""The official training config, key by key: what becomes of each when a policy is converted.

`train_config.yaml` (docs/spec/imagewam_flux2.md, 7 and 8) decides numbers that no tensor shows. A
key that does is read, or compared with what is known otherwise, or must have the one value that is
supported here. The rest says how and on what the policy was trained. A key that is in no row is
named on the terminal, so that no difference of numbers stays unseen.
"""

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.flow_matching import TIMESTEPS
from imagewam_jax.weights.references import MISSING, unresolved


class Kind(NamedTuple):
    """What a value can be."""

    words: str
    accepts: Callable[[Any], bool]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


INTEGER = Kind("an integer", _is_integer)
COUNT = Kind("an integer above 0", lambda value: _is_integer(value) and value > 0)
FRAMES = Kind("an integer above 1", lambda value: _is_integer(value) and value > 1)
NUMBER = Kind("a number", _is_number)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str))
SIZES = Kind("a list of integers", lambda v: isinstance(v, list) and all(map(_is_integer, v)))
SECTION = Kind("a section", lambda value: isinstance(value, Mapping))


def only(*values: Any) -> Kind:
    """A kind of some values: others would give other numbers than are computed here."""
    words = " or ".join("null" if value is None else str(value).lower() for value in values)
    accepted = [(type(value), value) for value in values]
    return Kind(f"{words}: nothing else is supported", lambda v: (type(v), v) in accepted)


def ending(end: str) -> Kind:
    """A kind of Python names with this last part."""
    return Kind(
        f"{end}: nothing else is supported",
        lambda value: isinstance(value, str) and value.rpartition(".")[2] == end,
    )


# Keys that decide numbers or shapes, wherever they stand in the file: the end of each key's path,
# what its value can be, and which of ours it becomes or is compared with. null is the same as no
# key. A value that is no such kind is an error.
DECIDE: tuple[tuple[str, Kind, str], ...] = (
    # Normalization.
    ("norm_default_mode", TEXT, "data.normalization"),
    ("default_mode", TEXT, "data.normalization; what it is called without its section"),
    ("normalization", TEXT, "data.normalization, in our own exports"),
    ("use_stepwise_action_norm", only(False), "normalizers are the same at all steps of a chunk"),
    ("norm_exception_mode", only(None), "one mode for all; see also `check_exceptions`"),
    ("action_state_merger._target_", ending("ConcatLeftAlign"), "keys are joined in their order"),
    ("shape_meta", SECTION, "the order of an action's and a state's keys in dataset_stats.json"),
    # Chunks and images.
    ("num_frames", FRAMES, "model.horizon, which is one less"),
    ("action_horizon", COUNT, "model.horizon"),
    ("horizon", COUNT, "model.horizon, in our own exports"),
    ("global_sample_stride", COUNT, "data.stride"),
    ("endpoint_frames_only", only(True), "the target is the last frame alone"),
    ("action_video_freq_ratio", only(1), "actions and frames have one rate"),
    ("num_output_cameras", COUNT, "compared with data.cameras of --config"),
    ("video_size", SIZES, "compared with the mosaic of --config"),
    ("concat_multi_camera", TEXT, "compared with data.layout of --config"),
    ("eval_num_inference_steps", COUNT, "acting.euler_steps, without --config"),
    # Sizes, which tensors have, too.
    ("action_output_dim", COUNT, "compared with the tensors"),
    ("proprio_output_dim", COUNT, "compared with the tensors"),
    ("proprio_dim", COUNT, "compared with the tensors"),
    ("flux2_params.in_channels", COUNT, "compared with the tensors"),
    ("flux2_params.context_in_dim", COUNT, "compared with the tensors"),
    ("flux2_params.hidden_size", COUNT, "compared with the tensors"),
    ("flux2_params.num_heads", COUNT, "compared with the tensors"),
    ("flux2_params.depth", COUNT, "compared with the tensors"),
    ("flux2_params.depth_single_blocks", COUNT, "compared with the tensors"),
    ("flux2_params.mlp_ratio", NUMBER, "compared with the tensors"),
    ("flux2_params.use_guidance_embed", only(False), "klein has none"),
    ("flux2_params.axes_dim", SIZES, "model.backbone.rope_axes"),
    ("flux2_params.theta", NUMBER, "model.backbone.rope_theta"),
    ("rope_axes", SIZES, "model.backbone.rope_axes, in our own exports"),
    ("rope_theta", NUMBER, "model.backbone.rope_theta, in our own exports"),
    ("transformer_config.patch_size", COUNT, "model.backbone.patch"),
    ("transformer_config.in_channels", COUNT, "compared with the tensors"),
    ("transformer_config.out_channels", COUNT, "compared with the tensors"),
    ("transformer_config.hidden_size", COUNT, "compared with the tensors"),
    ("transformer_config.num_layers", COUNT, "compared with the tensors"),
    ("transformer_config.num_refiner_layers", COUNT, "compared with the tensors"),
    ("transformer_config.num_attention_heads", COUNT, "compared with the tensors"),
    ("transformer_config.num_kv_heads", COUNT, "compared with the tensors"),
    ("transformer_config.text_feat_dim", COUNT, "compared with the tensors"),
    ("multiple_of", COUNT, "the inner widths of MLPs, which tensors have"),
    ("ffn_dim_multiplier", NUMBER, "the same"),
    ("transformer_config.norm_eps", NUMBER, "model.backbone.norm_eps"),
    ("transformer_config.axes_dim_rope", SIZES, "model.backbone.rope_axes"),
    ("transformer_config.axes_lens", SIZES, "bounds of positions, which ours have not"),
    ("transformer_config.timestep_scale", NUMBER, "model.backbone.timestep_scale"),
    ("timestep_scale", NUMBER, "model.backbone.timestep_scale, in our own exports"),
    ("yak_config.in_channels", COUNT, "compared with the tensors"),
    ("yak_config.out_channels", COUNT, "compared with the tensors"),
    ("yak_config.vec_in_dim", COUNT, "compared with the tensors"),
    ("yak_config.context_in_dim", COUNT, "compared with the tensors"),
    ("yak_config.hidden_size", COUNT, "compared with the tensors"),
    ("yak_config.num_heads", COUNT, "compared with the tensors"),
    ("yak_config.depth", COUNT, "compared with the tensors"),
    ("yak_config.depth_single_blocks", COUNT, "compared with the tensors"),
    ("yak_config.mlp_ratio", NUMBER, "compared with the tensors"),
    ("yak_config.axes_dim", SIZES, "model.backbone.rope_axes"),
    ("yak_config.theta", NUMBER, "model.backbone.rope_theta"),
    ("yak_config.guidance_embed", only(False), "Ovis-U1 has none"),
    ("yak_config.qkv_bias", only(True), "Ovis-U1 has biases everywhere"),
    ("action_dit_config.qkv_bias", FLAG, "the tensors have them or not"),
    ("txt_refiner.heads", COUNT, "twice as many as the transformer's"),
    ("txt_refiner.depth", COUNT, "compared with the tensors"),
    ("txt_refiner.enable_cls_token", only(True), "the text modulates through it"),
    ("txt_refiner.act", only("silu"), "in the MLPs of the refiner"),
    ("txt_refiner.mlp_width_ratio", NUMBER, "the tensors have it"),
    ("action_dit_config.action_dim", COUNT, "compared with the tensors"),
    ("action_dit_config.residual_dim", COUNT, "compared with the tensors"),
    ("action_dit_config.num_kv_heads", COUNT, "officially replaced by the transformer's"),
    ("action_dit_config.num_layers", COUNT, "officially replaced by the transformer's"),
    ("action_dit_config.norm_eps", NUMBER, "compared with the transformer's"),
    (
        "action_dit_config.frequency_embedding_size",
        only(256),
        "channels of embedded times",
    ),
    ("action_dit_config.timestep_scale", NUMBER, "model.backbone.action_timestep_scale"),
    ("action_dit_config.rope_theta", NUMBER, "model.backbone.action_rope_theta"),
    ("action_dit_config.hidden_dim", COUNT, "compared with the tensors"),
    ("action_dit_config.num_heads", COUNT, "compared with the tensors"),
    ("action_dit_config.attn_head_dim", COUNT, "compared with the tensors"),
    ("action_dit_config.num_layers_double", COUNT, "compared with the tensors"),
    ("action_dit_config.num_layers_single", COUNT, "compared with the tensors"),
    ("action_dit_config.mlp_ratio", NUMBER, "compared with the tensors"),
    ("action_dit_config.max_action_horizon", COUNT, "model.expert.max_horizon"),
    ("max_horizon", COUNT, "model.expert.max_horizon, in our own exports"),
    # The policy.
    ("model._target_", TEXT, "the backbone, compared with the tensors"),
    ("pack_proprio_after_text", FLAG, "model.proprio_position"),
    ("proprio_position", COUNT, "model.proprio_position"),
    ("context_len", COUNT, "model.proprio_position, if the state stands behind padded text"),
    ("qwen_context_len", COUNT, "model.proprio_position, likewise"),
    ("mixed_precision", only("bf16", "no", False), "model.coordinate_dtype"),  # YAML: no is False
    ("coordinate_dtype", only("bfloat16", "float32"), "model.coordinate_dtype, in our own exports"),
    ("video_scheduler.train_shift", NUMBER, "model.target_flow.train_shift"),
    ("video_scheduler.infer_shift", NUMBER, "model.target_flow.sample_shift"),
    ("action_scheduler.train_shift", NUMBER, "model.action_flow.train_shift"),
    ("action_scheduler.infer_shift", NUMBER, "model.action_flow.sample_shift"),
    ("schedulers.video_train_shift", NUMBER, "model.target_flow.train_shift, in recordings"),
    ("schedulers.video_infer_shift", NUMBER, "model.target_flow.sample_shift, in recordings"),
    ("schedulers.action_train_shift", NUMBER, "model.action_flow.train_shift, in recordings"),
    ("schedulers.action_infer_shift", NUMBER, "model.action_flow.sample_shift, in recordings"),
    ("num_train_timesteps", only(TIMESTEPS, float(TIMESTEPS)), "times are counted in as many"),
    ("loss.lambda_video", NUMBER, "model.target_loss_weight"),
    ("loss.lambda_action", NUMBER, "model.action_loss_weight"),
    ("flux2_lora_config.alpha", NUMBER, "the scale of LoRA factors, which are merged"),
    ("flux2_lora_config.rank", COUNT, "compared with the tensors"),
)
# Keys that change what a policy is to be given, which no conversion can do; they are said.
SAID: Mapping[str, str] = {
    "action_state_transforms": "rearrange actions and states before they are normalized; the row "
    "of your dataset must do the same (docs/spec/imagewam_flux2.md, 7.7)",
    "override_instruction": "replaced every instruction of the training",
}
# Keys that change no number of a policy, as patterns of their paths below the sections that are
# searched for unknown keys: where things are, what trains how fast, what is drawn from the data.
IRRELEVANT: Mapping[str, tuple[str, ...]] = {
    "model": (
        "flux2_model_path",
        "flux2_src_path",
        "ae_model_path",
        "omnigen2_*",  # where things are, and how text is padded
        "variant",  # the tensors tell it
        "qwen3_model_spec",  # the width of text features tells it
        "ovis_u1_model_path",
        "load_text_encoder",
        "load_condition_encoder",
        "action_dit_pretrained_path",
        "mot_*",  # kernels, and what is computed again
        "*use_gradient_checkpointing",
        "flux2_lora_config.enabled",  # the tensors tell it
        "flux2_lora_config.dropout",
        "flux2_lora_config.save_*",
        "flux2_lora_config.target_suffixes*",
    ),
    "data.train": (
        "_target_",
        "processor._target_",
        "dataset_dirs*",
        "shape_meta*",
        "processor.shape_meta*",
        "processor.num_obs_steps",
        "processor.delta_action_dim_mask*",  # of padded steps of the training
        "processor.action_state_merger*",
        "processor.train_transforms*",  # augmentation, and sizes that `video_size` has
        "processor.val_transforms*",
        "processor.use_zh_instruction",
        "processor.drop_high_level_prob",
        "processor.pad_token_id",
        "processor.action_state_transforms*",  # see SAID
        "override_instruction",
        "text_embedding_cache_dir*",
        "pretrained_norm_stats*",  # dataset_stats.json has what was used
        "val_set_proportion",
        "val_split_level",
        "is_training_set",
        "seed",
        "sample_index_stride",
        "skip_padding_as_possible",
        "max_padding_retry",
        "nonidle_filter*",
        "episode_index_filter*",
        "hetero_bridge*",
        "*lerobot_*",
        "arrow_cache_dir",
        "profile_*",
    ),
    "flux2_params": (),  # all of its keys are in DECIDE
    "transformer_config": (),  # likewise
    "yak_config": (),
    "txt_refiner": (),
}
# Sections of evaluations and tools, in which keys of the same names mean something else.
_OTHERS = {"val", "test", "EVALUATION", "MULTIRUN", "hydra", "wandb", "infer", "vae"}


def decides(path: str) -> bool:
    """Whether a key of this path decides numbers or shapes of a policy."""
    return any(f".{path}".endswith(f".{name}") for name, _, _ in DECIDE)


def places(settings: Any, name: str) -> dict[str, Any]:
    """The values of all keys whose path ends with `name`, by their paths, without nulls."""
    end = name.split(".")
    return {
        ".".join(path): value
        for path, value in _walk(settings, ())
        if list(path[-len(end) :]) == end and value is not None
    }


def setting(settings: Mapping[str, Any], *names: str) -> Any:
    """The value that the keys of these names have wherever they stand, None if there is none.

    ConversionError: they have several.
    """
    found = [place for name in names for place in places(settings, name).items()]
    for path, value in found:
        if value != found[0][1]:
            raise ConversionError(
                f"{found[0][0]} is {found[0][1]!r} and {path} is {value!r}: they should be the same"
            )
    return found[0][1] if found else None


def check_settings(settings: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Check all keys of an official training config, and return what is to be said of others.

    `given` has the user's overrides, which settle what the file leaves open. ConversionError: a
    value is none, has a reference that cannot be filled in, or is not supported.
    """
    sections = {part for name, _, _ in DECIDE for part in name.split(".")[:-1]}
    sections |= {"data", "train", "processor", "model"}
    for path, value in _walk(settings, ()):
        if path[-1] in sections and unresolved(value):
            raise _open(path, value)
    for name, kind, _ in DECIDE:
        for path, value in places(settings, name).items():
            if unresolved(value):
                raise _open(path.split("."), value)
            if name == "norm_exception_mode":
                check_exceptions(path, value, setting(settings, *MODES))
            elif name == "mixed_precision" and "coordinate_dtype" in given:
                continue
            elif not kind.accepts(value):
                raise ConversionError(f"{path} is {value!r}, expected {kind.words}")
    notes = [
        f"{path}: {value!r}: {SAID[name]}"[:400]
        for name in SAID
        for path, value in places(settings, name).items()
        if value not in ([], {}, "")
    ]
    if unknown := sorted(_unknown(settings)):
        notes.append(f"keys that are not known here and were not read: {', '.join(unknown)}"[:400])
    return notes


MODES = ("norm_default_mode", "default_mode")


def check_exceptions(path: str, exceptions: Any, mode: str | None) -> None:
    """ConversionError: some key of an action or a state is normalized in another mode than the
    rest, which one normalization for all could not repeat."""
    for where, value in _walk(exceptions, tuple(path.split("."))):
        if not isinstance(value, (Mapping, list)) and value not in (None, mode):
            raise ConversionError(
                f"{'.'.join(where)} is {value!r}, others are {mode!r}: one mode for all actions "
                "and states is what is supported"
            )
    if not isinstance(exceptions, Mapping):
        raise ConversionError(f"{path} is {exceptions!r}, expected null")


def key_order(settings: Mapping[str, Any], field: str) -> list[str] | None:
    """The keys of a field ("action" or "state") in the order in which the policy has them; None if
    the config does not say."""
    orders = []
    for path, value in places(settings, "shape_meta").items():
        entries = value.get(field) or []
        if not isinstance(entries, list) or not all(
            isinstance(entry, Mapping) and isinstance(entry.get("key"), str) for entry in entries
        ):
            raise ConversionError(f"{path}.{field} is {entries!r}, expected a list of keys")
        if entries:
            orders.append([entry["key"] for entry in entries])
    if any(order != orders[0] for order in orders):
        raise ConversionError(f"shape_meta has several orders of {field}: {orders}")
    return orders[0] if orders else None


def frames_horizon(settings: Mapping[str, Any]) -> int | None:
    """The length of a chunk by the frames of a sample, the first of which is the current one."""
    frames = setting(settings, "num_frames")
    return None if frames is None else frames - 1


def _open(path: Sequence[str], value: str) -> ConversionError:
    what = "is still to be given" if value == MISSING else "cannot be filled in from this file"
    return ConversionError(
        f"{'.'.join(path)} is {value}, which {what}: write the value there that the training had"
    )


def _unknown(settings: Mapping[str, Any]) -> Iterator[str]:
    """Keys of the sections of an official config that are in no row."""
    for section, patterns in IRRELEVANT.items():
        found: Any = settings
        for name in section.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        for path, value in _walk(found, ()):
            name = ".".join(path)
            parents = (f"{section}.{'.'.join(path[:end])}" for end in range(1, len(path) + 1))
            known = any(map(decides, parents))
            ignored = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
            if not (known or ignored or isinstance(value, (Mapping, list)) or value is None):
                yield f"{section}.{name}"


def _walk(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key below a node with its path, except in sections of others."""
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(node, Mapping):
        items = ((key, value) for key, value in node.items() if key not in _OTHERS)
    elif isinstance(node, list):
        items = ((str(number), value) for number, value in enumerate(node))
    for key, value in items:
        yield (*path, str(key)), value
        yield from _walk(value, (*path, str(key)))
