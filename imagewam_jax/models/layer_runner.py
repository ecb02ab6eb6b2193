"""The one loop over layers, which training, acting, imagining and every analysis go through.

A run has a backbone, an action expert, or both. The expert's layers attend to the keys and values
that the backbone's layers leave; without a backbone these come from a cache.

    training   both, in lockstep, so that no more than one layer's keys and values are alive
    prefill    the backbone alone; a tap keeps its keys and values
    act        the expert alone, against a cache
    imagine    the backbone alone
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int

from imagewam_jax.models.attention import KV, Attend
from imagewam_jax.models.backbones.base import Transformer
from imagewam_jax.models.blocks import ActionLayout, AttentionLayout
from imagewam_jax.models.partitioning import constrain
from imagewam_jax.models.remat import remat_policy


class Stack(NamedTuple):
    """A transformer that is ready to run.

    tokens: what its first layer takes.
    condition: what its `condition` has made of a time.
    layout: what its layers share.
    """

    network: Transformer
    tokens: Float[Array, "b s d"]
    condition: Any
    layout: AttentionLayout | ActionLayout


class AttentionCall(NamedTuple):
    """The arguments of one attention, as `attention.attention_weights` takes them."""

    q: Float[Array, "b s n h"]
    segments: Sequence[KV]
    length_b: Int[Array, " b"] | None


class Layer(NamedTuple):
    """What a tap sees of one layer, or of one pair of layers that run in lockstep.

    x, a: the tokens of backbone and expert after it; None where there is no such stack.
    context: the keys and values that the context leaves to the action.
    attentions: every attention, in the order in which they were computed.
    """

    x: Float[Array, "b s d"] | None
    a: Float[Array, "b action width"] | None
    context: Any
    attentions: tuple[AttentionCall, ...]


Tap = Callable[[Layer], Any]
Tokens = tuple[Float[Array, "b s d"] | None, Float[Array, "b action width"] | None]


def run_layers(
    backbone: Stack | None = None,
    expert: Stack | None = None,
    *,
    cache: Sequence[Any] | None = None,
    tap: Tap | None = None,
    remat: str | None = None,
    unroll: int = 1,
) -> tuple[Tokens, tuple[Any, ...]]:
    """Runs all layers; returns the tokens of (backbone, expert) after the last, and what `tap`
    returned: for each group of layers, stacked on a leading layer axis.

    cache: what an earlier tap has kept of `Layer.context`, for an expert without a backbone.
    remat: a setting of `models.remat`; None runs without `jax.checkpoint`.
    unroll: how many layers one iteration of the scan holds.
    """
    tokens = tuple(None if stack is None else stack.tokens for stack in (backbone, expert))
    count = len((backbone or expert).network.groups)
    tapped = []
    for (layers, on), (a_layers, a_on), cached in zip(
        _groups(backbone, count), _groups(expert, count), cache or [None] * count, strict=True
    ):

        def step(tokens, layer, on=on, a_on=a_on):
            (x, a), (backbone_layer, expert_layer, context) = tokens, layer
            calls: list[AttentionCall] | None = None if tap is None else []
            if backbone is not None:
                x, context = backbone_layer(x, on, _recording(backbone.layout, calls))
            if expert is not None:
                a = expert_layer(a, a_on, context, _recording(expert.layout, calls))
            if remat is not None:  # tokens are kept for the backward pass, so their place counts
                x, a = (t if t is None else constrain(t, "batch", "tokens", None) for t in (x, a))
            return (x, a), None if tap is None else tap(Layer(x, a, context, tuple(calls)))

        if remat is not None:
            step = jax.checkpoint(step, policy=remat_policy(remat), prevent_cse=False)
        tokens, seen = jax.lax.scan(step, tokens, (layers, a_layers, cached), unroll=unroll)
        tapped.append(seen)
    return tokens, tuple(tapped)


def _groups(stack: Stack | None, count: int) -> list[tuple[Any, Any]]:
    """Each group of layers with its condition."""
    if stack is None:
        return [(None, None)] * count
    network = stack.network
    return list(zip(network.groups, network.group_conditions(stack.condition), strict=True))


def _recording(layout, calls: list[AttentionCall] | None):
    """The layout, with an attention that adds its arguments to `calls`, where there is a list."""
    if calls is None:
        return layout
    attend: Attend = layout.attend

    def recording_attend(q, segments, length_b=None):
        calls.append(AttentionCall(q, segments, length_b))
        return attend(q, segments, length_b)

    return layout._replace(attend=recording_attend)
