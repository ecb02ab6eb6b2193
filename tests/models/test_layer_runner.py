"""The loop over layers, against layers that are called one by one."""

import jax
import numpy as np
import pytest

from imagewam_jax.models.attention import attention_weights
from imagewam_jax.models.backbones.base import Backbone, BackboneConfig, Expert
from imagewam_jax.models.layer_runner import AttentionCall, Stack, run_layers
from tests.goldens import golden
from tests.models import official


@pytest.fixture(scope="module")
def policy():
    return official.load_policy(golden("imagewam_flux2"))


@pytest.fixture(scope="module")
def stacks(policy):
    """Backbone and expert as a training step runs them."""
    _, sample, draws = official.train_case(golden("imagewam_flux2"))
    context = sample.context
    text, layout = policy.layout(context, sample.target.shape[1:3])
    backbone = policy.backbone_stack(
        sample.target, context.references, text, layout, 1000 * draws.target_u
    )
    expert = Stack(
        policy.expert,
        policy.expert.action_in(sample.actions),
        policy.expert.condition(1000 * draws.action_u),
        policy.action_layout(sample.actions.shape[1], layout.context_length_b),
    )
    return backbone, expert


def one_by_one(backbone, expert):
    """The tokens of both, what the context leaves, and the action's attention, of each layer."""
    x, a = backbone.tokens, expert.tokens
    conditions = (s.network.group_conditions(s.condition) for s in (backbone, expert))
    for layers, a_layers, on, a_on in zip(
        backbone.network.groups, expert.network.groups, *conditions, strict=True
    ):
        for i in range(jax.tree.leaves(layers)[0].shape[0]):
            calls = []

            def attend(*arguments, calls=calls):
                calls.append(AttentionCall(*arguments))
                return expert.layout.attend(*arguments)

            layer, a_layer = jax.tree.map(lambda x, i=i: x[i], (layers, a_layers))
            x, context = layer(x, on, backbone.layout)
            a = a_layer(a, a_on, context, expert.layout._replace(attend=attend))
            yield x, a, context, weights_of(calls[-1])


def weights_of(call):
    return attention_weights(call.q, [s.k for s in call.segments], call.length_b)


def layer_by_layer(tapped):
    for group in tapped:
        for i in range(jax.tree.leaves(group)[0].shape[0]):
            yield jax.tree.map(lambda x, i=i: x[i], group)


def see(seen):
    return seen.x, seen.a, seen.context, weights_of(seen.attentions[-1])


def close(found, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), found, expected)


@pytest.mark.parametrize("remat", [None, "full"])
def test_a_tap_sees_each_layer_and_changes_nothing(stacks, remat):
    tokens, tapped = run_layers(*stacks, tap=see, remat=remat)
    expected = list(one_by_one(*stacks))
    found = list(layer_by_layer(tapped))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs)
    close(tokens, expected[-1][:2])
    untapped, nothing = run_layers(*stacks, remat=remat)
    jax.tree.map(np.testing.assert_array_equal, untapped, tokens)
    assert jax.tree.leaves(nothing) == []


def test_an_expert_against_a_cache_is_the_expert_in_lockstep(stacks):
    backbone, expert = stacks
    (x, _), cache = run_layers(backbone, tap=lambda seen: seen.context)
    (nothing, a), seen = run_layers(expert=expert, cache=cache, tap=lambda seen: seen.a)
    assert nothing is None
    (together, a_together), _ = run_layers(backbone, expert)
    close((x, a, seen[-1][-1]), (together, a_together, a_together))


def test_flux2_has_what_the_protocols_say(policy):
    assert isinstance(policy.config.backbone, BackboneConfig)
    assert isinstance(policy.backbone, Backbone)
    assert isinstance(policy.expert, Expert)
