"""Runs that were never trained, on small RLDS sets: what evaluation needs, without a train step."""

import io
import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from imagewam_jax.checkpoints.assets import asset_trees
from imagewam_jax.checkpoints.store import Checkpoints
from imagewam_jax.config.schema import policy_config
from imagewam_jax.data.datasets import config_data
from imagewam_jax.models.parameters import abstract_params
from imagewam_jax.text.encoders import make_prompt
from imagewam_jax.text.tables import write_text_table
from imagewam_jax.training.prepare import make_assets
from tests.data.public_layouts import LAYOUTS, features_of
from tests.data.write_records import bytes_list, float_list, write_set

TEXT_DIM = 16
COLORS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))  # of a set's cameras, in their order
INSTRUCTION = "do it"


def write_public_set(
    folder: Path, name: str, sizes: list[tuple[int, int]], lengths: list[int]
) -> Path:
    """A set in the layout of a public one; its cameras show their colors with some noise.

    sizes: rows and columns of each camera's images. lengths: steps of each episode.
    """
    folder.mkdir(parents=True)
    cameras = [key for key, kind in LAYOUTS[name].items() if kind == "image"]
    features, rng = {}, np.random.default_rng(0)
    for key, kind in LAYOUTS[name].items():
        if kind == "image":
            features[key] = {"image": {"shape": {"dimensions": ["-1", "-1", "3"]}}}
        elif kind == "text":
            features[key] = {"text": {}}
        else:
            shape = {"dimensions": [str(kind)]}
            features[key] = {"tensor": {"dtype": "float32", "shape": shape}}

    def images(camera: int, count: int):
        noise = rng.integers(-8, 9, (count, *sizes[camera], 3))
        return bytes_list(*(_png(np.array(COLORS[camera]) + image) for image in noise))

    episodes = []
    for length in lengths:
        episode = {}
        for key, values in features_of(name, length).items():
            is_text = values.dtype == object
            episode[key] = bytes_list(*values) if is_text else float_list(*values.ravel())
        for camera, key in enumerate(cameras):
            episode[key] = images(camera, length)
        episodes.append({f"steps/{key}": value for key, value in episode.items()})
    return write_set(folder, features, [episodes])


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def shrink(config: ConfigDict, factor: int = 32) -> ConfigDict:
    """A recipe's config with a model of the smallest sizes and a patch autoencoder."""
    config.autoencoder = {"name": "patch", "factor": factor, "channels": 8, "weights": ""}
    config.model.backbone = {
        "name": "flux2",
        "in_channels": 8,
        "text_dim": TEXT_DIM,
        "dim": 16,
        "heads": 2,
        "double_layers": 1,
        "single_layers": 1,
        "mlp_ratio": 2.0,
        "rope_axes": (2, 2, 2, 2),
        "rope_theta": 100.0,
    }
    config.model.expert.update({"dim": 16, "mlp_ratio": 2.0, "max_horizon": 16})
    config.text.encoder = "qwen3"
    config.acting.euler_steps = 2
    return config


def untrained_run(config: ConfigDict, folder: Path, dtype: type = np.float32) -> Path:
    """The folder of a run with random weights of a dtype, and all that acting needs."""
    table = folder / "text.safetensors"
    prompt = make_prompt(config.text.template, INSTRUCTION)
    features = np.random.default_rng(1).normal(size=(3, TEXT_DIM)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    write_text_table(table, [prompt], [3], [features], TEXT_DIM, "qwen3(dim=16)")
    config.text.table = str(table)
    plain = json.loads(config.to_json())
    assets, metadata = make_assets(plain, config_data(plain))
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda p: rng.normal(0, 0.1, p.shape).astype(dtype),
        abstract_params(policy_config(plain["model"])),
    )
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(1, {"params": params, **asset_trees(assets)}, {"config": plain, **metadata})
    checkpoints.wait()
    checkpoints.close()
    return folder
