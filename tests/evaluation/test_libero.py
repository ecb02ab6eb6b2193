"""LIBERO beside an evaluation that plays all trials in turn, always in other processes."""

import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from imagewam_jax.config.loading import load_config
from imagewam_jax.errors import ConfigError, SimulatorError
from imagewam_jax.evaluation.simulators import libero, simulates, simulators_per_worker
from imagewam_jax.evaluation.simulators.libero import PROTOCOLS, SUITES, WIDE_M, Libero
from imagewam_jax.evaluation.simulators.pool import SimulatorPool
from tests.evaluation.opengl import require_libero
from tests.evaluation.play_libero import NUMBER, SUITE, TASK, TRIALS
from tests.training.tiny import ROOT


def play(what: str, folder) -> dict[str, np.ndarray]:
    """What `play_libero` saved."""
    require_libero()
    file = folder / f"{what}.npz"
    command = [sys.executable, "-m", "tests.evaluation.play_libero", what, file]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    with np.load(file) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return play("alone", tmp_path_factory.mktemp("libero"))


@pytest.mark.slow
def test_a_trial_alone_is_that_of_an_evaluation_in_turn(alone, tmp_path):
    """Soft resets and cameras that are mostly off change no bit of states, fixtures or images."""
    in_turn = play("in_turn", tmp_path)
    assert len(in_turn) == len(TRIALS) * 2 * 3
    for name, expected in in_turn.items():
        np.testing.assert_array_equal(alone[name], expected, err_msg=name)
        if name.startswith("1/"):  # after another trial, looking at every step
            np.testing.assert_array_equal(alone[f"again/{name}"], expected, err_msg=name)
    assert not np.array_equal(in_turn["0/start/bodies"], in_turn["1/start/bodies"])


@pytest.mark.slow
def test_a_trial_starts_from_its_stored_state_and_settles(alone):
    stored = alone["stored"][10 + np.arange(14)].reshape(2, 7)[:, :2]  # time, arm, fingers; pots
    np.testing.assert_allclose(alone["objects"][:, :2], stored, atol=2e-3)
    assert alone["0/steps"] == alone["1/steps"] == PROTOCOLS["imagewam"].settle_steps == 30
    assert alone["wide/steps"] == PROTOCOLS["openpi"].settle_steps == 10


@pytest.mark.slow
def test_the_gripper_opens_at_1_closes_at_0_and_holds_between(alone):
    closed, held = alone["gripper/closed"], alone["gripper/held"]
    assert np.abs(closed).max() < 5e-3 and np.abs(held).max() < 5e-3
    for name in ("open", "held_open"):
        np.testing.assert_allclose(alone[f"gripper/{name}"], [0.04, -0.04], atol=3e-3)


@pytest.mark.slow
def test_the_state_is_that_of_the_datasets(alone):
    position, turn, fingers = np.split(alone["robot/state"], [3, 6])
    np.testing.assert_allclose(position, alone["robot/site"], atol=1e-3)
    np.testing.assert_allclose(fingers, alone["robot/fingers"], atol=1e-3)
    # Rodrigues' formula: the rotation of the hand, whatever the sign of the axis.
    angle = np.linalg.norm(turn)
    x, y, z = turn / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    np.testing.assert_allclose(rotation, alone["robot/hand"], atol=5e-3)


@pytest.mark.slow
def test_images_are_rotated_by_180_degrees(alone):
    images = alone["robot/images"].astype(int)
    assert images.shape == (2, 256, 256, 3)
    rotated = alone["robot/raw"][:, ::-1, ::-1]
    assert np.abs(images - rotated).mean() < 0.1  # the robot rests, and a substep lies between
    assert np.abs(images - rotated[:, :, ::-1]).mean() > 10
    # What no step looked at is drawn now, in the same way.
    assert np.abs(images - alone["robot/late"]).mean() < 0.1


@pytest.mark.slow
def test_wide_starts_move_objects_and_repeat(alone):
    """Seeds 10,000 and 10,050 are both trial 0, moved."""
    official = alone["wide/official_objects"]
    moves = [alone[f"wide/{name}/objects"] - official for name in ("first", "second")]
    for move in moves:
        assert np.abs(move[:, :2]).max() < WIDE_M + 2e-3  # they settle by some tenths of a mm
        assert np.abs(move[:, 2]).max() < 2e-3  # and stand on the table
        assert np.abs(move[0] - move[1]).max() > 5e-3  # each moves by itself
    assert np.abs(moves[0] - moves[1]).max() > 5e-3
    np.testing.assert_array_equal(alone["wide/first/images"], alone["wide/again/images"])
    # The process holds two environments now, and each draws its own images.
    np.testing.assert_array_equal(alone["wide/official_images"], alone["0/start/images"])


@pytest.mark.slow
def test_a_wide_start_without_free_places_takes_the_next_stored_state(alone):
    assert alone["wide/tries"] > libero._PLACE_TRIES
    move = alone["wide/crowded_objects"] - alone["wide/next_official_objects"]
    assert 5e-3 < np.abs(move[:, :2]).max() < WIDE_M + 2e-3
    assert np.abs(alone["wide/crowded_objects"] - alone["wide/first/objects"]).max() > 5e-3


def test_wide_starts_without_free_places_anywhere_are_an_error(monkeypatch):
    """The simulator is not loaded: what a reset asks of it has no answer here."""
    simulator = object.__new__(Libero)
    simulator._tasks = {TASK: SimpleNamespace(states=np.zeros((3, 1)))}
    simulator._wide, simulator._env = True, SimpleNamespace(env=None, set_init_state=lambda s: s)
    placed = []
    monkeypatch.setattr(Libero, "_load", lambda self, task: None)
    monkeypatch.setattr(Libero, "_draw_in_steps", lambda self, draw: None)
    monkeypatch.setattr(Libero, "_place", lambda self, trial: placed.append(trial))
    monkeypatch.setattr(libero, "_move_objects", lambda env, rng: False)
    with pytest.raises(SimulatorError, match=r"seed 4: no free places .* in 20 stored states"):
        simulator.reset(TASK, 4)
    assert placed == [(4 + attempt) % 3 for attempt in range(20)]


@pytest.mark.slow
def test_it_plays_in_a_pool(monkeypatch):
    require_libero()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # robosuite alone would fail
    options = {"suites": (SUITE, "libero_goal_lan"), "tasks": (NUMBER,)}
    with SimulatorPool("libero", num_simulators=1, num_workers=1, options=options) as pool:
        spec = pool.spec
        assert list(spec.suites) == [SUITE, "libero_goal_lan"]
        assert spec.max_steps == {task: 700 if SUITE in task else 400 for task in spec.instructions}
        assert set(spec.trials.values()) == {50} and spec.execute_steps == 12
        assert spec.instructions[TASK] == "put both moka pots on the stove"
        # LIBERO-PRO says it in other words, in the task's definition and not in its name.
        (other,) = spec.suites["libero_goal_lan"]
        assert other == "libero_goal_lan/put_the_bowl_on_the_plate"
        assert spec.instructions[other] != "put the bowl on the plate"
        assert spec.instructions[other].endswith("plate")
        first = pool.reset({0: (TASK, 49)})[0]
        assert first.images_nhwc.shape == (2, 256, 256, 3) and first.images_nhwc.std() > 20
        assert first.state.shape == (len(spec.state_names),) == (8,)
        up = np.tile(np.float32([0, 0, 1, 0, 0, 0, 1]), (4, 1))
        outcome = pool.execute({0: up})[0]
        assert (outcome.success, outcome.steps, outcome.done) == (False, 4, False)
        assert outcome.observation.state[2] > first.state[2] + 0.02
        with pytest.raises(SimulatorError, match=r"has the trials 0 to 49, found 50"):
            pool.reset({0: (TASK, 50)})


def test_protocols_are_the_published_ones():
    """docs/spec/simulators.md, 1.1."""
    recipe = load_config(f"{ROOT}/configs/libero.py:4b", [])
    assert PROTOCOLS["imagewam"].execute_steps == recipe.acting.execute_steps == 12
    limits = {name: p.max_steps for name, p in PROTOCOLS.items()}
    assert limits["imagewam"] == (400, 400, 400, 700, 700)
    assert limits["openpi"] == limits["openvla"] == limits["openvla_oft"]
    assert limits["openpi"] == (220, 280, 300, 520, 400)
    assert {name: p.seed for name, p in PROTOCOLS.items()} == {
        "imagewam": 42,
        "openpi": 7,
        "openvla": 0,
        "openvla_oft": 0,
    }


def test_it_plays_policies_of_its_four_datasets():
    for suite in ("spatial", "object", "goal", "10"):
        assert simulates("libero", f"libero_{suite}_no_noops")
    assert not simulates("libero", "metaworld_faucet")
    assert simulators_per_worker("libero") == 1
    assert len(SUITES) == 5 + 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suites": ("libero_gaol",)}, "unknown suites ['libero_gaol']; known: libero_spatial, "),
        ({"protocol": "pi"}, "unknown protocol ['pi']; known: imagewam, openpi, openvla"),
        ({"starts": "narrow"}, "unknown starts ['narrow']; known: official, wide"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Libero(**options)


def test_a_pool_says_what_is_wrong_without_a_traceback():
    with pytest.raises(SimulatorError) as error:
        SimulatorPool("libero", num_simulators=1, num_workers=1, options={"protocol": "pi"})
    assert str(error.value).startswith("libero worker 0: LIBERO: unknown protocol ['pi']; known: ")


def test_a_missing_package_is_one_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(libero, "find_spec", lambda name: None)
    with pytest.raises(SimulatorError, match=r"pip install 'imagewam-jax\[libero\]'"):
        Libero()


def test_the_axis_angle_has_no_canonical_sign_and_leaves_its_input():
    half = 1.9  # an angle of 3.8, beyond pi
    quaternion = np.array([0, 0, np.sin(half), np.cos(half)])
    seen = {
        "robot0_eef_pos": np.array([1.0, 2.0, 3.0]),
        "robot0_eef_quat": quaternion,
        "robot0_gripper_qpos": np.array([0.04, -0.04]),
    }
    np.testing.assert_allclose(libero._robot_state(seen), [1, 2, 3, 0, 0, 3.8, 0.04, -0.04])
    seen["robot0_eef_quat"] = beyond = np.array([0.0, 0.0, 0.0, 1.0 + 1e-9])
    np.testing.assert_array_equal(libero._robot_state(seen)[3:6], 0)
    assert beyond[3] == 1.0 + 1e-9
