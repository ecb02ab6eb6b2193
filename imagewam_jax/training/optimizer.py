"""AdamW, warm-up, cosine, clipping (docs/spec/imagewam_flux2.md, 8.1), and the moving average."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Shaped

from imagewam_jax.models.sharding import replicated


def learning_rate(section: Mapping[str, Any], steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then a cosine down to `final_fraction` of it."""
    peak = section["learning_rate"]
    warmup = max(1, round(section["warmup_fraction"] * steps))
    return optax.warmup_cosine_decay_schedule(
        init_value=peak / warmup,
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=peak * section["final_fraction"],
    )


def make_optimizer(section: Mapping[str, Any], steps: int) -> optax.GradientTransformation:
    """The optimizer of a config's `optimizer` section; weight decay is on every parameter."""
    return optax.chain(
        optax.clip_by_global_norm(section["clip_norm"]),
        optax.adamw(
            learning_rate(section, steps),
            b1=section["b1"],
            b2=section["b2"],
            eps=section["eps"],
            weight_decay=section["weight_decay"],
        ),
    )


def updates_made(state: optax.OptState) -> Shaped[Array, ""]:
    """How many updates an optimizer has made: one for each step that was not skipped."""
    return optax.tree.get_all_with_path(state, "count")[0][1]


def update_ema(ema: Any, params: Any, step: Int[Array, ""] | int, decay: float) -> Any:
    """The moving average after `step` updates; young averages forget faster."""
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)


def optimizer_shardings(
    mesh: Mesh, optimizer: optax.GradientTransformation, params: Any, shardings: Any
) -> Any:
    """The shardings of an optimizer's state: what it keeps of a parameter lies beside it.

    `params` are abstract.
    """
    return optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )
