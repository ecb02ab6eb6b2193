"""The least that a step takes, against numbers worked out by hand from the policy's sizes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from imagewam_jax.models.parameters import abstract_params, flatten
from imagewam_jax.tpu_plans.floor import Stage, acting_stages, training_stages
from imagewam_jax.training.chips import chip_named
from tests.tpu_plans.test_useful_flops import SIZES, policy

V5E = chip_named("v5e")
AXES = ("data", "fsdp", "context", "tensor")


def mesh(*shape: int) -> AbstractMesh:
    return AbstractMesh(shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)


def test_a_stage_takes_the_longest_of_three():
    stage = Stage("some", flops=197e12, read=2 * 819e9, received=3e11)
    assert stage.seconds(V5E, links=1e12) == pytest.approx(2)
    assert stage.seconds(V5E, links=1e11) == pytest.approx(3)
    assert dataclasses.replace(stage, read=0.0).seconds(V5E, links=1e12) == pytest.approx(1)


def test_parameters_come_twice_and_gradients_go_once():
    """8 chips share a matrix, 4 and 4: each receives 3 quarters of it, in 2 bytes, three times
    over, and then half of what it has twice, for the sum over the 2 copies."""
    slice_ = mesh(2, 4, 1, 1)

    def leaf(spec):
        return jax.ShapeDtypeStruct((1024, 512), jnp.float32, sharding=NamedSharding(slice_, spec))

    size = 1024 * 512
    (stage,) = training_stages(8e12, slice_, {"kernel": leaf(P("fsdp"))}, {})
    quarter = 2 * size / 4
    assert stage.flops == 1e12
    assert stage.received == 3 * 3 * quarter + quarter
    # What is not trained has no gradients; what is whole on all 8 chips is summed over them.
    (fixed,) = training_stages(8e12, slice_, {}, {"kernel": leaf(P("fsdp"))})
    assert fixed.received == 2 * 3 * quarter
    (whole,) = training_stages(8e12, slice_, {"kernel": leaf(P())}, {})
    assert whole.received == 2 * (7 / 8) * 2 * size


def test_acting_reads_weights_as_often_as_needed():
    """4B, one robot, 10 Euler steps: 64 rows of text, the state's and 14 x 28 of images."""
    config, sizes = policy("4b"), SIZES._replace(batch=1)
    encoder = {
        "encoder": {"kernel": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)},
        "decoder": {"kernel": jax.ShapeDtypeStruct((5000, 1000), jnp.float32)},
    }
    stages = acting_stages(
        config,
        sizes,
        mesh(1, 1, 1, 1),
        steps=10,
        weight_bytes=2,
        autoencoder_flops=0.415e12,
        autoencoder=encoder,
    )
    images, prefill, euler = stages
    assert images.read == 4e6
    weights = {path: 2 * math.prod(x.shape) for path, x in flatten(abstract_params(config)).items()}

    def whole(*parts: str) -> int:
        return sum(n for path, n in weights.items() if any(part in path for part in parts))

    heads = sum(n for path, n in weights.items() if path.startswith("backbone") and "head" in path)
    assert prefill.read == pytest.approx(whole("backbone", "proprio") - heads, rel=1e-3)
    # Keys and values of 457 tokens in 25 layers, with 24 heads of 128 channels.
    cache = 2 * 457 * 25 * 24 * 128 * 2
    once = sum(n for path, n in weights.items() if path.startswith("expert") and "modul" in path)
    each = whole("expert") - once + cache
    assert euler.read == pytest.approx(once + 10 * each, rel=0.02)
    seconds = [stage.seconds(V5E, links=1.0) for stage in stages]
    assert sum(seconds) == pytest.approx(0.034, abs=0.002)
    # Prefill computes longer than it reads, and each Euler step of 16 tokens reads longer.
    assert seconds[1] == prefill.flops / V5E.flops
    assert seconds[2] == euler.read / V5E.hbm_bandwidth
