"""Plays a LIBERO task in a process of its own and saves what it sees.

    python -m tests.evaluation.play_libero in_turn FILE.npz
    python -m tests.evaluation.play_libero alone FILE.npz

`in_turn` plays trials as published evaluations do: a hard reset for each, cameras always on.
`alone` plays them with our simulator, and looks at more of it.
"""

import contextlib
import io
import sys
from pathlib import Path

import numpy as np

from imagewam_jax.evaluation.simulators import libero
from imagewam_jax.evaluation.simulators.libero import Libero
from imagewam_jax.evaluation.simulators.opengl import configure_opengl

# Its stove is on at the start: a joint is drawn anew at each reset, and its burner is seen.
SUITE, NUMBER = "libero_10", 8
TASK = "libero_10/KITCHEN_SCENE8_put_both_moka_pots_on_the_stove"
TRIALS = (0, 1)
SETTLE = 30
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 7)).astype(np.float32)


def observed(env, prefix: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """The whole state, where the fixtures are, and images."""
    return {
        f"{prefix}/state": env.get_sim_state(),
        f"{prefix}/bodies": env.sim.model.body_pos.copy(),
        f"{prefix}/images": images,
    }


def in_turn() -> dict[str, np.ndarray]:
    configure_opengl()
    with contextlib.redirect_stdout(io.StringIO()):
        from libero.libero import benchmark, get_libero_path
        from libero.libero.envs import OffScreenRenderEnv

        suite = benchmark.get_benchmark(SUITE)()
    task = suite.get_task(NUMBER)
    definition = Path(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
    env = OffScreenRenderEnv(bddl_file_name=str(definition), camera_heights=256, camera_widths=256)
    env.seed(42)
    found = {}

    def images(seen):
        cameras = ("agentview_image", "robot0_eye_in_hand_image")
        return np.stack([seen[name][::-1, ::-1] for name in cameras])

    for trial in TRIALS:
        env.reset()
        env.set_init_state(suite.get_task_init_states(NUMBER)[trial])
        for _ in range(SETTLE):
            seen, *_ = env.step([0.0] * 6 + [-1.0])
        found |= observed(env, f"{trial}/start", images(seen))
        for action in ACTIONS:
            seen, *_ = env.step([*action[:6].tolist(), 1.0 if action[6] < 0.5 else -1.0])
        found |= observed(env, f"{trial}/end", images(seen))
    env.close()
    return found


def alone() -> dict[str, np.ndarray]:
    simulator = Libero(suites=(SUITE,), tasks=(NUMBER,))
    found = {}
    for trial in (1, 0, 1):
        again = "again/" if f"{trial}/start/state" in found else ""
        images = simulator.reset(TASK, trial).images_nhwc
        env = simulator._env
        found |= observed(env, f"{again}{trial}/start", images)
        found[f"{again}{trial}/steps"] = np.array(env.env.timestep)
        for left, action in zip(reversed(range(len(ACTIONS))), ACTIONS, strict=True):
            simulator.step(action, look=left == 0 or bool(again))
        found |= observed(env, f"{again}{trial}/end", simulator.observe().images_nhwc)
    found["stored"] = simulator._tasks[TASK].states[1]
    found["objects"] = objects(env)
    return found | robot(simulator) | wide(simulator)


def objects(env) -> np.ndarray:
    """Where the two pots are (metres)."""
    names = ("moka_pot_1", "moka_pot_2")
    return np.stack([env.sim.data.body_xpos[env.env.obj_body_id[name]] for name in names])


def robot(simulator: Libero) -> dict[str, np.ndarray]:
    """The state beside what the physics say, and what the gripper does."""
    found, idle = {}, np.zeros(7, np.float32)
    simulator.reset(TASK, 0)
    for name, command in (("closed", 0.0), ("held", 0.5), ("open", 1.0), ("held_open", 0.5)):
        idle[6] = command
        for left in reversed(range(12)):
            simulator.step(idle, look=left == 0)
        found[f"gripper/{name}"] = simulator.observe().state[6:]
    env, observation = simulator._env, simulator.observe()
    data, arm = env.sim.data, env.env.robots[0]
    found["robot/state"] = observation.state
    found["robot/site"] = data.site_xpos[arm.eef_site_id].copy()
    found["robot/hand"] = data.get_body_xmat("robot0_right_hand").copy()
    found["robot/fingers"] = data.qpos[arm._ref_gripper_joint_pos_indexes].copy()
    found["robot/images"] = observation.images_nhwc
    env.sim._render_context_offscreen.gl_ctx.make_current()
    cameras = simulator.spec.cameras
    found["robot/raw"] = np.stack(
        [env.sim.render(camera_name=c, width=256, height=256) for c in cameras]
    )
    simulator.step(idle, look=False)
    found["robot/late"] = simulator.observe().images_nhwc
    return found


def wide(official: Libero) -> dict[str, np.ndarray]:
    """Wide starts, and a second environment in this process."""
    simulator, found = (
        Libero(suites=(SUITE,), tasks=(NUMBER,), starts="wide", protocol="openpi"),
        {},
    )
    for name, seed in (("first", 10_000), ("second", 10_050), ("again", 10_000)):
        found[f"wide/{name}/images"] = simulator.reset(TASK, seed).images_nhwc
        found[f"wide/{name}/objects"] = objects(simulator._env)
    found["wide/crowded_objects"], found["wide/tries"] = crowded(simulator)
    found["wide/steps"] = np.array(simulator._env.env.timestep)
    found["wide/official_images"] = official.reset(TASK, 0).images_nhwc
    found["wide/official_objects"] = objects(official._env)
    official.reset(TASK, 1)
    found["wide/next_official_objects"] = objects(official._env)
    return found


def crowded(simulator: Libero) -> tuple[np.ndarray, np.ndarray]:
    """The start of seed 10,000 if its stored state has no free places, and how often it tried."""
    places, tries = libero._places, []

    def full_at_first(*arguments):
        tries.append(arguments)
        return None if len(tries) <= libero._PLACE_TRIES else places(*arguments)

    libero._places = full_at_first
    try:
        simulator.reset(TASK, 10_000)
    finally:
        libero._places = places
    return objects(simulator._env), np.array(len(tries))


if __name__ == "__main__":
    np.savez(sys.argv[2], **{"in_turn": in_turn, "alone": alone}[sys.argv[1]]())
