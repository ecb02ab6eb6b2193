"""Demonstrations of LIBERO: what experts do, what is kept, and what reads the built dataset."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from imagewam_jax.data.index.build import build_index
from imagewam_jax.data.index.dataset_index import default_index_dir
from imagewam_jax.data.loading.decode import Shards, decode_frame, request_frames
from imagewam_jax.data.registry import REGISTRY
from imagewam_jax.data.transforms.standardize import standardize
from tests.data_builders.scripts import DATA, LIBERO_FOLDER, load, run
from tests.evaluation.opengl import require_libero

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra 'tfds'")

STEPS_AFTER_SUCCESS = 10
INSTRUCTION = "put the bowl on the stove"
TYPES = {
    "action": (np.float32, (7,)),
    "discount": (np.float32, ()),
    "is_first": (np.bool_, ()),
    "is_last": (np.bool_, ()),
    "is_terminal": (np.bool_, ()),
    "language_instruction": (np.dtype(f"S{len(INSTRUCTION)}"), ()),
    "observation/image": (np.uint8, (256, 256, 3)),
    "observation/joint_state": (np.float32, (7,)),
    "observation/state": (np.float32, (8,)),
    "observation/wrist_image": (np.uint8, (256, 256, 3)),
    "reward": (np.float32, ()),
}


def actions(*rows: tuple[float, float]) -> np.ndarray:
    """Actions with a displacement along x and a gripper."""
    return np.array([[move, 0, 0, 0, 0, 0, gripper] for move, gripper in rows], np.float32)


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        (((0.5, 1), (0.5, 1)), [0, 1]),
        (((0.5, 1), (9e-5, 1), (1.1e-4, 1)), [0, 2]),
        # The gripper moves: compared with the step that was kept last, and not with the one before.
        (((0.5, 1), (0, 0), (0, 0), (0, 1), (0.5, 1)), [0, 1, 3, 4]),
        # The first step has none before it.
        (((0, 0), (0, 1), (0.5, 1)), [2]),
    ],
)
def test_steps_that_do_nothing_are_left_out(steps, kept):
    assert load("build", LIBERO_FOLDER).without_no_ops(actions(*steps)) == kept


def test_what_is_asked_and_cannot_be_is_told(tmp_path):
    pytest.importorskip("mujoco", reason="needs the extra 'libero'")
    collect = ("collect", "--output", tmp_path / "raw")
    for arguments, message in (
        (("--tasks", "1,3"), "no plan for the tasks [3] of libero_goal; there are plans for 0, 1,"),
        (("--starts", "official", "--episodes-per-task", 51), "no official starts 0 to 50"),
        (("--seed", -1), "no wide starts -1 to 48"),
        (("--tasks", "all"), "expected numbers such as 0,1,4,8, found 'all'"),
        (("--workers", 0), "--workers: expected at least 1, found 0"),
    ):
        done = run(*collect, *arguments, folder=LIBERO_FOLDER)
        assert done.returncode != 0 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "raw").exists()


def test_a_folder_without_episodes_is_refused(tmp_path):
    done = run("build", "--raw", tmp_path, "--output", tmp_path / "rlds", folder=LIBERO_FOLDER)
    assert done.returncode == 1
    assert f"{tmp_path}: found no episodes" in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> dict[str, np.ndarray]:
    """What `play_libero_expert` saved."""
    require_libero()
    file = tmp_path_factory.mktemp("libero") / "played.npz"
    command = [sys.executable, "-m", "tests.data_builders.play_libero_expert", file]
    done = subprocess.run(command, capture_output=True, text=True, cwd=DATA.parent)
    assert done.returncode == 0, done.stderr
    with np.load(file) as arrays:
        return dict(arrays)


@pytest.mark.slow
def test_the_expert_opens_a_drawer_and_puts_a_bowl_on_the_stove(played):
    for name in ("drawer", "bowl", "noisy"):
        success = played[f"{name}/success"]
        assert success[-1] and not success[0], name
        # It goes on after the goal first holds.
        assert len(success) - success.argmax() == 1 + STEPS_AFTER_SUCCESS
        assert np.abs(played[f"{name}/actions"]).max() <= 1
        assert set(played[f"{name}/actions"][:, 6]) == {0, 1}


@pytest.mark.slow
def test_noise_is_executed_and_never_a_label(played):
    for name in ("drawer", "bowl"):
        np.testing.assert_array_equal(played[f"{name}/executed"], played[f"{name}/actions"])
    noise = played["noisy/executed"] - played["noisy/actions"]
    assert 0.15 < noise[:, :6].std() < 0.25 and abs(noise[:, :6].mean()) < 0.05
    assert not noise[:, 6].any()
    # Up to the first noise, the expert wants what it wanted without; then it looks where it came.
    np.testing.assert_array_equal(played["noisy/actions"][0], played["bowl/actions"][0])
    assert not np.array_equal(played["noisy/actions"][1], played["bowl/actions"][1])


@pytest.mark.slow
def test_half_of_a_task_s_episodes_have_noise(played):
    assert (played["plans/noisy"].sum(axis=1) == 5).all()
    assert len(set(played["plans/files"])) == played["plans/noisy"].size


@pytest.mark.slow
def test_the_expert_s_scene_is_that_of_the_physics(played):
    np.testing.assert_allclose(played["hand/position"], played["hand/state"][:3], atol=1e-3)
    # The third axis of the hand points down, and the fingers lie along the first.
    assert played["hand/rotation"][2, 2] < -0.99
    np.testing.assert_allclose(np.abs(played["hand/between_fingers"]), [0.08, 0, 0], atol=2e-3)
    low, high = played["bowl/box"]
    assert (low[:2] < played["bowl/body"][:2]).all() and (played["bowl/body"][:2] < high[:2]).all()
    assert 0.09 < (high - low)[:2].min() <= (high - low)[:2].max() < 0.12


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> SimpleNamespace:
    """One collected episode as it was written, and as RLDS."""
    require_libero()
    folder = tmp_path_factory.mktemp("demonstrations")
    collect = ("collect", "--output", folder / "raw", "--tasks", 1, "--workers", 1)
    done = run(*collect, "--episodes-per-task", 1, folder=LIBERO_FOLDER)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 episodes are in" in done.stdout
    files = sorted(path.name for path in (folder / "raw").iterdir())
    assert files == ["collection.json", "libero_goal_01_000000.npz"]
    written = folder / "raw" / files[1]
    time = written.stat().st_mtime_ns
    again = run(*collect, "--episodes-per-task", 1, folder=LIBERO_FOLDER)
    assert "1 of 1 episodes are in" in again.stdout and written.stat().st_mtime_ns == time
    refused = run(*collect, "--starts", "official", folder=LIBERO_FOLDER)
    assert refused.returncode == 1 and "asked to continue with" in refused.stderr

    build = ("build", "--raw", folder / "raw", "--output", folder / "rlds", "--shards", 1)
    done = run(*build, folder=LIBERO_FOLDER)
    assert done.returncode == 0, done.stderr
    assert "train: 1 episodes in 1 shards" in done.stdout
    with np.load(written) as raw:
        return SimpleNamespace(
            raw=dict(raw), directory=folder / "rlds" / "libero_goal_no_noops" / "1.0.0"
        )


@pytest.mark.slow
def test_tfds_reads_the_layout_of_the_public_sets(built):
    builder = tfds.builder_from_directory(built.directory)
    assert list(builder.info.splits) == ["train"]
    (episode,) = builder.as_dataset(split="train")
    metadata = {key: value.numpy() for key, value in episode["episode_metadata"].items()}
    assert metadata == {"file_path": b"libero_goal/put_the_bowl_on_the_stove/seed_000000"}
    steps = []
    for step in episode["steps"].as_numpy_iterator():
        observation = step.pop("observation")
        steps.append(step | {f"observation/{key}": value for key, value in observation.items()})
    found = {key: (np.asarray(value).dtype, np.shape(value)) for key, value in steps[0].items()}
    assert found == TYPES
    columns = {key: np.stack([step[key] for step in steps]) for key in TYPES}

    raw = built.raw
    # A proportional controller always moves a little: nothing is left out here.
    assert (np.linalg.norm(raw["actions"][:, :6], axis=1) >= 1e-4).all()
    np.testing.assert_array_equal(columns["observation/state"], raw["states"])
    np.testing.assert_array_equal(columns["observation/joint_state"], raw["joints"])
    np.testing.assert_array_equal(columns["action"][:, :6], raw["actions"][:, :6])
    # It opens with -1, closes with 1, and lets go at the end.
    assert columns["action"][0, 6] == columns["action"][-1, 6] == -1
    closed = columns["action"][:, 6] == 1
    np.testing.assert_array_equal(closed, raw["actions"][:, 6] == 0)
    width = columns["observation/state"][:, 6]  # of a finger: 0.04 is open
    assert width[0] > 0.035 and width[closed][-1] < 0.02

    last = len(steps) - 1
    assert columns["is_first"].nonzero()[0].tolist() == [0]
    for key in ("is_last", "is_terminal", "reward"):
        assert columns[key].nonzero()[0].tolist() == [last]
    assert (columns["discount"] == 1).all() and columns["reward"][last] == 1
    assert set(columns["language_instruction"]) == {INSTRUCTION.encode()}


@pytest.mark.slow
def test_the_registry_s_row_reads_it_as_it_is(built, played):
    spec = REGISTRY["libero_goal_no_noops"]
    index = build_index(built.directory, progress=False)
    standardized = standardize(index, spec, default_index_dir(built.directory), progress=False)
    assert standardized.instructions == (INSTRUCTION,)
    split = standardized.splits["train"]
    # The standard convention, 1 for open, in which the expert plays the simulator.
    np.testing.assert_array_equal(split.actions, built.raw["actions"])
    np.testing.assert_array_equal(split.states, built.raw["states"])
    np.testing.assert_allclose(split.states[0], played["bowl/start_state"], atol=1e-6)

    train = index.split("train")
    wanted = [(camera, 0) for _, camera in spec.cameras]
    shards = Shards(train.shards)
    stored = request_frames(train, shards, wanted)
    for frame, expected in zip(stored, played["bowl/start_images"], strict=True):
        image = np.empty((256, 256, 3), np.uint8)
        assert decode_frame(train, frame, image) == (256, 256)
        assert difference(image, expected) < 3
        for other in (expected[::-1], expected[:, ::-1], expected[::-1, ::-1]):
            assert difference(image, other) > 6
    shards.close()


def difference(image: np.ndarray, other: np.ndarray) -> float:
    return np.abs(image.astype(int) - other).mean()
