"""One step of training: a pure function of state, batch and frozen parts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from imagewam_jax.checkpoints.initial_weights import overlay
from imagewam_jax.config.schema import DTYPES, choose
from imagewam_jax.errors import ConfigError
from imagewam_jax.models.imagewam import Draws, ImageWAMConfig, sample_draws
from imagewam_jax.models.parameters import Params, initial_params, policy_builder
from imagewam_jax.models.partitioning import constrain, partitioned
from imagewam_jax.preprocess.inputs import PolicyAssets, image_spec, make_sample, target_weights
from imagewam_jax.training.optimizer import learning_rate, make_optimizer, update_ema
from imagewam_jax.training.sharding import RULES, optimizer_shardings, param_shardings, replicated
from imagewam_jax.training.state import TrainState, cast, merge, partition, trained_paths

Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]


class Trainer(NamedTuple):
    """The functions of a run, to be jitted, and where their results lie.

    `init(seed, weights)` makes a state; `weights` takes the place of those random parameters that
    it has. `step(state, batch, frozen)` makes the next one and its metrics,
    `validate(params, batch, frozen, number)` the losses of all parameters of a policy on a batch.
    `shardings` are of a state, `compiler_options` for the compiled step.
    """

    init: Callable[[int, Params], TrainState]
    step: Callable[[TrainState, Batch, PolicyAssets], tuple[TrainState, Metrics]]
    validate: Callable[[Params, Batch, PolicyAssets, int], Metrics]
    shardings: TrainState
    compiler_options: dict[str, str]


def make_trainer(config: Mapping[str, Any], policy: ImageWAMConfig, mesh: Mesh) -> Trainer:
    """The functions for a config on a mesh; `policy` is its `model` section.

    ConfigError: the mesh cannot divide the policy, what is frozen is no part of it, or an option of
    the compiler has no value.
    """
    steps, section = config["train"]["steps"], config["optimizer"]
    optimizer, rate = make_optimizer(section, steps), learning_rate(section, steps)
    dtype = choose(DTYPES, config["train"]["compute_dtype"], "train.compute_dtype")
    spec, seed, parts = image_spec(config["data"]), config["seed"], config["train"]["accumulate"]
    masked = config["train"]["mask_padded_targets"]
    trained = trained_paths(policy, config["train"]["frozen"])
    shardings, frozen_shardings = partition(param_shardings(mesh, policy), trained)
    rebuild = policy_builder(policy)

    def loss(
        params: Params,
        frozen_params: Params,
        assets: PolicyAssets,
        batch: Batch,
        draws: Draws,
        augment,
    ):
        # Cast before anything else, so that what is sent between devices is of this dtype.
        model = rebuild(merge(cast(frozen_params, dtype), cast(params, dtype)))
        sample = make_sample(assets, spec, batch, augment=augment)
        return model.training_loss(sample, draws)

    def complete(assets: PolicyAssets, batch: Batch, key: Array) -> tuple[Batch, Draws]:
        """What a whole batch decides, whatever parts it runs in."""
        if masked:
            batch = {**batch, "target_weight": target_weights(batch["target_is_pad"])}
        shapes = jax.eval_shape(lambda: make_sample(assets, spec, batch))
        draws = sample_draws(key, shapes)
        return jax.tree.map(_by_sample, (batch, draws))

    def gradients(state: TrainState, assets: PolicyAssets, batch: Batch, draws: Draws):
        def of(batch, draws):
            losses = jax.value_and_grad(loss, has_aux=True)
            (total, parts), grads = losses(
                state.params, state.frozen_params, assets, batch, draws, True
            )
            grads = jax.lax.with_sharding_constraint(grads, shardings)
            return _scalars(total, parts), grads

        if parts == 1:
            return of(batch, draws)

        def add(sums, part):
            return jax.tree.map(jnp.add, sums, of(*part)), None

        # Every `parts`-th sample, so that each part is spread over the devices as the batch is.
        split = jax.tree.map(
            lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1),
            (batch, draws),
        )
        first = jax.tree.map(lambda x: x[0], split)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(of, *first))
        sums, _ = jax.lax.scan(add, zeros, split)
        return jax.tree.map(lambda x: x / parts, sums)

    def init(seed: int, weights: Params) -> TrainState:
        params, frozen_params = partition(overlay(initial_params(policy, seed), weights), trained)
        ema = params if section["ema_decay"] else None
        return TrainState(
            jnp.zeros((), jnp.int32),
            params,
            cast(frozen_params, dtype),
            ema,
            optimizer.init(params),
        )

    def step(state: TrainState, batch: Batch, assets: PolicyAssets) -> tuple[TrainState, Metrics]:
        with partitioned(mesh, RULES):
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            losses, grads = gradients(state, assets, *complete(assets, batch, key))
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = update_ema(ema, params, state.step, section["ema_decay"])
        metrics = {
            **losses,
            "grad_norm": optax.tree.norm(grads),
            "grad_norm_backbone": optax.tree.norm(grads.get("backbone", {})),
            "grad_norm_expert": optax.tree.norm(grads.get("expert", {})),
            "learning_rate": rate(state.step),
        }
        state = TrainState(state.step + 1, params, state.frozen_params, ema, optimizer_state)
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    def validate(params: Params, batch: Batch, assets: PolicyAssets, number: int) -> Metrics:
        # The draws depend on the batch alone, so that curves over training are smooth.
        with partitioned(mesh, RULES):
            batch, draws = complete(assets, batch, jax.random.key(number))
            return _scalars(*loss(params, {}, assets, batch, draws, False))

    return Trainer(
        init,
        step,
        validate,
        TrainState(
            step=replicated(mesh),
            params=shardings,
            frozen_params=frozen_shardings,
            ema=shardings if section["ema_decay"] else None,
            optimizer=optimizer_shardings(
                mesh, optimizer, jax.eval_shape(init, 0, {}).params, shardings
            ),
        ),
        compiler_options(config["train"]["compiler_options"]),
    )


def check_compiler_options(options: Mapping[str, str]) -> None:
    """ConfigError: the compiler for this machine's devices does not know one of them."""
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"train.compiler_options {dict(options)} are not for {jax.default_backend()}: {error}"
        ) from error


def compiler_options(given: Sequence[str]) -> dict[str, str]:
    """Of "name=value" each. ConfigError: one is not."""
    options = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise ConfigError(f"train.compiler_options: {text!r} is no NAME=VALUE")
        options[name] = value
    return options


def _scalars(total: Array, parts: Mapping[str, Array]) -> Metrics:
    return {
        "loss": total,
        "target_loss": parts["target_loss"],
        "action_loss": parts["action_loss"],
    }


def _by_sample(x: Array) -> Array:
    return constrain(x, "batch", *(None,) * (x.ndim - 1))
