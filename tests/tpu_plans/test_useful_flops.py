"""The official LIBERO training step computes the useful work and no more.

Nothing is compiled: the step's loss and gradient are traced with the 4B policy's shapes, and the
products in the jaxpr counted. Model FLOPs leave recomputation out, so it is counted apart: the
useful work is compared with what is computed when everything is kept, and each of the other
policies with that.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from imagewam_jax.config.defaults import klein_recipe
from imagewam_jax.config.schema import policy_config
from imagewam_jax.models import flops
from imagewam_jax.models.flops import Sizes
from imagewam_jax.models.imagewam import Context, Sample, sample_draws
from imagewam_jax.models.parameters import abstract_params, policy_builder, unflatten
from imagewam_jax.tpu_plans.flops import function_flops
from imagewam_jax.training.state import partition, trained_paths

# Two cameras of 224 x 224 beside each other; the smallest bucket that holds LIBERO's prompts.
SIZES = Sizes(batch=2, text_tokens=64, target_grid=(14, 28), reference_grid=(14, 28))


@functools.cache
def policy(size: str, rank: int = 0):
    config = klein_recipe(size)
    config.model.expert.action_dim, config.model.proprio_dim = 7, 8
    config.model.lora = {"rank": rank, "alpha": float(rank)}
    return policy_config(config.to_dict()["model"])


@functools.cache
def computed(size: str, remat: str, rank: int = 0) -> int:
    """FLOPs of the loss and its gradient with respect to trained parameters, per batch."""
    config, shape = dataclasses.replace(policy(size, rank), remat=remat), jax.ShapeDtypeStruct
    batch, channels = SIZES.batch, config.backbone.in_channels
    rebuild = policy_builder(config)
    params = jax.tree.map(lambda p: shape(p.shape, jnp.bfloat16), abstract_params(config))
    sample = Sample(
        Context(
            text=shape((batch, SIZES.text_tokens, config.backbone.text_dim), jnp.bfloat16),
            text_length=shape((batch,), jnp.int32),
            references=shape((batch, 1, *SIZES.reference_grid, channels), jnp.float32),
            proprio=shape((batch, config.proprio_dim), jnp.float32),
        ),
        target=shape((batch, *SIZES.target_grid, channels), jnp.float32),
        actions=shape((batch, config.horizon, config.expert.action_dim), jnp.float32),
    )
    draws = jax.eval_shape(lambda sample: sample_draws(jax.random.key(0), sample), sample)
    trained, fixed = partition(params, trained_paths(config, ()))

    def loss(trained, fixed, sample, draws):
        return rebuild(unflatten(trained | fixed)).training_loss(sample, draws)

    gradient = jax.value_and_grad(loss, has_aux=True)
    return function_flops(gradient, trained, fixed, sample, draws)


@pytest.mark.parametrize("size", ["4b", "9b"])
def test_a_step_computes_the_useful_work_and_no_more(size):
    useful = flops.training_step(policy(size), SIZES).total
    # Only the input embeddings have less than a whole backward pass.
    assert 0.999 < computed(size, "none") / useful <= 1


def test_low_rank_additions_save_the_gradients_of_frozen_kernels():
    config = policy("4b", rank=16)
    trained = trained_paths(config, ())
    useful = flops.training_step(config, SIZES, lambda path: ".".join(path) in trained).total
    assert computed("4b", "none", rank=16) / useful == pytest.approx(1, abs=0.01)
    assert useful / flops.training_step(policy("4b"), SIZES).total < 0.7


@pytest.mark.parametrize("size", ["4b", "9b"])
def test_padded_text_and_a_joint_mask_would_take_half_as_much_again(size):
    dense = flops.dense_training_step(policy(size), SIZES).total
    assert computed(size, "none") / dense < 0.65
    # Even with the attention that this policy computes again.
    assert computed(size, "save_matmuls") / dense < 0.65


def test_recomputation_is_what_the_policy_says():
    forward = flops.forward(policy("4b"), SIZES)
    kept = computed("4b", "none")
    of_attention = computed("4b", "save_matmuls") - kept
    assert of_attention == pytest.approx(forward.by_kind()["attention"], rel=0.01)
    # A whole forward pass through the layers, short of what is outside of them.
    assert computed("4b", "full") - kept == pytest.approx(forward.total, rel=0.01)
