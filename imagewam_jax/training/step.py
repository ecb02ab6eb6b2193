"""One step of training: a pure function of state, batch and frozen parts."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from imagewam_jax.models.imagewam import ImageWAMConfig, sample_draws
from imagewam_jax.policies.config import DTYPES, choose
from imagewam_jax.policies.frozen import Frozen, image_spec, make_sample
from imagewam_jax.policies.initial import overlay
from imagewam_jax.policies.parameters import Params, initial_params, policy_builder
from imagewam_jax.training.optimizer import learning_rate, make_optimizer, update_ema

Metrics = dict[str, Float[Array, ""]]


class TrainState(NamedTuple):
    """Everything that changes; float32 master weights."""

    step: Int[Array, ""]
    params: Params
    ema: Params
    optimizer: optax.OptState


class Trainer(NamedTuple):
    """The pure functions of a run.

    `init(seed, weights)` makes a state; `weights` takes the place of those random parameters that
    it has. `step(state, batch, frozen)` the next one and its metrics,
    `validate(params, batch, frozen, number)` the losses of parameters on a batch.
    """

    init: Callable[[int, Params], TrainState]
    step: Callable[[TrainState, Mapping[str, Array], Frozen], tuple[TrainState, Metrics]]
    validate: Callable[[Params, Mapping[str, Array], Frozen, int], Metrics]


def make_trainer(config: Mapping[str, Any], policy: ImageWAMConfig) -> Trainer:
    """The functions for a config; `policy` is its `model` section. All are to be jitted."""
    steps = config["train"]["steps"]
    optimizer = make_optimizer(config["optimizer"], steps)
    rate = learning_rate(config["optimizer"], steps)
    dtype = choose(DTYPES, config["train"]["compute_dtype"], "train.compute_dtype")
    spec, seed = image_spec(config["data"]), config["seed"]
    masked = config["train"]["mask_padded_targets"]
    rebuild = policy_builder(policy)

    def loss(params, sample, draws):
        # Cast before anything else, so that what is sent between devices is of this dtype.
        model = rebuild(jax.tree.map(lambda p: p.astype(dtype), params))
        return model.training_loss(sample, draws)

    def init(seed: int, weights: Params) -> TrainState:
        params = overlay(initial_params(policy, seed), weights)
        return TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))

    def step(state: TrainState, batch, frozen: Frozen) -> tuple[TrainState, Metrics]:
        sample = make_sample(frozen, spec, batch, augment=True, mask_padded_targets=masked)
        draws = sample_draws(jax.random.fold_in(jax.random.key(seed), state.step), sample)
        (total, parts), grads = jax.value_and_grad(loss, has_aux=True)(state.params, sample, draws)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema, params, state.step, config["optimizer"]["ema_decay"])
        metrics = {
            "loss": total,
            "target_loss": parts["target_loss"],
            "action_loss": parts["action_loss"],
            "grad_norm": optax.tree.norm(grads),
            "grad_norm_backbone": optax.tree.norm(grads["backbone"]),
            "grad_norm_expert": optax.tree.norm(grads["expert"]),
            "learning_rate": rate(state.step),
        }
        return TrainState(state.step + 1, params, ema, optimizer_state), metrics

    def validate(params: Params, batch, frozen: Frozen, number: int) -> Metrics:
        # The draws depend on the batch alone, so that curves over training are smooth.
        sample = make_sample(frozen, spec, batch, mask_padded_targets=masked)
        draws = sample_draws(jax.random.key(number), sample)
        total, parts = loss(params, sample, draws)
        return {
            "loss": total,
            "target_loss": parts["target_loss"],
            "action_loss": parts["action_loss"],
        }

    return Trainer(init, step, validate)
