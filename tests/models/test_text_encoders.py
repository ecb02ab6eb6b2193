"""The Qwen3 trunk against that of transformers, and the byte-level encoder. Recorded features are
compared in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.parameters import flatten
from imagewam_jax.models.text_encoders.base import (
    BATCH_TOKENS,
    TOKEN_MULTIPLE,
    PromptTooLong,
    batches,
)
from imagewam_jax.models.text_encoders.qwen3 import (
    BEGIN,
    BYTE_QWEN3,
    END,
    PAD,
    QWEN3_4B,
    QWEN3_8B,
    Qwen3,
    Qwen3Config,
    byte_qwen3,
    tokenize_bytes,
)
from imagewam_jax.weights.layouts.qwen3 import is_used, qwen3_rules
from tests.goldens import golden
from tests.models.official import config_of, with_parameters
from tests.weights.foreign import to_tree

run = jax.jit(lambda model, ids, length: model(ids, length))


def qwen3_tree(config: Qwen3Config, weights: dict[str, np.ndarray], like: dict, what: str) -> dict:
    used = {name: tensor for name, tensor in weights.items() if is_used(name, config)}
    return to_tree(qwen3_rules(config), used, like, what)


def load_qwen3(config: Qwen3Config, weights: dict[str, np.ndarray]) -> Qwen3:
    return with_parameters(
        lambda: Qwen3(config, rngs=nnx.Rngs(0)),
        lambda like: qwen3_tree(config, weights, like, "weights"),
    )


def abstract(config: Qwen3Config) -> Qwen3:
    return jax.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def recorded():
    """Config, tensors and inputs of the recorded case."""
    folder = golden("text_qwen3")
    case = config_of(folder)
    sizes = case["qwen3"]
    config = Qwen3Config(
        vocab_size=sizes["vocab_size"],
        dim=sizes["hidden_size"],
        mlp_dim=sizes["intermediate_size"],
        heads=sizes["num_attention_heads"],
        kv_heads=sizes["num_key_value_heads"],
        head_dim=sizes["head_dim"],
        feature_layers=case["selected_hidden_states"],
        rope_theta=sizes["rope_theta"],
    )
    weights, io = (load_file(folder / f"{name}.safetensors") for name in ("weights", "io"))
    return config, weights, io


@pytest.fixture(scope="module")
def encoder():
    return byte_qwen3(seed=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_qwen3_against_transformers(dtype):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = Qwen3Config(
        vocab_size=50, dim=48, mlp_dim=80, heads=6, kv_heads=2, head_dim=12, feature_layers=(1, 3)
    )
    torch.manual_seed(0)
    official = transformers.Qwen3Model(
        transformers.Qwen3Config(
            vocab_size=50,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=12,
            rope_theta=1e6,
            initializer_range=0.2,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for parameter in official.parameters():  # norm scales are 1 otherwise
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    weights = {f"model.{name}": t.numpy() for name, t in official.state_dict().items()}
    ids = np.random.default_rng(0).integers(0, 50, (3, 9))
    length = np.array([9, 4, 1])
    mask = np.arange(9) < length[:, None]

    model = jax.tree.map(lambda p: p.astype(dtype), load_qwen3(config, weights))
    features = run(model, ids, length)
    assert features.dtype == jnp.dtype(dtype)
    with torch.no_grad():
        states = official.to(getattr(torch, dtype))(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            output_hidden_states=True,
        ).hidden_states
    expected = torch.cat([states[1], states[3]], -1).float().numpy()
    error = np.abs(np.float32(features) - expected)[mask]
    # In bfloat16 both sides are rounded, in the same places but not in the same sums.
    limits = {"float32": (1e-5, 1e-6), "bfloat16": (0.05, 0.006)}[dtype]
    size = np.abs(expected[mask]).max()
    assert error.max() < limits[0] * size and error.mean() < limits[1] * size


def test_padding_does_not_change_features(encoder):
    """Exactly what lets text be cut to its real length."""
    model = encoder.load()
    ids, length = tokenize_bytes(["press the button", "a"], 24)
    padded = run(model, ids, length)
    for row, valid in enumerate(length):
        alone = run(model, ids[row : row + 1, :valid], length[row : row + 1])
        np.testing.assert_allclose(padded[row, :valid], alone[0], atol=2e-5, rtol=0)
    other_padding = np.where(ids == PAD, 7, ids)
    again = run(model, other_padding, length)
    np.testing.assert_allclose(padded[0, :18], again[0, :18], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("config", "feature_dim"), [(QWEN3_4B, 7680), (QWEN3_8B, 12288)])
def test_presets(config, feature_dim):
    """Widths and counts from the public facts in the spec, 27 of 36 layers."""
    dim, mlp_dim = {7680: (2560, 9728), 12288: (4096, 12288)}[feature_dim]
    attention = dim * 128 * (2 * 32 + 2 * 8) + 2 * 128
    parameters = 151936 * dim + 27 * (attention + 3 * dim * mlp_dim + 2 * dim)
    model = abstract(config)
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model))) == parameters
    ids = jax.ShapeDtypeStruct((2, 128), jnp.int32)
    length = jax.ShapeDtypeStruct((2,), jnp.int32)
    features = jax.eval_shape(lambda m, i, n: m(i, n), model, ids, length)
    assert features.shape == (2, 128, feature_dim) and config.feature_dim == feature_dim
    for path, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Variable):
            assert len(variable.get_metadata("axes")) == variable.ndim, path


def test_conversion_leaves_out_only_what_it_names(recorded):
    config, weights, _ = recorded
    assert not is_used("model.layers.27.mlp.up_proj.weight", config)
    assert is_used("model.layers.26.mlp.up_proj.weight", config)
    like = nnx.to_pure_dict(nnx.state(abstract(config)))
    expected = flatten(qwen3_tree(config, weights, like, "file"))
    more = weights | {"lm_head.weight": np.zeros((97, 32), np.float32)}
    found = flatten(qwen3_tree(config, more, like, "file"))
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array)

    with pytest.raises(
        ConversionError, match=r"1 unexpected \(model.layers.3.self_attn.q_proj.bias\)"
    ):
        extra = {"model.layers.3.self_attn.q_proj.bias": np.zeros(32)}
        qwen3_tree(config, weights | extra, like, "file")
    missing = "model.layers.26.self_attn.k_norm.weight"
    with pytest.raises(ConversionError, match=f"1 tensors missing .{missing}"):
        qwen3_tree(config, {k: v for k, v in weights.items() if k != missing}, like, "file")
    names = {name for r in qwen3_rules(config) for name in r.names()}
    assert len(names) == 1 + 27 * 11 and len(set(weights) - names) == 12  # layer 27, last norm


@pytest.mark.parametrize("layers", [(), (0, 3), (3, 2), (2, 2)])
def test_feature_layers_must_ascend(layers):
    with pytest.raises(ValueError, match=r"feature_layers .* must be ascending numbers from 1"):
        Qwen3Config(feature_layers=layers)


def test_heads_must_be_a_multiple_of_kv_heads():
    with pytest.raises(ValueError, match="heads 6 is not a multiple of kv_heads 4"):
        Qwen3Config(heads=6, kv_heads=4)


def test_tokenize():
    ids, length = tokenize_bytes(["ab", "é"], 6)
    expected = [[BEGIN, 97, 98, END, PAD, PAD], [BEGIN, 0xC3, 0xA9, END, PAD, PAD]]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(length, [4, 4])
    assert ids.dtype == length.dtype == np.int32


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1))
def test_tokenize_loses_nothing(prompts):
    ids, length = tokenize_bytes(prompts, 82)
    for prompt, row, n in zip(prompts, ids, length, strict=True):
        assert bytes(row[1 : n - 1].tolist()).decode() == prompt
        assert row[0] == BEGIN and row[n - 1] == END and (row[n:] == PAD).all()


def test_a_prompt_that_does_not_fit_is_named():
    assert tokenize_bytes(["open it"], 9).length == [9]
    with pytest.raises(PromptTooLong, match="'open it' is 9 tokens long, at most 8 fit"):
        tokenize_bytes(["ok", "open it"], 8)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def encode(encoder, prompts, max_length=64) -> list[np.ndarray]:
    """Features of each prompt, in order."""
    features = [None] * len(prompts)
    for batch in encoder.encode(encoder.tokenize(prompts, max_length)):
        for row, found in zip(batch.rows, batch.features, strict=True):
            features[row] = found
    return features


def test_random_features_tell_prompts_apart(encoder):
    """Two opposite instructions differ in two of their first bytes."""
    opened, closed = encode(encoder, ["open the faucet", "close the faucet"])
    assert (opened.shape, closed.shape) == ((17, encoder.feature_dim), (18, 192))
    assert cosine(opened.mean(0), closed.mean(0)) < 0.9
    assert cosine(opened[-1], closed[-1]) < 0.9
    assert 0.5 < opened.std() < 3
    for each in np.split(opened, 3, axis=-1):  # after 2, 4 and 6 layers
        assert 0.5 < each.std() < 3


def test_a_prompt_is_encoded_the_same_in_any_batch(encoder):
    """Alone, and in a batch and beside longer ones of which there are several batches."""
    prompts = [f"{'press ' * (n % 9)}button {n}" for n in range(150)]
    together = encode(encoder, prompts)
    lengths = encoder.tokenize(prompts, 64).length
    assert len(batches(lengths)) > 2 and [len(f) for f in together] == lengths.tolist()
    for row in (0, 8, 149):
        alone = encode(encoder, prompts[row : row + 1])[0]
        np.testing.assert_allclose(together[row], alone, atol=5e-5, rtol=0)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=300), st.data())
def test_batches(lengths, data):
    lengths = np.array(lengths)
    found = batches(lengths)
    assert sorted(np.concatenate(found)) == list(range(len(lengths)))
    longest = [lengths[rows].max() for rows in found]
    assert longest == sorted(longest)
    for rows, most in zip(found, longest, strict=True):
        padded = -(-most // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
        assert lengths[rows].min() > padded - TOKEN_MULTIPLE  # no row is padded by a multiple
        assert len(rows) * padded <= BATCH_TOKENS
    # A run that was killed goes on with the batches that it would have made.
    done = data.draw(st.integers(0, len(found) - 1))
    rest = np.sort(np.concatenate(found[done:]))
    again = batches(lengths[rest])
    for expected, rows in zip(found[done:], again, strict=True):
        np.testing.assert_array_equal(rest[rows], expected)


def test_a_row_longer_than_a_batch_is_one():
    assert [rows.tolist() for rows in batches(np.array([5000, 3, 5000]))] == [[1], [0], [2]]


def test_seed_is_all_there_is_to_an_encoder(encoder):
    again, other = byte_qwen3(seed=0), byte_qwen3(seed=1)
    assert again.identity == encoder.identity != other.identity
    leaves = (jax.tree.leaves(each.load()) for each in (encoder, again, other))
    for a, b, c in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a == c).all() == (a == 1).all()  # norm scales are 1 for any seed


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size 97 differs from .* byte tokenizer, 259"):
        byte_qwen3(config=Qwen3Config(**{**vars(BYTE_QWEN3), "vocab_size": 97}))
