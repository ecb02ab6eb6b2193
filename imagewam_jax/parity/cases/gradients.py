"""Gradients of the loss of a training step, and the norm of every one."""

from collections.abc import Iterator

import jax
import numpy as np

from imagewam_jax.models.imagewam import ImageWAM
from imagewam_jax.models.parameters import module_tree
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import Kind, NotChecked, Output, run_once
from imagewam_jax.parity.cases.folder import NORMS, Folder, Tensors
from imagewam_jax.parity.cases.loaded import Loaded, foreign_view
from imagewam_jax.parity.cases.policy_case import TRAINING, training_case
from imagewam_jax.weights.layouts.imagewam import imagewam_rules

FILE = "grads.safetensors"
# Of larger parameters only the norm is recorded from our side.
WHOLE = 2**22


@run_once
def _gradients(policy: ImageWAM, sample, draws):
    return jax.grad(lambda p: p.training_loss(sample, draws)[0])(policy)


def _find(folder: Folder) -> Tensors | None:
    """By its name, since gradients have the names of weights; only of a training step."""
    return folder.files.get(FILE) if folder.having(*TRAINING) else None


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    case = training_case(loaded, folder)
    tree = module_tree(_gradients(loaded.module("policy"), case.sample, case.draws))
    view = foreign_view(imagewam_rules(loaded.config("policy")), tree, "gradients")
    recorded = folder.files.get(FILE)
    for name, spec in view.specs.items():
        gradient = view.read(name)
        norm = np.linalg.norm(gradient.astype(np.float64))
        yield Output(name, norm, limits.GRADIENT, file=NORMS)
        if np.prod(spec.shape) <= WHOLE or (recorded and name in recorded):
            yield Output(name, gradient, limits.GRADIENT)


KIND = Kind(
    name="gradients of that step",
    part="policy",
    file=FILE,
    find=_find,
    outputs=_outputs,
    inputs=lambda loaded, folder, sizes, rng: {} if sizes.gradients else None,
    case="policy",
)
