"""`imagewam evaluate` on recorded data: numbers as JSON, and a page that needs no other file."""

import base64
import io
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from imagewam_jax.errors import CheckpointError, InUseError
from imagewam_jax.evaluation.closed_loop import BLANK, POLICY, RANDOM, REPLAY, SWAPPED, Success
from imagewam_jax.evaluation.episode_means import EpisodeMeans
from imagewam_jax.evaluation.evaluate import evaluate
from imagewam_jax.evaluation.films import Films
from imagewam_jax.evaluation.journal import Ended
from imagewam_jax.evaluation.offline import OfflineResult
from imagewam_jax.evaluation.report import (
    episode_section,
    offline_section,
    overlay,
    success_section,
    task_section,
    video_section,
)
from imagewam_jax.evaluation.rollout import RolloutResult
from imagewam_jax.evaluation.simulators.base import Observation
from imagewam_jax.files import LOCK_FILE, only_writer
from imagewam_jax.html.page import image_grid, write_page
from tests.evaluation.fake_simulator import FakeSimulator
from tests.training.tiny import trained_run


class Page(HTMLParser):
    """What a page links to, its headings, table cells and pictures."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.headings, self.cells, self.pictures = [], [], [], []
        self._inside = ""
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        self._inside = tag
        for name, value in attributes:
            if name in ("src", "href", "action", "data", "srcset", "poster"):
                self.links.append(value)
            if tag == "img" and name == "src":
                self.pictures.append(value)

    def handle_data(self, data):
        if data.strip():
            if self._inside in ("td", "th"):
                self.cells.append(data.strip())
            if self._inside in ("h1", "h2"):
                self.headings.append(data.strip())

    def handle_endtag(self, tag):
        self._inside = ""


def check_self_contained(page: Page) -> None:
    assert page.pictures and all(link.startswith("data:image/png;base64,") for link in page.links)
    for word in ("http://", "https://", "@import", "url(", "<script", "<link"):
        assert word not in page.text
    for picture in page.pictures:
        image = Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1])))
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 3


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a run that was moved, as was its dataset."""
    folder = tmp_path_factory.mktemp("moved")
    run = Path(shutil.copytree(trained_run(), folder / "run"))
    dataset = Path(shutil.copytree(trained_run().parent / "metaworld_faucet", folder / "set"))
    return evaluate(run, data_directory=str(dataset / "1.0.0"), simulator="")


def test_evaluation_without_a_simulator(report):
    assert report.name == "report.html" and report.parent.name == "evaluation"
    results = json.loads((report.parent / "evaluation.json").read_text())
    assert results["checkpoint_step"] == 40 and "closed_loop" not in results
    offline = results["offline"]["metaworld_faucet"]
    assert set(offline["action_error"]) == {"policy", "repeat the last action", "mean action"}
    assert all(len(error) == 4 for error in offline["action_error"].values())
    assert offline["copied_latent_error"] > 0
    page = Page(report)
    check_self_contained(page)
    assert page.headings[1:] == ["Held-out demonstrations", "Predictions", "Training"]
    for name, error in offline["action_error"].items():
        row = page.cells.index(name)
        widths = offline["action_error_interval"][name]
        assert page.cells[row + 1 : row + 5] == [
            f"{x:.3f} ± {width:.3f}" for x, width in zip(error, widths, strict=True)
        ]
    assert len(page.pictures) == 4


def test_errors_of_a_single_episode_have_no_interval():
    means = EpisodeMeans(1, (4, 2))
    means.add(np.zeros(3, int), np.full((3, 4, 2), 0.25), np.ones((3, 4, 2)))
    latents = EpisodeMeans(1, ())
    latents.add(np.zeros(3, int), np.ones(3), np.ones(3))
    result = OfflineResult({"policy": means}, latents, latents, counts=np.array([3, 0]))
    section = offline_section(result, ("x", "y"))
    assert section.table[1] == ("policy", "0.250", "0.250")
    assert "nan" not in section.text and "of 1 episode," in section.text


def test_a_report_that_another_process_writes(report):
    before = report.read_bytes()
    with (
        only_writer(report.parent / LOCK_FILE, "imagewam evaluate"),
        pytest.raises(
            InUseError, match=rf"^{report.parent} is in use by process .* evaluate, since"
        ),
    ):
        evaluate(report.parent.parent, simulator="")
    assert report.read_bytes() == before


def test_no_checkpoint_is_an_error_that_leaves_nothing_behind(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        evaluate(tmp_path, simulator="")
    assert not list(tmp_path.iterdir())


def test_sections_of_the_simulator(tmp_path):
    names = [POLICY, SWAPPED, BLANK, RANDOM, REPLAY]
    success = {name: Success(n, 20, n / 30, n / 15) for n, name in enumerate(names, start=3)}
    result = RolloutResult((("open", 7),), np.array([True]), np.array([33]))
    results, films = {POLICY: result, SWAPPED: result}, tmp_path / "films"
    for name in results:
        film_noise(films, name, result)
    sections = [
        success_section(success),
        episode_section(results, {"open": "open <it> & see"}, films),
    ]
    write_page(tmp_path / "report.html", "<title>", "of http", sections)
    page = Page(tmp_path / "report.html")
    check_self_contained(page)
    row = page.cells.index(SWAPPED)
    assert page.cells[row : row + 4] == [SWAPPED, "4 / 20", "20%", "13% - 27%"]
    assert len(page.pictures) == 3
    # What comes from data is text, never markup.
    assert "open &lt;it&gt; &amp; see" in page.text and "&lt;title&gt;" in page.text
    assert "success in 33 steps" in page.text


def film_noise(folder: Path, variant: str, result: RolloutResult) -> None:
    """Films the episodes of a result, in which random images are seen."""
    rng = np.random.default_rng(0)
    with Films(folder, variant, result.episodes, frames_per_second=2.0, strips=1) as films:
        for episode, success in enumerate(result.success.tolist()):
            images = rng.integers(0, 256, (5, 1, 8, 8, 3)).astype(np.uint8)
            seen = [Observation(image, np.zeros(1, np.float32), "go") for image in images]
            films.began(episode, result.episodes[episode], seen[0])
            for observation in seen[1:]:
                films.acted(episode, np.zeros((1, 1)), [observation])
            films.ended(episode, Ended(success, 4))


def test_links_to_videos(tmp_path):
    episodes = (("near/push", 3), ("far/push", 3), ("near/push", 4))
    results = {
        POLICY: RolloutResult(episodes, np.array([True, True, False]), np.ones(3, int)),
        BLANK: RolloutResult(episodes, np.zeros(3, bool), np.ones(3, int)),
    }
    for name, result in results.items():
        film_noise(tmp_path / "films", name, result)
    section = video_section(results, tmp_path / "films", tmp_path)
    shown = [(*row[:2], *(cell and cell.text for cell in row[2:])) for row in section.table[1:]]
    assert section.table[0] == ("task", "first", POLICY, BLANK)
    assert shown == [
        ("far/push", "failure", "", "start 3"),
        ("far/push", "success", "start 3", ""),
        ("near/push", "failure", "start 4", "start 3"),
        ("near/push", "success", "start 3", ""),
    ]
    write_page(tmp_path / "report.html", "title", "subtitle", [section])
    links = Page(tmp_path / "report.html").links
    assert len(links) == 5 and len(set(links)) == 5
    assert all((tmp_path / unquote(link)).is_file() for link in links)
    assert not any(link.startswith("/") for link in links)  # they hold where the folder is moved to


def test_suites_and_their_tasks_in_a_table(tmp_path):
    tasks = ("near/push", "near/pull", "far/push")
    spec = replace(FakeSimulator.spec, instructions=dict.fromkeys(tasks, "go"))
    episodes = tuple((task, trial) for task in tasks for trial in range(2))
    results = {
        name: RolloutResult(episodes, np.array(success, bool), np.ones(6, int))
        for name, success in {POLICY: [1, 1, 0, 1, 0, 1], RANDOM: [0, 0, 0, 0, 0, 1]}.items()
    }
    write_page(tmp_path / "report.html", "title", "subtitle", [task_section(results, spec)])
    cells = Page(tmp_path / "report.html").cells
    assert [cells[i : i + 3] for i in range(0, len(cells), 3)] == [
        ["task", POLICY, RANDOM],
        ["near", "3 / 4", "0 / 4"],
        ["near/push", "2 / 2", "0 / 2"],
        ["near/pull", "1 / 2", "0 / 2"],
        ["far", "1 / 2", "1 / 2"],
        ["far/push", "1 / 2", "1 / 2"],
        ["mean of suites", "62.5% ± 20.7%", "25.0% ± 17.7%"],
    ]
    two = RolloutResult((("forward", 0), ("backward", 0)), np.array([True, False]), np.ones(2, int))
    assert task_section({POLICY: two}, FakeSimulator.spec).table == [
        ("task", POLICY),
        ("forward", "1 / 1"),
        ("backward", "0 / 1"),
    ]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_grids_keep_images_apart():
    black = np.zeros((4, 4, 3), np.uint8)
    grid = pixels(image_grid([[black, black], [black, black]]))
    assert grid.shape == (24, 24, 3)
    assert (grid[0] == 255).all() and (grid[2, 2] == 0).all() and (grid[2, 11:13] == 255).all()


def test_overlays_are_brightest_where_the_weight_is():
    weight = np.zeros((4, 4), np.float32)
    weight[1, 2] = 1.0
    seen = overlay(np.full((16, 16, 3), 100, np.uint8), weight)
    brightest = np.unravel_index(seen.sum(-1).argmax(), (16, 16))
    assert 4 <= brightest[0] < 8 and 8 <= brightest[1] < 12
