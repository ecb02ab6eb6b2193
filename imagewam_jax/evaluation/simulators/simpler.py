"""SimplerEnv's WidowX: four tasks of BridgeData in a simulator that looks like the real scene.

It needs SAPIEN 2, NumPy below 2 and a GPU with Vulkan, and so runs under the Python of another
environment (the option `python` of every simulator). Conventions: docs/spec/simulators.md, 5, and
simpler-env/SimplerEnv: simpler_env/{__init__.py, policies/octo/octo_model.py,
policies/openpi/pi0_or_fast.py, evaluation/maniskill2_evaluator.py}.

The Google robot's tasks are not here: their protocol varies the robot's model and pose, which the
prepared environments do not.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64

from imagewam_jax.data.transforms.rotations import euler_from_matrix, matrix_from_quaternion
from imagewam_jax.errors import SimulatorError
from imagewam_jax.evaluation.simulators.base import (
    Observation,
    SimulatorSpec,
    check_options,
    check_start,
    finite_action,
)

TRIALS = 24  # of each task: places and turns of its two objects
_CAMERA = "3rd_view_camera"
_POSE = ("x", "y", "z", "roll", "pitch", "yaw")


class _Task(NamedTuple):
    """instruction: the environment's own. max_steps: at 5 Hz."""

    instruction: str
    max_steps: int


TASKS = {
    "widowx_spoon_on_towel": _Task("put the spoon on the towel", 60),
    "widowx_carrot_on_plate": _Task("put carrot on plate", 60),
    "widowx_stack_cube": _Task("stack the green block on the yellow block", 60),
    "widowx_put_eggplant_in_basket": _Task("put eggplant into yellow basket", 120),
}
# BridgeData measures the hand's rotation from its pose when it points down.
_POINTING_DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])


class Simpler:
    """One environment, which holds one task at a time (a `Simulator`).

    Image: the camera over the shoulder, with the real scene behind.
    State: that of BridgeData: position in metres and Euler angles in radians (static x, y, z) of
    the hand, opening of the gripper in [0, 1].
    Action: displacement in metres, change of the Euler angles in radians, gripper (1: open, 0:
    closed; the nearest counts).

    An episode lasts to its step limit: what counts is whether the task is done then.

    tasks: of TASKS.
    ConfigError: a task is unknown. SimulatorError: SimplerEnv is not installed, or cannot draw.
    """

    def __init__(self, *, tasks: Sequence[str] = tuple(TASKS)):
        check_options("SimplerEnv", ("tasks", tasks, TASKS))
        if find_spec("simpler_env") is None:
            raise SimulatorError(
                "SimplerEnv is not installed here: install it and ManiSkill2_real2sim in an "
                "environment of their own (NumPy below 2, a GPU with Vulkan), and name its Python "
                "with the option python"
            )
        self.spec = SimulatorSpec(
            instructions={task: TASKS[task].instruction for task in tasks},
            cameras=(_CAMERA,),
            state_names=(*_POSE, "gripper"),
            action_names=(*_POSE, "gripper"),
            # At least six standard deviations of BridgeData's actions (octo_model.py).
            action_low=(-0.1,) * 3 + (-0.5,) * 3 + (0.0,),
            action_high=(0.1,) * 3 + (0.5,) * 3 + (1.0,),
            control_hz=5.0,
            max_steps={task: TASKS[task].max_steps for task in tasks},
            trials=dict.fromkeys(tasks, TRIALS),
        )
        self._env, self._task, self._left = None, "", 0

    def reset(self, task: str, seed: int) -> Observation:
        """Starts a trial. ValueError: there is no such task or trial. SimulatorError: the
        environment cannot be made."""
        check_start(self.spec, task, seed)
        if task != self._task:
            if self._env is not None:
                self._env.close()
            self._env, self._task = _make(task), task
        options = {"obj_init_options": {"episode_id": seed}}
        self._seen, _ = self._env.reset(seed=seed, options=options)
        self._left = self.spec.max_steps[task]
        return self.observe()

    def step(self, action: Float[np.ndarray, "a=7"], *, look: bool) -> bool:
        """Applies one action, clipped to its bounds; returns whether the task is done at the end.

        look: makes no difference; the environment draws at every step.
        ValueError: the action is not seven finite numbers.
        """
        action = np.clip(finite_action(action, 7), self.spec.action_low, self.spec.action_high)
        gripper = 1.0 if action[6] > 0.5 else -1.0
        applied = np.concatenate([action[:3], rotation_vector(action[3:6]), [gripper]])
        self._seen, _, done, _, _ = self._env.step(applied)
        self._left -= 1
        return bool(done) and self._left == 0

    def observe(self) -> Observation:
        """What the last step or reset showed. SimulatorError: it did not show the hand."""
        hand = self._seen["agent"].get("eef_pos")
        if hand is None:
            raise SimulatorError(
                "SimplerEnv: its observations have no 'eef_pos' of the agent, expected a revision "
                "of ManiSkill2_real2sim that has; policies of BridgeData need it"
            )
        return Observation(
            images_nhwc=np.ascontiguousarray(self._seen["image"][_CAMERA]["rgb"])[None],
            state=bridge_state(np.asarray(hand)),
            instruction=self.spec.instructions[self._task],
        )


def _make(task: str):
    import simpler_env

    try:
        return simpler_env.make(task)
    except RuntimeError as error:  # what SAPIEN raises without a GPU or Vulkan
        raise SimulatorError(
            f"SimplerEnv: {task} cannot be made here: {error}; it draws with Vulkan on a GPU"
        ) from error


def bridge_state(hand: Float[np.ndarray, "8"]) -> Float32[np.ndarray, "p=7"]:
    """The state as BridgeData has it, from the hand's position, quaternion (w, x, y, z) and opening
    of the gripper."""
    rotation = matrix_from_quaternion(hand[None, [4, 5, 6, 3]]) @ _POINTING_DOWN.T
    (euler,) = euler_from_matrix(rotation)
    return np.concatenate([hand[:3], euler, hand[7:8]]).astype(np.float32)


def rotation_vector(euler: Float[np.ndarray, "3"]) -> Float64[np.ndarray, "3"]:
    """Axis times angle of a rotation by Euler angles about the static x, y and z axes."""
    half = np.asarray(euler, np.float64) / 2
    (sx, sy, sz), (cx, cy, cz) = np.sin(half), np.cos(half)
    w = cx * cy * cz + sx * sy * sz
    xyz = np.array(
        [
            sx * cy * cz - cx * sy * sz,
            cx * sy * cz + sx * cy * sz,
            cx * cy * sz - sx * sy * cz,
        ]
    )
    norm = np.linalg.norm(xyz)
    if norm == 0:
        return np.zeros(3)
    return xyz / norm * 2 * np.arctan2(norm, w)
