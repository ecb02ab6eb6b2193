"""Counts how often the scripted experts of LIBERO succeed, without drawing.

    python data/libero/measure.py --suite libero_goal --tasks 0,1,4,8 --trials 20 --starts wide

Prints one JSON line per task. An episode takes 2 to 4 CPU seconds; one that fails goes on to the
benchmark's limit of steps, and takes 8.
"""

import argparse
import json

import numpy as np
from collect import NOISE_SIGMA, add_task_arguments, chosen_simulator, play_expert

from imagewam_jax.errors import UserError
from imagewam_jax.evaluation.simulators import make_simulator


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_task_arguments(parser)
    parser.add_argument("--trials", type=int, default=20, help="episodes of each task")
    parser.add_argument(
        "--noise-sigma",
        type=float,
        default=0.0,
        help=f"standard deviation on executed actions; collect.py takes {NOISE_SIGMA}",
    )
    arguments = parser.parse_args()

    options, numbers = chosen_simulator(arguments, arguments.trials)
    try:
        simulator = make_simulator("libero", **options)
    except UserError as error:
        raise SystemExit(str(error)) from None
    for number, task in zip(numbers, simulator.spec.instructions, strict=True):
        lengths, failed = [], []
        for seed in range(arguments.seed, arguments.seed + arguments.trials):
            sigma = arguments.noise_sigma
            steps = list(play_expert(simulator, task, seed, noise_sigma=sigma, look=False))
            if any(step.success for step in steps):
                lengths.append(len(steps))
            else:
                failed.append(seed)
        row = {
            "task": task,
            "number": number,
            "starts": arguments.starts,
            "noise_sigma": arguments.noise_sigma,
            "successes": len(lengths),
            "episodes": arguments.trials,
            "failed_seeds": failed,
            "mean_steps": round(float(np.mean(lengths or [0])), 1),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
