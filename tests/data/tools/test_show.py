"""The page to look at data: its numbers, its pictures, and what it does with odd data."""

import base64
import dataclasses
import html
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from imagewam_jax import cli
from imagewam_jax.data.index.dataset_index import open_index
from imagewam_jax.data.tools.show import write_data_page
from imagewam_jax.data.tools.show_pictures import contact_sheet
from tests.data.conftest import flip_byte, train_shard
from tests.data.toy import TOY_ROW, toy_data
from tests.training.tiny import copy_sample


def page_of(data, tmp_path, part="train", episodes=2):
    path = write_data_page(
        data, part, tmp_path / "data.html", episodes=episodes, normalization="min/max"
    )
    return path.read_text()


def rows_of(page):
    """The texts of all tables' cells, row by row."""
    cell = re.compile(r"<t[dh][^>]*>(.*?)</t[dh]>", re.DOTALL)
    rows = [
        [html.unescape(text) for text in cell.findall(row)]
        for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    ]
    return {row[0]: row[1:] for row in rows}


@pytest.fixture(scope="module")
def page(toy, tmp_path_factory):
    return page_of(toy_data(toy.dataset_dir, unlabelled="blank"), tmp_path_factory.mktemp("page"))


def test_facts_and_numbers(toy, page):
    rows = rows_of(page)
    assert rows["episodes"] == ["9"] and rows["steps"] == ["138"] and rows["samples"] == ["138"]
    assert rows["version"] == ["toy_arm 1.0.0"] and rows["control rate"] == ["10 Hz"]
    assert rows["camera wrist"] == ["observation/wrist_image, [[32, 48]]"]
    assert rows["action: toy"] == ["x (relative), y (relative), speed, grip"]
    actions = np.concatenate([episode["action"] for episode in toy.truth["train"]])
    found = [float(text) for text in rows["speed"][:6]]
    column = actions[:, 2].astype(np.float64)
    expected = [
        column.min(),
        np.quantile(column, 0.01),
        column.mean(),
        np.quantile(column, 0.99),
        column.max(),
        column.std(),
    ]
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    texts = [text.decode() for e in toy.truth["train"] for text in e["language_instruction"]]
    for text in set(texts):
        assert rows[text] == [str(texts.count(text))]


def test_it_needs_no_network_and_is_small(page):
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert len(page) < 2e6
    pictures = re.findall(r"data:image/(\w+);base64,([^\"]+)", page)
    # Lengths, two sheets, and curves and histograms of actions and states.
    assert [kind for kind, _ in pictures] == ["png", "jpeg", "jpeg", *["png"] * 4]
    for _, data in pictures:
        Image.open(io.BytesIO(base64.b64decode(data))).verify()


def test_tiles_are_the_images_of_samples(toy):
    (source,) = toy_data(toy.dataset_dir).sources("train")
    split = source.reader.split
    start = int(split.episode_start[np.argmax(np.diff(split.episode_start))])
    sheet = contact_sheet(source.reader, start, 40)
    assert not sheet.problems
    grid = np.asarray(Image.open(io.BytesIO(sheet.jpeg))).astype(float)
    tile_height, tile_width = 32 + 12, 48 + 2
    assert grid.shape == (4 * tile_height, 8 * tile_width, 3)
    # The seventh moment's wrist camera, now and then; its target is behind the end.
    batch = source.reader.read(np.array([start + 33]))
    for moment in range(2):
        top, left = (2 + moment) * tile_height, 6 * tile_width + 1
        tile = grid[top : top + 32, left : left + 48]
        # Random pixels do not survive a JPEG whole, but far better than chance.
        true = batch["images"][0, 1, moment].astype(float)
        other = batch["images"][0, 1, 1 - moment].astype(float)
        assert np.corrcoef(tile.mean(-1).ravel(), true.mean(-1).ravel())[0, 1] > 0.9
        assert abs(np.corrcoef(tile.mean(-1).ravel(), other.mean(-1).ravel())[0, 1]) < 0.2
    bar = grid[3 * tile_height + 33 : 3 * tile_height + 43, 6 * tile_width + 45]
    assert (bar[:, 0] > 200).all() and (bar[:, 2] < 90).all()  # orange


def test_what_stands_in_the_data_is_escaped(toy, tmp_path):
    data = toy_data(toy.dataset_dir)
    (dataset,) = data.datasets
    standardized = dataclasses.replace(
        dataset.standardized, instructions=("<script>x</script>", "b & c")
    )
    changed = dataclasses.replace(dataset, standardized=standardized)
    page = page_of(dataclasses.replace(data, datasets=(changed,)), tmp_path)
    assert "<script>" not in page and "&lt;script&gt;x&lt;/script&gt;" in page
    assert "b &amp; c" in page


def test_frames_that_cannot_be_read_are_listed(toy_copy, tmp_path):
    column = open_index(toy_copy).splits["train"].images["observation/image"]
    flip_byte(train_shard(toy_copy, 0), int(column.offset[0]) + 100)
    data = toy_data(toy_copy)
    page = page_of(data, tmp_path)
    assert "Unreadable: bad image" in page and "episode 0, step 0" in page
    (source,) = data.sources("train")
    sheet = contact_sheet(source.reader, 0, 12)
    assert len(sheet.problems) == 1
    grid = np.asarray(Image.open(io.BytesIO(sheet.jpeg))).astype(float)
    first_column = [grid[top + 8 : top + 24, 9:41] for top in range(0, grid.shape[0], 44)]
    is_grey = [abs(tile - 128).max() < 20 for tile in first_column]
    assert is_grey == [True, False, False, False]  # its target and the other camera are there


def test_a_mixture_with_a_set_that_has_neither_state_nor_language(toy, tmp_path):
    for name in ("toy_arm", "other"):
        shutil.copytree(toy.dataset_dir, tmp_path / "sets" / name / "1.0.0")
    state = {"name": "none", "dims": []}
    other = TOY_ROW | {"state": state, "state_keys": [], "language": []}
    other["cameras"] = {"wrist": "observation/wrist_image"}
    entries = [{"dataset": "toy_arm", "weight": 3.0}, {"dataset": "other", "weight": 1.0}]
    data = toy_data(
        tmp_path / "sets",
        dataset="",
        mixture="mine",
        mixtures={"mine": entries},
        rows={"toy_arm": TOY_ROW, "other": other},
    )
    page = page_of(data, tmp_path, episodes=1)
    rows = rows_of(page)
    assert rows["toy_arm"] == ["138", "50.00%", "75.00%"]
    assert rows["other"] == ["138", "50.00%", "25.00%"]
    assert rows["state: none"] == ["none"]
    assert "<h2>toy_arm: state</h2>" in page and "<h2>other: state</h2>" not in page


def test_of_a_folder_alone(tmp_path, capsys):
    """The registry has its name: all cameras are shown, and no config is needed."""
    folder, page = copy_sample(tmp_path), tmp_path / "page.html"
    assert cli.main(["data", "show", str(folder), f"--output={page}", "--episodes=1"]) == 0
    assert "metaworld_faucet: episodes" in page.read_text()
    note = "metaworld_faucet: action 'gripper' is 1 at every step: acting returns about that number"
    assert rows_of(page.read_text())["note"] == [note]
    assert f"note: {note}" in capsys.readouterr().out


def test_of_nothing_and_of_what_is_in_no_row(toy, tmp_path, capsys):
    assert cli.main(["data", "show"]) == 1
    assert "give either DIR, of one dataset, or --config" in capsys.readouterr().err
    assert cli.main(["data", "show", str(toy.dataset_dir)]) == 1
    error = capsys.readouterr().err
    assert "no dataset 'toy_arm' in the registry" in error
    assert error.endswith(f"imagewam data describe {toy.dataset_dir}\n")
