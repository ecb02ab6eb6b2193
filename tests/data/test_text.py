"""The text table: files, lookup, buckets, and what is missing."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.text import TextTable, bucket_length, gather_text, load_text_table

PROMPTS = ("open the faucet", "close the faucet", "öffne")


def make_table(dtype=np.float32):
    features = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(dtype)
    return TextTable(PROMPTS, features, np.array([4, 5, 1], np.int32), "bytes-qwen3-tiny@1234")


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_table_survives_its_file(tmp_path, dtype):
    table = make_table(dtype)
    table.save(tmp_path / "text.safetensors")
    again = load_text_table(tmp_path / "text.safetensors", table.encoder)
    assert again.prompts == PROMPTS and again.encoder == table.encoder
    assert again.features.dtype == dtype
    np.testing.assert_array_equal(again.features, table.features)
    np.testing.assert_array_equal(again.lengths, table.lengths)


def test_selected_rows_follow_the_instructions():
    table = make_table()
    selected = table.select(["öffne", "open the faucet"])
    assert selected.prompts == ("öffne", "open the faucet")
    np.testing.assert_array_equal(selected.features, table.features[[2, 0]])
    np.testing.assert_array_equal(selected.lengths, [1, 4])


@pytest.mark.parametrize("compiled", [False, True], ids=["numpy", "jit"])
def test_gather(compiled):
    table = make_table()
    gather = jax.jit(gather_text, static_argnames="bucket") if compiled else gather_text
    asarray = jnp.asarray if compiled else np.asarray
    text_id = np.array([1, 1, 2], np.int32)
    features, lengths = gather(asarray(table.features), asarray(table.lengths), text_id, bucket=5)
    np.testing.assert_array_equal(features, table.features[[1, 1, 2], :5])
    np.testing.assert_array_equal(lengths, [5, 5, 1])


def test_a_missing_prompt_names_the_command():
    with pytest.raises(DataError, match=r"1 of 2 prompts .* 'push'; encode them with: imagewam "):
        make_table().select(["öffne", "push"])


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "text.safetensors"
    with pytest.raises(DataError, match="no text table; make it with: imagewam encode-text"):
        load_text_table(path, "x")
    make_table().save(path)
    with pytest.raises(DataError, match="made by the encoder 'bytes-qwen3-tiny@1234', expected"):
        load_text_table(path, "qwen3-4b")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="not a text table"):
        load_text_table(path, "x")


@pytest.mark.parametrize(
    "prompts, lengths", [(("a", "a"), [1, 1]), (("a",), [1, 1]), (("a", "b"), [1, 9])]
)
def test_a_table_that_contradicts_itself(prompts, lengths):
    with pytest.raises(DataError, match="text"):
        TextTable(prompts, np.zeros((2, 6, 4)), np.array(lengths), "x")


def test_buckets():
    buckets = (32, 64, 128)
    assert [bucket_length(n, buckets) for n in (1, 32, 33, 128)] == [32, 32, 64, 128]
    with pytest.raises(DataError, match=r"prompt of 129 tokens is longer than the largest .* 128"):
        bucket_length(129, buckets)
