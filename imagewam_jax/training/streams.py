"""What a run reads: its training stream, its validation batches, and what of them it sends on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from imagewam_jax.data.dataset import Data
from imagewam_jax.data.loader import Source, TrainIterator

# What the train step takes of a batch; the rest says where samples come from.
MODEL_KEYS = (
    "images",
    "aug_seed",
    "text_id",
    "proprio",
    "actions",
    "action_is_pad",
    "action_dim_mask",
    "target_is_pad",
    "norm_id",
)


def model_keys(data: Data) -> tuple[str, ...]:
    """What the train step takes of a batch of some data."""
    return MODEL_KEYS if data.fills_buffer else (*MODEL_KEYS, "image_size")


def train_iterator(
    config: Mapping[str, Any], sources: Sequence[Source], rows: Int64[np.ndarray, " rows"]
) -> TrainIterator:
    """This host's part of the training stream: `rows` of each global batch."""
    section = config["data"]
    return TrainIterator(
        sources,
        global_batch=config["train"]["batch_size"],
        seed=config["seed"],
        rows=rows,
        num_threads=section["threads"],
        prefetch=section["prefetch"],
        bad_share=section["bad_frames"],
    )


def validation_batches(
    config: Mapping[str, Any], data: Data, rows: Int64[np.ndarray, " rows"]
) -> list[dict[str, Any]]:
    """This host's part of held-out samples in full batches, mixed as in training."""
    train, section = config["train"], config["data"]
    if not train["validate_every"] or not train["validation_samples"]:
        return []
    size = train["batch_size"]
    count = max(1, train["validation_samples"] // size)
    sources = data.sources(section["eval_split"])
    stream = TrainIterator(
        sources, global_batch=size, rows=rows, seed=0, bad_share=section["bad_frames"]
    )
    batches = [next(stream) for _ in range(count)]
    stream.close()
    return batches
