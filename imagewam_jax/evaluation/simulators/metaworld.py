"""Meta-World's MT10 and MT50 from images (docs/spec/simulators.md, 3).

Each task has 50 frozen goals, which are its trials. They are those of Meta-World's `MT1` with one
seed for every task, so that a task has the same goals in both suites and whichever process plays
it; `MT10` and `MT50` draw theirs in one stream, from the same distribution.

The camera is `corner2`, brought closer and turned the right way up, as public evaluations have it.
Goals are drawn as coloured spheres: of reach, push and pick-place nothing else shows them.
"""

import atexit
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import numpy as np
from jaxtyping import Float, Float32

from imagewam_jax.errors import ConfigError, SimulatorError
from imagewam_jax.evaluation.simulators.base import (
    Observation,
    SimulatorSpec,
    check_options,
    check_start,
    finite_action,
)
from imagewam_jax.evaluation.simulators.metaworld_faucet import ROBOT, STATE_DIM, scripted_action
from imagewam_jax.evaluation.simulators.opengl import configure_opengl, fast_renderer

SUITES = ("mt10", "mt50")
GOALS = 50
MAX_STEPS = 500  # Meta-World's own; a further step is an error there
_CAMERA, _CAMERA_XYZ = "corner2", (0.75, 0.075, 0.7)  # metres

# Meta-World has no sentences. A policy that was trained with others needs the option.
INSTRUCTIONS = {
    "assembly": "put the ring over the peg",
    "basketball": "drop the ball through the hoop",
    "bin-picking": "move the cube to the other bin",
    "box-close": "put the lid on the box",
    "button-press": "push the button in",
    "button-press-topdown": "push the button down",
    "button-press-topdown-wall": "push the button behind the wall down",
    "button-press-wall": "push the button behind the wall in",
    "coffee-button": "start the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug to the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "take the ring off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-close": "close the faucet",
    "faucet-open": "open the faucet",
    "hammer": "hammer the nail in",
    "hand-insert": "put the hand into the hole",
    "handle-press": "press the handle down",
    "handle-press-side": "press the handle at the side down",
    "handle-pull": "pull the handle up",
    "handle-pull-side": "pull the handle at the side up",
    "lever-pull": "pull the lever up",
    "peg-insert-side": "put the peg into the hole at the side",
    "peg-unplug-side": "pull the peg out at the side",
    "pick-out-of-hole": "take the puck out of the hole",
    "pick-place": "carry the puck to the goal",
    "pick-place-wall": "carry the puck over the wall to the goal",
    "plate-slide": "slide the plate into the cabinet",
    "plate-slide-back": "slide the plate out of the cabinet",
    "plate-slide-back-side": "slide the plate out of the cabinet sideways",
    "plate-slide-side": "slide the plate into the cabinet sideways",
    "push": "push the puck to the goal",
    "push-back": "pull the puck back to the goal",
    "push-wall": "push the puck around the wall to the goal",
    "reach": "reach the goal",
    "reach-wall": "reach the goal behind the wall",
    "shelf-place": "put the cube on the shelf",
    "soccer": "push the ball into the net",
    "stick-pull": "pull the box with the stick",
    "stick-push": "push the box with the stick",
    "sweep": "sweep the cube off the table",
    "sweep-into": "sweep the cube into the hole",
    "window-close": "close the window",
    "window-open": "open the window",
}


class Metaworld:
    """One environment, which holds one task at a time (a `Simulator`).

    State and action are those of `MetaworldFaucet`: position of the hand in metres (x, y, z) and
    opening of the gripper in [0, 1]; displacement of the hand's target (x, y, z) in centimetres
    and force that closes the gripper, all in [-1, 1].

    suites: of SUITES; tasks are named "suite/name".
    instructions: task's name (without the suite) -> what to say instead of INSTRUCTIONS.
    goals_seed: of the goals.
    image_side: side length of the square image in pixels.
    ConfigError: a suite or a task is unknown. SimulatorError: the package is not installed.
    """

    def __init__(
        self,
        *,
        suites: Sequence[str] = ("mt10",),
        instructions: Mapping[str, str] | None = None,
        goals_seed: int = 42,
        image_side: int = 224,
    ):
        check_options("Meta-World", ("suites", suites, SUITES))
        if unknown := sorted(set(instructions or {}) - set(INSTRUCTIONS)):
            raise ConfigError(f"Meta-World: instructions for unknown tasks {unknown}")
        if find_spec("metaworld") is None:
            raise SimulatorError("Meta-World is not installed: pip install 'imagewam-jax[sim]'")
        configure_opengl()
        # Imported here and not above: importing metaworld imports MuJoCo, which reads MUJOCO_GL.
        from metaworld.env_dict import MT10_V3, MT50_V3

        names = {"mt10": MT10_V3, "mt50": MT50_V3}
        told = {**INSTRUCTIONS, **(instructions or {})}
        tasks = [
            (f"{suite}/{name.removesuffix('-v3')}", name.removesuffix("-v3"))
            for suite in suites
            for name in names[suite]
        ]
        self.spec = SimulatorSpec(
            instructions={task: told[name] for task, name in tasks},
            cameras=(_CAMERA,),
            max_steps={task: MAX_STEPS for task, _ in tasks},
            trials={task: GOALS for task, _ in tasks},
            **ROBOT,
        )
        self._goals_seed = goals_seed
        self._image_side = image_side
        self._name = self._task = ""
        self._env = self._renderer = self._expert = None

    def reset(self, task: str, seed: int) -> Observation:
        """Starts a trial. ValueError: there is no such task or trial."""
        check_start(self.spec, task, seed)
        self._load(task.rpartition("/")[2])
        self._task = task
        self._env.set_task(self._goals[seed])
        self._full_observation, _ = self._env.reset()
        return self.observe()

    def step(self, action: Float[np.ndarray, "a=4"], *, look: bool) -> bool:
        """Applies one action, clipped to [-1, 1]; returns Meta-World's success flag.

        look: makes no difference, since images are of the present state.
        ValueError: the action is not four finite numbers.
        """
        action = np.clip(finite_action(action, 4), -1.0, 1.0)
        self._full_observation, _, _, _, info = self._env.step(action)
        return bool(info["success"])

    def observe(self) -> Observation:
        """Renders the present state."""
        self._renderer.update_scene(self._env.data, _CAMERA)
        image = self._renderer.render()[::-1, ::-1]  # the camera stands on its head
        return Observation(
            images_nhwc=np.ascontiguousarray(image)[None],
            state=self._full_observation[:STATE_DIM].astype(np.float32),
            instruction=self.spec.instructions[self._task],
        )

    def expert_action(self) -> Float32[np.ndarray, "a=4"]:
        """The next action of Meta-World's scripted policy, which knows where everything is."""
        return scripted_action(self._expert, self._full_observation)

    def _load(self, name: str) -> None:
        """Makes the environment of a task and draws its goals, unless it is there."""
        if name == self._name:
            return
        self._close()
        import mujoco
        from metaworld import MT1
        from metaworld.policies import ENV_POLICY_MAP

        benchmark = MT1(f"{name}-v3", seed=self._goals_seed)
        self._goals = benchmark.train_tasks
        self._env = benchmark.train_classes[f"{name}-v3"]()
        self._expert = ENV_POLICY_MAP[f"{name}-v3"]()
        model = self._env.model
        camera = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, _CAMERA)
        model.cam_pos[camera] = _CAMERA_XYZ
        self._renderer = fast_renderer(model, self._image_side)
        # Left to its destructor, the renderer outlives OpenGL and prints errors.
        atexit.unregister(self._close)
        atexit.register(self._close)
        self._name = name

    def _close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._env.close()
            self._renderer, self._name = None, ""
