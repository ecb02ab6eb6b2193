"""Refuses tensors that are no whole weights, and says what they are: quantised ones, shards of a
parallel run, adapters that are not merged. Their names, dtypes and shapes tell."""

import re

import ml_dtypes
import numpy as np

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.tensors import QUANTISED
from imagewam_jax.weights.layouts.metadata import Specs

_FP8 = {np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)}
# The scales and codebooks of bitsandbytes, GPTQ, AWQ, compressed-tensors, SVDQuant, quanto, and of
# several fp8 formats.
_SCALES = re.compile(
    r"(.*\.)?(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+|SCB|weight_format"
    r"|qweight|qzeros|wscales|g_idx|weight_packed|weight_scale\w*|weight_zero_point|scale_weight"
    r"|scale_input|input_scale|scaled_fp8|comfy_quant|_data|_scale)"
)
# The factors of PEFT, diffusers, kohya and LyCORIS. Official checkpoints have names without weight.
_ADAPTERS = re.compile(
    r".*\.(lora_(A|B|down|up|mid)(\.[^.]+)?\.weight|lora_magnitude_vector.*|lora_embedding_.*"
    r"|base_layer\.\w+|modules_to_save\..*|(hada|lokr)_\w+|dora_scale|alpha)"
)
_FLAT = re.compile(r"(.*\.)?_?flat_param(_\d+)?")


def refuse_unusable(specs: Specs) -> None:
    """ConversionError, which names file and tensor, if some tensors are no whole weights."""
    for name, spec in specs.items():
        if spec.dtype in _FP8:
            raise ConversionError(f"{spec.file}: {name} is of {spec.dtype}: {QUANTISED}")
    if scales := _matching(specs, _SCALES):
        raise ConversionError(f"{_file(specs)}: has {scales[0]}: {QUANTISED}")
    if flat := _matching(specs, _FLAT):
        raise ConversionError(
            f"{_file(specs)}: has {flat[0]}, which is the flat shard of an FSDP run: save the full "
            "state_dict() (StateDictType.FULL_STATE_DICT) and give that"
        )
    if empty := [name for name, spec in specs.items() if 0 in spec.shape]:
        raise ConversionError(
            f"{_file(specs)}: {len(empty)} of its {len(specs)} tensors are empty, such as "
            f"{empty[0]}: this is what a rank of DeepSpeed ZeRO-3 saves that does not gather the "
            "weights; make a whole file with the zero_to_fp32.py in the checkpoint's folder, or "
            "train with stage3_gather_16bit_weights_on_model_save"
        )
    if adapters := _matching(specs, _ADAPTERS):
        whole = len(adapters) < len(specs)
        what = (
            "which is not merged into its weight: call merge_and_unload() of PEFT"
            if whole
            else f"and nothing but such adapters (LoRA, {len(adapters)} tensors): merge them into "
            "the weights that they were trained on, as fuse_lora() of diffusers does,"
        )
        raise ConversionError(
            f"{_file(specs)}: has {adapters[0]}, {what} and save the merged weights"
        )


def _matching(specs: Specs, pattern: re.Pattern) -> list[str]:
    return [name for name in specs if pattern.fullmatch(name)]


def _file(specs: Specs) -> str:
    return next(iter(specs.values())).file
