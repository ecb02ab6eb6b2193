"""`imagewam evaluate` for every layout of cameras, and for the official recipes."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from imagewam_jax.config.defaults import defaults
from imagewam_jax.config.loading import load_config
from imagewam_jax.errors import DataError
from imagewam_jax.evaluation import evaluate as evaluation
from imagewam_jax.evaluation.evaluate import evaluate
from imagewam_jax.evaluation.offline import LAST_ACTION, MEAN_ACTION, POLICY
from tests.data.public_layouts import features_of
from tests.evaluation.untrained import COLORS, shrink, untrained_run, write_public_set

RED, GREEN, BLUE = COLORS
BLACK = (0, 0, 0)
ROOT = Path(__file__).resolve().parents[2]
STORED = [(24, 40), (20, 20), (30, 26)]  # other sizes than the policy's, and all different
LENGTHS = [7, 6]  # the second episode has five steps with a last action, and all are shown


def results_of(report: Path) -> dict:
    return json.loads((report.parent / "evaluation.json").read_text())


def columns_of(report: Path, height: int, width: int, scale: int) -> list[np.ndarray]:
    """The pictures of the first sample, from the page's grid of samples."""
    section = report.read_text().split("<h2>Predictions")[1]
    encoded = re.search(r"data:image/png;base64,([^\"]+)", section)[1]
    grid = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))[::scale, ::scale]
    assert grid.shape[0] == 5 * (height + 2) and grid.shape[1] % (width + 2) == 0
    count = grid.shape[1] // (width + 2)
    return [
        grid[1 : height + 1, n * (width + 2) + 1 : (n + 1) * (width + 2) - 1] for n in range(count)
    ]


def check_colors(image: np.ndarray, *regions: tuple) -> None:
    """Each region, ((top, bottom, left, right), color), shows its color."""
    for (top, bottom, left, right), color in regions:
        seen = image[top + 2 : bottom - 2, left + 2 : right - 2].reshape(-1, 3)
        np.testing.assert_allclose(seen, np.broadcast_to(color, seen.shape), atol=10)


@pytest.fixture(scope="module")
def robotwin_set(tmp_path_factory):
    return write_public_set(tmp_path_factory.mktemp("set") / "1.0.0", "robotwin", STORED, LENGTHS)


def config_of(folder: Path, layout: str, cameras: tuple[str, ...], size: tuple[int, int]):
    config = shrink(defaults(), factor=16)
    config.data.directory, config.data.dataset = str(folder), "robotwin"
    config.data.train_split, config.data.eval_split = "train[:1]", "train[1:]"
    config.data.layout, config.data.cameras, config.data.image_size = layout, cameras, size
    config.model.expert.action_dim = config.model.proprio_dim = 14
    config.model.horizon = 8
    config.evaluation.simulator = "metaworld_faucet"  # as a copy of the quickstart would have it
    return config


THREE = ("primary", "left_wrist", "right_wrist")
LAYOUTS = {
    # name: layout, cameras, image_size, letterbox, rows and columns that are seen, current images
    "references": ("references", THREE[:2], (32, 48), (), (32, 48), 2),
    "single": ("single", THREE[:1], (32, 32), (), (32, 32), 1),
    "letterbox": ("single", THREE[:1], (48, 48), ("primary",), (48, 48), 1),
    "row": ("row", THREE[:2], (32, 48), (), (32, 96), 1),
    "compact_288x256": ("compact_288x256", THREE, (32, 32), (), (288, 256), 1),
    "legacy_384x320": ("legacy_384x320", THREE, (32, 32), (), (384, 320), 1),
}
REGIONS = {
    "references": [((0, 32, 0, 48), RED)],
    "single": [((0, 32, 0, 32), RED)],
    # 24 x 40 in 48 x 48 is 29 x 48, with 9 rows of black above it and 10 below.
    "letterbox": [((0, 9, 0, 48), BLACK), ((9, 38, 0, 48), RED), ((38, 48, 0, 48), BLACK)],
    "row": [((0, 32, 0, 48), RED), ((0, 32, 48, 96), GREEN)],
    "compact_288x256": [
        ((0, 192, 0, 256), RED),
        ((192, 288, 0, 128), GREEN),
        ((192, 288, 128, 256), BLUE),
    ],
    "legacy_384x320": [
        ((0, 256, 0, 320), RED),
        ((256, 384, 0, 160), GREEN),
        ((256, 384, 160, 320), BLUE),
    ],
}


@pytest.mark.parametrize(
    "name", ["references", *(pytest.param(n, marks=pytest.mark.slow) for n in [*LAYOUTS][1:])]
)
def test_every_layout(robotwin_set, name, tmp_path, monkeypatch, capsys):
    layout, cameras, size, letterbox, (height, width), current = LAYOUTS[name]
    config = config_of(robotwin_set, layout, cameras, size)
    config.data.letterbox = letterbox
    run, draw = untrained_run(config, tmp_path / "run"), evaluation.report.offline_section

    def numbers_first(*arguments):
        assert (run / "evaluation" / "evaluation.json").exists()
        return draw(*arguments)

    monkeypatch.setattr(evaluation.report, "offline_section", numbers_first)
    report = evaluate(run)
    assert "'metaworld_faucet' does not play 'robotwin'" in capsys.readouterr().out
    results = results_of(report)
    assert "closed_loop" not in results
    assert (results["datasets"], results["split"]) == (["robotwin"], "train[1:]")
    offline = results["offline"]["robotwin"]
    assert offline["samples"] == 5
    # Six steps: from the second on, the fifth is the last one ahead that was recorded.
    actions = features_of("robotwin", 6)["action"]
    errors = [np.abs(actions[t - 1] - actions[t:]) for t in range(1, 6)]
    by_step = [np.mean([e[ahead] for e in errors if ahead < len(e)]) for ahead in range(5)]
    found = offline["action_error_by_step"][LAST_ACTION]
    np.testing.assert_allclose(found[:5], by_step, rtol=1e-5)
    assert found[5:] == offline["action_error_by_step"][POLICY][5:] == [None] * 3
    np.testing.assert_allclose(np.mean(offline["action_error"][LAST_ACTION]), np.mean(by_step))

    columns = columns_of(report, height, width, scale=2 if height <= 128 else 1)
    assert len(columns) == current + 4
    now, future, reconstructed = columns[0], *columns[current : current + 2]
    for image in (now, future):
        check_colors(image, *REGIONS[name])
    if current == 2:
        check_colors(columns[1], ((0, height, 0, width), GREEN))
    np.testing.assert_allclose(reconstructed.mean((0, 1)), future.mean((0, 1)), atol=10)
    page = report.read_text()
    assert "left_gripper" in page  # actions have the names of the dataset's row
    assert ("current images of the 2 cameras" in page) == (current == 2)


@pytest.fixture(scope="module")
def mixture_run(robotwin_set, tmp_path_factory):
    """A run on a set and another with fewer dimensions and cameras, and smaller images."""
    folder = tmp_path_factory.mktemp("mixture")
    sets = folder / "sets"
    write_public_set(sets / "metaworld_faucet" / "1.0.0", "metaworld_faucet", [(16, 24)], LENGTHS)
    shutil.copytree(robotwin_set, sets / "robotwin" / "1.0.0")
    layout, cameras, size, *_ = LAYOUTS["references"]
    config = config_of(sets, layout, cameras, size)
    config.data.dataset, config.data.mixture = "", "both"
    entries = [{"dataset": name, "weight": 1.0} for name in ("robotwin", "metaworld_faucet")]
    config.data.mixtures = {"both": entries}
    return untrained_run(config, folder / "run")


@pytest.mark.slow
def test_a_dataset_with_less_than_others_of_its_mixture(mixture_run, tmp_path):
    """What it lacks is not measured."""
    report = evaluate(mixture_run, tmp_path, dataset="metaworld_faucet", simulator="")
    errors = results_of(report)["offline"]["metaworld_faucet"]["action_error"]
    assert {name: len(error) for name, error in errors.items()} == dict.fromkeys(
        (POLICY, LAST_ACTION, MEAN_ACTION), 4
    )
    now, lacking, future, *_ = columns_of(report, *LAYOUTS["references"][2], scale=2)
    for image, color in ((now, RED), (lacking, BLACK), (future, RED)):
        check_colors(image, ((0, 32, 0, 48), color))


@pytest.mark.slow
def test_all_datasets_of_a_mixture(mixture_run, tmp_path, capsys):
    """Each in its own units, as if it were evaluated alone."""
    report = evaluate(mixture_run, tmp_path / "all", simulator="", samples=3)
    found = results_of(report)
    assert found["datasets"] == list(found["offline"]) == ["robotwin", "metaworld_faucet"]
    printed = capsys.readouterr().out
    for name, dims in (("robotwin", 14), ("metaworld_faucet", 4)):
        assert f"{name}, 3 samples" in printed
        assert len(found["offline"][name]["action_names"]) == dims
        alone = evaluate(mixture_run, tmp_path / name, dataset=name, simulator="", samples=3)
        assert results_of(alone)["offline"] == {name: found["offline"][name]}
    headings = re.findall("<h2>(.*?)</h2>", report.read_text())
    assert [heading.split(": ")[1] for heading in headings] == 2 * ["robotwin"] + 2 * [
        "metaworld_faucet"
    ]


@pytest.fixture(scope="module")
def libero_sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("libero")
    for suite in ("spatial", "object", "goal", "10"):
        name = f"libero_{suite}_no_noops"
        write_public_set(folder / name / "1.0.0", name, [(64, 64), (64, 64)], LENGTHS)
    return folder


@pytest.mark.slow
def test_the_libero_recipe(libero_sets, tmp_path):
    """Four suites that share their statistics, chunks longer than their episodes, in bfloat16."""
    config = shrink(load_config(f"{ROOT}/configs/libero.py:4b", []))
    config.data.directory = str(libero_sets)
    run = untrained_run(config, tmp_path / "run", ml_dtypes.bfloat16)
    with pytest.raises(DataError, match=r"'train\[98%:\]' has no "):
        evaluate(run, dataset="libero_goal_no_noops")
    assert not (run / "evaluation").exists()
    report = evaluate(run, dataset="libero_goal_no_noops", split="train[1:]")
    errors = results_of(report)["offline"]["libero_goal_no_noops"]["action_error"]
    assert {name: len(error) for name, error in errors.items()} == dict.fromkeys(
        (POLICY, LAST_ACTION, MEAN_ACTION), 7
    )
    now, future, *_ = columns_of(report, 224, 448, scale=1)
    for image in (now, future):
        check_colors(image, ((0, 224, 0, 224), RED), ((0, 224, 224, 448), GREEN))


@pytest.mark.slow
def test_the_robotwin_recipe(robotwin_set, tmp_path):
    config = shrink(load_config(f"{ROOT}/configs/robotwin.py:4b", []))
    config.data.directory = str(robotwin_set)
    run = untrained_run(config, tmp_path / "run", ml_dtypes.bfloat16)
    report = evaluate(run, split="train[1:]")
    assert len(results_of(report)["offline"]["robotwin"]["action_error"][POLICY]) == 14
    now, future, *_ = columns_of(report, 288, 256, scale=1)
    for image in (now, future):
        check_colors(image, *REGIONS["compact_288x256"])
