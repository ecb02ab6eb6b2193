"""Records what a checkpoint computes, for those who want to compare it with the official code.

The recording has a folder for each component of the checkpoint, in the form that `verify` reads.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

import imagewam_jax
from imagewam_jax.errors import CheckpointError, ConfigError
from imagewam_jax.files import partial_path
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.autoencoders.flux2 import Flux2AutoencoderConfig
from imagewam_jax.models.backbones.flux2 import Flux2Config
from imagewam_jax.models.flow_matching import TIMESTEPS
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.text_encoders.qwen3 import Qwen3Config
from imagewam_jax.parity.cases import KINDS
from imagewam_jax.parity.cases.base import Output, Sizes
from imagewam_jax.parity.cases.folder import CONFIG, NORMS, Folder, Tensors
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.stacks import stack_of
from imagewam_jax.storage.objects import AnyPath
from imagewam_jax.weights.io.tensors import ArraySource
from imagewam_jax.weights.layouts.imagewam_checkpoint import official_settings

# The folder of each component.
CASES = {
    "policy": "policy",
    "backbone": "transformer",
    "autoencoder": "autoencoder",
    "text_encoder": "text_encoder",
}
LATENT_CELL = 16  # pixels per latent cell of FLUX.2's autoencoder, in each direction
NOTE = (
    "Rows of padded text mean nothing; where they are outputs of the policy, they are 0. Token "
    "order, names and layouts are those of the official code."
)


def record(
    checkpoint: AnyPath | str,
    to: Path,
    *,
    seed: int = 0,
    sizes: Sizes | None = None,
    dtype: str = "float32",
    weights: str | None = None,
) -> None:
    """Run all components of a checkpoint on random inputs, and write inputs and outputs to `to`,
    which must not exist.

    dtype: parameters are cast to it, and everything is computed in it.
    weights: "ema" or "params" of a training run; None takes the moving average if there is one.

    CheckpointError, ConfigError: it cannot be recorded; nothing is left in `to`.
    """
    sizes = sizes or Sizes()
    if min(sizes.batch, *sizes.grid, sizes.text_tokens) < 1:
        raise ConfigError(f"sizes of a recording are at least 1, not {sizes}")
    if to.exists():
        raise CheckpointError(f"{to} is there already; name a folder that is not")
    with (
        contextlib.closing(Loaded(checkpoint, dtype, weights)) as loaded,
        jax.default_matmul_precision("highest"),  # the same as in `verify`
    ):
        folders = []
        for component in loaded.configs:
            rng, config = np.random.default_rng(seed), settings(loaded, component, sizes)
            folders.append(_record_case(loaded, CASES[component], sizes, rng, config))
    partial = partial_path(to)
    try:
        for folder in folders:
            _write(folder, partial / folder.path.name)
        partial.rename(to)
    except OSError as error:
        raise CheckpointError(f"{to} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for folder in folders:
        for file, tensors in folder.files.items():
            print(f"{to / folder.path.name / file}: {len(tensors.specs)} tensors")


def _record_case(
    loaded: Loaded, case: str, sizes: Sizes, rng: np.random.Generator, config: Mapping[str, Any]
) -> Folder:
    """Record the kinds of a case one after the other; each finds in the folder what those before it
    have computed."""
    arrays: dict[str, dict[str, np.ndarray]] = {}
    folder = Folder(Path(case), {}, config)

    def add(file: str, name: str, array: Any) -> None:
        array = np.array(array, order="C")
        array = array if array.dtype.kind in "biu" else array.astype(np.float32)
        # An input that is also an output, such as positions, is not replaced.
        arrays.setdefault(file, {}).setdefault(name, array)
        folder.files[file] = Tensors(file, ArraySource(arrays[file], file))

    with tqdm(unit=" tensors", desc=case, leave=False) as bar:
        for kind in KINDS:
            if kind.case != case or kind.inputs is None:
                continue
            inputs = kind.inputs(loaded, folder, sizes, rng)
            if inputs is None:
                continue
            bar.set_postfix_str(kind.name)
            for name, array in inputs.items():
                add(kind.file, name, array)
            for output in kind.outputs(loaded, folder):
                if isinstance(output, Output):
                    add(output.file or kind.file, output.name, output.array)
                    bar.update()
    return folder


def settings(loaded: Loaded, component: str, sizes: Sizes) -> dict[str, Any]:
    """The `config.json` of a component's recording, in official terms."""
    config, (rows, columns) = loaded.config(component), sizes.grid
    cell = loaded.config("autoencoder").factor if "autoencoder" in loaded else LATENT_CELL
    common = {
        "case": CASES[component],
        "source": f"imagewam_jax {imagewam_jax.__version__}",
        "dtype": loaded.dtype,
        "note": NOTE,
        "batch": sizes.batch,
        "text_len": sizes.text_tokens,
        "text_valid": sizes.text_lengths.tolist(),
        "image_hw": [cell * rows, cell * columns],
    }
    return common | _SETTINGS[component](config)


def _policy_settings(config: ImageWAMConfig) -> dict[str, Any]:
    official = official_settings(config)
    model = official.pop("model")
    del official["mixed_precision"]  # a recording says itself in what dtype it was computed
    schedulers = {
        f"{modality}_{name}": value
        for modality in ("video", "action")
        for name, value in model[f"{modality}_scheduler"].items()
        if name != "num_train_timesteps"
    }
    kept = ("action_dit_config", "proprio_dim", "pack_proprio_after_text", "qwen_context_len")
    return {
        "stack": stack_of(config.backbone).name,
        **official,
        **{name: model[name] for name in kept if name in model},
        "schedulers": schedulers | {"num_train_timesteps": TIMESTEPS},
        "loss": model["loss"],
        "infer": {
            "num_inference_steps": 10,
            "alt_num_inference_steps": 4,
            "alt_sigma_shift": 3.0,
            "video_num_inference_steps": 4,
        },
    }


def _transformer_settings(config: Any) -> dict[str, Any]:
    if not isinstance(config, Flux2Config):
        raise ConfigError(
            "of a transformer alone only FLUX.2 is recorded; of others, record a whole policy"
        )
    policy = ImageWAMConfig(config, ActionExpertConfig())
    return {
        "flux2_params": official_settings(policy)["flux2_params"],
        "sampler": {"num_steps": 4, "guidance_scale": 3.0, "kind": "denoise_cfg"},
    }


def _autoencoder_settings(config: Any) -> dict[str, Any]:
    if not isinstance(config, Flux2AutoencoderConfig):
        return {"autoencoder_params": dataclasses.asdict(config)}
    return {
        "autoencoder_params": {
            "in_channels": 3,
            "ch": config.width,
            "out_ch": 3,
            "ch_mult": list(config.width_multipliers),
            "num_res_blocks": config.blocks,
            "z_channels": config.latent_channels,
        }
    }


def _text_encoder_settings(config: Qwen3Config) -> dict[str, Any]:
    return {
        "selected_hidden_states": list(config.feature_layers),
        "qwen3": {
            "vocab_size": config.vocab_size,
            "hidden_size": config.dim,
            "intermediate_size": config.mlp_dim,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "rope_theta": config.rope_theta,
        },
    }


_SETTINGS = {
    "policy": _policy_settings,
    "backbone": _transformer_settings,
    "autoencoder": _autoencoder_settings,
    "text_encoder": _text_encoder_settings,
}


def _write(folder: Folder, path: Path) -> None:
    path.mkdir(parents=True)
    for file, tensors in folder.files.items():
        arrays = {name: tensors[name] for name in tensors}
        if file == NORMS:
            norms = {name: float(norm) for name, norm in arrays.items()}
            (path / file).write_text(json.dumps(norms, indent=1) + "\n")
        else:
            save_file(arrays, path / file)
    (path / CONFIG).write_text(json.dumps(folder.config, indent=1) + "\n")
