"""SimplerEnv's adapter: its conventions, and what it calls of a stand-in for SimplerEnv.

SimplerEnv itself needs a GPU with Vulkan. The stand-in has the functions that public evaluations
call (the module's docstring names them), and records the calls.
"""

import sys
from types import ModuleType

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from imagewam_jax.data.registry import REGISTRY
from imagewam_jax.errors import ConfigError, SimulatorError
from imagewam_jax.evaluation.closed_loop import first_starts
from imagewam_jax.evaluation.simulators import simpler, simulates
from imagewam_jax.evaluation.simulators.pool import SimulatorPool
from imagewam_jax.evaluation.simulators.simpler import (
    TASKS,
    TRIALS,
    Simpler,
    bridge_state,
    rotation_vector,
)

SPOON, EGGPLANT = "widowx_spoon_on_towel", "widowx_put_eggplant_in_basket"


class StandIn:
    """An environment whose task is done while the gripper is open; `log` has all calls."""

    def __init__(self, task, log):
        self.task, self.log = task, log

    def reset(self, *, seed, options):
        self.log.append(("reset", self.task, seed, options))
        return self._seen(), {}

    def step(self, action):
        self.log.append(("step", action))
        return self._seen(), 0.0, action[6] > 0, False, {}

    def close(self):
        self.log.append(("close", self.task))

    def _seen(self):
        image = np.full((480, 640, 3), len(self.log), np.uint8)
        hand = np.array([0.3, 0.1, 0.2, 1.0, 0.0, 0.0, 0.0, 0.9])
        return {"image": {"3rd_view_camera": {"rgb": image}}, "agent": {"eef_pos": hand}}


@pytest.fixture
def log(monkeypatch):
    calls, module = [], ModuleType("simpler_env")

    def make(task):
        calls.append(("make", task))
        return StandIn(task, calls)

    module.make = make
    monkeypatch.setitem(sys.modules, "simpler_env", module)
    monkeypatch.setattr(simpler, "find_spec", lambda name: module)
    return calls


def test_trials_are_the_episodes_of_its_environments(log):
    simulator = Simpler()
    observation = simulator.reset(SPOON, 7)
    assert log == [
        ("make", SPOON),
        ("reset", SPOON, 7, {"obj_init_options": {"episode_id": 7}}),
    ]
    assert observation.images_nhwc.shape == (1, 480, 640, 3)
    assert observation.instruction == "put the spoon on the towel"
    simulator.reset(SPOON, 8)
    assert [call[0] for call in log[2:]] == ["reset"]  # the environment is kept
    simulator.reset(EGGPLANT, 0)
    assert [call[:2] for call in log[3:]] == [
        ("close", SPOON),
        ("make", EGGPLANT),
        ("reset", EGGPLANT),
    ]
    assert len(first_starts(simulator.spec, 4 * TRIALS)) == 96
    for task, seed in (("widowx_fly", 0), (SPOON, 24), (SPOON, -1)):
        with pytest.raises(ValueError, match=r"unknown task|has the trials 0 to 23"):
            simulator.reset(task, seed)


def test_actions_are_those_of_its_controller(log):
    simulator = Simpler()
    simulator.reset(SPOON, 0)
    for gripper, sign in ((0.0, -1), (0.49, -1), (0.51, 1), (1.0, 1)):
        action = np.float32([0.01, -0.02, 0.03, 0.1, -0.2, 0.3, gripper])
        simulator.step(action, look=True)
        applied = log[-1][1]
        assert applied.shape == (7,) and applied[6] == sign
        np.testing.assert_allclose(applied[:3], action[:3], atol=1e-7)
        turned = Rotation.from_euler("xyz", action[3:6]).as_rotvec()
        np.testing.assert_allclose(applied[3:6], turned, atol=1e-6)
    with pytest.raises(ValueError, match="7 finite numbers"):
        simulator.step(np.full(7, np.nan), look=True)


def test_rotations_are_about_static_axes():
    rng = np.random.default_rng(0)
    for euler in rng.uniform(-1.5, 1.5, (50, 3)):
        expected = Rotation.from_euler("xyz", euler).as_rotvec()
        np.testing.assert_allclose(rotation_vector(euler), expected, atol=1e-12)
    np.testing.assert_array_equal(rotation_vector(np.zeros(3)), 0)


def test_the_state_is_that_of_bridge_data():
    """A hand that points down has no rotation there."""
    down = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    rng = np.random.default_rng(1)
    for euler in (np.zeros(3), *rng.uniform(-1.4, 1.4, (20, 3))):
        hand = Rotation.from_euler("xyz", euler) * Rotation.from_matrix(down)
        x, y, z, w = hand.as_quat()
        state = bridge_state(np.array([0.1, 0.2, 0.3, w, x, y, z, 0.4]))
        assert state.dtype == np.float32
        np.testing.assert_allclose(state, [0.1, 0.2, 0.3, *euler, 0.4], atol=1e-6)
    spec = REGISTRY["bridge_dataset"]
    assert len(spec.state.dims) == 7 == len(spec.action.dims)


@pytest.mark.parametrize("task", [SPOON, EGGPLANT])
def test_success_is_that_of_the_last_step(log, task):
    """Being done on the way does not count, nor does it end the episode."""
    simulator = Simpler()
    limit = simulator.spec.max_steps[task]
    assert limit == (120 if task == EGGPLANT else 60)
    done, undone = np.float32([0] * 6 + [1]), np.zeros(7, np.float32)
    for last in (done, undone):
        simulator.reset(task, 0)
        found = [simulator.step(done, look=False) for _ in range(limit - 1)]
        assert not any(found)
        assert simulator.step(last, look=False) == (last is done)


def test_what_it_lacks_is_told_in_a_line(log, monkeypatch):
    with pytest.raises(ConfigError, match=r"unknown tasks .*'google'.*; known: widowx_spoon_on"):
        Simpler(tasks=("google",))
    simulator = Simpler()
    monkeypatch.setattr(StandIn, "_seen", lambda self: {"image": {}, "agent": {}})
    with pytest.raises(SimulatorError, match="observations have no 'eef_pos'"):
        simulator.reset(SPOON, 0)

    def no_gpu(task):
        raise RuntimeError("failed to find a rendering device")

    monkeypatch.setattr(sys.modules["simpler_env"], "make", no_gpu)
    with pytest.raises(SimulatorError, match=f"{EGGPLANT} cannot be made here: failed to find"):
        simulator.reset(EGGPLANT, 0)


def test_where_it_is_not_installed_that_is_told():
    with pytest.raises(SimulatorError) as error:
        SimulatorPool("simpler", num_simulators=1, num_workers=1)
    assert str(error.value).startswith("simpler worker 0: SimplerEnv is not installed here: ")
    assert "option python" in str(error.value) and "\n" not in str(error.value)
    assert simulates("simpler", "bridge_dataset") and not simulates("simpler", "droid")
    assert set(TASKS) == {
        "widowx_spoon_on_towel",
        "widowx_carrot_on_plate",
        "widowx_stack_cube",
        "widowx_put_eggplant_in_basket",
    }
