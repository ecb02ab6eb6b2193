"""Ovis-U1 against itself, on recorded inputs and weights, and at full size. Recorded outputs are
compared in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from imagewam_jax.models import flops
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.base import Backbone, BackboneConfig, Expert
from imagewam_jax.models.backbones.ovis_u1 import OVIS_U1, OvisU1Config
from imagewam_jax.models.imagewam import Context, Draws, ImageWAM, ImageWAMConfig, Sample
from imagewam_jax.models.parameters import abstract_params, flatten, parameter_reads
from imagewam_jax.training.state import trained_paths
from imagewam_jax.weights.layouts.imagewam import imagewam_config
from tests.goldens import golden
from tests.models import official

FULL_SIZE = ImageWAMConfig(OVIS_U1, ActionExpertConfig(dim=OVIS_U1.dim), proprio_dim=8)
TIMESTEP = np.array([300.0, 800.0], np.float32)


@pytest.fixture(scope="module")
def policy():
    folder = golden("imagewam_ovis_u1")
    config = imagewam_config(official.tensors_of(folder).specs, official.config_of(folder))
    return official.policy_of(folder, config)


@pytest.fixture(scope="module")
def full_size():
    """Shapes of all parameters at full size, by path."""
    return flatten(abstract_params(FULL_SIZE))


@pytest.fixture(scope="module")
def step():
    """A recorded training step: its sample, and its noises and times."""
    io = load_file(golden("imagewam_ovis_u1") / "train.safetensors")
    return official.case_of(io, lambda tokens: tokens.reshape(len(tokens), 2, 3, -1))


@pytest.fixture(scope="module")
def predicted(policy, step):
    """A function from changes of context, target and action to (target's, action's) velocity."""
    sample, draws = step

    def predict(target=draws.target_noise, action=draws.action_noise, **changes):
        context = sample.context._replace(**changes)
        return official.velocities(policy, context, target, TIMESTEP, action, TIMESTEP)

    return predict


def test_it_is_what_the_protocols_say(policy):
    assert isinstance(policy.config.backbone, BackboneConfig)
    assert isinstance(policy.backbone, Backbone)
    assert isinstance(policy.expert, Expert)


def test_acting_from_the_cache_is_the_joint_forward(policy, step, predicted):
    """At equal times, with two pairs of keys and values in each double layer."""
    sample, draws = step
    _, joint = predicted()
    cache = official.prefill(policy, sample.context, TIMESTEP)
    double, _ = cache.groups
    rows = 6, 6 + 7 + 1  # references, and with the text and the robot state
    assert double.image.k.shape[2] == rows[0] and double.joint.k.shape[2] == rows[1]
    official.assert_acting_is(joint, policy, cache, draws.action_noise, TIMESTEP)


def test_who_sees_whom(step, predicted):
    """What a stream must not see changes no bit of it; what it sees does."""
    sample, draws = step
    target, action = predicted()
    other_target, same_action = predicted(target=-draws.target_noise)
    np.testing.assert_array_equal(action, same_action)
    same_target, other_action = predicted(action=-draws.action_noise)
    np.testing.assert_array_equal(target, same_target)
    assert not np.allclose(target, other_target) and not np.allclose(action, other_action)
    for name in ("text", "references", "proprio"):
        for before, after in zip(
            (target, action), predicted(**{name: -getattr(sample.context, name)}), strict=True
        ):
            assert np.abs(before - after).max() > 0.01, name


def test_text_beyond_its_length_does_not_matter(step, predicted):
    """Neither to the refiner of the text, nor to the layers."""
    context = step[0].context
    assert context.text_length[0] < context.text.shape[1]
    junk = context.text.copy()
    junk[0, context.text_length[0] :] = np.nan
    expected, found = predicted(), predicted(text=np.nan_to_num(junk, nan=7.0))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_order_of_the_text_does_not_matter(step, predicted):
    """It has no positions."""
    context = step[0].context
    n = context.text_length[0]
    text = context.text.copy()
    text[0, :n] = text[0, :n][::-1]
    for one, other in zip(predicted(), predicted(text=text), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_in_bfloat16_it_computes_in_bfloat16():
    """Parameters of one dtype make tokens and caches of that dtype; nothing promotes them."""

    def compute(params, context, target, timestep, actions):
        model = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        velocities = model.velocities(context, target, timestep, actions, timestep)
        return *velocities, model.prefill(context)

    config = ImageWAMConfig(OVIS_U1, FULL_SIZE.expert, proprio_dim=8, coordinate_dtype="bfloat16")
    model = jax.eval_shape(lambda: ImageWAM(config, rngs=nnx.Rngs(0)))
    sample, _ = abstract_step(jnp.bfloat16)
    time = jax.ShapeDtypeStruct((2,), jnp.bfloat16)
    *velocities, cache = jax.eval_shape(
        compute, model, sample.context, sample.target, time, sample.actions
    )
    assert {x.dtype for x in velocities} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(cache.groups)} == {jnp.dtype("bfloat16")}


def test_full_size(full_size):
    """docs/spec/imagewam_ovis_u1.md, 2, 7 and 13."""
    for part, numbers in (("backbone", 1_127_227_408), ("expert", 1_041_423_367)):
        assert sum(x.size for p, x in full_size.items() if p.startswith(f"{part}.")) == numbers
    # TFLOPs of a prefill and GFLOPs of an Euler step; the robot state is one row more.
    for text_tokens, grid, prefill, step in (
        (314, (14, 28), 0.8676, 20.08),
        (310, (18, 16), 0.7270, 19.83),
        (512, (18, 16), 0.9916, None),
    ):
        sizes = flops.Sizes(1, text_tokens, grid, grid)
        assert flops.prefill(FULL_SIZE, sizes).total / 1e12 == pytest.approx(prefill, abs=6e-5)
        if step is not None:
            found = flops.euler_steps(FULL_SIZE, sizes, 1).total / 1e9
            assert found == pytest.approx(step, abs=6e-3)


def test_what_nothing_reads_is_not_trained(full_size):
    """The text's part of the expert's double layers."""
    unread = {path for path, is_read in parameter_reads(FULL_SIZE).items() if not is_read}
    assert all(path.startswith("expert.double_layers.text.") for path in unread)
    assert sum(full_size[path].size for path in unread) == 254_943_744
    assert trained_paths(FULL_SIZE, ()) == full_size.keys() - unread
    counted = {".".join(kernel.path) for kernel in flops.kernels(FULL_SIZE)}
    assert not counted & unread


def abstract_step(dtype):
    """Shapes of a training step at full size."""
    shape = jax.ShapeDtypeStruct
    context = Context(
        shape((2, 319, OVIS_U1.text_dim), dtype),
        shape((2,), jnp.int32),
        shape((2, 1, 14, 28, OVIS_U1.in_channels), dtype),
        shape((2, 8), jnp.float32),
    )
    cell, action = (shape((2, *s), jnp.float32) for s in ((14, 28, 16), (16, 7)))
    time = shape((2,), jnp.float32)
    return Sample(context, cell, action), Draws(cell, time, action, time)


def test_a_training_step_has_shapes_at_full_size():
    model = jax.eval_shape(lambda: ImageWAM(FULL_SIZE, rngs=nnx.Rngs(0)))
    gradient = jax.eval_shape(
        jax.grad(lambda m, sample, draws: m.training_loss(sample, draws)[0]),
        model,
        *abstract_step(jnp.bfloat16),
    )
    shapes = [[x.shape for x in jax.tree.leaves(tree)] for tree in (gradient, model)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"heads": 5}, "dim 1536 is not a multiple of 2 x heads = 10"),
        ({"rope_axes": (64, 64)}, "must be three that add up to dim / heads = 128"),
        ({"rope_axes": (16, 56, 55)}, "must be three that add up to dim / heads = 128"),
    ],
)
def test_sizes_that_do_not_fit(changes, problem):
    with pytest.raises(ValueError, match=problem):
        OvisU1Config(**changes)
