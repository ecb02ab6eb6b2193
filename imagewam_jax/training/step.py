"""One step of training: a pure function of settings, state, batch and assets.

    losses and gradients of the batch  ->  optimizer  ->  moving average  ->  metrics

Random numbers are drawn from the run's seed and the number of the step, so a resumed run repeats
exactly what an uninterrupted one does.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from imagewam_jax.checkpoints.initial_weights import overlay
from imagewam_jax.config.schema import DTYPES, choose
from imagewam_jax.models.imagewam import Draws, ImageWAMConfig, sample_draws
from imagewam_jax.models.parameters import (
    Params,
    abstract_params,
    flatten,
    initial_params,
    parameter_axes,
    policy_builder,
    unflatten,
)
from imagewam_jax.models.partitioning import constrain, partition_spec
from imagewam_jax.models.real_time import sample_delays
from imagewam_jax.models.sharding import (
    param_shardings,
    replicated,
    shardings_of,
    with_shardings,
)
from imagewam_jax.preprocess.images import ImageSpec
from imagewam_jax.preprocess.inputs import PolicyAssets, image_spec, make_sample, target_weights
from imagewam_jax.training.compiler_options import (
    CompilerOption,
    compiler_options,
    options_for,
)
from imagewam_jax.training.optimizer import (
    learning_rate,
    make_optimizer,
    optimizer_shardings,
    update_ema,
    updates_made,
)
from imagewam_jax.training.state import FlatParams, TrainState, cast, partition, trained_paths

Batch = Mapping[str, Array]
_DELAYS = 1  # folded into a step's key, for their own numbers
Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """All of a config that a train step depends on; hashable, as jit wants static arguments.

    trained: dotted paths of the parameters that the optimizer changes.
    accumulate: parts of a batch that run one after another.
    skip_not_finite: whether a step with a loss or gradient that is not finite changes nothing.
    mask_padded_targets: whether targets beyond the end of an episode have no loss.
    max_delay: of the actions of a sample that are known (`models.real_time`).
    compiler_options: options of XLA for the compiled step.
    """

    policy: ImageWAMConfig
    images: ImageSpec
    trained: frozenset[str]
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    ema_decay: float
    compute_dtype: jnp.dtype
    seed: int
    accumulate: int
    skip_not_finite: bool
    mask_padded_targets: bool
    max_delay: int
    compiler_options: tuple[CompilerOption, ...]


def step_settings(config: Mapping[str, Any], policy: ImageWAMConfig) -> StepSettings:
    """The settings of a config whose `model` section is `policy`.

    ConfigError: what is frozen is not a part of the policy, or an option of the compiler has no
    value.
    """
    train, section = config["train"], config["optimizer"]
    return StepSettings(
        policy=policy,
        images=image_spec(config["data"]),
        trained=trained_paths(policy, train["frozen"]),
        optimizer=make_optimizer(section, train["steps"]),
        learning_rate=learning_rate(section, train["steps"]),
        ema_decay=section["ema_decay"],
        compute_dtype=choose(DTYPES, train["compute_dtype"], "train.compute_dtype"),
        seed=config["seed"],
        accumulate=train["accumulate"],
        skip_not_finite=train["skip_not_finite"] > 0,
        mask_padded_targets=train["mask_padded_targets"],
        max_delay=train["max_delay"],
        compiler_options=compiler_options(train["compiler_options"]),
    )


def init_state(settings: StepSettings, weights: Params) -> TrainState:
    """The state before the first step: `weights`, and random parameters where they have none."""
    return _state_of(settings, overlay(initial_params(settings.policy, settings.seed), weights))


def _state_of(settings: StepSettings, params: Params) -> TrainState:
    """The state before the first step, with these parameters."""
    trained, frozen = partition(params, settings.trained)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=trained,
        frozen_params=cast(frozen, settings.compute_dtype),
        ema=trained if settings.ema_decay else None,
        optimizer=settings.optimizer.init(trained),
    )


def abstract_state(settings: StepSettings, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a state. ConfigError: the mesh cannot divide the policy."""
    shapes = jax.eval_shape(partial(_state_of, settings), abstract_params(settings.policy))
    trained, frozen = partition(param_shardings(mesh, settings.policy), settings.trained)
    shardings = TrainState(
        step=replicated(mesh),
        params=trained,
        frozen_params=frozen,
        ema=trained if settings.ema_decay else None,
        optimizer=optimizer_shardings(mesh, settings.optimizer, shapes.params, trained),
    )
    return with_shardings(shapes, shardings)


def jit_train_step(settings: StepSettings, abstract: TrainState) -> Callable:
    """`train_step` to be compiled: (state, batch, assets) -> (state, metrics).

    The state that is given is consumed, and the next one lies where `abstract` says. Trace it under
    `jax.set_mesh` of the mesh of `abstract`.
    """
    shardings = shardings_of(abstract)
    platform = shardings.step.mesh.devices.flat[0].platform
    return jax.jit(
        partial(train_step, settings),
        donate_argnums=0,
        out_shardings=(shardings, shardings.step),  # metrics, like the step, on every device
        compiler_options=options_for(platform, settings.compiler_options),
    )


def train_step(
    settings: StepSettings, state: TrainState, batch: Batch, assets: PolicyAssets
) -> tuple[TrainState, Metrics]:
    """The state after one more step, and what there is to tell of it."""
    key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    batch, draws = prepare_batch(settings, batch, assets, key)
    losses, grads = batch_gradients(settings, state, batch, draws, assets)

    # The learning rate and the moving average go by updates: a skipped step is none.
    made = updates_made(state.optimizer)
    updates, optimizer = settings.optimizer.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        ema = update_ema(ema, params, made, settings.ema_decay)

    metrics = {
        **losses,
        "grad_norm": optax.tree.norm(grads),
        "grad_norm_backbone": optax.tree.norm(_component(grads, "backbone")),
        "grad_norm_expert": optax.tree.norm(_component(grads, "expert")),
        "learning_rate": settings.learning_rate(made),
    }
    metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
    after = TrainState(state.step + 1, params, state.frozen_params, ema, optimizer)
    if settings.skip_not_finite:
        finite = jnp.isfinite(jnp.stack(list(metrics.values()))).all()
        kept = jax.tree.map(partial(jnp.where, finite), after, state)
        after = kept._replace(step=after.step, frozen_params=state.frozen_params)
    return after, metrics


def validation_losses(
    settings: StepSettings, params: FlatParams, batch: Batch, assets: PolicyAssets, number: int
) -> Metrics:
    """The losses of all parameters of a policy on the held-out batch of this number.

    The noise depends on the number alone, so that curves over training are smooth.
    """
    batch, draws = prepare_batch(settings, batch, assets, jax.random.key(number))
    return loss_and_parts(params, {}, settings, batch, draws, assets, augment=False)[1]


def prepare_batch(
    settings: StepSettings, batch: Batch, assets: PolicyAssets, key: Array
) -> tuple[Batch, Draws]:
    """What is decided for a whole batch, whatever parts it runs in: target weights, delays and
    noise."""
    if settings.mask_padded_targets:
        batch = {**batch, "target_weight": target_weights(batch["target_is_pad"])}
    if settings.max_delay:
        # A key beside those of `sample_draws`: noise and times are those of a run without delays.
        delays = sample_delays(
            jax.random.fold_in(key, _DELAYS), len(batch["actions"]), settings.max_delay
        )
        batch = {**batch, "delay": delays}
    shapes = jax.eval_shape(partial(make_sample, spec=settings.images), assets, batch=batch)
    return jax.tree.map(_divide_samples, (dict(batch), sample_draws(key, shapes)))


def batch_gradients(
    settings: StepSettings, state: TrainState, batch: Batch, draws: Draws, assets: PolicyAssets
) -> tuple[Metrics, FlatParams]:
    """Losses and gradients of a batch: the means over its `accumulate` parts."""
    parts = settings.accumulate
    gradients = partial(part_gradients, settings, state, assets)
    if parts == 1:
        return gradients(batch, draws)
    # Every `parts`-th sample, so that each part is spread over the devices as the batch is.
    split = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1),
        (batch, draws),
    )
    shapes = jax.eval_shape(gradients, *jax.tree.map(lambda x: x[0], split))

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, gradients(*part)), None

    sums, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, shapes), split)
    return jax.tree.map(lambda x: x / parts, sums)


def part_gradients(
    settings: StepSettings, state: TrainState, assets: PolicyAssets, batch: Batch, draws: Draws
) -> tuple[Metrics, FlatParams]:
    """Losses and gradients of samples that run at once."""
    (_, losses), grads = jax.value_and_grad(loss_and_parts, has_aux=True)(
        state.params, state.frozen_params, settings, batch, draws, assets, augment=True
    )
    if not jax.sharding.get_abstract_mesh().empty:  # gradients lie where their parameters do
        axes = flatten(parameter_axes(settings.policy))
        specs = {path: partition_spec(axes[path]) for path in grads}
        grads = jax.lax.with_sharding_constraint(grads, specs)
    return losses, grads


def loss_and_parts(
    params: FlatParams,
    frozen_params: FlatParams,
    settings: StepSettings,
    batch: Batch,
    draws: Draws,
    assets: PolicyAssets,
    *,
    augment: bool,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss, a function of `params` to differentiate, and the losses that metrics tell."""
    # Cast before anything else, so that what is sent between devices is of this dtype.
    params = cast(frozen_params | params, settings.compute_dtype)
    model = policy_builder(settings.policy)(unflatten(params))
    sample = make_sample(assets, settings.images, batch, augment=augment)
    loss, parts = model.training_loss(sample, draws)
    return loss, {"loss": loss, **{name: parts[name] for name in ("target_loss", "action_loss")}}


def _component(params: FlatParams, name: str) -> FlatParams:
    """The parameters below a dotted path."""
    return {path: x for path, x in params.items() if path.startswith(f"{name}.")}


def _divide_samples(x: Array) -> Array:
    return constrain(x, "batch", *(None,) * (x.ndim - 1))
