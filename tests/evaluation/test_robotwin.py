"""RoboTwin's adapter: its tables, and what it calls of a stand-in for RoboTwin's repository.

RoboTwin itself needs a CUDA GPU. The stand-in has what public evaluations call (the module's
docstring names where), and records the calls.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from imagewam_jax.config.loading import load_config
from imagewam_jax.data.registry import REGISTRY
from imagewam_jax.errors import ConfigError, SimulatorError
from imagewam_jax.evaluation.simulators import robotwin, simulates
from imagewam_jax.evaluation.simulators.base import SimulatorSpec
from imagewam_jax.evaluation.simulators.pool import SimulatorPool
from imagewam_jax.evaluation.simulators.robotwin import (
    FIRST_SEED,
    MAX_STEPS,
    RoboTwin,
    find_starts,
)
from tests.evaluation.fake_simulator import FakeSimulator
from tests.training.tiny import ROOT

ENVIRONMENT = '''
import numpy as np

LOG = []


class click_bell:
    """The expert solves seeds that 3 divides, and those that 5 divides are not stable."""

    def setup_demo(self, **arguments):
        LOG.append(("setup_demo", arguments))
        np.random.seed(arguments["seed"])
        self.seed, self.eval_success, self.moved = arguments["seed"], False, 0
        if self.seed % 5 == 0:
            raise RuntimeError("unstable")

    def play_once(self):
        self.plan_success = self.seed % 3 == 0
        return {"info": {"{A}": f"bell {self.seed % 2}"}}

    def check_success(self):
        return True

    def set_instruction(self, instruction):
        LOG.append(("set_instruction", instruction))

    def take_action(self, action, action_type):
        print("step: a line that would be in the way")
        LOG.append(("take_action", action, action_type))
        self.moved += 1
        self.eval_success = self.moved == 3

    def get_obs(self):
        cameras = {"head_camera": 1, "left_camera": 2, "right_camera": 3}
        images = {name: {"rgb": np.full((240, 320, 3), v, np.uint8)} for name, v in cameras.items()}
        return {"observation": images, "joint_action": {"vector": np.arange(14) / 10}}

    def close_env(self):
        LOG.append(("close_env",))
'''
DESCRIBE = """
def generate_episode_descriptions(task_name, episodes, max_descriptions):
    (info,) = episodes
    return [{"seen": ["never"], "unseen": [f"ring {info['{A}']} {n}" for n in range(9)]}]
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder like RoboTwin's repository."""
    folder = tmp_path / "robotwin"
    files = {
        "envs/__init__.py": "",
        "envs/click_bell.py": ENVIRONMENT,
        "description/utils/generate_episode_instructions.py": DESCRIBE,
        "task_config/demo_clean.yml": "embodiment: [aloha-agilex]\nrender_freq: 5\n"
        "camera: {head_camera_type: D435, collect_wrist_camera: false}\n",
        "task_config/_embodiment_config.yml": "aloha-agilex: {file_path: ./assets/aloha}\n",
        "task_config/_camera_config.yml": "D435: {h: 240, w: 320}\n",
        "assets/aloha/config.yml": "planner: curobo\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(robotwin, "find_spec", lambda name: object())
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    for name in ("envs", "envs.click_bell", "generate_episode_instructions"):
        sys.modules.pop(name, None)


def find(root, file, episodes):
    find_starts(str(root), file, ["demo_clean"], ["click_bell"], episodes)
    return json.loads(file.read_text())["demo_clean/click_bell"]


def test_starts_are_seeds_that_the_expert_solves(root, tmp_path, monkeypatch):
    found = find(root, tmp_path / "starts.json", 3)
    solved = [s for s in range(FIRST_SEED, FIRST_SEED + 99) if s % 3 == 0 and s % 5]
    assert [seed for seed, _ in found] == solved[:3] and FIRST_SEED == 4_300_000
    for seed, text in found:
        np.random.seed(seed)
        assert text == np.random.choice([f"ring bell {seed % 2} {n}" for n in range(9)])
    # What is there is kept, and gone on with.
    monkeypatch.chdir(tmp_path)
    again = find(root, tmp_path / "starts.json", 5)
    assert again[:3] == found and [seed for seed, _ in again] == solved[:5]
    monkeypatch.setattr(robotwin, "_MOST_SEEDS", 20)
    with pytest.raises(SimulatorError, match=r"solves 5 of the first 20 seeds of .*, expected 9"):
        find(root, tmp_path / "starts.json", 9)


@pytest.fixture
def simulator(root, tmp_path):
    find(root, tmp_path / "starts.json", 3)
    sys.modules["envs.click_bell"].LOG.clear()
    return RoboTwin(
        root=str(root),
        starts=str(tmp_path / "starts.json"),
        phases=("demo_clean",),
        tasks=("click_bell",),
    )


TASK = "demo_clean/click_bell"


def test_a_trial_is_an_accepted_seed(simulator, root, tmp_path, capfd):
    log = sys.modules["envs.click_bell"].LOG
    starts = json.loads((tmp_path / "starts.json").read_text())[TASK]
    for trial in (1, 0):
        observation = simulator.reset(TASK, trial)
        (_, given), said = log[-2:]
        seed, text = starts[trial]
        assert said == ("set_instruction", text) and observation.instruction == text
        assert (given["now_ep_num"], given["seed"], given["is_test"]) == (trial, seed, True)
        assert given["eval_mode"] is True and given["render_freq"] == 0
        assert given["left_robot_file"] == given["right_robot_file"] == "./assets/aloha"
        assert given["left_embodiment_config"] == {"planner": "curobo"}
        assert (given["head_camera_h"], given["head_camera_w"]) == (240, 320)
        assert given["camera"]["collect_wrist_camera"] is True
    assert [call[0] for call in log].count("close_env") == 1  # before the second
    assert observation.images_nhwc.shape == (3, 240, 320, 3)
    assert observation.images_nhwc[:, 0, 0, 0].tolist() == [1, 2, 3]
    np.testing.assert_allclose(observation.state, np.arange(14) / 10)
    action = np.linspace(-4, 4, 14).astype(np.float32)
    assert [simulator.step(action, look=False) for _ in range(3)] == [False, False, True]
    _, applied, kind = log[-1]
    assert kind == "qpos"
    expected = np.clip(action, [-np.pi] * 6 + [0] + [-np.pi] * 6 + [0], ([np.pi] * 6 + [1]) * 2)
    np.testing.assert_allclose(applied, expected, rtol=1e-6)
    assert capfd.readouterr().out == ""
    with pytest.raises(ValueError, match="has the trials 0 to 2, found 3"):
        simulator.reset(TASK, 3)


def test_its_specification_is_that_of_the_recipe(simulator):
    spec, row = simulator.spec, REGISTRY["robotwin"]
    assert spec.action_names == row.action.dims and spec.state_names == row.state.dims
    assert spec.control_hz == row.control_hz and len(spec.cameras) == len(row.cameras)
    recipe = load_config(f"{ROOT}/configs/robotwin.py:4b", [])
    assert spec.execute_steps == recipe.acting.execute_steps == 16
    assert (spec.trials, spec.max_steps) == ({TASK: 3}, {TASK: 400})
    assert spec.instructions[TASK] in spec.wordings[TASK]
    assert simulates("robotwin", "robotwin") and not simulates("robotwin", "aloha_mobile")


def test_fifty_tasks_have_their_limits():
    """docs/spec/imagewam_flux2.md, 9.4."""
    assert len(MAX_STEPS) == 50
    counts = {limit: list(MAX_STEPS.values()).count(limit) for limit in set(MAX_STEPS.values())}
    assert counts == {
        400: 24,
        500: 5,
        600: 3,
        700: 7,
        800: 3,
        900: 2,
        1200: 4,
        1500: 1,
        1700: 1,
    }
    some = {"adjust_bottle": 400, "blocks_ranking_rgb": 1200, "hanging_mug": 900}
    some |= {"open_microwave": 1500, "put_bottles_dustbin": 1700}
    assert some.items() <= MAX_STEPS.items()


def test_every_wording_has_an_instruction_of_another_task():
    said = {"forward": ("go forward", "walk on"), "backward": ("go backward", "walk back")}
    spec: SimulatorSpec = replace(FakeSimulator.spec, wordings=said)
    assert spec.all_instructions == ["go backward", "go forward", "walk back", "walk on"]
    assert spec.other_instructions == {
        "go forward": "go backward",
        "walk on": "go backward",
        "go backward": "go forward",
        "walk back": "go forward",
    }
    alone = replace(spec, instructions={"forward": "go forward"}, wordings=None)
    assert alone.all_instructions == ["go forward"] and alone.other_instructions == {}


def test_what_it_lacks_is_told_in_a_line(root, tmp_path, monkeypatch):
    starts = tmp_path / "starts.json"
    options = {"root": str(root), "starts": str(starts), "tasks": ("click_bell",)}
    with pytest.raises(ConfigError, match=r"starts.json: not a file of RoboTwin's accepted seeds"):
        RoboTwin(**options)
    starts.write_text(json.dumps({TASK: [[4_300_000, "ring"]]}))
    with pytest.raises(ConfigError, match="has no starts of demo_randomized/click_bell; find them"):
        RoboTwin(**options)
    options |= {"phases": ("demo_clean",)}
    with pytest.raises(ConfigError, match=r"unknown tasks \['ring'\]; known: place_bread_skillet"):
        RoboTwin(**{**options, "tasks": ("ring",)})
    with pytest.raises(SimulatorError, match="has no folder 'envs'; root is its repository"):
        RoboTwin(**{**options, "root": str(tmp_path)})
    monkeypatch.setattr(robotwin, "find_spec", lambda name: None)
    with pytest.raises(SimulatorError, match=r"lacks sapien, mplib, curobo here: .* option python"):
        RoboTwin(**options)
    with pytest.raises(SimulatorError) as error:
        SimulatorPool("robotwin", num_simulators=1, num_workers=1, options=options)
    assert str(error.value).startswith("robotwin worker 0: RoboTwin lacks ")
    assert "\n" not in str(error.value)
