"""What training needs before its first step: an index, a stream of batches, frozen parts."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagewam_jax.data.anchors import frame_anchors
from imagewam_jax.data.dataset import Dataset
from imagewam_jax.data.device import mosaic
from imagewam_jax.data.loader import TrainIterator
from imagewam_jax.data.normalization import make_normalizer
from imagewam_jax.data.statistics import split_statistics, statistics_to_json
from imagewam_jax.data.text import TextTable, bucket_length, open_text_table, text_table
from imagewam_jax.models.autoencoders import latent_grid, patch
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.text_encoders.base import TextEncoder
from imagewam_jax.policies.config import DTYPES, choose, policy_config
from imagewam_jax.policies.errors import ConfigError
from imagewam_jax.policies.frozen import (
    REFERENCES,
    Frozen,
    autoencoder_from_tree,
    new_autoencoder,
    read_autoencoder,
)
from imagewam_jax.policies.text import (
    check_encoder,
    check_width,
    make_prompt,
    make_text_encoder,
    tokenize_prompts,
)

FIT_FRAMES = 1000  # that a patch autoencoder is fitted to


def check_fits(config: Mapping[str, Any], policy: ImageWAMConfig) -> None:
    """ConfigError, or DataError, unless counts are counts and the policy can take the images."""
    train = config["train"]
    for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
        if train[name] < 1:
            raise ConfigError(f"train.{name} is {train[name]}, expected at least 1")
    autoencoder = jax.eval_shape(lambda: new_autoencoder(config["autoencoder"]))
    if autoencoder.channels != policy.backbone.in_channels:
        raise ConfigError(
            f"model.backbone.in_channels is {policy.backbone.in_channels}, the autoencoder has "
            f"{autoencoder.channels} channels"
        )
    data = config["data"]
    camera = jax.ShapeDtypeStruct((*data["image_size"], 3), jnp.uint8)
    shape = camera.shape
    if data["layout"] != REFERENCES:
        cameras = [camera] * len(data["cameras"])
        shape = jax.eval_shape(lambda *c: mosaic(data["layout"], c), *cameras).shape
    try:
        latent_grid(shape, autoencoder.factor)
    except ValueError as error:
        raise ConfigError(
            f"data.image_size {tuple(data['image_size'])} in layout {data['layout']!r}: {error}, "
            "the autoencoder's factor"
        ) from error


def train_iterator(config: Mapping[str, Any], dataset: Dataset) -> TrainIterator:
    """This host's part of the training stream."""
    section = config["data"]
    reader = dataset.reader(section["train_split"])
    return TrainIterator(
        reader,
        frame_anchors(reader.split),
        global_batch=config["train"]["batch_size"],
        seed=config["seed"],
        host=jax.process_index(),
        num_hosts=jax.process_count(),
        num_threads=section["threads"],
        prefetch=section["prefetch"],
    )


def make_frozen(config: Mapping[str, Any], dataset: Dataset) -> tuple[Frozen, dict[str, Any]]:
    """The frozen parts, and what a checkpoint says about them: statistics, prompts, encoder."""
    section = config["data"]
    statistics = split_statistics(dataset.index, section["train_split"], dataset.spec)
    text_dim = policy_config(config["model"]).backbone.text_dim
    text = encode_text(config["text"], dataset.index.instructions, text_dim)
    # The model computes with text in this dtype, whatever it was kept in.
    dtype = choose(DTYPES, config["train"]["compute_dtype"], "train.compute_dtype")
    frozen = Frozen(
        autoencoder=make_autoencoder(config, dataset),
        text=jnp.asarray(text.features, dtype),
        text_length=jnp.asarray(text.lengths),
        actions=make_normalizer(statistics["action"], section["normalization"]),
        state=make_normalizer(statistics["state"], section["normalization"]),
    )
    about = {
        "dataset": dataset.index.name,
        "statistics": statistics_to_json(statistics),
        "prompts": list(text.prompts),
        "text_encoder": text.encoder,
    }
    return frozen, about


def encode_text(
    section: Mapping[str, Any], instructions: Sequence[str], text_dim: int | None = None
) -> TextTable:
    """Features of all instructions, cut to the smallest bucket that holds the longest.

    Row r belongs to `instructions[r]`; its features come from the config's table, if there is
    one. DataError: a prompt is longer than every bucket, or not in the table. ConfigError: the
    features are not of width `text_dim` (None: any).
    """
    prompts = [make_prompt(section["template"], instruction) for instruction in instructions]
    if section["table"]:
        file = open_text_table(section["table"])
        check_encoder(section, file)
        check_width(text_dim, file.channels)
        table = file.select(prompts)
    else:
        encoder = make_text_encoder(section)
        check_width(text_dim, encoder.feature_dim)
        table = _encode(encoder, prompts, section)
    bucket = bucket_length(int(table.lengths.max()), section["buckets"])
    features = table.features[:, :bucket]
    padding = ((0, 0), (0, bucket - features.shape[1]), (0, 0))
    return TextTable(table.prompts, np.pad(features, padding), table.lengths, table.encoder)


def _encode(encoder: TextEncoder, prompts: list[str], section: Mapping[str, Any]) -> TextTable:
    distinct = sorted(set(prompts))
    features = {}
    for batch in encoder.encode(tokenize_prompts(encoder, distinct, section)):
        features |= zip((distinct[row] for row in batch.rows), batch.features, strict=True)
    return text_table(prompts, [features[prompt] for prompt in prompts], encoder.identity)


def make_autoencoder(config: Mapping[str, Any], dataset: Dataset) -> nnx.Module:
    """A patch autoencoder fitted to frames of the training split, or that of a checkpoint.

    ConfigError: neither can be done.
    """
    section = config["autoencoder"]
    if section["weights"]:
        return autoencoder_from_tree(read_autoencoder(section["weights"], section), section)
    if section["name"] != "patch":
        raise ConfigError(
            f"autoencoder.weights must name a checkpoint with the autoencoder {section['name']!r} "
            "(imagewam convert makes one): only 'patch' is fitted to the data"
        )
    reader = dataset.reader(config["data"]["train_split"])
    anchors = frame_anchors(reader.split)
    chosen = anchors[np.linspace(0, len(anchors) - 1, FIT_FRAMES).astype(int)]
    images = reader.read(np.unique(chosen))["images"][:, :, 0]
    reader.close()
    cameras = list(images.swapaxes(0, 1))
    layout = config["data"]["layout"]
    frames = np.concatenate(cameras) if layout == REFERENCES else mosaic(layout, cameras)
    return patch.fit(np.asarray(frames), section["factor"], section["channels"])
