"""Does the policy fit itself, its autoencoder and the weights that it starts from?"""

from typing import Any

import jax

from imagewam_jax.checkpoints.assets import new_autoencoder
from imagewam_jax.checkpoints.initial_weights import find_initial_weights
from imagewam_jax.config.schema import DTYPES, choose, policy_config
from imagewam_jax.data.datasets import ROW_WIDTH, resolve_widths
from imagewam_jax.errors import UserError, collecting, raise_all
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.preflight.run import NotChecked, Run, about, name_of
from imagewam_jax.preprocess.inputs import image_spec
from imagewam_jax.preprocess.normalization import check_mode
from imagewam_jax.training.prepare import (
    check_autoencoder_source,
    check_channels,
    check_delay,
    check_grid,
)
from imagewam_jax.training.state import trained_paths

# The fields that say which datasets a run reads, and how.
SELECTION = ("data.dataset", "data.mixture", "data.mixtures", "data.rows")


def policy(run: Run) -> ImageWAMConfig:
    """The policy that would be trained. Where no row says how wide it is, a width of 1 stands for
    it: that is the fault of the row alone."""
    return policy_config(_model(run))


def _model(run: Run) -> dict[str, Any]:
    model = run.config("model")["model"]
    try:
        return resolve_widths(run.config(*SELECTION, "model"))["model"]
    except (UserError, NotChecked):
        expert = model["expert"]
        if expert.get("action_dim", ROW_WIDTH) == ROW_WIDTH:
            expert = {**expert, "action_dim": 1}
        state = model["proprio_dim"]
        return {**model, "expert": expert, "proprio_dim": 1 if state == ROW_WIDTH else state}


def sizes(run: Run) -> ImageWAMConfig:
    """The policy, or one of the same parameters where only what says how it runs does not fit."""
    if not isinstance(run.outcome(policy), UserError):
        return run.of(policy)
    fitting = {"horizon": 1, "remat": "full", "attention": "xla", "coordinate_dtype": "float32"}
    try:
        return policy_config({**_model(run), **fitting})
    except UserError:
        raise NotChecked(f"{name_of(policy)} failed") from None


def trained_parts(run: Run) -> None:
    """`train.frozen` names parts of the policy, and leaves some to train."""
    trained_paths(run.of(sizes), run.config("train.frozen")["train"]["frozen"])


def known_actions(run: Run) -> None:
    """Actions that are known in training leave some to predict."""
    check_delay(run.config("train.max_delay", "model.horizon"))


def compute_dtype(run: Run) -> Any:
    name = run.config("train.compute_dtype")["train"]["compute_dtype"]
    return choose(DTYPES, name, "train.compute_dtype")


def chunk_of_actions(run: Run) -> None:
    """An evaluation executes no more actions than a chunk has."""
    if run.usable("acting", "model.horizon"):
        config = run.config()
        executed, horizon = config["acting"]["execute_steps"], config["model"]["horizon"]
        if executed > horizon:
            run.note(
                f"acting.execute_steps is {executed}, a chunk has model.horizon {horizon} actions: "
                "no simulator can be played"
            )


def autoencoder(run: Run) -> None:
    """The autoencoder's section has a known name and the sizes that this name takes."""
    config = run.config("autoencoder")
    jax.eval_shape(lambda: new_autoencoder(config["autoencoder"]))


def latent_channels(run: Run) -> None:
    run.of(autoencoder)
    check_channels(run.config("autoencoder"), run.of(sizes))


def autoencoder_weights(run: Run) -> None:
    """They are where the config says, and of its autoencoder."""
    run.of(autoencoder)
    with about("autoencoder.weights"):
        check_autoencoder_source(run.config("autoencoder")["autoencoder"])


def images(run: Run) -> None:
    """Layout, augmentation and letterbox are known, for these cameras."""
    data = run.config("data.cameras", "data.layout", "data.augmentation", "data.letterbox")["data"]
    errors: list[UserError] = []
    for field in ("layout", "augmentation", "letterbox"):
        # Each field alone, beside values that always fit.
        fitting = {"layout": "single", "augmentation": "", "letterbox": ()}
        with collecting(errors), about(f"data.{field}"):
            image_spec({**data, "image_size": (1, 1), **fitting, field: data[field]})
    raise_all(errors)


def latent_grid(run: Run) -> tuple[int, int]:
    """The layout takes these cameras, and the autoencoder divides their picture."""
    run.of(images)
    run.of(autoencoder)
    with about("data.layout"):
        return check_grid(run.config("data.image_size", "autoencoder"))


def normalization(run: Run) -> None:
    with about("data.normalization"):
        check_mode(run.config("data.normalization")["data"]["normalization"])


def initial_weights(run: Run) -> None:
    """The checkpoint to start from is there, and is one of this policy; no array is read."""
    path = run.config("train.initial_weights")["train"]["initial_weights"]
    if path:
        with about("train.initial_weights"):
            found = find_initial_weights(path, run.of(sizes))
        for what in found.differences:
            run.note(f"train.initial_weights {path}: {what}")
