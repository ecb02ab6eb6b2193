"""Before the first step: checks of the config, initial weights, and the assets of the policy."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from imagewam_jax.checkpoints.assets import (
    autoencoder_from_tree,
    check_autoencoder,
    new_autoencoder,
    read_autoencoder,
)
from imagewam_jax.checkpoints.initial_weights import initial_weights
from imagewam_jax.config.fields import check_fields
from imagewam_jax.config.schema import DTYPES, choose, policy_config
from imagewam_jax.data.datasets import Data, Dataset
from imagewam_jax.data.loading.samples import empty_batch
from imagewam_jax.data.statistics.exact import statistics_by_dataset
from imagewam_jax.distributed import is_first
from imagewam_jax.errors import ConfigError, UserError, collecting, raise_all
from imagewam_jax.models.autoencoders import latent_grid, patch
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import Params, abstract_params
from imagewam_jax.models.sharding import with_shardings
from imagewam_jax.preprocess.images import prepare_images
from imagewam_jax.preprocess.inputs import PolicyAssets, image_spec
from imagewam_jax.preprocess.normalization import Normalizer, make_normalizer, stack_normalizers
from imagewam_jax.preprocess.statistics import statistics_to_json
from imagewam_jax.text.encoders import encode_text

FIT_FRAMES = 1000  # frames of each dataset that a patch autoencoder is fitted to
FIT_BATCH = 100  # frames that are in memory at a time, in the size in which they are stored


def check_fits(config: Mapping[str, Any], policy: ImageWAMConfig) -> None:
    """ConfigError for each field of a wrong type or beyond its range; where there is none,
    ConfigError or DataError for each way in which images and autoencoder do not fit the policy."""
    check_fields(config)
    errors: list[UserError] = []
    with collecting(errors):
        check_channels(config, policy)
    with collecting(errors):
        check_grid(config)
    with collecting(errors):
        check_delay(config)
    raise_all(errors)


def check_delay(config: Mapping[str, Any]) -> None:
    """ConfigError: all actions of a chunk may be known, and none is left to predict."""
    delay, horizon = config["train"]["max_delay"], config["model"]["horizon"]
    if delay >= horizon:
        raise ConfigError(
            f"train.max_delay is {delay}, expected less than model.horizon {horizon}: some actions "
            "of a chunk must be left to predict"
        )


def check_channels(config: Mapping[str, Any], policy: ImageWAMConfig) -> None:
    """ConfigError: the autoencoder's latents are not what the backbone reads."""
    channels = _abstract_autoencoder(config).channels
    if channels != policy.backbone.in_channels:
        raise ConfigError(
            f"model.backbone.in_channels is {policy.backbone.in_channels}, the autoencoder has "
            f"{channels} channels"
        )


def check_grid(config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of the latent that all cameras become, or each of them as a reference.

    DataError: the cameras are not those of the layout. ConfigError: the autoencoder cannot divide
    the image.
    """
    data, factor = config["data"], _abstract_autoencoder(config).factor
    shape = (1, len(data["cameras"]), 1, *data["image_size"], 3)
    images = jax.eval_shape(
        lambda images: prepare_images(images, None, image_spec(data), None),
        jax.ShapeDtypeStruct(shape, jnp.uint8),
    )
    try:
        return latent_grid(images.shape[-3:], factor)
    except ValueError as error:
        raise ConfigError(
            f"data.image_size {tuple(data['image_size'])} in layout {data['layout']!r}: {error}, "
            "the autoencoder's factor"
        ) from error


def _abstract_autoencoder(config: Mapping[str, Any]) -> nnx.Module:
    return jax.eval_shape(lambda: new_autoencoder(config["autoencoder"]))


def starting_weights(
    path: str, policy: ImageWAMConfig, shardings: Params
) -> tuple[Params, dict[str, Any]]:
    """Initial weights from the checkpoint at `path`, and their provenance; none without a path.

    `shardings` say where the parameters of the whole policy lie.
    """
    if not path:
        return {}, {}
    abstract = with_shardings(abstract_params(policy), shardings)
    initial = initial_weights(path, policy, abstract)
    random = f", at random: {', '.join(initial.random)}" if initial.random else ""
    if is_first():
        print("; ".join([f"starts from {path}{random}", *initial.differences]))
    return initial.params, {"initial_weights": initial.provenance}


def make_assets(config: Mapping[str, Any], data: Data) -> tuple[PolicyAssets, dict[str, Any]]:
    """The assets of a policy, and their metadata: datasets, statistics, prompts, text encoder."""
    section = config["data"]
    statistics = statistics_by_dataset(
        data, section["train_split"], pooled=section["pool_statistics"]
    )
    policy = policy_config(config["model"])
    text = encode_text(config["text"], data.instructions, policy.backbone.text_dim)

    def normalizer(field: str, width: int) -> Normalizer:
        mode = section["normalization"]
        each = [make_normalizer(s[field], mode) for s in statistics.values()]
        return stack_normalizers(each, width)

    # The model computes with text in this dtype, whatever the table keeps it in.
    dtype = choose(DTYPES, config["train"]["compute_dtype"], "train.compute_dtype")
    assets = PolicyAssets(
        autoencoder=make_autoencoder(config, data),
        text=jnp.asarray(text.features, dtype),
        text_length=jnp.asarray(text.lengths),
        actions=normalizer("action", policy.expert.action_dim),
        state=normalizer("state", policy.proprio_dim or 0),
    )
    metadata = {
        "datasets": list(statistics),  # in the order of their numbers
        "statistics": statistics_to_json(statistics),
        "prompts": list(text.prompts),
        "text_encoder": text.encoder,
    }
    return assets, metadata


def make_autoencoder(config: Mapping[str, Any], data: Data) -> nnx.Module:
    """A patch autoencoder fitted to frames of the training split, or that of a checkpoint.

    ConfigError: neither can be done.
    """
    section = config["autoencoder"]
    if section["weights"]:
        return autoencoder_from_tree(read_autoencoder(section["weights"], section), section)
    check_autoencoder_source(section)
    frames = [some_frames(d, config) for d in data.datasets]
    return patch.fit(np.concatenate(frames), section["factor"], section["channels"])


def check_autoencoder_source(section: Mapping[str, Any]) -> None:
    """ConfigError, CheckpointError: the autoencoder can be neither read nor fitted to the data."""
    if section["weights"]:
        check_autoencoder(section["weights"], section)
    elif section.get("name") != "patch":
        raise ConfigError(
            f"autoencoder.weights must name a checkpoint with the autoencoder {section['name']!r} "
            "(imagewam convert makes one): only 'patch' is fitted to the data"
        )


def some_frames(dataset: Dataset, config: Mapping[str, Any]) -> UInt8[np.ndarray, "n h w 3"]:
    """Images as the policy sees them, spread over the training part of one dataset."""
    part, spec = config["data"]["train_split"], image_spec(config["data"])
    start_frames = dataset.start_frames(part)
    chosen = start_frames[np.linspace(0, len(start_frames) - 1, FIT_FRAMES).astype(int)]
    reader = dataset.reader(part)
    frames = []
    for start in range(0, len(chosen), FIT_BATCH):
        start_frames = np.unique(chosen[start : start + FIT_BATCH])
        batch = empty_batch(len(start_frames), dataset.sample)
        bad = {
            image.row for image in reader.fill(batch, np.arange(len(start_frames)), start_frames)
        }
        good = [row for row in range(len(start_frames)) if row not in bad]
        images, sizes = batch["images"][good][:, :, :1], batch["image_size"][good]
        images = prepare_images(images, sizes, spec, None)
        frames.append(np.asarray(images).reshape(-1, *images.shape[-3:]))
    reader.close()
    return np.round((np.concatenate(frames) + 1) * 127.5).astype(np.uint8)
