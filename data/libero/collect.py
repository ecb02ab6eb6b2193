"""Collects demonstrations of LIBERO tasks from scripted experts.

    python data/libero/collect.py --output RAW_DIR --suite libero_goal --tasks 0,1,4,8 \\
        --episodes-per-task 50 --starts wide --workers 2

Writes one file per successful episode, RAW_DIR/<suite>_<task>_<seed>.npz, an empty .failed file for
each other one, and RAW_DIR/collection.json. Run again after an interruption, or for more episodes,
it plays what is missing. An episode depends on its task, its seed and the starts alone, not on the
number of workers. It takes 20 to 40 CPU seconds and 2 to 4 MB; a worker takes 1 to 1.6 GB of
memory. Next, data/libero/build.py writes RLDS.

starts: `official` are the 50 stored states of a task, from which evaluations start as well. `wide`
ones move every object by up to 6 cm besides, as the seed says: evaluations take seeds from 10,000.

Every other episode is recorded with Gaussian noise on the executed action, which shows how to
recover. The recorded action is always the expert's, so the noise is never a label.
"""

import argparse
import json
import multiprocessing
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from expert import TASKS, chosen_tasks, expert_actions
from jaxtyping import Float32, UInt8
from scene import Scene
from tqdm import tqdm

from imagewam_jax.data.tools.rollouts import joined_files
from imagewam_jax.errors import UserError
from imagewam_jax.evaluation.simulators import make_simulator
from imagewam_jax.evaluation.simulators.base import Observation
from imagewam_jax.evaluation.simulators.libero import Libero
from imagewam_jax.files import written_whole

NOISE_SIGMA = 0.15  # of every dimension but the gripper
# The goal often holds before the object is let go. The expert goes on, so that the end shows it.
STEPS_AFTER_SUCCESS = 10
JPEG_QUALITY = 95
OFFICIAL_TRIALS = 50


class EpisodePlan(NamedTuple):
    """Everything that determines one episode, and where it is written."""

    task: str
    number: int
    seed: int
    noisy: bool
    path: Path

    @property
    def failed(self) -> Path:
        return self.path.with_suffix(".failed")

    @property
    def is_finished(self) -> bool:
        return self.path.exists() or self.failed.exists()


class Step(NamedTuple):
    """One step as it is recorded; what was seen is from before the action.

    joints: angles of the arm in radians.
    action: the expert's, in the standard convention (gripper 1: open), without noise.
    success: the goal holds after the action.
    """

    observation: Observation
    joints: Float32[np.ndarray, "7"]
    action: Float32[np.ndarray, "a=7"]
    success: bool


def plan_episodes(
    output: Path, tasks: Sequence[str], numbers: Sequence[int], seeds: range
) -> list[EpisodePlan]:
    """The episodes of a collection, one task after the other: a change of task takes 5 s."""
    return [
        EpisodePlan(
            task=task,
            number=number,
            seed=seed,
            noisy=seed % 2 == 1,
            path=output / f"{task.split('/')[0]}_{number:02d}_{seed:06d}.npz",
        )
        for task, number in zip(tasks, numbers, strict=True)
        for seed in seeds
    ]


def play_expert(
    simulator: Libero, task: str, seed: int, *, noise_sigma: float, look: bool
) -> Iterator[Step]:
    """Plays one episode: to STEPS_AFTER_SUCCESS steps after the goal first holds, or to the step
    limit if it never does.

    look: draw the cameras at every step; without, every step has the start's observation.
    """
    observation = simulator.reset(task, seed)
    noise = np.random.default_rng([seed, *task.encode()])
    scene, limit, succeeded = Scene(simulator), simulator.spec.max_steps[task], False
    for count, action in enumerate(expert_actions(simulator), 1):
        joints = scene.joints().astype(np.float32)
        executed = action.copy()
        executed[:6] += noise_sigma * noise.normal(size=6)
        success = simulator.step(executed, look=look)
        yield Step(observation, joints, action, success)
        if success and not succeeded:
            succeeded, limit = True, count + STEPS_AFTER_SUCCESS
        if count == limit:
            return
        if look:
            observation = simulator.observe()


def record(steps: Sequence[Step]) -> dict[str, np.ndarray]:
    """The arrays of one episode's file.

    images, wrist_images: uint8, the JPEG files of all steps, one after the other; image_bytes and
    wrist_image_bytes: int64 [t], the length of each. states, joints, actions: float32 [t, ...].
    """
    arrays = {
        "states": np.stack([step.observation.state for step in steps]),
        "joints": np.stack([step.joints for step in steps]),
        "actions": np.stack([step.action for step in steps]),
    }
    for camera, name in enumerate(("image", "wrist_image")):
        files = [_jpeg(step.observation.images_nhwc[camera]) for step in steps]
        arrays[f"{name}s"], arrays[f"{name}_bytes"] = joined_files(files)
    return arrays


def _jpeg(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    return simplejpeg.encode_jpeg(image, quality=JPEG_QUALITY, colorsubsampling="420")


_simulator: Libero | None = None  # One per worker process.


def _start_worker(options: dict) -> None:
    global _simulator
    _simulator = make_simulator("libero", **options)


def _collect(plan: EpisodePlan) -> bool:
    """Records one episode into its file; returns whether it succeeded, to its last step."""
    sigma = NOISE_SIGMA * plan.noisy
    steps = list(play_expert(_simulator, plan.task, plan.seed, noise_sigma=sigma, look=True))
    if not steps[-1].success:
        plan.failed.touch()
        return False
    with written_whole(plan.path) as file:
        np.savez(
            file,
            **record(steps),
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


def _numbers(text: str) -> tuple[int, ...]:
    """Numbers with commas between them. ArgumentTypeError: they are not."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"expected numbers such as 0,1,4,8, found {text!r}")
    return tuple(int(number) for number in text.split(","))


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `chosen_simulator` reads."""
    plans = "; ".join(f"{suite}: {', '.join(map(str, TASKS[suite]))}" for suite in TASKS)
    parser.add_argument("--suite", choices=tuple(TASKS), default="libero_goal")
    parser.add_argument(
        "--tasks",
        type=_numbers,
        default=(),
        metavar="N,N",
        help=f"numbers of tasks, by default all that have a plan ({plans})",
    )
    parser.add_argument("--starts", choices=("official", "wide"), default="wide")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode of each task")


def chosen_simulator(arguments: argparse.Namespace, episodes: int) -> tuple[dict, tuple[int, ...]]:
    """The options of the simulator, and the numbers of its tasks.

    SystemExit: a task has no plan, or there are fewer starts.
    """
    numbers = chosen_tasks(arguments.suite, arguments.tasks)
    first, end = arguments.seed, arguments.seed + episodes
    if episodes < 1 or first < 0 or (arguments.starts == "official" and end > OFFICIAL_TRIALS):
        raise SystemExit(
            f"there are no {arguments.starts} starts {first} to {end - 1} of a task: seeds begin "
            f"at 0, and there are {OFFICIAL_TRIALS} official ones"
        )
    return {"suites": (arguments.suite,), "tasks": numbers, "starts": arguments.starts}, numbers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of raw episodes")
    add_task_arguments(parser)
    parser.add_argument(
        "--episodes-per-task", type=int, default=50, help="that are played; successes are kept"
    )
    parser.add_argument("--workers", type=int, default=2, help="simulator processes")
    arguments = parser.parse_args()

    options, numbers = chosen_simulator(arguments, arguments.episodes_per_task)
    if arguments.workers < 1:
        raise SystemExit(f"--workers: expected at least 1, found {arguments.workers}")
    try:
        tasks = tuple(make_simulator("libero", **options).spec.instructions)
    except UserError as error:
        raise SystemExit(str(error)) from None
    arguments.output.mkdir(parents=True, exist_ok=True)
    _check_settings(
        arguments.output,
        {
            "suite": arguments.suite,
            "starts": arguments.starts,
            "noise_sigma": NOISE_SIGMA,
            "steps_after_success": STEPS_AFTER_SUCCESS,
        },
    )
    seeds = range(arguments.seed, arguments.seed + arguments.episodes_per_task)
    plans = plan_episodes(arguments.output, tasks, numbers, seeds)
    missing = [plan for plan in plans if not plan.is_finished]

    # Spawned, not forked: OpenGL does not survive a fork.
    with ProcessPoolExecutor(
        max_workers=arguments.workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(options,),
    ) as pool:
        futures = [pool.submit(_collect, plan) for plan in missing]
        try:
            with tqdm(total=len(plans), initial=len(plans) - len(missing), unit="episode") as bar:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
                    bar.set_postfix(failed=sum(plan.failed.exists() for plan in plans))
        except UserError as error:
            raise SystemExit(str(error)) from None
        finally:
            pool.shutdown(cancel_futures=True)  # else an interrupt would wait for all episodes
    for plan in plans:
        if plan.failed.exists():
            print(f"left out, no success: {plan.task} seed {plan.seed} noisy {plan.noisy}")
    kept = sum(plan.path.exists() for plan in plans)
    print(f"{kept} of {len(plans)} episodes are in {arguments.output}")


if __name__ == "__main__":
    main()
