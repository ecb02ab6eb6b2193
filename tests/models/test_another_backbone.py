"""A backbone that is unlike FLUX.2, of which the policy knows the protocol alone.

It has one group of layers with two attentions each, a refiner of references that depends on time,
and positions of images that begin behind the text.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.attention import KV, attend_xla
from imagewam_jax.models.backbones import BACKBONES
from imagewam_jax.models.backbones.base import Backbone, BackboneConfig, Expert
from imagewam_jax.models.blocks import (
    ParallelBlock,
    SequentialBlock,
    attend_action,
    attend_streams,
)
from imagewam_jax.models.imagewam import Context, ImageWAM, ImageWAMConfig, Sample, sample_draws
from imagewam_jax.models.layers import (
    Axis,
    Linear,
    ModulationHead,
    OutputHead,
    TimeEmbedding,
    rope_tables,
    stacked,
)
from imagewam_jax.parity.cases.base import run_once

AXES, THETA = (4, 2, 2), 100.0


@dataclass(frozen=True)
class TwiceConfig:
    in_channels: int = 3
    text_dim: int = 5
    dim: int = 16
    heads: int = 2
    head_dim: int = 8
    layers: int = 3

    @property
    def kv_heads(self):
        return self.heads

    @property
    def extra_attentions(self):
        return {"reference": 1}

    @property
    def group_sizes(self):
        return (self.layers,)


class TwiceLayer(nnx.Module):
    def __init__(self, dim, config, *, rngs):
        sizes = (dim, config.heads, config.head_dim, 2 * dim)
        self.first = SequentialBlock(*sizes, rngs=rngs)
        self.second = ParallelBlock(*sizes, rngs=rngs)

    def run(self, x, condition, attend):
        left = {}
        for name, on in (("first", condition[:2]), ("second", condition[2:])):
            block = getattr(self, name)
            attended, left[name] = attend(name, *block.project(x, on))
            x = block.finish(x, attended, on)
        return x, left


class ContextLayer(TwiceLayer):
    def __call__(self, x, condition, layout):
        return self.run(x, condition, lambda _, *qkv: attend_streams(*qkv, layout))


class ActionLayer(TwiceLayer):
    def __call__(self, x, condition, context, layout):
        def attend(name, *qkv):
            return attend_action(*qkv, context[name], layout), None

        return self.run(x, condition, attend)[0]


class TwiceNetwork(nnx.Module):
    """The parts that backbone and expert have in common."""

    ROWS: ClassVar = {}

    def __init__(self, layer, config, dim, out, sizes, *, rngs):
        self.config = config
        self.time_in = TimeEmbedding(dim, rngs=rngs)
        self.modulation = ModulationHead(dim, 3, rngs=rngs)
        self.layers = stacked(lambda rngs: layer(dim, sizes, rngs=rngs), sizes.layers, rngs)
        self.head = OutputHead(dim, Axis("out", out), rngs=rngs)

    @property
    def groups(self):
        return (self.layers,)

    def condition(self, timestep_b):
        time = self.time_in(timestep_b / 1000)
        return self.modulation(time), self.head.condition(time)

    def group_conditions(self, condition):
        return condition[:1]

    def predict(self, x, condition):
        return self.head(x, condition[1])


class TwiceExpert(TwiceNetwork):
    def __init__(self, config, sizes, *, rngs):
        super().__init__(ActionLayer, config, config.dim, config.action_dim, sizes, rngs=rngs)
        self.embedding = Linear(
            Axis("action", config.action_dim), Axis("embed", config.dim), rngs=rngs
        )

    def action_in(self, actions):
        return self.embedding(actions)


class Twice(TwiceNetwork):
    def __init__(self, config, *, rngs):
        super().__init__(ContextLayer, config, config.dim, config.in_channels, config, rngs=rngs)
        embed = Axis("embed", config.dim)
        self.image_in = Linear(Axis("channels", config.in_channels), embed, rngs=rngs)
        self.text_in = Linear(Axis("text", config.text_dim), embed, rngs=rngs)
        sizes = (config.dim, config.heads, config.head_dim, 8)
        self.refiner = ParallelBlock(*sizes, rngs=rngs)

    def embed(self, target, references, text, condition, layout):
        b, k, *_ = references.shape
        x, on = self.image_in(references).reshape(b, -1, self.config.dim), condition[0][:1]
        each = [
            self.refiner.finish(one, attend_xla(q, [KV(k, v)]), on)
            for one in jnp.split(x, k, axis=1)
            for q, k, v in [self.refiner.project(one, on)]
        ]
        target = [] if target is None else [self.image_in(target).reshape(b, -1, self.config.dim)]
        return jnp.concatenate([*target, *each, self.text_in(text)], axis=1), condition

    def make_expert(self, config, *, rngs):
        return TwiceExpert(config, self.config, rngs=rngs)

    def rope(self, text_index_bt, text_length_b, reference_grid, references, target_grid, dtype):
        images = [] if target_grid is None else [self.target_positions(target_grid)]
        images += [self.reference_positions(reference_grid, k) for k in range(references)]
        images = np.concatenate(images)[None]
        behind_text = text_length_b[:, None, None] * np.array([1, 0, 0])
        text = text_index_bt[..., None] + jnp.zeros((len(text_length_b), 1, 3), jnp.int32)
        return self.rope_at(jnp.concatenate([images + behind_text, text], axis=1), dtype)

    def action_rope(self, horizon, dtype):
        return self.rope_at(self.action_positions(horizon)[None], dtype)

    def rope_at(self, positions, dtype):
        return rope_tables(positions, AXES, THETA, dtype)

    def target_positions(self, grid):
        rows, columns = np.indices(grid).reshape(2, -1)
        return np.stack([np.full_like(rows, 7), rows, columns], -1)

    def reference_positions(self, grid, index=0):
        rows, columns = np.indices(grid).reshape(2, -1)
        return np.stack([np.full_like(rows, index), rows, columns], -1)

    def action_positions(self, horizon):
        return np.arange(horizon)[:, None] * np.array([1, 0, 0])


@pytest.fixture(scope="module")
def policy():
    config = ImageWAMConfig(
        TwiceConfig(), ActionExpertConfig(action_dim=4, dim=12), proprio_dim=2, horizon=5
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "twice", (TwiceConfig, Twice))
        return jax.jit(lambda: ImageWAM(config, rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    shapes = {"text": (2, 6, 5), "references": (2, 2, 2, 3, 3), "proprio": (2, 2)}
    parts = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    context = Context(text_length=np.array([3, 6]), **parts)
    target, actions = (rng.normal(size=s).astype(np.float32) for s in ((2, 2, 3, 3), (2, 5, 4)))
    return Sample(context, target, actions)


def test_it_is_what_the_protocols_say(policy):
    assert isinstance(policy.config.backbone, BackboneConfig)
    assert isinstance(policy.backbone, Backbone)
    assert isinstance(policy.expert, Expert)


def test_it_is_trained(policy, sample):
    draws = sample_draws(jax.random.key(0), sample)
    gradients = run_once(jax.grad(lambda p: p.training_loss(sample, draws)[0]))(policy)
    for path, gradient in nnx.to_flat_state(nnx.state(gradients)):
        assert np.any(gradient[...]), path


def test_it_acts_from_the_cache_as_in_the_joint_forward(policy, sample):
    timestep = np.full(2, 250, np.float32)
    _, joint = run_once(ImageWAM.velocities)(
        policy, sample.context, sample.target, timestep, sample.actions, timestep
    )
    cache = run_once(ImageWAM.prefill)(policy, sample.context, timestep)
    (left,) = cache.groups
    assert left.keys() == {"first", "second"} and left["first"].k.shape[0] == 3
    schedule = policy.action_schedule(1)._replace(timestep=timestep[:1])
    _, steps = run_once(ImageWAM.act)(policy, cache, sample.actions, schedule)
    np.testing.assert_allclose(steps.velocity[0], joint, atol=2e-6)


def test_it_imagines(policy, sample):
    schedule = policy.target_schedule(2)
    image, _ = run_once(ImageWAM.imagine)(policy, sample.context, sample.target, schedule)
    assert image.shape == sample.target.shape and np.isfinite(image).all()
