"""Meta-World's faucet-open and faucet-close, from the same start states.

Both tasks show the same scene; only the instruction says which way to turn the handle. The faucet
stands anywhere in x [-0.25, 0.25], y [0.70, 0.85] (metres), wider than in Meta-World itself: in
the official range a policy that is blind to the image already succeeds nine times in ten. Goal
markers are hidden, since they would show the task. A seed gives the same start state in both tasks.
"""

import atexit
import functools
import warnings

import numpy as np
from jaxtyping import Float, Float32, UInt8

from imagewam_jax.evaluation.simulators.base import Observation, SimulatorSpec, finite_action
from imagewam_jax.evaluation.simulators.opengl import configure_opengl, fast_renderer

FAUCET_LOW_XYZ = (-0.25, 0.70, 0.0)
FAUCET_HIGH_XYZ = (0.25, 0.85, 0.0)
STATE_DIM = 4  # Meta-World's observation starts with the hand and the gripper; objects follow.
_CAMERA = "topview"

# What a `SimulatorSpec` says of Meta-World's robot, whatever it does.
ROBOT = {
    "state_names": ("hand_x", "hand_y", "hand_z", "gripper_opening"),
    "action_names": ("delta_x", "delta_y", "delta_z", "gripper_close"),
    "action_low": (-1.0,) * 4,
    "action_high": (1.0,) * 4,
    "control_hz": 80.0,
}


class MetaworldFaucet:
    """One environment that plays either task (a `Simulator`).

    State: position of the hand in metres (x, y, z), opening of the gripper in [0, 1].
    Action: displacement of the hand's target (x, y, z) in centimetres, force that closes the
    gripper; all in [-1, 1].

    image_side: side length of the square image in pixels.
    """

    spec = SimulatorSpec(
        instructions={"faucet-open": "open the faucet", "faucet-close": "close the faucet"},
        cameras=(_CAMERA,),
        max_steps={"faucet-open": 150, "faucet-close": 150},
        **ROBOT,
    )

    def __init__(self, *, image_side: int = 64):
        configure_opengl()
        # Imported here and not above: importing metaworld imports MuJoCo, which reads MUJOCO_GL.
        import mujoco
        from metaworld.envs.sawyer_faucet_close_v3 import SawyerFaucetCloseEnvV3
        from metaworld.envs.sawyer_faucet_open_v3 import SawyerFaucetOpenEnvV3
        from metaworld.policies import SawyerFaucetCloseV3Policy, SawyerFaucetOpenV3Policy

        self._envs = {
            "faucet-open": SawyerFaucetOpenEnvV3(),
            "faucet-close": SawyerFaucetCloseEnvV3(),
        }
        self._experts = {
            "faucet-open": SawyerFaucetOpenV3Policy(),
            "faucet-close": SawyerFaucetCloseV3Policy(),
        }
        self._mj_forward = mujoco.mj_forward
        self._image_side = image_side
        self._task: str | None = None

    def reset(self, task: str, seed: int) -> Observation:
        """Starts an episode with the faucet where `seed` puts it. ValueError: there is no such
        task."""
        if task not in self._envs:
            raise ValueError(f"unknown task {task!r}; known: {', '.join(self._envs)}")
        env = self._envs[task]
        # Meta-World's frozen random vector is the faucet's position; set_task would set it from a
        # pickled task of the official, narrower range.
        env._last_rand_vec = np.random.default_rng(seed).uniform(FAUCET_LOW_XYZ, FAUCET_HIGH_XYZ)
        env._freeze_rand_vec = True
        env._set_task_called = True
        env.reset()
        # faucet-open leaves positions one physics step behind its joints and faucet-close does
        # not: without this the first observation would tell the tasks apart.
        self._mj_forward(env.model, env.data)
        self._full_observation = env._get_obs()
        self._task = task
        return self.observe()

    def step(self, action: Float[np.ndarray, "a=4"], *, look: bool) -> bool:
        """Applies one action, clipped to [-1, 1]; returns Meta-World's success flag.

        look: makes no difference, since images are of the present state.

        ValueError: the action is not four finite numbers.
        """
        action = finite_action(action, 4)
        observation, _, _, _, info = self._envs[self._task].step(np.clip(action, -1.0, 1.0))
        self._full_observation = observation
        return bool(info["success"])

    def observe(self) -> Observation:
        """Renders the present state from above."""
        return Observation(
            images_nhwc=_render(self._envs[self._task].data, self._image_side)[None],
            state=self._full_observation[:STATE_DIM].astype(np.float32),
            instruction=self.spec.instructions[self._task],
        )

    def expert_action(self) -> Float32[np.ndarray, "a=4"]:
        """The next action of Meta-World's scripted policy, which knows where the faucet is."""
        return scripted_action(self._experts[self._task], self._full_observation)


def scripted_action(policy, observation: Float[np.ndarray, "o"]) -> Float32[np.ndarray, "a=4"]:
    """The action of one of Meta-World's scripted policies, clipped to [-1, 1]."""
    with warnings.catch_warnings():
        # It warns whenever its proportional control exceeds 1; the clipping is meant.
        warnings.simplefilter("ignore")
        action = policy.get_action(observation)
    return np.clip(action, -1.0, 1.0).astype(np.float32)


@functools.cache
def _renderer(image_side: int):
    """The process's renderer for one image size and its scene options.

    One renderer serves every environment of the process: both tasks use the same model file, and
    drawing reads positions from the data alone.
    """
    import mujoco
    from metaworld.asset_path_utils import full_V3_path_for

    model = mujoco.MjModel.from_xml_path(full_V3_path_for("sawyer_xyz/sawyer_faucet.xml"))
    renderer = fast_renderer(model, image_side)
    scene_option = mujoco.MjvOption()
    scene_option.sitegroup[:] = 0
    # Left to its destructor, the renderer outlives OpenGL and prints errors.
    atexit.register(renderer.close)
    return renderer, scene_option


def _render(data, image_side: int) -> UInt8[np.ndarray, "h w 3"]:
    renderer, scene_option = _renderer(image_side)
    renderer.update_scene(data, _CAMERA, scene_option)
    return renderer.render()
