"""Collects demonstrations of opening and closing a faucet from Meta-World's scripted policies.

    python data/metaworld_faucet/collect.py --output RAW_DIR --episodes-per-task 100

Writes one file per successful episode, RAW_DIR/<task>_<index>.npz, and RAW_DIR/collection.json. Run
again after an interruption, it continues where it stopped. The files depend on the seed alone, not
on the number of workers.

Pair `index` is an open and a close episode from the same start state, that of simulator seed
`seed + index`. In turns, one of the two is recorded with Gaussian noise on the executed action,
which shows how to recover. The recorded action is always the expert's, so the noise is never a
label.
"""

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from imagewam_jax.evaluation.simulators import make_simulator
from imagewam_jax.evaluation.simulators.opengl import configure_opengl
from imagewam_jax.files import written_whole

TASKS = ("faucet-open", "faucet-close")
NOISE_SIGMA = 0.3
# The expert goes on for a moment after success, so that the frame one action chunk ahead of the
# contact shows the result and the last chunks are not mostly padding.
STEPS_AFTER_SUCCESS = 4


class EpisodePlan(NamedTuple):
    """Everything that determines one episode."""

    task: str
    seed: int
    noisy: bool
    path: Path


def plan_episodes(output: Path, episodes_per_task: int, seed: int) -> list[EpisodePlan]:
    """The episodes of a collection, pair by pair."""
    return [
        EpisodePlan(
            task=task,
            seed=seed + index,
            # Alternates within a pair, between pairs, and between tens of pairs: one pair in ten
            # is held out, and both tasks need noisy and clean episodes in it.
            noisy=(index + index // 10 + position) % 2 == 1,
            path=output / f"{task}_{index:06d}.npz",
        )
        for index in range(episodes_per_task)
        for position, task in enumerate(TASKS)
    ]


def record_episode(simulator, plan: EpisodePlan) -> dict[str, np.ndarray] | None:
    """Plays the expert once; returns the recorded arrays, or None without success.

    Step t holds the observation before the action, the expert's action, and a reward of 1 if the
    task was done after it: images uint8 [t, h, w, 3], states float32 [t, 4], actions float32
    [t, 4], rewards float32 [t].
    """
    noise = np.random.default_rng([plan.seed, TASKS.index(plan.task)])
    images, states, actions, rewards = [], [], [], []
    observation = simulator.reset(plan.task, plan.seed)
    steps_left = None
    while steps_left != 0:
        if steps_left is None and len(actions) == simulator.spec.max_steps[plan.task]:
            return None
        action = simulator.expert_action()
        executed = action + plan.noisy * noise.normal(0.0, NOISE_SIGMA, action.shape)
        success = simulator.step(executed, look=True)
        images.append(observation.images_nhwc[0])
        states.append(observation.state)
        actions.append(action)
        rewards.append(success)
        if steps_left is not None:
            steps_left -= 1
        elif success:
            steps_left = STEPS_AFTER_SUCCESS
        observation = simulator.observe()
    return {
        "images": np.stack(images),
        "states": np.stack(states),
        "actions": np.stack(actions),
        "rewards": np.asarray(rewards, np.float32),
    }


_simulator = None  # One per worker process.


def _start_worker(image_side: int) -> None:
    global _simulator
    _simulator = make_simulator("metaworld_faucet", image_side=image_side)


def _collect(plan: EpisodePlan) -> bool:
    """Records one episode into its file; returns whether it succeeded."""
    episode = record_episode(_simulator, plan)
    if episode is None:
        return False
    with written_whole(plan.path) as file:
        np.savez_compressed(
            file,
            **episode,
            task=plan.task,
            instruction=_simulator.spec.instructions[plan.task],
            seed=np.int64(plan.seed),
            noisy=plan.noisy,
        )
    return True


def _check_settings(output: Path, settings: dict) -> None:
    """Writes the settings of a new collection; refuses to continue one with others."""
    path = output / "collection.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found != settings:
            raise SystemExit(f"{path}: collected with {found}, asked to continue with {settings}")
    else:
        path.write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of raw episodes")
    parser.add_argument("--episodes-per-task", type=int, default=100)
    parser.add_argument("--image-side", type=int, default=64, help="pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first start state")
    parser.add_argument("--workers", type=int, default=2, help="simulator processes")
    arguments = parser.parse_args()

    configure_opengl()
    arguments.output.mkdir(parents=True, exist_ok=True)
    _check_settings(
        arguments.output,
        {
            "seed": arguments.seed,
            "image_side": arguments.image_side,
            "noise_sigma": NOISE_SIGMA,
            "steps_after_success": STEPS_AFTER_SUCCESS,
        },
    )
    plans = plan_episodes(arguments.output, arguments.episodes_per_task, arguments.seed)
    missing = [plan for plan in plans if not plan.path.exists()]

    rejected = []
    # Spawned, not forked: OpenGL does not survive a fork.
    with ProcessPoolExecutor(
        max_workers=arguments.workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(arguments.image_side,),
    ) as pool:
        futures = {pool.submit(_collect, plan): plan for plan in missing}
        with tqdm(total=len(plans), initial=len(plans) - len(missing), unit="episode") as bar:
            for future in as_completed(futures):
                if not future.result():
                    rejected.append(futures[future])
                bar.update()
                bar.set_postfix(rejected=len(rejected))
    for plan in rejected:
        print(f"rejected, no success: {plan.task} seed {plan.seed} noisy {plan.noisy}")
    print(f"{len(plans) - len(rejected)} of {len(plans)} episodes are in {arguments.output}")


if __name__ == "__main__":
    main()
