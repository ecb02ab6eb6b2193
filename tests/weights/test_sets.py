"""Names of tensors as trainers leave them: wrapped, under prefixes, several sets in a file."""

import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.tensors import ArraySource
from imagewam_jax.weights.layouts.registry import LAYOUTS
from imagewam_jax.weights.layouts.sets import FoundWeights, find_weights
from tests.goldens import golden
from tests.weights.foreign import Tensors

FILES = {
    "transformer": ("flux2_transformer", "weights"),
    "autoencoder": ("flux2_autoencoder", "weights"),
    "text encoder": ("text_qwen3", "weights"),
    "policy": ("imagewam_flux2", "model"),
}


def weights(kind: str) -> Tensors:
    folder, file = FILES[kind]
    return load_file(golden(folder) / f"{file}.safetensors")


def below(prefix: str, tensors: Tensors, factor: float = 1) -> Tensors:
    return {prefix + name: tensor * tensor.dtype.type(factor) for name, tensor in tensors.items()}


def find(tensors: Tensors, choice: str | None = None) -> FoundWeights:
    return find_weights(ArraySource(tensors, "file"), LAYOUTS, "file", choice)


def assert_found(found: FoundWeights, expected: Tensors) -> None:
    """Assert that the names are exactly those of the layout, each with its own numbers."""
    assert found.tensors.specs.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found.tensors.read(name), tensor, err_msg=name)


def refused(tensors: Tensors, choice: str | None = None) -> str:
    with pytest.raises(ConversionError) as error:
        find(tensors, choice)
    return str(error.value)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "model.",
        "diffusion_model.",
        "model.diffusion_model.",
        "transformer.",
        "state_dict.",
        "state_dict.model._orig_mod.",
        "anything.at_all.",
    ],
)
def test_a_prefix_of_all_names(kind, prefix):
    tensors = weights(kind)
    assert find(tensors).notes == () and find(tensors).prefix == ""
    found = find(below(prefix, tensors))
    assert_found(found, tensors)
    assert found.notes and "names are read without" in found.notes[0]


@pytest.mark.parametrize("mot", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "x.y."])
@pytest.mark.parametrize("proprio", ["", "module.", "state_dict."])
def test_a_policy_whose_modules_are_wrapped(mot, proprio):
    tensors = weights("policy")
    wrapped = {
        name.replace("mot.", f"mot.{mot}").replace(
            "proprio_encoder.", f"proprio_encoder.{proprio}"
        ): tensor
        for name, tensor in tensors.items()
    }
    assert_found(find(wrapped), tensors)


def test_wrapped_blocks():
    """Activation checkpoints and compilation by block wrap some modules within the model."""
    tensors = weights("transformer")
    changed = {
        name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module._orig_mod."): tensor
        for name, tensor in tensors.items()
    }
    assert changed.keys() != tensors.keys()
    assert_found(find(changed), tensors)


@pytest.mark.parametrize(
    ("kind", "top"), [("text encoder", "model."), ("policy", "mot.")], ids=["Qwen3", "policy"]
)
def test_the_inner_module_alone(kind, top):
    """`Qwen3Model` saves names without `model.`, and a policy's joint model has none of `mot.`."""
    tensors = weights(kind)
    flat = {name.removeprefix(top): tensor for name, tensor in tensors.items()}
    assert flat.keys() != tensors.keys()
    assert_found(find(flat), tensors)
    assert_found(find(below("module.inner.", flat)), tensors)


def test_the_backbone_of_a_policy():
    prefix = "mot.mixtures.video.transformer."
    tensors = {k: v for k, v in weights("policy").items() if k.startswith(prefix)}
    found = find(tensors)
    assert found.layout.component == "backbone" and found.prefix == prefix
    assert_found(found, {k.removeprefix(prefix): v for k, v in tensors.items()})


@pytest.mark.parametrize("keep", [0, 1])
def test_a_tensor_outside_of_the_prefix(keep):
    """It would be lost, or stand for another one, and is an error that names it."""
    tensors = weights("transformer")
    name = "txt_in.weight"
    prefixed = below("model.", tensors)
    prefixed[name] = prefixed["model." + name] if keep else prefixed.pop("model." + name)
    message = refused(prefixed)
    assert f"{44 + keep} tensors" in message
    assert f"beside them 1 other tensors ({name}), which a conversion would lose" in message
    found = find(prefixed, "model")
    assert ("txt_in.weight" in found.tensors.specs) == bool(keep)
    assert "not read: 1 other tensors (txt_in.weight)" in found.notes


@pytest.mark.parametrize("prefix", ["ema.", "model_ema.", "module."])
@pytest.mark.parametrize("kind", ["transformer", "policy"])
def test_two_sets_of_one_model(kind, prefix):
    tensors, label = weights(kind), prefix.removesuffix(".")
    both = tensors | below(prefix, tensors, 0.5)
    message = refused(both)
    assert f"has 2 sets of weights, under '.': {len(tensors)} tensors" in message
    assert f"give one of them as --set weights=. or --set weights={label}" in message
    assert ("a moving average, EMA" in message) == ("ema" in prefix)
    assert_found(find(both, "."), tensors)
    for choice in (label, prefix):
        assert_found(find(both, choice), {name: x * 0.5 for name, x in tensors.items()})
    assert "has no weights under 'other'; it has some under '.' and" in refused(both, "other")


@pytest.mark.parametrize("name", ["ema.mot.", "mot_ema."])
def test_a_moving_average_of_a_part(name):
    """It cannot be taken, since the rest of the policy is not its own; the other set can."""
    tensors = weights("policy")
    average = {k.replace("mot.", name): v * 2 for k, v in tensors.items() if k.startswith("mot.")}
    assert "has 2 sets of weights" in refused(tensors | average)
    assert_found(find(tensors | average, "."), tensors)
    message = refused(tensors | average, name.split(".")[0])
    assert "lack 2 tensors that are elsewhere in the file (proprio_encoder.bias, prop" in message


def test_the_counter_of_a_moving_average():
    tensors = weights("transformer")
    counted = below("module.", tensors) | {"n_averaged": np.array(7)}
    found = find(counted)
    assert_found(found, tensors)
    assert "not read: n_averaged" in found.notes


def test_several_models_in_a_file():
    models = {"model.diffusion_model": "transformer", "vae": "autoencoder", "text": "text encoder"}
    parts = {name: weights(kind) for name, kind in models.items()}
    whole = {k: v for name, part in parts.items() for k, v in below(f"{name}.", part).items()}
    message = refused(whole)
    assert "has 3 sets of weights" in message and "--set weights=vae" in message
    for name, part in parts.items():
        assert_found(find(whole, name), part)


NAME = "double_blocks.0.img_attn.qkv"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_in.weight": np.zeros((2, 2), ml_dtypes.float8_e4m3fn)}, r"of float8_e4m3fn: .*quan"),
        ({f"{NAME}.weight.absmax": np.zeros(3)}, r"has \S+absmax: these weights are quantised"),
        ({f"{NAME}.weight.quant_state.bitsandbytes__nf4": np.zeros(3, np.uint8)}, "are quantised"),
        ({f"{NAME}.weight_scale": np.ones(1)}, r"has \S+weight_scale: these weights are quantised"),
        ({f"{NAME}.weight": np.zeros(0)}, "1 of its 45 tensors are empty, .* DeepSpeed ZeRO-3"),
        ({"_flat_param": np.zeros(8)}, "has _flat_param, which is the flat shard of an FSDP run"),
        ({f"{NAME}.base_layer.weight": np.ones(1)}, r"is not merged .* merge_and_unload\(\)"),
        ({f"{NAME}.lora_A.default.weight": np.ones(1)}, r"is not merged .* merge_and_unload\(\)"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_tensors_that_are_no_whole_weights(changes, message, prefix):
    assert re.match(f"file: .*{message}", refused(below(prefix, weights("transformer") | changes)))


@pytest.mark.parametrize(
    "names",
    [
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight",),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "lora_unet_x.alpha"),
        ("base_model.model.x.lora_B.weight", "base_model.model.x.lora_magnitude_vector"),
    ],
)
def test_adapters_alone(names):
    message = refused({name: np.ones((4, 3), np.float32) for name in names})
    assert f"has {names[0]}, and nothing but such adapters (LoRA, {len(names)} tensors)" in message


def test_no_tensors():
    assert refused({}) == "file: holds no tensors under names"
