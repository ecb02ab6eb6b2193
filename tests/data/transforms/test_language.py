"""Instructions as datasets store them."""

import dataclasses

import numpy as np
import pytest

from imagewam_jax.data.index.columns import Coded, Dense, Ragged, Text
from imagewam_jax.data.transforms.language import step_texts, text_of_codes
from imagewam_jax.errors import DataError
from tests.data.toy import TOY

FRAMES = 52  # of three episodes
TABLE = (b"open", b"please open", b" \n", "öffne".encode(), b'["shut", "close"]; lock')


@pytest.fixture(scope="module")
def read(toy_index):
    """Reads features, named by the order of their scopes, as the language of the split "val"."""
    split = toy_index.splits["val"]

    def read(steps=None, episodes=None, skipped=None):
        changed = dataclasses.replace(split, steps=steps or {}, episodes=episodes or {})
        index = dataclasses.replace(toy_index, splits={"val": changed}, skipped=skipped or {})
        language = tuple([*(steps or {}), *(episodes or {})]) or ("words",)
        spec = dataclasses.replace(TOY, language=language)
        ids, texts = step_texts(index, changed, spec)
        return [[texts[i] for i in row if i >= 0] for row in ids.tolist()], ids.shape[1]

    return read


def of_episodes(split, *rows):
    steps = np.diff(split.episode_start)
    return [row for row, count in zip(rows, steps, strict=True) for _ in range(count)]


def test_a_tensor_of_texts_in_each_step(read):
    rows = [[0, 1, 3], [2, 1, 2], [2, 2, 2], [4, 0, 2]] * 13
    found, width = read({"words": Text(np.array(rows, np.int32), TABLE)})
    expected = [["open", "please open", "öffne"], ["please open"], [], [TABLE[4].decode(), "open"]]
    assert found == expected * 13 and width == 3


def test_lists_of_texts(read, toy_index):
    items = Text(np.array([2, 0, 1, 3, 2, 0], np.int32), TABLE)
    lists = Ragged(items, np.array([0, 2, 2, 6]))
    found, width = read(episodes={"about/words": lists})
    split = toy_index.splits["val"]
    assert found == of_episodes(split, ["open"], [], ["please open", "öffne", "open"])
    assert width == 3
    per_step = Ragged(Text(np.arange(104, dtype=np.int32) % 4, TABLE), np.arange(53) * 2)
    found, width = read({"words": per_step})
    assert found == [["open", "please open"], ["öffne"]] * 26 and width == 2


def test_lists_that_are_empty_through_a_split(read):
    none = Ragged(Text(np.empty((0,), np.int32), ()), np.zeros(FRAMES + 1, np.int64))
    assert read({"words": none}) == ([[]] * FRAMES, 1)
    other = Text(np.zeros(FRAMES, np.int32), TABLE)
    assert read({"words": none, "other": other}) == ([["open"]] * FRAMES, 1)


def test_alternatives_of_several_keys(read, toy_index):
    """A key can be of steps or of episodes, and hold one text, a tensor or a list of texts."""
    one = Text(np.full(FRAMES, 2, np.int32), TABLE)
    two = Text(np.tile(np.array([[2, 3]], np.int32), (FRAMES, 1)), TABLE)
    lists = Ragged(Text(np.array([0, 1], np.int32), TABLE), np.array([0, 0, 1, 2]))
    found, width = read({"one": one, "two": two}, {"lists": lists})
    split = toy_index.splits["val"]
    assert found == of_episodes(split, ["öffne"], ["öffne", "open"], ["öffne", "please open"])
    assert width == 2


def codes(*texts, dtype=np.int32, width=8):
    rows = np.zeros((len(texts), width), dtype)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = list(text) if isinstance(text, bytes) else [ord(c) for c in text]
    return rows


@pytest.mark.parametrize(
    "rows", [codes("größer", "lift"), codes("größer".encode(), b"lift", dtype=np.uint8)]
)
def test_integers_that_are_text(read, rows):
    """An index stores rows of codes in several ways, by their widths and whether these vary."""
    ids = np.arange(FRAMES, dtype=np.int32) % 2
    expected = [["größer"], ["lift"]] * 26
    assert read({"words": Coded(ids, rows)}) == (expected, 1)
    assert read({"words": Dense(rows[ids])}) == (expected, 1)
    full = [row[row != 0] for row in rows[ids]]
    ends = np.cumsum([0, *map(len, full)])
    assert read({"words": Ragged(Dense(np.concatenate(full)), ends)}) == (expected, 1)


def test_text_of_integers():
    rows = codes("push", "größer", "", "full row")
    rows[0, 6] = ord("x")  # after the end
    assert text_of_codes(rows).tolist() == [b"push", "größer".encode(), b"", b"full row"]
    for wrong in ([-1], [0x110000], [0xD800], [7, 1, 3]):
        with pytest.raises(ValueError):
            text_of_codes(np.array([wrong]))


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        (
            Text(np.repeat([0, 1], [40, 12]).astype(np.int32), (b"open", b"\xf6ffne")),
            r"no UTF-8 text in split 'val', episode \d, step \d+ .*: b'\\xf6ffne' \('utf-8' codec",
        ),
        (Dense(np.zeros((52, 3), np.float32)), r"'words', which is float32\[3\], expected text or"),
        (Coded(np.zeros(52, np.int32), np.ones((1, 512), "f4")), r"which is float32\[512\]"),
        (Dense(np.zeros(52, np.int64)), r"which is int64\[\], expected text or integers"),
        (Dense(np.full((52, 3), 2)), r"no UTF-8 text in .*step 0 .*: \[2, 2, 2\] \(it has the con"),
        (
            Ragged(Dense(np.zeros((9, 4), np.float32)), np.zeros(53, np.int64)),
            r"which is float32\[any, 4\]",
        ),
    ],
)
def test_what_is_no_text(read, column, complaint):
    with pytest.raises(DataError, match=complaint):
        read({"words": column})


def test_a_feature_that_is_not_there(read):
    with pytest.raises(DataError, match=r"'words', which is not there; texts are \[\]; name other"):
        read()
    with pytest.raises(DataError, match="'words', which is not indexed: a sequence of sequences"):
        read(skipped={"steps/words": "a sequence of sequences is not read"})
