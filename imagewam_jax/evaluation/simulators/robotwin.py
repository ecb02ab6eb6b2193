"""RoboTwin 2.0: fifty tasks of two arms.

Protocol: docs/spec/simulators.md, 4, and docs/spec/imagewam_flux2.md, 9.4.

It needs SAPIEN 3, mplib, curobo, a CUDA GPU and its assets, and so runs under the Python of another
environment (the option `python` of every simulator), in the folder of its repository.

A seed is a start only if the scripted expert solves it. So starts are found before, once for each
task and phase, and kept in a file with their instructions; else episode k would depend on all those
before it. Under RoboTwin's Python, in the folder of this package:

    python -m imagewam_jax.evaluation.simulators.robotwin --root ROBOTWIN --starts FILE.json

Source of what is called: RoboTwin-Platform/RoboTwin: script/eval_policy.py, envs/_base_task.py.
"""

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from imagewam_jax.errors import ConfigError, SimulatorError
from imagewam_jax.evaluation.simulators.base import (
    Observation,
    SimulatorSpec,
    check_options,
    check_start,
    finite_action,
)

PHASES = ("demo_clean", "demo_randomized")
FIRST_SEED = 100_000 * (1 + 42)
EPISODES = 50  # of each task and phase
_MOST_SEEDS = 20 * EPISODES  # that are tried for them
_INSTRUCTIONS = "unseen"

# Actions until an episode has failed (docs/spec/imagewam_flux2.md, 9.4).
_LIMITS = {
    500: "place_bread_skillet place_burger_fries place_empty_cup place_shoe scan_object",
    600: "dump_bin_bigbin handover_mic place_dual_shoes",
    700: "open_laptop place_bread_basket place_can_basket place_object_basket put_object_cabinet "
    "shake_bottle shake_bottle_horizontally",
    800: "handover_block place_cans_plasticbox stack_blocks_two",
    900: "hanging_mug stack_bowls_two",
    1200: "blocks_ranking_rgb blocks_ranking_size stack_blocks_three stack_bowls_three",
    1500: "open_microwave",
    1700: "put_bottles_dustbin",
    400: "adjust_bottle beat_block_hammer click_alarmclock click_bell grab_roller lift_pot "
    "move_can_pot move_pillbottle_pad move_playingcard_away move_stapler_pad "
    "pick_diverse_bottles pick_dual_bottles place_a2b_left place_a2b_right "
    "place_container_plate place_fan place_mouse_pad place_object_scale place_object_stand "
    "place_phone_stand press_stapler rotate_qrcode stamp_seal turn_switch",
}
MAX_STEPS = {task: limit for limit, tasks in _LIMITS.items() for task in tasks.split()}

_CAMERAS = ("head_camera", "left_camera", "right_camera")
_ARMS = tuple(
    f"{side}_{part}"
    for side in ("left", "right")
    for part in (*(f"joint_{n}" for n in range(1, 7)), "gripper")
)
_JOINT_LIMIT = float(np.pi)  # radians, of random actions; RoboTwin's planner has its own
_NEEDED = ("sapien", "mplib", "curobo")


class RoboTwin:
    """One environment, which holds one task at a time (a `Simulator`).

    Images: head, left wrist and right wrist, 240 x 320.
    State: six joints and the gripper of the left arm, then of the right. Joints are where their
    drives are to go, in radians; a gripper is 0 (closed) to 1 (open).
    Action: the same, absolute. One action is planned in time, so that it lasts as long as it takes.

    root: RoboTwin's repository, with its assets.
    starts: the file of accepted seeds (see above).
    phases: of PHASES; tasks are named "phase/task".
    tasks: those of MAX_STEPS that are played.
    ConfigError: an option is unknown, or the file has no starts of a task. SimulatorError: RoboTwin
    is not installed.
    """

    def __init__(
        self,
        *,
        root: str,
        starts: str,
        phases: Sequence[str] = PHASES,
        tasks: Sequence[str] = tuple(MAX_STEPS),
    ):
        _check_options(phases, tasks)
        self._starts = read_starts(Path(starts))
        wanted = [f"{phase}/{task}" for phase in phases for task in tasks]
        if missing := [task for task in wanted if not self._starts.get(task)]:
            raise ConfigError(f"{starts}: has no starts of {', '.join(missing[:5])}; find them")
        self._root = _enter(root)
        said = {
            task: tuple(dict.fromkeys(text for _, text in self._starts[task])) for task in wanted
        }
        joints = ((_JOINT_LIMIT,) * 6 + (1.0,)) * 2
        self.spec = SimulatorSpec(
            instructions={task: texts[0] for task, texts in said.items()},
            cameras=_CAMERAS,
            state_names=_ARMS,
            action_names=_ARMS,
            action_low=((-_JOINT_LIMIT,) * 6 + (0.0,)) * 2,
            action_high=joints,
            control_hz=50.0,
            max_steps={task: MAX_STEPS[task.partition("/")[2]] for task in wanted},
            trials={task: len(self._starts[task]) for task in wanted},
            execute_steps=16,
            wordings=said,
        )
        self._env, self._task = None, ""
        self._arguments: dict[str, Any] = {}  # of the task's environment

    def reset(self, task: str, seed: int) -> Observation:
        """Starts a trial. ValueError: there is no such task or trial."""
        check_start(self.spec, task, seed)
        phase, _, name = task.partition("/")
        accepted_seed, self._instruction = self._starts[task][seed]
        with _silent():
            if self._env is not None:
                self._env.close_env()
            if task != self._task:
                self._env, self._task = _environment(name), task
                self._arguments = _arguments(self._root, phase, name)
            self._env.setup_demo(
                now_ep_num=seed, seed=accepted_seed, is_test=True, **self._arguments
            )
            self._env.set_instruction(instruction=self._instruction)
        return self.observe()

    def step(self, action: Float[np.ndarray, "a=14"], *, look: bool) -> bool:
        """Executes one action, clipped to its bounds; returns whether the task was done meanwhile.

        look: makes no difference, since images are of the present state.
        ValueError: the action is not fourteen finite numbers.
        """
        action = np.clip(finite_action(action, 14), self.spec.action_low, self.spec.action_high)
        with _silent():
            self._env.take_action(action, action_type="qpos")
        return bool(self._env.eval_success)

    def observe(self) -> Observation:
        """Renders the present state."""
        with _silent():
            seen = self._env.get_obs()
        images = [np.asarray(seen["observation"][name]["rgb"]) for name in _CAMERAS]
        return Observation(
            images_nhwc=np.stack(images).astype(np.uint8),
            state=np.asarray(seen["joint_action"]["vector"], np.float32),
            instruction=self._instruction,
        )


def read_starts(file: Path) -> dict[str, list[tuple[int, str]]]:
    """Accepted seeds with their instructions, by "phase/task". ConfigError: it is no such file."""
    try:
        content = json.loads(file.read_text())
        return {
            str(task): [(int(seed), str(text)) for seed, text in starts]
            for task, starts in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file}: not a file of RoboTwin's accepted seeds ({error}); make it with python -m "
            "imagewam_jax.evaluation.simulators.robotwin"
        ) from error


def accepted_starts(
    env: Any, arguments: Mapping[str, Any], describe: Any, known: Sequence[tuple[int, str]]
) -> Iterator[tuple[int, str]]:
    """Goes on from the starts that are known: seeds that the scripted expert solves, in order, each
    with a random one of the instructions that no demonstration has.

    env: of one task. describe: RoboTwin's `generate_episode_descriptions`.
    """
    name, episode = arguments["task_name"], len(known)
    first = known[-1][0] + 1 if known else FIRST_SEED
    for seed in range(first, FIRST_SEED + _MOST_SEEDS):
        try:
            env.setup_demo(now_ep_num=episode, seed=seed, is_test=True, **arguments)
            info = env.play_once()
            solved = env.plan_success and env.check_success()
        except Exception as error:  # objects fall over, plans fail: its own evaluation goes on
            print(f"{name}: seed {seed}: {error!r}", file=sys.stderr)
            solved = False
        env.close_env()
        if not solved:
            continue
        # As an evaluation does before its episode. The seed does not decide alone what is said:
        # RoboTwin draws from Python's generator, too. So it is drawn once, and kept.
        env.setup_demo(now_ep_num=episode, seed=seed, is_test=True, **arguments)
        (texts,) = describe(name, [info["info"]], EPISODES)
        text = str(np.random.choice(texts[_INSTRUCTIONS]))
        env.close_env()
        episode += 1
        yield seed, text


def find_starts(
    root: str, file: Path, phases: Sequence[str], tasks: Sequence[str], episodes: int
) -> None:
    """Adds to a file what it lacks of so many starts of each task; each as soon as it is found.

    SimulatorError: RoboTwin is not installed, or the expert solves too few seeds.
    """
    _check_options(phases, tasks)
    found = read_starts(file) if file.exists() else {}
    file, folder = file.absolute(), _enter(root)
    describe = import_module("generate_episode_instructions").generate_episode_descriptions
    for task in (f"{phase}/{task}" for phase in phases for task in tasks):
        phase, _, name = task.partition("/")
        starts = found.setdefault(task, [])
        if len(starts) >= episodes:
            continue
        arguments = _arguments(folder, phase, name)
        more = accepted_starts(_environment(name), arguments, describe, list(starts))
        while len(starts) < episodes:
            with _silent():
                start = next(more, None)
            if start is None:
                raise SimulatorError(
                    f"RoboTwin: the expert solves {len(starts)} of the first {_MOST_SEEDS} seeds "
                    f"of {task}, expected {episodes}"
                )
            starts.append(start)
            partial = file.with_name(f".{file.name}.partial")
            partial.write_text(json.dumps(found, indent=1))
            partial.replace(file)
            print(f"{task}: {len(starts)} of {episodes}", file=sys.stderr)


def _check_options(phases: Sequence[str], tasks: Sequence[str]) -> None:
    check_options("RoboTwin", ("phases", phases, PHASES), ("tasks", tasks, MAX_STEPS))


def _enter(root: str) -> Path:
    """Makes RoboTwin's repository the working directory, where it looks for everything.

    SimulatorError: it is not there, or a package or the assets are missing.
    """
    folder = Path(root).expanduser().absolute()
    for part in ("envs", "task_config", "assets"):
        if not (folder / part).is_dir():
            raise SimulatorError(
                f"RoboTwin: {folder} has no folder {part!r}; root is its repository, with the "
                "assets that script/_download_assets.sh gets"
            )
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise SimulatorError(
            f"RoboTwin lacks {', '.join(missing)} here: install it in an environment of its own "
            "(Python 3.10, a CUDA GPU), and name its Python with the option python"
        )
    os.chdir(folder)
    for path in (folder / "description" / "utils", folder):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    return folder


def _environment(name: str) -> Any:
    return getattr(import_module(f"envs.{name}"), name)()


def _arguments(root: Path, phase: str, name: str) -> dict[str, Any]:
    """What RoboTwin's evaluation passes to an environment, for its usual robot."""
    import yaml

    def read(file: Path) -> Any:
        return yaml.safe_load(file.read_text())

    configs = root / "task_config"
    arguments = read(configs / f"{phase}.yml")
    embodiment = arguments["embodiment"]
    if len(embodiment) != 1:
        raise SimulatorError(f"RoboTwin: {phase}.yml has the embodiment {embodiment}, expected one")
    robot = read(configs / "_embodiment_config.yml")[embodiment[0]]["file_path"]
    robot_config = read(root / robot / "config.yml")
    head = read(configs / "_camera_config.yml")[arguments["camera"]["head_camera_type"]]
    return {
        **arguments,
        "task_name": name,
        "task_config": phase,
        "head_camera_h": head["h"],
        "head_camera_w": head["w"],
        "left_robot_file": robot,
        "right_robot_file": robot,
        "dual_arm_embodied": True,
        "left_embodiment_config": robot_config,
        "right_embodiment_config": robot_config,
        "camera": {**arguments["camera"], "collect_wrist_camera": True},
        "data_type": {"rgb": True, "qpos": True},
        "render_freq": 0,
        "eval_mode": True,
    }


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """RoboTwin prints every step."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description="Finds starts that the scripted expert solves.")
    parser.add_argument("--root", required=True, help="RoboTwin's repository")
    parser.add_argument("--starts", type=Path, required=True, help="JSON; what is there is kept")
    parser.add_argument("--phases", nargs="+", default=PHASES)
    parser.add_argument("--tasks", nargs="+", default=tuple(MAX_STEPS))
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of each task and phase")
    arguments = parser.parse_args()
    try:
        find_starts(
            arguments.root,
            arguments.starts,
            arguments.phases,
            arguments.tasks,
            arguments.episodes,
        )
    except (ConfigError, SimulatorError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
