"""One training step of a policy: noised samples, predictions, losses, and their gradients."""

from collections.abc import Iterator

import jax
import numpy as np

from imagewam_jax.models.imagewam import ImageWAM
from imagewam_jax.models.parameters import module_tree
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import (
    Kind,
    NotChecked,
    Output,
    Sizes,
    having,
    normal,
    run_once,
    text_inputs,
)
from imagewam_jax.parity.cases.folder import NORMS, Folder, Tensors
from imagewam_jax.parity.cases.loaded import Loaded, foreign_view
from imagewam_jax.parity.cases.policy_case import (
    TRAINING,
    joint_inputs,
    noised,
    training_case,
)
from imagewam_jax.parity.official_order import official_text
from imagewam_jax.parity.stacks import stack_of
from imagewam_jax.weights.layouts.imagewam import imagewam_rules

GRADIENTS_FILE = "grads.safetensors"
# In our own recordings, of gradients with more entries only the norm is kept.
LARGEST_WHOLE = 2**22

_velocities = run_once(ImageWAM.velocities)
_training_loss = run_once(ImageWAM.training_loss)


@run_once
def _gradients(policy: ImageWAM, sample, draws):
    return jax.grad(lambda p: p.training_loss(sample, draws)[0])(policy)


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    policy, case = loaded.module("policy"), training_case(loaded, folder)
    config, sample, stack = policy.config, case.sample, case.stack
    yield from stack.training_outputs(policy, sample, case.text)
    text, mask = official_text(policy, sample.context, case.text)
    yield Output("context_with_proprio", text, limits.ROUNDING, case.text.valid)
    yield Output("context_mask_with_proprio", mask, limits.EQUAL)

    target, action = noised(case, config)
    for name, sampled in (("video", target), ("action", action)):
        yield Output(f"timestep_{name}", sampled.timestep_b, limits.TIMESTEP)
        time_b = stack.network_time(sampled.timestep_b)
        yield Output(f"{stack.training_time}_{name}", time_b, limits.TIME)
        yield Output(f"weight_{name}", sampled.weight_b, limits.TIME_WEIGHT)
    yield Output("noisy_video", stack.recorded(config.backbone, target.x), limits.ROUNDING)
    yield Output("noisy_action", action.x, limits.ROUNDING)

    predicted_target, predicted_action = _velocities(policy, *joint_inputs(case, config))
    predicted_target = stack.recorded(config.backbone, predicted_target)
    yield Output("pred_video", predicted_target, limits.VELOCITY)
    yield Output("pred_action", predicted_action, limits.VELOCITY)

    loss, parts = _training_loss(policy, sample, case.draws)
    yield Output("loss_total", loss, limits.LOSS)
    for name, ours, weight in (
        ("video", "target", config.target_loss_weight),
        ("action", "action", config.action_loss_weight),
    ):
        yield Output(f"{name}_loss_per_sample", parts[f"{ours}_loss_b"], limits.LOSS)
        mean = parts[f"{ours}_loss"]
        yield Output(f"loss_{name}_unweighted_by_lambda", mean, limits.LOSS)
        yield Output(f"loss_{name}_logged", weight * mean, limits.LOSS)


def _inputs(
    loaded: Loaded, folder: Folder, sizes: Sizes, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """A batch of texts of unequal length, its last sample with padded steps and a dimension."""
    policy, config, b = loaded.module("policy"), loaded.config("policy"), sizes.batch
    stack = stack_of(config.backbone)

    def image() -> np.ndarray:
        cells = normal(rng, b, *sizes.grid, config.backbone.in_channels)
        return stack.recorded(config.backbone, cells)

    actions = (b, config.horizon, config.expert.action_dim)
    tensors = {
        **text_inputs(config.backbone.text_dim, sizes, rng),
        **stack.training_inputs(policy, sizes),
        "action": normal(rng, *actions),
        "action_is_pad": np.zeros(actions[:2], bool),
        "action_dim_is_pad": np.zeros(actions[::2], bool),
        "noise_video": image(),
        "u_video": rng.random(b, np.float32),
        "noise_action": normal(rng, *actions),
        "u_action": rng.random(b, np.float32),
    }
    tensors["action_is_pad"][-1, 1 + config.horizon // 2 :] = True
    tensors["action_dim_is_pad"][-1, 1:][-1:] = True
    if config.proprio_dim is not None:
        tensors["proprio"] = normal(rng, b, 2, config.proprio_dim)  # of which the first is used
    if folder.having("ref_image_latents") is None:  # without an autoencoder
        tensors |= {name: image() for name in ("ref_image_latents", "target_latent")}
    return tensors


STEP = Kind(
    name="training step of a policy",
    part="policy",
    file="train.safetensors",
    find=having(*TRAINING),
    outputs=_outputs,
    inputs=_inputs,
    case="policy",
)


def _find_gradients(folder: Folder) -> Tensors | None:
    """Gradients are named as weights are, so the file's name tells them apart."""
    return folder.files.get(GRADIENTS_FILE) if folder.having(*TRAINING) else None


def _gradients_outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """Every gradient of the loss, and its norm."""
    case = training_case(loaded, folder)
    tree = module_tree(_gradients(loaded.module("policy"), case.sample, case.draws))
    view = foreign_view(imagewam_rules(loaded.config("policy")), tree, "gradients")
    recorded = folder.files.get(GRADIENTS_FILE)
    for name, spec in view.specs.items():
        gradient = view.read(name)
        norm = np.linalg.norm(gradient.astype(np.float64))
        yield Output(name, norm, limits.GRADIENT, file=NORMS)
        if np.prod(spec.shape) <= LARGEST_WHOLE or (recorded and name in recorded):
            yield Output(name, gradient, limits.GRADIENT)


GRADIENTS = Kind(
    name="gradients of that step",
    part="policy",
    file=GRADIENTS_FILE,
    find=_find_gradients,
    outputs=_gradients_outputs,
    inputs=lambda loaded, folder, sizes, rng: {} if sizes.gradients else None,
    case="policy",
)
