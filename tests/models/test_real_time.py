"""Chunks that go on from known actions: of trained policies, and of guided ones."""

import dataclasses
import functools
from functools import partial

import jax
import numpy as np
import pytest

from imagewam_jax.models import flow_matching
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.flux2 import Flux2Config
from imagewam_jax.models.backbones.omnigen2 import OmniGen2Config
from imagewam_jax.models.backbones.ovis_u1 import OvisU1Config
from imagewam_jax.models.imagewam import Context, Draws, ImageWAM, ImageWAMConfig, Sample
from imagewam_jax.models.parameters import abstract_params, policy_builder
from imagewam_jax.models.real_time import (
    EulerStep,
    Guidance,
    GuidanceConfig,
    Prefix,
    guidance_gain,
    guidance_weights,
    row_condition,
    sample_delays,
)

BATCH, HORIZON, DIMS, STEPS = 3, 6, 4, 3
BACKBONES = {
    "flux2": Flux2Config(
        in_channels=4,
        text_dim=6,
        dim=16,
        heads=2,
        double_layers=1,
        single_layers=1,
        mlp_ratio=2.0,
        rope_axes=(2, 2, 2, 2),
    ),
    "omnigen2": OmniGen2Config(
        in_channels=4,
        text_dim=6,
        dim=24,
        heads=3,
        kv_heads=1,
        layers=1,
        refiner_layers=1,
        mlp_dim=32,
        rope_axes=(4, 2, 2),
    ),
    "ovis_u1": OvisU1Config(
        in_channels=4,
        text_dim=6,
        dim=32,
        heads=2,
        double_layers=1,
        single_layers=1,
        mlp_ratio=2.0,
        refiner_layers=1,
        rope_axes=(4, 6, 6),
    ),
}


class Case:
    """A policy with random weights, a sample, noise, and its functions compiled."""

    def __init__(self, backbone: str):
        expert = ActionExpertConfig(action_dim=DIMS, dim=12, mlp_ratio=2.0)
        config = ImageWAMConfig(BACKBONES[backbone], expert, horizon=HORIZON, remat="none")
        rng = np.random.default_rng(0)
        self.policy = policy_builder(config)(
            jax.tree.map(
                lambda p: rng.normal(0, 0.15, p.shape).astype(np.float32), abstract_params(config)
            )
        )

        def normal(*shape):
            return rng.normal(size=(BATCH, *shape)).astype(np.float32)

        context = Context(normal(5, 6), np.array([3, 5, 4]), normal(1, 2, 2, 4), None)
        self.sample = Sample(context, normal(2, 2, 4), normal(HORIZON, DIMS))
        self.noise, self.known = normal(HORIZON, DIMS), normal(HORIZON, DIMS)
        self.target_noise = normal(2, 2, 4)
        self.schedule = self.policy.action_schedule(STEPS)
        self.act = partial(jax.jit(ImageWAM.act), self.policy)
        self.prefill = partial(jax.jit(ImageWAM.prefill), self.policy)
        self.velocities = partial(jax.jit(ImageWAM.velocities), self.policy)
        self.cache = self.prefill(context, np.full(BATCH, 300, np.float32))
        self.plain, self.plain_steps = self.act(self.cache, self.noise, self.schedule)

    def at(self, timestep: float) -> flow_matching.Schedule:
        """A schedule whose first step is at this time: its first velocity is that of the expert."""
        return self.schedule._replace(timestep=np.full(STEPS, timestep, np.float32))


case_of = functools.cache(Case)


OTHERS = (pytest.param(name, marks=pytest.mark.slow) for name in ("omnigen2", "ovis_u1"))


@pytest.fixture(params=["flux2", *OTHERS])
def case(request):
    return case_of(request.param)


@pytest.fixture
def flux2():
    return case_of("flux2")


def test_known_actions_come_back_exactly_and_what_follows_goes_by_them(case):
    delay = np.array([0, 2, HORIZON], np.int32)
    found, steps = case.act(case.cache, case.noise, case.schedule, Prefix(case.known, delay))
    for row, d in enumerate(delay):
        np.testing.assert_array_equal(found[row, :d], case.known[row, :d])
        np.testing.assert_array_equal(steps.state[0, row, :d], case.known[row, :d])
    np.testing.assert_allclose(found[0], case.plain[0], atol=1e-6)  # d = 0: the untouched network
    assert np.abs(found[1, 2:] - case.plain[1, 2:]).max() > 1e-3


def test_another_delay_is_no_other_program(case):
    programs = []
    for delay in ([0, 1, 2], [5, 4, 3]):
        prefix = Prefix(case.known, np.array(delay, np.int32))
        case.act(case.cache, case.noise, case.schedule, prefix)
        programs.append(case.act.func._cache_size())
    assert programs[0] == programs[1]


def test_rows_of_equal_times_are_one_time(case):
    """At time 0 it makes no difference which rows are known."""
    delay = np.array([0, 2, 4], np.int32)
    rows = np.arange(HORIZON)[None, :, None] < delay[:, None, None]
    noisy = np.where(rows, case.known, case.noise)
    _, expected = case.act(case.cache, noisy, case.at(0))
    _, found = case.act(case.cache, noisy, case.at(0), Prefix(case.known, delay))
    np.testing.assert_allclose(found.velocity[0], expected.velocity[0], atol=2e-6)
    _, later = case.act(case.cache, noisy, case.at(400), Prefix(case.known, delay))
    _, all_later = case.act(case.cache, noisy, case.at(400))
    assert np.abs(later.velocity[0] - all_later.velocity[0])[1:].max() > 1e-3


def test_training_and_acting_give_known_rows_the_same_time(case):
    """The joint forward of training is the expert against the cache, row by row."""
    delay = np.array([0, 2, 4], np.int32)
    is_known = np.arange(HORIZON) < delay[:, None]
    noisy = np.where(is_known[..., None], case.known, case.noise)
    at_300, at_700 = np.full(BATCH, 300, np.float32), np.full(BATCH, 700, np.float32)
    sample = case.sample
    _, joint = case.velocities(sample.context, sample.target, at_300, noisy, at_700, is_known)
    _, steps = case.act(case.cache, case.noise, case.at(700), Prefix(case.known, delay))
    np.testing.assert_allclose(steps.velocity[0], joint, atol=3e-6)


@pytest.mark.slow
def test_the_loss_is_that_of_the_rows_that_are_not_known(flux2):
    sample = flux2.sample._replace(
        delay=np.array([0, 2, 4], np.int32),
        action_is_pad=np.arange(HORIZON) >= np.array([HORIZON, 5, 4])[:, None],
        action_dim_is_pad=np.arange(DIMS) >= np.array([DIMS, 3, DIMS])[:, None],
    )
    u = np.array([0.2, 0.5, 0.8], np.float32)
    draws = Draws(flux2.target_noise, u, flux2.noise, u)
    _, parts = jax.jit(ImageWAM.training_loss)(flux2.policy, sample, draws)

    time = 5 * u / (1 + 4 * u)
    is_known = np.arange(HORIZON) < sample.delay[:, None]

    def noised(clean, noise):
        t = time.reshape(-1, *[1] * (clean.ndim - 1))
        return (1 - t) * clean + t * noise

    noisy = np.where(is_known[..., None], sample.actions, noised(sample.actions, flux2.noise))
    _, predicted = flux2.velocities(
        sample.context,
        noised(sample.target, flux2.target_noise),
        1000 * time,
        noisy,
        1000 * time,
        is_known,
    )
    error = np.square(predicted - (flux2.noise - sample.actions))
    expected = [error[0].mean(), error[1, 2:5, :3].mean(), 0.0]  # of the last, none is left
    np.testing.assert_allclose(parts["action_loss_b"], expected, rtol=2e-5)
    weights = np.asarray(flow_matching.loss_weight(1000 * time, 5.0))
    np.testing.assert_allclose(parts["action_loss"], (weights * expected).mean(), rtol=2e-5)


def test_delays_are_uniform_from_nothing_to_the_largest():
    delays = np.asarray(sample_delays(jax.random.key(0), 4000, 3))
    shares = np.bincount(delays, minlength=5) / len(delays)
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.25, 0.25, 0], atol=0.03)


def test_conditions_that_have_no_place_for_rows():
    known, flat = np.ones((3, 3), bool), np.zeros((3, 8), np.float32)
    with pytest.raises(ValueError, match=r"must have arrays \[b, 1, d\], found \(3, 8\)"):
        row_condition(known, flat, flat)


weights = jax.jit(guidance_weights, static_argnums=(0, 4))


def weights_by_hand(horizon, length, delay, execute, schedule):
    """The formulas of docs/spec/real_time.md, 2, number by number."""
    end = min(horizon - execute, length)
    start = min(delay, end)
    found = []
    for row in range(horizon):
        share = min(1.0, max(0.0, (start - 1 - row) / (end - start + 1) + 1))
        curved = share * (np.exp(share) - 1) / (np.e - 1)
        weight = curved if schedule == "exponential" else share
        found.append(weight if row < end else 0.0)
    return found


@pytest.mark.parametrize("schedule", ["exponential", "linear"])
def test_weights(schedule):
    rng = np.random.default_rng(0)
    for horizon in (8, 50):
        most = (horizon + 1, horizon, horizon)
        length, delay, execute = rng.integers((0, 0, 1), most, (10, 3)).astype(np.int32).T
        found = weights(horizon, length, delay, execute, schedule)
        rows = zip(length, delay, execute, strict=True)
        expected = [weights_by_hand(horizon, *row, schedule) for row in rows]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    example = weights(10, *np.array([[10], [2], [4]]), "linear")
    np.testing.assert_allclose(example[0], [1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0], atol=1e-6)


def test_gains():
    """The table of docs/spec/real_time.md, 2."""
    schedule = flow_matching.sampling_schedule(10, 5.0, np.float32)
    gains = [guidance_gain(t / 1000, d, 5.0) for t, d in zip(*schedule, strict=True)]
    np.testing.assert_allclose(gains, [5] * 6 + [3.63, 2.61, 2.05, 2.36], atol=0.005)
    shares = np.array(gains) * np.abs(schedule.delta)
    expected = [0.11, 0.13, 0.16, 0.19, 0.25, 0.32, 0.32, 0.33, 0.41, 0.84]
    np.testing.assert_allclose(shares, expected, atol=0.005)


def guided_by_constant(steps: int, config: GuidanceConfig) -> list[float]:
    """A field of constant velocity: the largest error before the first step and after each."""
    rng = np.random.default_rng(0)
    wanted, x, constant = rng.normal(size=(3, 1, HORIZON, DIMS)).astype(np.float32)
    guidance = Guidance(wanted, np.ones((1, HORIZON), np.float32), config)
    errors = [np.abs(wanted - (x - constant)).max()]
    schedule = flow_matching.sampling_schedule(steps, 5.0, np.float32)
    for timestep, delta in zip(*schedule, strict=True):
        at = EulerStep(None, timestep, delta)
        velocity = guidance.velocity(lambda x, _: constant + 0 * x, x, at)
        x = flow_matching.euler_step(x, velocity, delta)
        left = float(timestep / 1000 + delta)
        errors.append(float(np.abs(wanted - (x - left * constant)).max()))
    return errors


@pytest.mark.parametrize("follows_network", [True, False])
def test_where_the_jacobian_is_the_identity_the_error_is_almost_gone(follows_network):
    """1.17 % of it after ten steps; correcting in the wrong direction would make it grow."""
    errors = guided_by_constant(10, GuidanceConfig(follows_network=follows_network))
    assert errors[-1] / errors[0] == pytest.approx(0.0117, abs=1e-4)
    assert (np.diff(errors) < 0).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_few_steps_do_not_overshoot(steps):
    errors = guided_by_constant(steps, GuidanceConfig())
    assert (np.diff(errors) < 0).all()


def test_a_guided_policy_of_few_steps_does_not_diverge(flux2):
    guidance = Guidance(flux2.known, np.ones((BATCH, HORIZON), np.float32))
    found, _ = flux2.act(flux2.cache, flux2.noise, flux2.schedule, guidance)
    limit = np.abs(flux2.known).max() + 3 * np.asarray(flux2.plain).std()
    assert np.abs(found).max() < limit
    before = np.abs(flux2.plain - flux2.known).mean()
    assert np.abs(found - flux2.known).mean() < 0.7 * before


@pytest.mark.parametrize("follows_network", [True, False])
def test_rows_of_no_weight_are_those_without_guidance_bit_for_bit(flux2, follows_network):
    weight = np.ones((BATCH, HORIZON), np.float32)
    weight[1] = 0
    guidance = Guidance(flux2.known, weight, GuidanceConfig(follows_network=follows_network))
    found, _ = flux2.act(flux2.cache, flux2.noise, flux2.schedule, guidance)
    np.testing.assert_array_equal(found[1], flux2.plain[1])
    assert np.abs(found - flux2.plain)[[0, 2]].max((1, 2)).min() > 1e-2


def test_the_correction_is_that_of_finite_differences(flux2):
    """Along some directions, at time 0.5, where the gain is 2."""
    rng = np.random.default_rng(1)
    weight = rng.uniform(size=(BATCH, HORIZON)).astype(np.float32)
    schedule = flux2.at(500)._replace(delta=np.full(STEPS, -0.2, np.float32))

    def velocity(x, guidance=None):
        _, steps = flux2.act(flux2.cache, x.astype(np.float32), schedule, guidance)
        return np.asarray(steps.velocity[0], np.float64)

    x = flux2.noise
    plain = velocity(x)
    correction = (plain - velocity(x, Guidance(flux2.known, weight))) / 2
    error = weight[..., None] * (flux2.known - (x - 0.5 * plain))
    for _ in range(5):
        direction = rng.normal(size=x.shape)
        step = 1e-2
        ahead, behind = (x + sign * step * direction for sign in (1, -1))
        moved = (ahead - 0.5 * velocity(ahead)) - (behind - 0.5 * velocity(behind))
        expected = (error * moved).sum((1, 2)) / (2 * step)
        np.testing.assert_allclose(
            (correction * direction).sum((1, 2)), expected, rtol=1e-3, atol=1e-3
        )
    # It is not the identity's.
    assert np.abs(correction - error).max() > 1e-2


@pytest.mark.slow
def test_in_bfloat16_the_guidance_is_float32(flux2):
    """The chunk is of the dtype of coordinates, and rows of no weight are still as they were."""
    policy = jax.tree.map(lambda x: x, flux2.policy)
    policy.config = dataclasses.replace(flux2.policy.config, coordinate_dtype="bfloat16")
    schedule = policy.action_schedule(STEPS)
    act = jax.jit(ImageWAM.act)
    plain, _ = act(policy, flux2.cache, flux2.noise, schedule)
    weight = np.ones((BATCH, HORIZON), np.float32)
    weight[1] = 0
    guidance = Guidance(flux2.known, weight, GuidanceConfig(follows_network=False))
    found, steps = act(policy, flux2.cache, flux2.noise, schedule, guidance)
    assert found.dtype == plain.dtype == "bfloat16" and steps.velocity.dtype == np.float32
    np.testing.assert_array_equal(found[1], plain[1])
    np.testing.assert_allclose(found[0].astype(np.float32), flux2.known[0], atol=0.05)
