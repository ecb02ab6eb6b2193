"""The workload of the contestants of a benchmark: a policy and data in memory.

Sizes, text and optimizer are those of a config; weights, images, states and actions are random,
which changes no running time.
"""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from benchmarks import klein_4b
from configs import quickstart
from imagewam_jax.checkpoints.assets import new_autoencoder
from imagewam_jax.config.schema import policy_config
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import Params, initial_params
from imagewam_jax.preprocess.inputs import Observations, PolicyAssets
from imagewam_jax.preprocess.normalization import Normalizer
from imagewam_jax.text.encoders import encode_text

INSTRUCTIONS = ("close the faucet", "open the faucet")


class Workload(NamedTuple):
    """`batch` is as the loader makes it; `observations` and `noise` are those of one robot."""

    config: dict[str, Any]
    policy: ImageWAMConfig
    params: Params
    assets: PolicyAssets
    prompts: list[str]
    batch: dict[str, np.ndarray]
    observations: Observations
    noise: Float[np.ndarray, "1 s a"]


def klein_4b_in_full() -> ConfigDict:
    """FLUX.2 klein 4B, trained whole: PyTorch's side has no LoRA."""
    config = klein_4b.get_config()
    config.model.lora.rank = 0
    config.train.batch_size = 4
    return config


CONFIGS: Mapping[str, Callable[[], ConfigDict]] = MappingProxyType(
    {"quickstart": quickstart.get_config, "klein_4b": klein_4b_in_full}
)


def make_workload(name: str = "quickstart", batch_size: int | None = None) -> Workload:
    """The workload of one of `CONFIGS`, with the same numbers at every call.

    batch_size: None takes the config's.
    """
    config = json.loads(CONFIGS[name]().to_json())
    policy = policy_config(config["model"])
    action_dim, state_dim = policy.expert.action_dim, policy.proprio_dim
    text = encode_text(config["text"], INSTRUCTIONS)
    assets = PolicyAssets(
        autoencoder=jax.jit(lambda: new_autoencoder(config["autoencoder"]))(),
        text=jnp.asarray(text.features),
        text_length=jnp.asarray(text.lengths),
        actions=_normalizer(action_dim),
        state=_normalizer(state_dim),
    )
    batch_size = config["train"]["batch_size"] if batch_size is None else batch_size
    rng = np.random.default_rng(0)
    images = rng.integers(
        0, 256, (batch_size, 1, 2, *config["data"]["image_size"], 3), dtype=np.uint8
    )
    batch = {
        "images": images,
        "image_size": np.full((batch_size, 1, 2), config["data"]["image_size"], np.int32),
        "dataset_id": np.zeros(batch_size, np.int32),
        "target_is_pad": np.zeros(batch_size, bool),
        "text_id": rng.integers(0, len(INSTRUCTIONS), batch_size).astype(np.int32),
        "proprio": rng.normal(size=(batch_size, state_dim)).astype(np.float32),
        "actions": rng.normal(size=(batch_size, policy.horizon, action_dim)).astype(np.float32),
        "action_is_pad": rng.random((batch_size, policy.horizon)) < 0.1,
        "action_dim_mask": np.ones((batch_size, action_dim), bool),
    }
    return Workload(
        config=config,
        policy=policy,
        params=jax.jit(lambda: initial_params(policy, 0))(),
        assets=assets,
        prompts=list(text.prompts),
        batch=batch,
        observations=Observations(images[:1, :, 0], batch["proprio"][:1], batch["text_id"][:1]),
        noise=rng.normal(size=(1, policy.horizon, action_dim)).astype(np.float32),
    )


def _normalizer(dim: int) -> Normalizer:
    return Normalizer(np.full((1, dim), 0.5, np.float32), np.full((1, dim), 0.1, np.float32))
