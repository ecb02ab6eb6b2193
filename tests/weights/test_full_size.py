"""The public models at their full sizes, by names and shapes alone: nothing is computed."""

import math

import ml_dtypes
import numpy as np
import pytest

from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.autoencoders.flux2 import Flux2AutoencoderConfig
from imagewam_jax.models.backbones.flux2 import KLEIN_4B, KLEIN_9B, Flux2Config
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.text_encoders.qwen3 import QWEN3_4B, QWEN3_8B
from imagewam_jax.weights.components import COMPONENTS
from imagewam_jax.weights.io.tensors import TensorSpec
from imagewam_jax.weights.layouts import registry as layouts
from imagewam_jax.weights.layouts.flux2_autoencoder import COUNTER
from imagewam_jax.weights.layouts.flux2_autoencoder_diffusers import (
    flux2_autoencoder_diffusers_json,
)
from imagewam_jax.weights.layouts.flux2_diffusers import flux2_diffusers_json
from imagewam_jax.weights.layouts.imagewam import alias_names
from imagewam_jax.weights.layouts.mapping import check, foreign_shapes
from imagewam_jax.weights.plan import sizes

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
KLEIN = {"4b": KLEIN_4B, "9b": KLEIN_9B}


class Shapes:
    """A source with specs, whose tensors cannot be read."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        self.specs = {name: TensorSpec(shape, BFLOAT16, "file") for name, shape in shapes.items()}


def shapes_of(layout, config) -> dict[str, tuple[int, ...]]:
    return foreign_shapes(layout.rules(config), COMPONENTS[layout.component].abstract(config))


def numbers(shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def assert_recognised(layout, shapes, config, metadata=None) -> None:
    """Assert that shapes alone give the config, and that the tensors pass its check."""
    source = Shapes(shapes)
    found, tensors = layouts.recognize(source, "file")
    assert found is layout
    tensors = layout.source(tensors, metadata or {}, None)
    assert layout.config(tensors.specs, metadata or {}) == config
    check(
        layout.rules(config), tensors.specs, COMPONENTS[layout.component].abstract(config), "file"
    )


@pytest.mark.parametrize(
    ("size", "tensors", "parameters"), [("4b", 149, 3_875_544_576), ("9b", 201, 9_078_581_248)]
)
def test_transformers(size, tensors, parameters):
    """docs/spec/imagewam_flux2.md, 1.1 and 1.11."""
    shapes = shapes_of(layouts.FLUX2, KLEIN[size])
    assert len(shapes) == tensors and numbers(shapes) == parameters
    assert_recognised(layouts.FLUX2, shapes, KLEIN[size])
    assert sizes(KLEIN[size]).startswith(f"klein {size.upper()}, ")
    concrete = {
        "4b": {
            "single_blocks.19.linear1.weight": (27648, 3072),
            "single_blocks.0.linear2.weight": (3072, 12288),
            "double_blocks.4.img_mlp.0.weight": (18432, 3072),
            "double_blocks.0.txt_mlp.2.weight": (3072, 9216),
            "final_layer.adaLN_modulation.1.weight": (6144, 3072),
            "txt_in.weight": (3072, 7680),
        },
        "9b": {
            "single_blocks.23.linear1.weight": (36864, 4096),
            "single_blocks.0.linear2.weight": (4096, 16384),
            "double_blocks.7.img_mlp.0.weight": (24576, 4096),
        },
    }[size]
    assert {name: shapes[name] for name in concrete} == concrete


@pytest.mark.parametrize("size", ["4b", "9b"])
def test_transformers_of_diffusers(size):
    """Names and shapes are those of the class in diffusers."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    config = KLEIN[size]
    arguments = {k: v for k, v in flux2_diffusers_json(config).items() if k[0] != "_"}
    with torch.device("meta"):
        theirs = diffusers.Flux2Transformer2DModel(**arguments).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    assert shapes == shapes_of(layouts.FLUX2_DIFFUSERS, config)
    assert_recognised(layouts.FLUX2_DIFFUSERS, shapes, config)
    assert_recognised(layouts.FLUX2_DIFFUSERS, shapes, config, flux2_diffusers_json(config))


def test_autoencoders():
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    config = Flux2AutoencoderConfig()
    shapes = shapes_of(layouts.FLUX2_AUTOENCODER, config) | {COUNTER: ()}
    # 84,046,115 parameters and the running statistics (docs/spec/imagewam_flux2.md, 2.1).
    assert len(shapes) == 251 and numbers(shapes) == 84_046_115 + 2 * 128 + 1
    assert_recognised(layouts.FLUX2_AUTOENCODER, _without_counter(shapes), config)
    arguments = flux2_autoencoder_diffusers_json(config)
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKLFlux2(
            **{k: v for k, v in arguments.items() if k[0] != "_"}
        ).state_dict()
    found = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    assert found == shapes_of(layouts.FLUX2_AUTOENCODER_DIFFUSERS, config) | {COUNTER: ()}
    found = _without_counter(found)
    assert_recognised(layouts.FLUX2_AUTOENCODER_DIFFUSERS, found, config, arguments)


def _without_counter(shapes):
    return {name: shape for name, shape in shapes.items() if name != COUNTER}


@pytest.mark.parametrize(
    ("config", "name"), [(QWEN3_4B, "Qwen3-4B"), (QWEN3_8B, "Qwen3-8B")], ids=["4b", "8b"]
)
def test_text_encoders(config, name):
    """The first 27 of the language model's 36 layers are kept; Qwen3-4B ties its embeddings."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    official = transformers.Qwen3Config(
        vocab_size=151936,
        hidden_size=config.dim,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rope_theta=1e6,
        tie_word_embeddings=config is QWEN3_4B,
    )
    with torch.device("meta"):
        theirs = transformers.Qwen3ForCausalLM(official).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    assert_recognised(layouts.QWEN3, shapes, config)
    assert_recognised(layouts.QWEN3, shapes, config, official.to_dict())
    assert sizes(config).startswith(name)


@pytest.mark.parametrize(
    ("size", "action_dim", "proprio_dim", "tensors", "stored"),
    [
        ("4b", 7, 8, 407, 4_517_556_992),
        ("9b", 7, 8, 545, 10_030_973_952),
        ("4b", 14, 14, 407, 4_517_571_328),
        ("4b", 16, 16, 407, 4_517_575_424),
    ],
)
def test_official_checkpoints(size, action_dim, proprio_dim, tensors, stored):
    """docs/spec/imagewam_flux2.md, 8.4: `mot` with its aliases, and the robot state's embedding."""
    config = ImageWAMConfig(
        KLEIN[size],
        ActionExpertConfig(action_dim=action_dim),
        proprio_dim=proprio_dim,
        coordinate_dtype="bfloat16",
    )
    shapes = shapes_of(layouts.POLICIES[Flux2Config], config)
    aliases = {alias: shapes[name] for alias, name in alias_names(config).items()}
    assert len(aliases) == {"4b": 140, "9b": 192}[size]
    mot = [name for name in {**shapes, **aliases} if name.startswith("mot.")]
    assert len(mot) == tensors and len(shapes) == tensors - len(aliases) + 2
    proprio = {name: shape for name, shape in shapes.items() if name.startswith("proprio_")}
    assert numbers(proprio) == (proprio_dim + 1) * config.backbone.text_dim
    assert numbers(shapes) - numbers(proprio) == stored
    assert_recognised(layouts.POLICIES[Flux2Config], shapes | aliases, config)
