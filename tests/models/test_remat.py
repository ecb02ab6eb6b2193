"""What the backward pass keeps and computes again, for each setting, against sums by hand."""

import dataclasses
import functools
import json
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.flux2 import Flux2Config
from imagewam_jax.models.imagewam import Context, ImageWAMConfig, Sample, sample_draws
from imagewam_jax.models.parameters import initial_params, policy_builder
from imagewam_jax.models.remat import NAMES, POLICIES, remat_policy
from imagewam_jax.tpu_plans.flops import function_flops

# No two of these sizes are equal, so that a shape says which array it is of.
BATCH, ROWS, COLUMNS, TEXT, ACTIONS = 2, 2, 3, 5, 7
DIM, WIDTH, MLP, HEADS = 16, 16, 48, 2
EXPERT, EXPERT_MLP = 12, 36
DOUBLE, SINGLE = 2, 3
TARGET, CONTEXT = ROWS * COLUMNS, ROWS * COLUMNS + TEXT
TOKENS, LAYERS = TARGET + CONTEXT, DOUBLE + SINGLE

POLICY = ImageWAMConfig(
    backbone=Flux2Config(
        in_channels=3,
        text_dim=11,
        dim=DIM,
        heads=HEADS,
        double_layers=DOUBLE,
        single_layers=SINGLE,
        mlp_ratio=MLP / DIM,
        rope_axes=(2, 2, 2, 2),
    ),
    expert=ActionExpertConfig(action_dim=4, dim=EXPERT, mlp_ratio=EXPERT_MLP / EXPERT),
    horizon=ACTIONS,
)
ALL = "qkv+attended+mlp+out"
SETTINGS = [*POLICIES, *NAMES, "qkv+mlp", ALL]

# FLOPs of the products behind each name, forward, in all layers of backbone and expert.
_PER_LAYER = {
    "qkv": 3 * (TOKENS * DIM + ACTIONS * EXPERT) * WIDTH,
    "attended": WIDTH
    * (TARGET * TOKENS + CONTEXT * CONTEXT + ACTIONS * (ACTIONS + CONTEXT)),  # weights x values
    "mlp": 2 * (TOKENS * DIM * MLP + ACTIONS * EXPERT * EXPERT_MLP),
    "out": TOKENS * (WIDTH + MLP) * DIM + ACTIONS * (WIDTH + EXPERT_MLP) * EXPERT,
}
FLOPS = {name: 2 * BATCH * LAYERS * products for name, products in _PER_LAYER.items()}


def loss(setting):
    build = policy_builder(dataclasses.replace(POLICY, remat=setting))
    key = jax.random.key(1)
    shapes = ((BATCH, TEXT, 11), (BATCH, 1, ROWS, COLUMNS, 3), (BATCH, ROWS, COLUMNS, 3))
    text, references, target = (jax.random.normal(key, shape) for shape in shapes)
    context = Context(text, jnp.array([TEXT, TEXT - 2]), references, None)
    sample = Sample(context, target, jax.random.normal(key, (BATCH, ACTIONS, 4)))
    draws = sample_draws(key, sample)
    return lambda weights: build(weights).training_loss(sample, draws)[0]


@functools.cache
def params():
    return initial_params(POLICY, 0)


@functools.cache
def step_flops(setting) -> float:
    return function_flops(jax.grad(loss(setting)), params())


@functools.cache
def kept(setting) -> Counter:
    """The shapes of all that the forward pass leaves to the backward pass."""
    pulled = jax.eval_shape(lambda p: jax.vjp(loss(setting), p)[1], params())
    return Counter(leaf.shape for leaf in jax.tree.leaves(pulled))


@functools.cache
def gradients(setting):
    return jax.jit(jax.grad(loss(setting)))(params())


def of_all_streams(count: int, backbone: int, expert: int) -> dict:
    """How many arrays are kept of each shape, of tensors of these widths."""
    return {
        (SINGLE, BATCH, TOKENS, backbone): count,
        (DOUBLE, BATCH, TARGET + ROWS * COLUMNS, backbone): count,
        (DOUBLE, BATCH, TEXT, backbone): count,
        (SINGLE, BATCH, ACTIONS, expert): count,
        (DOUBLE, BATCH, ACTIONS, expert): count,
    }


def numbers(shapes: Counter) -> int:
    return sum(count * math.prod(shape) for shape, count in shapes.items())


# Each is compiled. What the others keep is seen without that, below.
COMPILED = {"full", "save_matmuls", ALL}


@pytest.mark.parametrize(
    "setting",
    [
        s if s in COMPILED else pytest.param(s, marks=pytest.mark.slow)
        for s in SETTINGS
        if s != "none"
    ],
)
def test_gradients_are_those_of_every_other_setting(setting):
    pairs = zip(*map(jax.tree.leaves, (gradients(setting), gradients("none"))), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("setting", [*NAMES, "qkv+mlp", ALL])
def test_what_is_kept_is_not_computed_again(setting):
    saved = step_flops("full") - step_flops(setting)
    assert saved == sum(FLOPS[name] for name in setting.split("+"))


def test_all_names_leave_the_scores_alone_to_compute_again():
    """The weights of attention are as many products as what attention gives."""
    again = step_flops(ALL) - step_flops("none")
    assert again == FLOPS["attended"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qkv", of_all_streams(3, WIDTH, WIDTH)),
        (
            "attended",
            {
                (layers, BATCH, tokens, HEADS, WIDTH // HEADS): 1
                for layers in (DOUBLE, SINGLE)
                for tokens in (TARGET, CONTEXT, ACTIONS)
            },
        ),
        ("mlp", of_all_streams(2, MLP, EXPERT_MLP)),
        (
            "out",
            {
                (SINGLE, BATCH, TOKENS, DIM): 1,
                (DOUBLE, BATCH, TARGET + ROWS * COLUMNS, DIM): 2,
                (DOUBLE, BATCH, TEXT, DIM): 2,
                (SINGLE, BATCH, ACTIONS, EXPERT): 1,
                (DOUBLE, BATCH, ACTIONS, EXPERT): 2,
            },
        ),
    ],
)
def test_what_is_named_is_what_is_kept(name, expected):
    before, after = kept("full"), kept(name)
    assert after - before == Counter(expected)
    assert not before - after


def test_names_keep_less_than_all_products_and_compute_no_more():
    """One sum of two branches is kept where the products of both are."""
    full, names, products = (numbers(kept(s)) for s in ("full", ALL, "save_matmuls"))
    assert full < names
    assert step_flops(ALL) < step_flops("save_matmuls")
    without = numbers(kept("qkv+mlp+out"))
    assert full < without < products
    assert step_flops("qkv+mlp+out") == step_flops("save_matmuls")


def test_what_is_kept_on_the_host_goes_there_and_nothing_else_does():
    """On a CPU both are one memory, so this is read from the traced program."""
    program = str(jax.make_jaxpr(jax.grad(loss("attended+mlp@host")))(params()))
    sent = re.findall(r"f32<host>(\[[\d,]*\]) = device_put", program)
    one_layer = {
        (BATCH, TOKENS, MLP): 2,
        (BATCH, TARGET + ROWS * COLUMNS, MLP): 2,
        (BATCH, TEXT, MLP): 2,
        (BATCH, ACTIONS, EXPERT_MLP): 4,  # of both groups
    }
    assert Counter(tuple(json.loads(shape)) for shape in sent) == Counter(one_layer)
    assert step_flops("attended+mlp@host") == step_flops("attended+mlp")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("some", r"unknown remat policy 'some'; choose from \['full', 'none', 'save_matmuls'\]"),
        ("qkv+mpl", r"'mpl' is none of \['attended', 'mlp', 'out', 'qkv'\]"),
        ("full+qkv", "'full' is none of"),
        ("qkv+", "'' is none of"),
        ("qkv+mlp+qkv@host", "names 'qkv' twice"),
    ],
)
def test_a_setting_that_does_not_exist_is_told(setting, message):
    with pytest.raises(ValueError, match=message):
        remat_policy(setting)
