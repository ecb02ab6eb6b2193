"""Small random models of diffusers and transformers: saved by these, converted by us, and back.

Both sides compute the same, in float32, and each loads what the other wrote.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx
from safetensors.numpy import load_file

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.attention import attend_xla
from imagewam_jax.models.backbones.flux2 import Flux2
from imagewam_jax.models.blocks import AttentionLayout
from imagewam_jax.models.layer_runner import Stack, run_layers
from imagewam_jax.weights.components import COMPONENTS, checkpoint_components
from imagewam_jax.weights.convert import convert
from imagewam_jax.weights.export import export
from tests.goldens import golden
from tests.weights.foreign import assert_same, converted, copy_case

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

LIMIT = 5e-5
SHARDS = ["10GB", "300KB"]


def nhwc(image):
    return np.moveaxis(image, -3, -1)


@jax.jit
def stock_forward(model: Flux2, images, text, positions, time):
    """The unmasked FLUX.2 forward: every token is one that sees all others."""
    condition = model.condition_at(jnp.asarray(time))
    layout = AttentionLayout(
        n_target=positions.shape[1],
        n_text=text.shape[1],
        context_length_b=None,
        rope=model.rope_at(positions, jnp.float32),
        attend=attend_xla,
    )
    target, reference = (*images, None)[:2]
    references = None if reference is None else reference[:, None, None]
    tokens, condition = model.embed(target[:, None], references, text, condition, layout)
    (x, _), _ = run_layers(Stack(model, tokens, condition, layout))
    return model.predict(x[:, : x.shape[1] - text.shape[1]], condition)


def randomised(model):
    """No number of the model is left at a value that would hide a mistake; norms stay positive."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(23)
            elif tensor.dim() == 1 and name.endswith("weight"):
                tensor.copy_(1 + 0.3 * noise)
            elif tensor.dim() == 1:
                tensor.copy_(0.2 * noise)
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
    return model.eval()


def our_model(folder):
    """The only component of a converted checkpoint, as a module."""
    metadata, trees = converted(folder)
    ((name, config),) = checkpoint_components(metadata, set(trees), str(folder)).items()
    part = COMPONENTS[name]
    graph, state = nnx.split(jax.eval_shape(lambda: part.module(config)))
    nnx.replace_by_pure_dict(state, trees[part.tree][part.path] if part.path else trees[part.tree])
    return nnx.merge(graph, state)


def loaded_strictly(kind, folder):
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.fixture(scope="module")
def transformer():
    config = {
        "in_channels": 12,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 3,
        "joint_attention_dim": 20,
        "axes_dims_rope": (2, 4, 6, 4),
        "rope_theta": 500,
        "guidance_embeds": False,
    }
    return randomised(diffusers.Flux2Transformer2DModel(**config))


@pytest.fixture(scope="module")
def autoencoder():
    config = {
        "block_out_channels": (32, 32, 64, 64),
        "layers_per_block": 1,
        "latent_channels": 4,
        "sample_size": 32,
    }
    return randomised(diffusers.AutoencoderKLFlux2(**config))


def transformer_inputs(model, seed=0):
    rng = np.random.default_rng(seed)
    channels, text_dim = model.config.in_channels, model.config.joint_attention_dim
    ids = np.stack(np.meshgrid([0, 10], range(2), range(3), [0], indexing="ij"), -1).reshape(-1, 4)
    text_ids = np.zeros((5, 4), int)
    text_ids[:, 3] = range(5)
    return {
        "hidden_states": rng.normal(size=(2, len(ids), channels)).astype(np.float32),
        "encoder_hidden_states": rng.normal(size=(2, 5, text_dim)).astype(np.float32),
        "timestep": np.array([0.83, 0.05], np.float32),
        "img_ids": ids,
        "txt_ids": text_ids,
    }


def diffusers_forward(model, inputs):
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        return model(**tensors, return_dict=False)[0].numpy()


def our_forward(model, inputs):
    images, text = inputs["hidden_states"], inputs["encoder_hidden_states"]
    positions = np.concatenate([inputs["img_ids"], inputs["txt_ids"]])[None]
    positions = np.broadcast_to(positions, (len(images), *positions.shape[1:]))
    return stock_forward(model, [images], text, positions, inputs["timestep"])


@pytest.mark.parametrize("max_shard_size", SHARDS)
def test_transformer_of_diffusers(transformer, max_shard_size, tmp_path):
    transformer.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_size)
    files = sorted((tmp_path / "theirs").glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_size != "10GB")
    convert([tmp_path / "theirs"], tmp_path / "checkpoint")
    inputs = transformer_inputs(transformer)
    expected = diffusers_forward(transformer, inputs)
    assert 0.3 < expected.std() < 3
    found = our_forward(our_model(tmp_path / "checkpoint"), inputs)
    np.testing.assert_allclose(found, expected, atol=LIMIT, rtol=0)

    export(tmp_path / "checkpoint", "diffusers", tmp_path / "ours", max_shard_bytes=300_000)
    ours = tmp_path / "ours" / "transformer"
    assert len(list(ours.glob("*.safetensors"))) > 1
    again = loaded_strictly(diffusers.Flux2Transformer2DModel, ours)
    assert_same_state(again, transformer)
    theirs = json.loads((tmp_path / "theirs" / "config.json").read_text())
    theirs.pop("_diffusers_version")
    assert json.loads((ours / "config.json").read_text()) == theirs
    np.testing.assert_array_equal(diffusers_forward(again, inputs), expected)


def assert_same_state(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("max_shard_size", SHARDS)
def test_autoencoder_of_diffusers(autoencoder, max_shard_size, tmp_path):
    autoencoder.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_size)
    convert([tmp_path / "theirs"], tmp_path / "checkpoint")
    model = our_model(tmp_path / "checkpoint")
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, size=(2, 3, 32, 48)).astype(np.float32)
    latent = rng.normal(size=(2, 16, 2, 3)).astype(np.float32)
    with torch.no_grad():
        mean = autoencoder.encode(torch.from_numpy(image)).latent_dist.mode()
        packed = rearrange(mean, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
        encoded = autoencoder.bn(packed).numpy()
        deviation = (autoencoder.bn.running_var + autoencoder.bn.eps).sqrt()[:, None, None]
        unpacked = torch.from_numpy(latent) * deviation + autoencoder.bn.running_mean[:, None, None]
        unpacked = rearrange(unpacked, "b (c p q) h w -> b c (h p) (w q)", p=2, q=2)
        decoded = autoencoder.decode(unpacked, return_dict=False)[0].numpy()
    found = jax.jit(lambda m, x: m.encode(x))(model, nhwc(image))
    np.testing.assert_allclose(found, nhwc(encoded), atol=LIMIT, rtol=0)
    found = jax.jit(lambda m, x: m.decode(x))(model, nhwc(latent))
    np.testing.assert_allclose(found, nhwc(decoded), atol=LIMIT, rtol=0)
    assert encoded.std() > 0.1 and decoded.std() > 0.1

    export(tmp_path / "checkpoint", "diffusers", tmp_path / "ours")
    again = loaded_strictly(diffusers.AutoencoderKLFlux2, tmp_path / "ours" / "vae")
    assert_same_state(again, autoencoder)
    assert again.bn.num_batches_tracked == 23
    with torch.no_grad():
        assert torch.equal(again.encode(torch.from_numpy(image)).latent_dist.mode(), mean)


def test_files_of_diffusers_come_back(transformer, autoencoder, tmp_path):
    """Both components are in bfloat16, and every tensor has the same bits."""
    for name, model in (("transformer", transformer), ("vae", autoencoder)):
        model.save_pretrained(tmp_path / "theirs" / name)
    sources = [tmp_path / "theirs" / name for name in ("transformer", "vae")]
    convert(sources, tmp_path / "checkpoint", dtype="bfloat16")
    export(tmp_path / "checkpoint", "diffusers", tmp_path / "once")
    convert([tmp_path / "once" / s.name for s in sources], tmp_path / "again")
    assert_same(converted(tmp_path / "again")[1], converted(tmp_path / "checkpoint")[1])
    export(tmp_path / "again", "diffusers", tmp_path / "twice")
    for source in sources:
        file = "diffusion_pytorch_model.safetensors"
        once, twice = (tmp_path / n / source.name / file for n in ("once", "twice"))
        assert once.read_bytes() == twice.read_bytes()
        cast = {
            name: tensor if tensor.dtype == np.int64 else tensor.astype("bfloat16")
            for name, tensor in load_file(source / file).items()
        }
        assert_same(dict(sorted(load_file(once).items())), dict(sorted(cast.items())))


def test_original_weights_in_diffusers(tmp_path):
    """The recorded transformer and autoencoder, converted, exported and run by diffusers."""
    cases = [golden("flux2_transformer"), golden("flux2_autoencoder")]
    sources = [copy_case(case, tmp_path / case.name) for case in cases]
    convert(sources, tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", "diffusers", tmp_path / "out")
    model = loaded_strictly(diffusers.Flux2Transformer2DModel, tmp_path / "out" / "transformer")
    io = load_file(cases[0] / "io.safetensors")
    inputs = {
        "hidden_states": np.concatenate([io["x"], io["ref"]], 1),
        "encoder_hidden_states": io["ctx"],
        "timestep": io["timesteps"],
        "img_ids": np.concatenate([io["x_ids"], io["ref_ids"]], 1)[0],
        "txt_ids": io["ctx_ids"][0],
    }
    found = diffusers_forward(model, inputs)
    np.testing.assert_allclose(found, io["pred_with_ref_all_tokens"], atol=LIMIT, rtol=0)
    np.testing.assert_allclose(
        found[:, : io["x"].shape[1]], io["pred_with_ref"], atol=LIMIT, rtol=0
    )

    vae = loaded_strictly(diffusers.AutoencoderKLFlux2, tmp_path / "out" / "vae")
    io = load_file(cases[1] / "io.safetensors")
    with torch.no_grad():
        moments = vae.encode(torch.from_numpy(io["image"])).latent_dist.parameters.numpy()
        deviation = (vae.bn.running_var + vae.bn.eps).sqrt()[:, None, None]
        latent = torch.from_numpy(io["decode_in"]) * deviation + vae.bn.running_mean[:, None, None]
        latent = rearrange(latent, "b (c p q) h w -> b c (h p) (w q)", p=2, q=2)
        decoded = vae.decode(latent, return_dict=False)[0].numpy()
    np.testing.assert_allclose(moments, io["encoder_moments"], atol=LIMIT, rtol=0)
    np.testing.assert_allclose(decoded, io["decoded"], atol=LIMIT, rtol=0)


def test_a_guidance_embedding_of_diffusers(tmp_path):
    model = diffusers.Flux2Transformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(2, 2, 2, 2),
    )
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ConversionError, match=r"theirs: these weights have a guidance embedding"):
        convert([tmp_path / "theirs"], tmp_path / "checkpoint")


@pytest.fixture(scope="module")
def qwen3():
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rope_theta=1000.0,
        tie_word_embeddings=False,
    )
    return randomised(transformers.Qwen3ForCausalLM(config))


@pytest.mark.parametrize("max_shard_size", ["10GB", "30KB"])
def test_qwen3_of_transformers(qwen3, max_shard_size, tmp_path):
    """Features are hidden states after layers that are given; padding is on the right."""
    qwen3.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_size)
    indexed = (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    assert indexed == (max_shard_size != "10GB")
    layers = [1, 2, 4]
    convert([tmp_path / "theirs"], tmp_path / "out", overrides={"feature_layers": layers})
    ids = np.random.default_rng(0).integers(0, 61, size=(2, 9))
    lengths = np.array([9, 6])
    mask = np.arange(9) < lengths[:, None]
    with torch.no_grad():
        states = qwen3(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask.astype(int)),
            output_hidden_states=True,
        ).hidden_states
    expected = np.concatenate([states[k].numpy() for k in layers], -1)
    found = jax.jit(lambda m, *x: m(*x))(our_model(tmp_path / "out"), ids, lengths)
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-4, rtol=0)
