"""Do the devices of this machine, or of all hosts, take the run?"""

import numpy as np
from jax.sharding import Mesh

from imagewam_jax.errors import ConfigError
from imagewam_jax.models.attention import check_backend
from imagewam_jax.models.sharding import batch_rows, make_mesh
from imagewam_jax.preflight.model import compute_dtype, images, policy, trained_parts
from imagewam_jax.preflight.run import Run, about
from imagewam_jax.training.compiler_options import check_compiler_options, compiler_options
from imagewam_jax.training.metrics.watch import check_watch
from imagewam_jax.training.state import TrainState
from imagewam_jax.training.step import abstract_state, step_settings


def mesh(run: Run) -> Mesh:
    """The mesh is one of the devices that are here."""
    return make_mesh(run.config("mesh")["mesh"])


def batch(run: Run) -> np.ndarray:
    """A batch divides over the mesh and over the parts that run one after another."""
    train = run.config("train.batch_size", "train.accumulate")["train"]
    return batch_rows(run.of(mesh), train["batch_size"], train["accumulate"])


def compiler(run: Run) -> None:
    """The compiler for these devices knows its options."""
    options = run.config("train.compiler_options")["train"]["compiler_options"]
    check_compiler_options(compiler_options(options))


def attention(run: Run) -> None:
    """The attention kernel runs on these devices, with the policy's heads, in the run's dtype."""
    platform = run.of(mesh).devices.flat[0].platform
    found = run.of(policy)
    with about("model.attention"):
        try:
            head_dim = found.backbone.head_dim
            check_backend(found.attention, platform, head_dim, run.of(compute_dtype))
        except ValueError as error:
            raise ConfigError(str(error)) from error


def training_state(run: Run) -> TrainState:
    """The mesh divides every parameter; returns all arrays of the run as shapes."""
    for check in (trained_parts, compute_dtype, images, compiler):
        run.of(check)
    found = run.of(policy)
    config = run.config("seed", "optimizer", "train.frozen", "train.steps", "train.accumulate")
    return abstract_state(step_settings(config, found), run.of(mesh))


def metrics(run: Run) -> None:
    """What is to be traced is a range of steps, and Weights & Biases can be reached if wanted."""
    check_watch(run.config("watch")["watch"])
