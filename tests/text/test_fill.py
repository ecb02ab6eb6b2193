"""`imagewam encode-text`: every prompt once, whatever happens on the way."""

import itertools
import json
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest

from imagewam_jax.data.datasets import config_data
from imagewam_jax.errors import ConfigError, DataError, InUseError
from imagewam_jax.files import lock_beside, only_writer
from imagewam_jax.models.text_encoders.base import batches
from imagewam_jax.text import fill as text_table
from imagewam_jax.text.encoders import encode_text, make_text_encoder
from imagewam_jax.text.fill import fill_text_table, read_instructions
from imagewam_jax.text.tables import open_text_table, write_text_table
from imagewam_jax.training.prepare import make_assets
from tests.text.tiny_qwen3 import parameters, write_encoder
from tests.training.commands import start
from tests.training.tiny import INSTRUCTIONS, copy_sample, tiny_config

# Of 18 to 60 tokens: some twenty batches, in the time in which a process can be killed.
MANY = tuple(f"push {'the red ' * (n % 6)}button {n:04}" for n in range(1000))


def config(**text) -> dict:
    changed = tiny_config("")
    changed.text.update({"buckets": (32, 64), **text})
    return json.loads(changed.to_json())


@pytest.fixture
def encoded(monkeypatch):
    """Records the prompts that are encoded, in their order."""
    prompts = []

    def recording(section):
        encoder = make_text_encoder(section)

        def tokenize(more, max_length):
            prompts.extend(more)
            return encoder.tokenize(more, max_length)

        return encoder._replace(tokenize=tokenize)

    monkeypatch.setattr(text_table, "make_text_encoder", recording)
    return prompts


def kill_between_batches(process, parts) -> None:
    """Kills an encoding process as soon as a few batches are done."""
    try:
        deadline = time.monotonic() + 300
        while len(list(parts.glob("*.safetensors"))) < 5:
            assert process.poll() is None, process.communicate()[1][-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()


@pytest.mark.slow
def test_killed_and_started_again_it_is_the_same_table(tmp_path, encoded):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(MANY))
    file = tmp_path / "config.py"
    file.write_text(
        "from tests.training.tiny import tiny_config\n"
        "def get_config():\n"
        "    config = tiny_config('')\n"
        "    config.text.buckets = (32, 64)\n"
        "    return config\n"
    )
    whole = fill_text_table(config(), MANY, tmp_path / "whole")
    assert sorted(encoded) == sorted(MANY)
    encoded.clear()

    output, parts = tmp_path / "killed", tmp_path / "killed.parts"
    arguments = f"--config={file}", f"--output={output}", f"--prompts={prompts}"
    kill_between_batches(start("encode-text", *arguments, cache=tmp_path / "compiled"), parts)
    assert not output.exists()
    done = [p for part in parts.glob("*.safetensors") for p in open_text_table(part).prompts]
    assert 0 < len(done) < len(MANY)

    fill_text_table(config(), MANY, output)
    assert sorted(encoded) == sorted(set(MANY) - set(done))
    assert output.read_bytes() == whole.path.read_bytes()
    assert not parts.exists()


def test_batches_are_of_prompts_of_about_the_same_length(tmp_path, monkeypatch):
    """So a table begins with the shortest prompts, and each of its parts is a batch."""
    lengths = []

    def write(path, prompts, lengths_, *more):
        lengths.append(list(lengths_))
        return write_text_table(path, prompts, lengths_, *more)

    monkeypatch.setattr(text_table, "write_text_table", write)
    table = fill_text_table(config(), MANY[:200], tmp_path / "table")
    *parts, all_ = lengths
    assert list(itertools.chain(*parts)) == all_ == sorted(all_) == table.lengths.tolist()
    assert [len(part) for part in parts] == [len(rows) for rows in batches(np.array(all_))]


def test_what_a_table_lacks_is_added(tmp_path, encoded):
    path = tmp_path / "table"
    fill_text_table(config(), MANY[:3], path)
    first = path.read_bytes()
    fill_text_table(config(), [MANY[0], f"zh@{MANY[1]}"], path)
    assert path.read_bytes() == first and sorted(encoded) == sorted(MANY[:3])
    encoded.clear()
    table = fill_text_table(config(), [MANY[1], *MANY[50:52], MANY[51]], path)
    assert sorted(encoded) == sorted(MANY[50:52])
    assert table.prompts[:3] == open_text_table(path).prompts[:3]
    assert set(table.prompts) == {*MANY[:3], *MANY[50:52]}
    expected = encode_text(config()["text"], table.prompts)
    found = table.select(table.prompts)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    valid = np.arange(64) < expected.lengths[:, None]
    found = found.features[valid[:, : found.features.shape[1]]].astype(np.float32)
    np.testing.assert_allclose(found, expected.features[valid], rtol=2**-8, atol=1e-4)


def test_parts_that_were_merged_already(tmp_path, encoded):
    """A run was killed after it merged the parts, before it removed them."""
    path, parts = tmp_path / "table", tmp_path / "table.parts"
    whole = fill_text_table(config(), MANY[:100], path).path.read_bytes()
    parts.mkdir()
    (parts / "000000.safetensors").write_bytes(whole)
    (parts / ".000001.safetensors.partial").write_bytes(whole[:1000])
    encoded.clear()
    fill_text_table(config(), MANY[:100], path)
    assert path.read_bytes() == whole and not parts.exists() and not encoded


@pytest.mark.parametrize("name", ["table", "table.parts/000000.safetensors"])
def test_what_another_encoder_made_is_kept(tmp_path, name, encoded):
    table = fill_text_table(config(seed=1), MANY[:2], tmp_path / name)
    before = table.path.read_bytes()
    encoded.clear()
    with pytest.raises(DataError, match=rf"{name}: made by the encoder 'byte_qwen3\(seed=1"):
        fill_text_table(config(), MANY[:2], tmp_path / "table")
    assert table.path.read_bytes() == before and not encoded


def test_errors_come_before_anything_is_encoded(tmp_path):
    (tmp_path / "text").write_text("notes")
    for instructions, path, changes, message in (
        (["go"], "text", {}, "text: not a text table"),
        (["x" * 63], "table", {}, "text.buckets .*: prompt 'xxx"),
        (["go"], "table", {"template": "push"}, "text.template is 'push'"),
    ):
        with pytest.raises((DataError, ConfigError), match=message):
            fill_text_table(config(**changes), instructions, tmp_path / path)
    wrong = config()
    wrong["model"]["backbone"]["text_dim"] = 96
    with pytest.raises(ConfigError, match="text_dim is 96, the text features have 192 channels"):
        fill_text_table(wrong, ["go"], tmp_path / "table")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_files_of_instructions(tmp_path):
    path = tmp_path / "instructions.txt"
    path.write_text("  open it \n\nöffne\r\nopen it\n", encoding="utf-8")
    assert read_instructions(path) == ["open it", "öffne", "open it"]
    path.write_bytes("open\u2028it\r\nclose\x85it".encode())
    assert read_instructions(path) == ["open\u2028it", "close\x85it"]
    for content, message in ((b"\n \n", "no instruction in it"), (b"\xff\xfe\x00", "no file of ")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_instructions(path)
    with pytest.raises(DataError, match="nothing: no file of instructions"):
        read_instructions(tmp_path / "nothing")


def test_training_takes_the_table_of_a_converted_qwen3(tmp_path):
    """Training needs neither weights nor tokenizer then: the table has what they made."""
    pytest.importorskip("transformers")
    with_weights = tiny_config(copy_sample(tmp_path))
    with_weights.text.encoder, with_weights.text.buckets = "qwen3", (32, 64)
    with_weights.text.weights = write_encoder(tmp_path / "weights", parameters())
    with_weights.model.backbone.text_dim = 96
    with_weights = json.loads(with_weights.to_json())
    dataset = config_data(with_weights)
    table = fill_text_table(with_weights, INSTRUCTIONS, tmp_path / "table")

    section = {**with_weights["text"], "weights": "", "table": str(table.path)}
    assets, metadata = make_assets({**with_weights, "text": section}, dataset)
    assert metadata["prompts"] == list(INSTRUCTIONS) and metadata["text_encoder"] == table.encoder
    assert assets.text.dtype == jnp.float32 and assets.text.shape == (2, 64, 96)
    in_training = encode_text(with_weights["text"], INSTRUCTIONS)
    for row, length in enumerate(in_training.lengths):
        np.testing.assert_array_equal(
            assets.text[row, :length], in_training.features[row, :length].astype(np.float32)
        )
    assert assets.text_length.tolist() == in_training.lengths.tolist()


def test_a_table_that_another_process_fills(tmp_path):
    path = tmp_path / "table.safetensors"
    with (
        only_writer(lock_beside(path), "imagewam encode-text"),
        pytest.raises(InUseError, match=rf"^{path} is in use by process .* encode-text, since"),
    ):
        fill_text_table(config(), INSTRUCTIONS, path)
    fill_text_table(config(), INSTRUCTIONS, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
