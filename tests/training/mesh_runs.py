"""Trains the tiny policy on several meshes, one run after another, in the processes of one job.

    python -m tests.training.mesh_runs FOLDER DATASET RUN... [--coordinator=HOST:PORT ...]

Each run is a name in `RUNS`; its folder is FOLDER/RUN. With --resume-from=OTHER or
--start-from=OTHER it is, instead, FOLDER/OTHER_then_RUN, which goes on where OTHER was halfway, or
FOLDER/OTHER_starts_RUN, a short new run from OTHER's weights.
"""

import argparse
import shutil
from pathlib import Path

from tests.training.tiny import tiny_config

STEPS, HALF = 8, 4
START = 3  # steps of a run that starts from the weights of another
# The mesh of eight devices, and other fields of the config.
RUNS = {
    "one": {},
    "fsdp": {},
    "fsdp_tensor": {"mesh.tensor": 2},
    "data_fsdp_tensor": {"mesh.data": 2, "mesh.tensor": 2},
    "context": {"mesh.context": 2},
    "slices": {"mesh.data": 2, "mesh.slices": 2},  # each process stands for a slice
}


def config_of(run: str, dataset: Path):
    """Without a moving average of gradients, so that the optimizer's state is that of one step."""
    config = tiny_config(dataset)
    config.train.update(steps=STEPS, batch_size=16, checkpoint_every=HALF, keep_checkpoints=2)
    config.optimizer.b1 = 0.0
    config.update_from_flattened_dict(RUNS[run])
    return config


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("runs", nargs="+", choices=RUNS)
    parser.add_argument("--resume-from", choices=RUNS)
    parser.add_argument("--start-from", choices=RUNS)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    given = parser.parse_args()
    from imagewam_jax import distributed
    from imagewam_jax.training.train import train

    distributed.initialize(
        coordinator=given.coordinator, processes=given.processes, process=given.process
    )
    for run in given.runs:
        config, workdir = config_of(run, given.dataset), given.folder / run
        if given.resume_from:
            half, other = Path("checkpoints") / str(HALF), given.folder / given.resume_from
            workdir = given.folder / f"{given.resume_from}_then_{run}"
            with distributed.first_alone("copying the first half"):
                if distributed.is_first():
                    shutil.copytree(other / half, workdir / half)
            train(config, workdir, resume=True)
        if given.start_from:
            config.train.update(initial_weights=str(given.folder / given.start_from), steps=START)
            train(config, given.folder / f"{given.start_from}_starts_{run}")
        if not (given.resume_from or given.start_from):
            train(config, workdir)


if __name__ == "__main__":
    main()
