"""Plays scripted experts of LIBERO tasks in a process of its own and saves what happened.

python -m tests.data_builders.play_libero_expert FILE.npz
"""

import sys
from pathlib import Path

import numpy as np

from imagewam_jax.evaluation.simulators.libero import Libero
from tests.data_builders.scripts import LIBERO_FOLDER

sys.path.insert(0, str(LIBERO_FOLDER))
from collect import plan_episodes, play_expert
from expert import TASKS
from scene import Scene

TASK = "libero_goal/put_the_bowl_on_the_stove"
DRAWER = "libero_goal/open_the_middle_drawer_of_the_cabinet"
SEED, NOISE_SIGMA = 0, 0.2


class Recorder(Libero):
    """Remembers what was executed."""

    def __init__(self, **options):
        super().__init__(**options)
        self.executed = []

    def step(self, action, *, look):
        self.executed.append(np.array(action))
        return super().step(action, look=look)


def main(file: Path) -> None:
    simulator = Recorder(suites=("libero_goal",), tasks=(0, 1), starts="wide")
    found = {"instruction": np.array(simulator.spec.instructions[TASK])}
    for name, task, sigma in (
        ("drawer", DRAWER, 0.0),
        ("bowl", TASK, 0.0),
        ("noisy", TASK, NOISE_SIGMA),
    ):
        simulator.executed.clear()
        steps = list(play_expert(simulator, task, SEED, noise_sigma=sigma, look=False))
        found[f"{name}/success"] = np.array([step.success for step in steps])
        found[f"{name}/actions"] = np.stack([step.action for step in steps])
        found[f"{name}/executed"] = np.stack(simulator.executed)
        found[f"{name}/start_images"] = steps[0].observation.images_nhwc
        found[f"{name}/start_state"] = steps[0].observation.state
        found[f"{name}/start_joints"] = steps[0].joints

    observation = simulator.reset(TASK, SEED)
    scene, env = Scene(simulator), simulator.env
    position, rotation = scene.hand()
    found["hand/position"], found["hand/rotation"] = position, rotation
    found["hand/state"] = observation.state
    fingers = [env.sim.data.get_body_xpos(f"gripper0_{side}finger") for side in ("left", "right")]
    found["hand/between_fingers"] = (fingers[0] - fingers[1]) @ rotation
    found["bowl/box"] = np.stack(scene.box("akita_black_bowl_1"))
    found["bowl/body"] = np.array(env.sim.data.body_xpos[env.obj_body_id["akita_black_bowl_1"]])

    numbers = TASKS["libero_goal"]
    plans = plan_episodes(Path(), [f"libero_goal/{n}" for n in numbers], numbers, range(10))
    found["plans/noisy"] = np.array([plan.noisy for plan in plans]).reshape(len(numbers), 10)
    found["plans/files"] = np.array([str(plan.path) for plan in plans])
    np.savez(file, **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
