"""The text table: ragged on disk, padded in memory, lookup, buckets, and what is missing."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagewam_jax.errors import DataError
from imagewam_jax.text import tables as text
from imagewam_jax.text.tables import (
    TextTable,
    bucket_length,
    open_text_table,
    write_text_table,
)

PROMPTS = ("open the faucet", "close the faucet", "öffne")
LENGTHS = (4, 5, 1)
ENCODER = "bytes-qwen3-tiny@1234"
ROWS = [np.random.default_rng(n).normal(size=(n, 4)).astype(ml_dtypes.bfloat16) for n in LENGTHS]


def write(path, features=ROWS):
    return write_text_table(path, PROMPTS, LENGTHS, features, 4, ENCODER)


def test_a_table_survives_its_file(tmp_path):
    written = write(tmp_path / "new" / "folders" / "table")
    opened = open_text_table(written.path)
    for table in (written, opened):
        assert (table.prompts, table.encoder, table.channels) == (PROMPTS, ENCODER, 4)
        np.testing.assert_array_equal(table.lengths, LENGTHS)
        for found, row in zip(table.rows(PROMPTS), ROWS, strict=True):
            assert found.dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(found, row)
    assert [path.name for path in written.path.parent.iterdir()] == ["table"]


def test_nothing_is_padded_on_disk(tmp_path):
    """The file is a plain safetensors file of just these tensors."""
    path = write(tmp_path / "table").path
    tensors = load_file(path)
    np.testing.assert_array_equal(tensors["features"], np.concatenate(ROWS))
    np.testing.assert_array_equal(tensors["lengths"], LENGTHS)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == 8 + size + 4 * len(LENGTHS) + 2 * 4 * sum(LENGTHS)


def test_pieces_of_any_size_are_rounded_to_bfloat16(tmp_path):
    exact = np.random.default_rng(0).normal(size=(sum(LENGTHS), 4)).astype(np.float32)
    table = write(tmp_path / "table", iter([exact[:1], exact[1:9], exact[9:]]))
    found = np.concatenate(list(table.rows(PROMPTS)))
    np.testing.assert_array_equal(found, exact.astype(ml_dtypes.bfloat16))


def test_selected_rows_follow_the_instructions(tmp_path):
    selected = write(tmp_path / "table").select(["öffne", "open the faucet", "öffne"])
    assert selected.prompts == ("öffne", "open the faucet", "öffne")
    assert selected.encoder == ENCODER and selected.features.shape == (3, 4, 4)
    np.testing.assert_array_equal(selected.lengths, [1, 4, 1])
    for row, number in enumerate((2, 0, 2)):
        np.testing.assert_array_equal(selected.features[row, : LENGTHS[number]], ROWS[number])
        assert (selected.features[row, LENGTHS[number] :] == 0).all()


def test_a_missing_prompt_names_the_command(tmp_path):
    message = r"table: 1 of 2 prompts .* 'push'; add them with: imagewam encode-text .*/table$"
    with pytest.raises(DataError, match=message):
        write(tmp_path / "table").select(["öffne", "push"])


def test_another_encoder(tmp_path):
    table = write(tmp_path / "table")
    table.check_encoder(ENCODER)
    with pytest.raises(DataError, match="made by the encoder 'bytes-qwen3-tiny@1234', expected"):
        table.check_encoder("qwen3-4b")


def test_files_that_are_not_a_table(tmp_path):
    path = tmp_path / "table"
    with pytest.raises(
        DataError, match=r"no text table; make it with: imagewam encode-text .*/tab"
    ):
        open_text_table(path)
    with pytest.raises(DataError, match="not a text table"):
        open_text_table(tmp_path)
    write(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="not a text table"):
        open_text_table(path)
    save_file({"w": np.zeros(3)}, path)
    with pytest.raises(DataError, match="not a text table"):
        open_text_table(path)
    save_file({"features": np.concatenate(ROWS), "lengths": np.int32(LENGTHS)}, path)
    with pytest.raises(DataError, match="not a text table: its metadata names no encoder"):
        open_text_table(path)


def test_a_table_of_another_version(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "FORMAT", "3")
    path = write(tmp_path / "table").path
    monkeypatch.undo()
    with pytest.raises(DataError, match="of format 3, this version reads 2; encode again with: im"):
        open_text_table(path)


@pytest.mark.parametrize(
    ("prompts", "lengths", "features"),
    [
        (("a", "a"), [4, 5], ROWS[:2]),
        (("a",), [4, 5], ROWS[:2]),
        (("a", "b"), [4, 4], ROWS[:2]),
        (("a", "b"), [9, 0], ROWS[:2]),
        (("a", "b"), [4, 5], [row.astype(np.float32) for row in ROWS[:2]]),
        (("a", "b"), [4, 5], [row[..., None] for row in ROWS[:2]]),
    ],
)
def test_a_file_that_contradicts_itself(tmp_path, prompts, lengths, features):
    metadata = {"format": text.FORMAT, "encoder": ENCODER, "prompts": json.dumps(prompts)}
    tensors = {"features": np.concatenate(features), "lengths": np.int32(lengths)}
    save_file(tensors, tmp_path / "table", metadata)
    with pytest.raises(DataError, match=r"table: a text table of \d prompts \("):
        open_text_table(tmp_path / "table")


@pytest.mark.parametrize(("prompts", "lengths"), [(("a",), [1, 1]), (("a", "b"), [1, 9])])
def test_a_table_that_contradicts_itself(prompts, lengths):
    with pytest.raises(DataError, match="text"):
        TextTable(prompts, np.zeros((2, 6, 4)), np.array(lengths, np.int32), "x")


def test_a_table_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/table: the text table could not be written"):
        write(tmp_path / "file" / "table")


def test_an_error_on_the_way_leaves_the_table_that_was_there(tmp_path):
    before = write(tmp_path / "table").path.read_bytes()

    def features():
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "table", features())
    assert [path.name for path in tmp_path.iterdir()] == ["table"]
    assert (tmp_path / "table").read_bytes() == before


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (ROWS[:2], "features of 9 tokens, expected 10"),
        ([*ROWS, ROWS[2]], "features of 11 tokens, expected 10"),
        ([ROWS[0][:, :2]], r"features \(4, 2\) up to token 4 are not finite numbers of 4 chan"),
        ([ROWS[0], np.full((5, 4), np.nan)], r"features \(5, 4\) up to token 9 are not finite"),
    ],
)
def test_features_that_are_not_those_of_the_prompts(tmp_path, features, message):
    with pytest.raises(DataError, match=f"table: {message}"):
        write(tmp_path / "table", features)
    assert list(tmp_path.iterdir()) == []


def test_buckets():
    buckets = (32, 64, 128)
    assert [bucket_length(n, buckets) for n in (1, 32, 33, 128)] == [32, 32, 64, 128]
    with pytest.raises(DataError, match=r"prompt of 129 tokens is longer than the largest .* 128"):
        bucket_length(129, buckets)
