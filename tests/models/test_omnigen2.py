"""OmniGen2 against itself, on recorded inputs and weights, and at full size. Recorded outputs are
compared in tests/parity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from imagewam_jax.models import flops
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.autoencoders.base import to_cells
from imagewam_jax.models.backbones.base import Backbone, BackboneConfig, Expert
from imagewam_jax.models.backbones.omnigen2 import OMNIGEN2, OmniGen2Config
from imagewam_jax.models.imagewam import Context, Draws, ImageWAM, ImageWAMConfig, Sample
from imagewam_jax.models.parameters import abstract_params
from imagewam_jax.weights.layouts.imagewam import imagewam_config
from tests.goldens import golden
from tests.models import official

FULL_SIZE = ImageWAMConfig(OMNIGEN2, ActionExpertConfig(), proprio_dim=8)


@pytest.fixture(scope="module")
def policy():
    folder = golden("imagewam_omnigen2")
    config = imagewam_config(official.tensors_of(folder).specs, official.config_of(folder))
    return official.policy_of(folder, config)


@pytest.fixture(scope="module")
def step():
    """A recorded training step: its sample, and its noises and times."""
    io = load_file(golden("imagewam_omnigen2") / "train.safetensors")
    return official.case_of(io, lambda latent: to_cells(np.moveaxis(latent, 1, -1), patch=2))


def test_it_is_what_the_protocols_say(policy):
    assert isinstance(policy.config.backbone, BackboneConfig)
    assert isinstance(policy.backbone, Backbone)
    assert isinstance(policy.expert, Expert)


def test_acting_from_the_cache_is_the_joint_forward(policy, step):
    """At equal times, although the context is refined and modulated by them."""
    sample, draws = step
    timestep = np.array([300.0, 800.0], np.float32)
    _, joint = official.velocities(
        policy, sample.context, draws.target_noise, timestep, draws.action_noise, timestep
    )
    cache = official.prefill(policy, sample.context, timestep)
    kept = cache.groups[0].k
    assert kept.shape[3:] == (policy.config.backbone.kv_heads, policy.config.backbone.head_dim)
    official.assert_acting_is(joint, policy, cache, draws.action_noise, timestep)


def test_the_context_does_not_see_target_or_action(policy, step):
    """A stream's predictions have no derivative along what it must not see."""
    sample, draws = step
    target, action = draws.target_noise, draws.action_noise
    timestep = np.full(2, 500.0, np.float32)

    @jax.jit
    def derivative(d_target, d_action):
        def predict(target, action):
            return policy.velocities(sample.context, target, timestep, action, timestep)

        return jax.jvp(predict, (target, action), (d_target, d_action))[1]

    target_changed, action_unchanged = derivative(target, 0 * action)
    assert np.any(target_changed) and not np.any(action_unchanged)
    target_unchanged, action_changed = derivative(0 * target, action)
    assert np.any(action_changed) and not np.any(target_unchanged)


def test_text_beyond_its_length_does_not_matter(policy, step):
    """Neither to the refiner of the text nor to the layers."""
    sample, draws = step
    loss, _ = official.training_loss(policy, sample, draws)
    junk = np.full((2, 9, sample.context.text.shape[2]), 7, np.float32)
    longer = np.concatenate([sample.context.text, junk], 1)
    other = sample._replace(context=sample.context._replace(text=longer))
    np.testing.assert_allclose(official.training_loss(policy, other, draws)[0], loss, rtol=1e-6)


def test_each_reference_matters_and_has_its_own_place(policy, step):
    sample, draws = step
    references = sample.context.references
    two = np.concatenate([references, references[:, :, ::-1]], 1)
    losses = []
    for images in (references, two, two[:, ::-1]):
        context = sample.context._replace(references=images)
        loss, _ = official.training_loss(policy, sample._replace(context=context), draws)
        losses.append(float(loss))
    assert len({round(loss, 5) for loss in losses}) == 3


def test_in_bfloat16_it_computes_in_bfloat16(policy, step):
    sample, draws = step
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), policy)
    half.config = dataclasses.replace(policy.config, coordinate_dtype="bfloat16")
    timestep = jnp.full(2, 500, jnp.bfloat16)
    found = official.velocities(
        half, sample.context, draws.target_noise, timestep, draws.action_noise, timestep
    )
    expected = official.velocities(
        policy, sample.context, draws.target_noise, timestep.astype(jnp.float32),
        draws.action_noise, timestep.astype(jnp.float32),
    )  # fmt: skip
    for ours, exact in zip(found, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert np.abs(np.asarray(ours, np.float32) - exact).mean() < 0.03


def test_full_size():
    """docs/spec/imagewam_omnigen2.md, 2, 6, 7 and 15."""
    params = abstract_params(FULL_SIZE)
    for part, numbers in (("backbone", 3_967_161_400), ("expert", 759_719_431)):
        assert sum(x.size for x in jax.tree.leaves(params[part])) == numbers
    # TFLOPs of a prefill and GFLOPs of an Euler step, by the length of the text.
    for text_tokens, prefill, step in ((128, 3.436, 22.98), (512, 6.085, 24.96)):
        sizes = flops.Sizes(1, text_tokens, (14, 28), (14, 28))
        assert flops.prefill(FULL_SIZE, sizes).total / 1e12 == pytest.approx(prefill, abs=6e-4)
        found = flops.euler_steps(FULL_SIZE, sizes, 1).total / 1e9
        assert found == pytest.approx(step, abs=6e-3)


def test_a_training_step_has_shapes_at_full_size():
    shape = jax.ShapeDtypeStruct
    context = Context(
        shape((2, 63, 2048), jnp.bfloat16),
        shape((2,), jnp.int32),
        shape((2, 1, 14, 28, 64), jnp.bfloat16),
        shape((2, 8), jnp.float32),
    )
    cell, action = shape((2, 14, 28, 64), jnp.float32), shape((2, 16, 7), jnp.float32)
    time = shape((2,), jnp.float32)
    draws = Draws(cell, time, action, time)
    model = jax.eval_shape(lambda: ImageWAM(FULL_SIZE, rngs=nnx.Rngs(0)))
    gradient = jax.eval_shape(
        jax.grad(lambda m, sample, draws: m.training_loss(sample, draws)[0]),
        model,
        Sample(context, cell, action),
        draws,
    )
    shapes = [[x.shape for x in jax.tree.leaves(tree)] for tree in (gradient, model)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"heads": 20}, "heads 20 is not a multiple of 7"),
        ({"dim": 2521}, "dim 2521 is not a multiple of 21"),
        ({"rope_axes": (60, 60)}, "must be three that add up to dim / heads = 120"),
        ({"in_channels": 62}, "in_channels 62 is not a multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit(changes, problem):
    with pytest.raises(ValueError, match=problem):
        OmniGen2Config(**changes)
