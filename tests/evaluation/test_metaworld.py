"""Meta-World's MT10 and MT50, with real physics and rendering, always in other processes."""

import json
import subprocess
import sys

import numpy as np
import pytest

from imagewam_jax.errors import ConfigError, SimulatorError
from imagewam_jax.evaluation.simulators import metaworld, simulates
from imagewam_jax.evaluation.simulators.metaworld import INSTRUCTIONS, MAX_STEPS, Metaworld
from imagewam_jax.evaluation.simulators.pool import SimulatorPool
from tests.evaluation.opengl import require_metaworld


@pytest.fixture(scope="module")
def pool():
    require_metaworld()
    options = {"suites": ("mt10", "mt50"), "instructions": {"push": "shove it"}}
    with SimulatorPool("metaworld", num_simulators=2, num_workers=2, options=options) as pool:
        yield pool


def test_its_description(pool):
    spec = pool.spec
    assert {suite: len(tasks) for suite, tasks in spec.suites.items()} == {"mt10": 10, "mt50": 50}
    assert set(spec.trials.values()) == {50} and set(spec.max_steps.values()) == {500}
    assert spec.instructions["mt50/push-back"] == INSTRUCTIONS["push-back"]
    assert spec.instructions["mt10/push"] == spec.instructions["mt50/push"] == "shove it"
    assert {task.rpartition("/")[2] for task in spec.suites["mt50"]} == set(INSTRUCTIONS)
    assert len(set(INSTRUCTIONS.values())) == 50
    assert simulates("metaworld", "any_set_of_mine")


def test_a_trial_is_the_same_alone_and_after_others(pool):
    actions = np.random.default_rng(0).uniform(-1, 1, (30, 4)).astype(np.float32)
    pool.reset({0: ("mt10/push", 7), 1: ("mt10/push", 3)})
    pool.execute({1: actions[::-1]})
    first = pool.execute({0: actions})[0].observation
    starts = pool.reset({0: ("mt10/push", 3), 1: ("mt50/push", 7)})  # the same goals in MT50
    again = pool.execute({1: actions})[1].observation
    for here, there in zip(first[:2], again[:2], strict=True):
        np.testing.assert_array_equal(here, there)
    # Other trials have other goals, and the state does not tell.
    assert not np.array_equal(starts[0].images_nhwc, starts[1].images_nhwc)
    np.testing.assert_array_equal(starts[0].state, starts[1].state)
    assert starts[0].images_nhwc.shape == (1, 224, 224, 3) and starts[0].state.shape == (4,)


def test_an_episode_ends_after_500_steps(pool):
    pool.reset({0: ("mt10/push", 0)})
    up = np.tile(np.float32([0, 0, 1, 0]), (MAX_STEPS + 5, 1))
    outcome = pool.execute({0: up})[0]
    assert (outcome.success, outcome.steps, outcome.done) == (False, MAX_STEPS, True)


PROGRAM = """
import json
import numpy as np
import mujoco
from imagewam_jax.evaluation.simulators.metaworld import Metaworld

simulator = Metaworld(suites=("mt50",), image_side=96)
found = {"solved": {}, "refused": []}
for name in ("reach", "drawer-open", "button-press-topdown", "window-close"):
    for trial in (0, 1):
        image = simulator.reset(f"mt50/{name}", trial).images_nhwc[0]
        steps = 0
        while steps < 500:
            steps += 1
            if simulator.step(simulator.expert_action(), look=False):
                break
        found["solved"][f"{name} {trial}"] = steps
    if name == "reach":  # without its sites it looks another way: the goal is one of them
        simulator.reset("mt50/reach", 1)
        option = mujoco.MjvOption()
        option.sitegroup[:] = 0
        simulator._renderer.update_scene(simulator._env.data, "corner2", option)
        hidden = simulator._renderer.render()[::-1, ::-1]
        found["goal_pixels"] = int((np.abs(hidden.astype(int) - image).max(-1) > 30).sum())
        found["goal_is_red"] = bool((image.astype(int) @ [1, -1, -1]).max() > 100)
for task, trial in (("mt50/fly", 0), ("mt50/reach", 50), ("mt10/reach", 0)):
    try:
        simulator.reset(task, trial)
    except ValueError as error:
        found["refused"].append(str(error)[:50])
print(json.dumps(found))
"""


def test_the_experts_solve_it_and_goals_are_seen():
    require_metaworld()
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert len(found["solved"]) == 8 and max(found["solved"].values()) < 200
    assert 3 < found["goal_pixels"] < 1000 and found["goal_is_red"]
    assert found["refused"][0].startswith("unknown task 'mt50/fly'; known: mt50/")
    assert found["refused"][1] == "mt50/reach has the trials 0 to 49, found 50"
    assert found["refused"][2].startswith("unknown task 'mt10/reach'")


def test_unknown_options_are_refused():
    with pytest.raises(ConfigError, match=r"unknown suites \['mt5'\]; known: mt10, mt50"):
        Metaworld(suites=("mt5",))
    with pytest.raises(ConfigError, match=r"instructions for unknown tasks \['fly'\]"):
        Metaworld(instructions={"fly": "fly"})


def test_a_missing_package_is_one_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(metaworld, "find_spec", lambda name: None)
    with pytest.raises(SimulatorError, match=r"pip install 'imagewam-jax\[sim\]'"):
        Metaworld()
