"""From an instruction to features: prompt, chat, tokens, and weights that are read when needed."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagewam_jax.checkpoints.store import Checkpoints
from imagewam_jax.config.defaults import PROMPT
from imagewam_jax.errors import CheckpointError, ConfigError, DataError, MissingWeights
from imagewam_jax.models.text_encoders.qwen3 import QWEN3_4B, QWEN3_8B
from imagewam_jax.text import qwen3 as qwen3_encoder
from imagewam_jax.text.encoders import (
    check_encoder,
    check_width,
    encode_text,
    make_prompt,
    make_text_encoder,
    tokenize_prompts,
)
from imagewam_jax.text.qwen3 import render_chat
from imagewam_jax.text.tables import open_text_table, write_text_table
from imagewam_jax.weights.layouts.qwen3 import is_used, qwen3_rules
from tests.goldens import golden
from tests.text.tiny_qwen3 import (
    CHAT_INSTRUCT_2507,
    CHAT_THINKING_2507,
    SIZES,
    parameters,
    text_section,
    tokenizer_files,
    write_encoder,
)
from tests.weights.foreign import to_tree

INSTRUCTIONS = (
    "open the middle drawer",
    "pick up the black bowl and place it on the plate",
    "öffne die Schublade {0}",
    "go",
)
# In a process of its own: features from a table, then which libraries that took.
FROM_A_TABLE = """
import json, sys
from imagewam_jax.text.encoders import encode_text
table = encode_text(json.loads(sys.argv[1]), ["go"])
print(table.features.shape, {"torch", "transformers", "tokenizers"} & set(sys.modules))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A converted text encoder."""
    return write_encoder(tmp_path_factory.mktemp("encoder"), parameters())


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("weights are read")

    monkeypatch.setattr(qwen3_encoder, "_load", refuse)


def test_prompts_are_those_of_the_official_code():
    """The official code names its cached features by their prompts."""
    for case in json.loads((golden("text_qwen3") / "prompts.json").read_text()):
        prompt = make_prompt(PROMPT, case["task"])
        assert prompt == case["prompt"]
        assert render_chat(prompt) == case["rendered_chat"]
        name = hashlib.sha256(prompt.encode()).hexdigest() + ".qwen3_flux2_len512.pt"
        assert name == case["cache_file_flux2"]


@pytest.mark.parametrize(
    ("instruction", "read"),
    [
        ("open it", "open it"),
        ("打开@open it", "open it"),
        ("a@b@c", "b@c"),
        ("open {} {0} {x}", "open {} {0} {x}"),
    ],
)
def test_what_is_read_of_an_instruction(instruction, read):
    assert make_prompt("{}", instruction) == read
    assert make_prompt("do: {}!", instruction) == f"do: {read}!"


def test_a_template_without_a_place_for_the_instruction():
    with pytest.raises(ConfigError, match=r"text.template is 'push', without {} for the instr"):
        make_prompt("push", "open it")


def test_features_of_an_instruction_against_transformers(tmp_path):
    """Expected features come from transformers alone: chat template, tokens, 28 layers, mask."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=SIZES.vocab_size,
            hidden_size=SIZES.dim,
            intermediate_size=SIZES.mlp_dim,
            num_hidden_layers=28,
            num_attention_heads=SIZES.heads,
            num_key_value_heads=SIZES.kv_heads,
            head_dim=SIZES.head_dim,
            rope_theta=1e6,
            initializer_range=0.1,
            tie_word_embeddings=True,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norm scales are 1 otherwise
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    for name, content in tokenizer_files().items():
        (tmp_path / name).write_text(content)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": PROMPT.format(instruction)}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        for instruction in INSTRUCTIONS
    ]
    inputs = tokenizer(
        chats, return_tensors="pt", padding="max_length", truncation=True, max_length=128
    )
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    expected = torch.cat([states[k] for k in (9, 18, 27)], dim=-1).numpy()
    mask = inputs["attention_mask"].numpy().astype(bool)

    tensors = {n: t.numpy() for n, t in model.state_dict().items() if is_used(n, SIZES)}
    like = jax.eval_shape(lambda: parameters(SIZES))
    tree = to_tree(qwen3_rules(SIZES), tensors, like, "model")
    section = text_section(
        weights=write_encoder(tmp_path / "ours", tree), template=PROMPT, buckets=(32, 128)
    )
    tokens = tokenize_prompts(
        make_text_encoder(section), [make_prompt(PROMPT, i) for i in INSTRUCTIONS], section
    )
    np.testing.assert_array_equal(tokens.ids, inputs["input_ids"])
    np.testing.assert_array_equal(tokens.length, mask.sum(-1))
    table = encode_text(section, INSTRUCTIONS)
    assert table.features.shape == expected.shape and table.features.dtype == np.float32
    np.testing.assert_array_equal(table.lengths, mask.sum(-1))
    np.testing.assert_allclose(table.features[mask], expected[mask], atol=2e-5, rtol=2e-5)


def test_weights_are_used_as_they_were_saved(weights):
    encoder = make_text_encoder(text_section(weights=weights))
    assert {x.dtype for x in jax.tree.leaves(encoder.load())} == {jnp.dtype("bfloat16")}
    table = encode_text(text_section(weights=weights), INSTRUCTIONS)
    assert table.features.dtype == jnp.bfloat16
    assert table.features.shape == (len(INSTRUCTIONS), 64, encoder.feature_dim)


def test_tokens_need_no_weights(weights, no_network):
    section = text_section(weights=weights)
    encoder = make_text_encoder(section)
    assert encoder.feature_dim == 96
    ids, length = encoder.tokenize(["go", "open the drawer"], 64)
    assert ids.shape == (2, 64) and (ids[0, length[0] :] == 0).all()  # <|endoftext|>
    with pytest.raises(DataError, match=r"text.buckets \(8,\): prompt 'go' is \d+ tokens long, at"):
        tokenize_prompts(encoder, ["go"], section | {"buckets": (8,)})


def test_two_instructions_can_be_one_prompt(weights):
    table = encode_text(text_section(weights=weights), ["a@go", "open it", "b@go"])
    assert table.prompts == ("go", "open it", "go")
    np.testing.assert_array_equal(table.features[0], table.features[2])


def make_table(path, encoder, channels=96):
    prompts, features = ("go", "open it"), np.ones((5, channels), np.float32)
    return write_text_table(path, prompts, [2, 3], [features], channels, encoder)


@pytest.mark.parametrize("with_weights", [True, False])
def test_a_table_is_all_that_training_reads(weights, tmp_path, with_weights):
    identity = make_text_encoder(text_section(weights=weights)).identity
    path = make_table(tmp_path / "table", identity).path
    section = text_section(table=str(path), weights=weights if with_weights else "")
    done = subprocess.run(
        [sys.executable, "-c", FROM_A_TABLE, json.dumps(section)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "(1, 32, 96) set()\n", done.stderr[-4000:]


def test_a_table_of_another_encoder(weights, tmp_path, no_network):
    ours = text_section(weights=weights)
    identity = make_text_encoder(ours).identity
    same, other, bytes_ = (
        make_table(tmp_path / name, encoder)
        for name, encoder in (
            ("same", identity),
            ("other", "qwen3(dim=2560, sha256=0)"),
            ("bytes", "byte_qwen3(seed=0)"),
        )
    )
    check_encoder(ours, same)
    with pytest.raises(DataError, match=r"other: made by the encoder 'qwen3\(dim=2560, sha256=0"):
        check_encoder(ours, other)
    # Without weights there is nothing to compare with but the kind.
    without = text_section()
    check_encoder(without, other)
    with pytest.raises(DataError, match=r"bytes: made by .* 'byte_qwen3.*, text.encoder is 'qwen3"):
        check_encoder(without, bytes_)
    assert open_text_table(other.path).encoder == other.encoder


def test_neither_weights_nor_table():
    with pytest.raises(MissingWeights) as error:
        encode_text(text_section(), INSTRUCTIONS)
    for part in (
        "Obtain Qwen/Qwen3-4B for FLUX.2 klein 4B, or Qwen/Qwen3-8B for klein 9B",
        "imagewam convert Qwen3-4B/ --to weights/qwen3-4b",
        "imagewam encode-text --config=... --config.text.weights=weights/qwen3-4b",
        "--config.text.table=",
    ):
        assert part in str(error.value)


def test_what_an_encoder_is(tmp_path, weights):
    """An identity covers all that features depend on, but not where the files are."""

    def identity(name, tree=None, **changes):
        path = write_encoder(tmp_path / name, tree or parameters(), **changes)
        return make_text_encoder(text_section(weights=path)).identity

    first = make_text_encoder(text_section(weights=weights)).identity
    assert first.startswith("qwen3(dim=32, feature_layers=(9, 18, 27), sha256=")
    assert identity("elsewhere", checksums=("2e" * 32, "1f" * 32)) == first
    fewer = dataclasses.replace(SIZES, feature_layers=(9, 18))
    others = {
        identity("other weights", checksums=("2e" * 32, "30" * 32)),
        identity("float32", parameters(dtype="float32")),
        identity("other tokenizer", tokenizer=tokenizer_files(None)),
        identity("fewer layers", parameters(fewer), config=fewer),
    }
    assert len(others | {first}) == 5


@pytest.mark.parametrize("template", [CHAT_INSTRUCT_2507, CHAT_THINKING_2507])
def test_the_chat_of_another_variant(tmp_path, template):
    path = write_encoder(tmp_path / "variant", parameters(), tokenizer=tokenizer_files(template))
    encoder = make_text_encoder(text_section(weights=path))
    with pytest.raises(
        CheckpointError, match=r"variant: this Qwen3 is spoken to as '<\|im_start\|>"
    ):
        encoder.tokenize(["go"], 64)


def test_a_tokenizer_without_a_chat_template(tmp_path, weights):
    path = write_encoder(tmp_path, parameters(), tokenizer=tokenizer_files(None))
    with_template, without = (
        make_text_encoder(text_section(weights=w)).tokenize(["go"], 64) for w in (weights, path)
    )
    np.testing.assert_array_equal(with_template.ids, without.ids)


def test_files_that_are_no_tokenizer(tmp_path):
    files = tokenizer_files() | {"tokenizer.json": "{}"}
    path = write_encoder(tmp_path / "broken", parameters(), tokenizer=files)
    with pytest.raises(CheckpointError, match="broken: not a tokenizer: "):
        make_text_encoder(text_section(weights=path)).tokenize(["go"], 64)


def test_a_tokenizer_of_other_weights(tmp_path):
    small = dataclasses.replace(SIZES, vocab_size=300)
    path = write_encoder(tmp_path / "small", parameters(small), config=small)
    with pytest.raises(CheckpointError, match=r"small: its tokenizer has 342 tokens, its .* 300"):
        make_text_encoder(text_section(weights=path)).tokenize(["go"], 64)


def test_without_transformers(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    encoder = make_text_encoder(text_section(weights=weights))
    with pytest.raises(ConfigError, match=r"pip install 'imagewam-jax\[text\]'"):
        encoder.tokenize(["go"], 64)


def test_weights_that_are_not_a_converted_encoder(tmp_path):
    (tmp_path / "Qwen3-4B").mkdir()
    (tmp_path / "Qwen3-4B" / "config.json").touch()
    checkpoints = Checkpoints(tmp_path / "policy")
    metadata = {"config": {"text": text_section(encoder="byte_qwen3")}}
    checkpoints.save(1, {"params": {"w": jnp.zeros(3)}}, metadata)
    checkpoints.wait()
    checkpoints.close()
    write_encoder(tmp_path / "bare", parameters(), tokenizer={})
    write_encoder(tmp_path / "older", parameters())
    shutil.rmtree(tmp_path / "older" / "0" / "tokenizer")
    for name, error, message in (
        ("bare", CheckpointError, "bare has no tokenizer; convert the whole Hugging Face folder"),
        ("older", CheckpointError, "older has no tokenizer; convert the whole Hugging Face folder"),
        ("Qwen3-4B", ConfigError, r"Qwen3-4B is a Hugging Face folder; convert it: imagewam conv"),
        ("policy", CheckpointError, "policy is not the checkpoint of a text encoder"),
        ("nothing", CheckpointError, "nothing: no such directory"),
    ):
        with pytest.raises(error, match=message):
            make_text_encoder(text_section(weights=str(tmp_path / name)))


def test_weights_for_an_encoder_that_has_none():
    with pytest.raises(ConfigError, match=r"text.weights is 'x': the weights of byte_qwen3 are r"):
        make_text_encoder(text_section(encoder="byte_qwen3", weights="x"))


def test_widths(weights):
    """The evaluation scripts of the official code take the 4B encoder for the 9B policy, too."""
    check_width(7680, QWEN3_4B.feature_dim)
    with pytest.raises(ConfigError) as error:
        check_width(12288, QWEN3_4B.feature_dim)
    assert (
        "text_dim is 12288, the text features have 7680 channels: FLUX.2 klein 4B reads 7680 "
        in (str(error.value))
    )
    assert "Qwen/Qwen3-4B, and klein 9B 12288, of Qwen/Qwen3-8B" in str(error.value)
    assert QWEN3_8B.feature_dim == 12288
    with pytest.raises(ConfigError, match=r"text_dim is 9, the text features have 192 channels$"):
        check_width(9, 192)
    with pytest.raises(ConfigError, match=r"text_dim is 192, the text features have 96 channels$"):
        encode_text(text_section(weights=weights), INSTRUCTIONS, 192)
