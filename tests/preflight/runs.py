"""Configs on tiny sets, as the command `imagewam check` gets them."""

from pathlib import Path

import numpy as np
import simplejpeg

from imagewam_jax.data.registry import REGISTRY
from tests.data.write_records import bytes_list, float_list, write_set

# A policy of the recipe's cameras, layout, widths and splits, with tiny sizes and parts that need
# no weights.
TINY = """
from configs.{recipe} import get_config as recipe

def get_config():
    config = recipe()
    config.data.directory = {directory!r}
    config.text.encoder = "byte_qwen3"
    config.autoencoder = {{"name": "patch", "factor": 16, "channels": 8, "weights": ""}}
    config.model.backbone = {{
        "name": "flux2", "in_channels": 8, "text_dim": 192, "dim": 16, "heads": 2,
        "double_layers": 1, "single_layers": 1, "mlp_ratio": 2.0, "rope_axes": (2, 2, 2, 2),
    }}
    config.model.expert = {{"dim": 16, "mlp_ratio": 2.0, "max_horizon": 64}}
    config.model.proprio_dim = -1
    return config
"""


def write_config(folder: Path, recipe: str, directory: Path) -> Path:
    path = folder / f"{recipe}.py"
    path.write_text(TINY.format(recipe=recipe, directory=str(directory)))
    return path


def write_dataset(folder: Path, name: str, *, episodes: int, steps: int = 2) -> Path:
    """A set with the keys of a registered row: images of 16 x 24, numbers that move."""
    spec = REGISTRY[name]
    image = {"image": {"shape": {"dimensions": ["16", "24", "3"]}, "encodingFormat": "jpeg"}}
    widths = {spec.action_keys[0]: len(spec.action.dims), spec.state_keys[0]: len(spec.state.dims)}
    leaves = {camera.key: image for _, camera in spec.cameras}
    leaves |= {
        key: {"tensor": {"shape": {"dimensions": [str(width)]}, "dtype": "float32"}}
        for key, width in widths.items()
    }
    leaves[spec.language[0]] = {"text": {}}
    picture = simplejpeg.encode_jpeg(np.zeros((16, 24, 3), np.uint8))

    def episode(number: int) -> dict:
        values = {camera.key: bytes_list(*[picture] * steps) for _, camera in spec.cameras}
        for key, width in widths.items():
            values[key] = float_list(*(number + np.arange(steps * width)).tolist())
        values[spec.language[0]] = bytes_list(*[f"task {number % 3}".encode()] * steps)
        return {f"steps/{key}": value for key, value in values.items()}

    folder.mkdir(parents=True)
    return write_set(folder, _nested(leaves), [[episode(n) for n in range(episodes)]])


def _nested(leaves: dict) -> dict:
    """Nodes of features.json from leaves by key."""
    nodes: dict = {}
    for key, leaf in leaves.items():
        *parents, name = key.split("/")
        here = nodes
        for parent in parents:
            here = here.setdefault(parent, {"featuresDict": {"features": {}}})
            here = here["featuresDict"]["features"]
        here[name] = leaf
    return nodes
