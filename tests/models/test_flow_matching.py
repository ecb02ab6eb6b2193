"""Schedules, noising and loss weights, against the official scheduler's recorded tables."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from imagewam_jax.models.flow_matching import (
    TIMESTEPS,
    add_noise,
    euler_step,
    loss_weight,
    masked_mean,
    sampling_schedule,
    shift_time,
    training_timestep,
    velocity,
)
from tests.goldens import golden
from tests.models.official import config_of

SHIFTS = (1.0, 3.0, 5.0)
LIMIT = 1e-6  # relative
TIMESTEP_LIMIT = 1e-4  # absolute, for numbers near 1000
# Differences of two numbers near each other have the error of these, however small they are:
# one last place of a time for step lengths, and of the bell over its mean (0.19) for weights.
TIME_LAST_PLACE = 6e-8
WEIGHT_LAST_PLACE = 3.2e-7


class Tables:
    """The recorded tensors of one shift; notes which were looked at."""

    def __init__(self, shift: float):
        everything = load_file(golden("scheduler") / "tables.safetensors")
        prefix = f"T{TIMESTEPS}_shift{shift:g}."
        self.tensors = {
            k.removeprefix(prefix): v for k, v in everything.items() if k.startswith(prefix)
        }
        self.tensors["u_grid"] = everything["u_grid"]
        self.seen = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.seen.add(name)
        return self.tensors[name]

    def check(self, name: str, found, rtol: float = LIMIT, atol: float = 0.0):
        expected = self[name]
        assert found.dtype == expected.dtype, name
        np.testing.assert_allclose(
            np.float32(found), np.float32(expected), rtol=rtol, atol=atol, err_msg=name
        )

    def check_timesteps(self, name: str, found):
        self.check(name, found, rtol=0, atol=TIMESTEP_LIMIT)

    def check_exactly(self, name: str, found):
        self.check(name, found, rtol=0)


@pytest.mark.parametrize("shift", SHIFTS)
def test_every_recorded_table(shift):
    tables = Tables(shift)
    tables.check("phi", shift_time(jnp.asarray(tables["u_grid"]), shift))
    weights = loss_weight(jnp.asarray(tables["t_grid"]), shift)
    tables.check("training_weight", weights, atol=WEIGHT_LAST_PLACE)
    assert weights[0] == weights[-1] == 0

    u = jnp.asarray(tables["sample_u"])
    timestep = training_timestep(u, shift, jnp.float32)
    tables.check_timesteps("sample_t", timestep)
    tables.check("sample_weight", loss_weight(tables["sample_t"], shift), atol=WEIGHT_LAST_PLACE)
    rounded = training_timestep(u, shift, jnp.bfloat16)
    tables.check_exactly("sample_t_bf16", rounded)
    tables.check("sample_weight_from_bf16_t", loss_weight(rounded, shift), atol=WEIGHT_LAST_PLACE)

    case = config_of(golden("scheduler"))
    for steps in case["steps"]:
        schedule = sampling_schedule(steps, shift, jnp.float32)
        tables.check_timesteps(f"infer{steps}.timesteps", schedule.timestep)
        tables.check(f"infer{steps}.deltas", schedule.delta, atol=TIME_LAST_PLACE)
        schedule = sampling_schedule(steps, shift, jnp.bfloat16)
        tables.check_exactly(f"infer{steps}.timesteps_bf16", schedule.timestep)
        tables.check_exactly(f"infer{steps}.deltas_bf16", schedule.delta)
    for override in case["shift_override"]:
        schedule = sampling_schedule(10, override, jnp.float32)
        name = f"infer10.override{override:g}"
        tables.check_timesteps(f"{name}.timesteps", schedule.timestep)
        tables.check(f"{name}.deltas", schedule.delta, atol=TIME_LAST_PLACE)

    clean, noise = tables["add_noise.x"], tables["add_noise.noise"]
    time = jnp.asarray(tables["add_noise.t"]) / TIMESTEPS
    tables.check("add_noise.out", add_noise(clean, noise, time), atol=1e-6)
    tables.check("add_noise.target", velocity(clean, noise, jnp.float32))
    delta = jnp.asarray(tables["infer10.deltas"][3])
    tables.check("step.out", euler_step(jnp.asarray(clean), jnp.asarray(noise), delta), atol=1e-6)

    assert tables.seen == set(tables.tensors)


@pytest.mark.parametrize("shift", SHIFTS)
def test_weights_have_mean_one_over_training_times(shift):
    u = (jnp.arange(100_000) + 0.5) / 100_000
    weights = loss_weight(training_timestep(u, shift, jnp.float32), shift)
    assert weights.mean() == pytest.approx(1, abs=5e-3)


def test_a_schedule_goes_all_the_way():
    schedule = sampling_schedule(7, 5.0, jnp.float32)
    time = schedule.timestep / TIMESTEPS
    assert time[0] == 1
    assert schedule.delta.sum() == pytest.approx(-1, abs=1e-6)
    after = time + schedule.delta
    np.testing.assert_allclose(after[:-1], time[1:], atol=1e-6)


def test_a_perfect_velocity_leads_from_noise_to_data():
    rng = np.random.default_rng(0)
    clean, noise = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    x = noise
    for delta in sampling_schedule(10, 5.0, jnp.float32).delta:
        x = euler_step(x, velocity(clean, noise, jnp.float32), delta)
    np.testing.assert_allclose(x, clean, atol=1e-5)


def test_bfloat16_times_make_bfloat16_samples():
    """Every operation is rounded, as in the official bfloat16 runs."""
    clean, noise = np.float32([[0.3]]), np.float32([[1.7]])
    time = training_timestep(jnp.array([0.37]), 5.0, jnp.bfloat16) / TIMESTEPS
    noisy = add_noise(clean, noise, time)
    assert time.dtype == noisy.dtype == jnp.bfloat16

    def r(x):
        return np.float32(jnp.asarray(x, jnp.bfloat16))

    t = r(r(744) / 1000)  # 1000 * 5 u / (1 + 4 u) = 745.97
    expected = r(r(r(1 - t) * r(0.3)) + r(t * r(1.7)))
    assert float(noisy[0, 0]) == expected
    assert velocity(clean, noise, jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("steps", [0, -1])
def test_a_schedule_needs_a_step(steps):
    with pytest.raises(ValueError, match=f"at least one step, got {steps}"):
        sampling_schedule(steps, 5.0, jnp.float32)


def test_masked_mean():
    x = jnp.array([[1.0, 2.0, 6.0], [3.0, 5.0, 7.0], [8.0, 8.0, 8.0]])
    valid = jnp.array([[True, True, False], [True] * 3, [False] * 3])
    np.testing.assert_allclose(masked_mean(x, valid, axis=1), [1.5, 5.0, 0.0])
    np.testing.assert_allclose(masked_mean(x, valid[:1], axis=1), [1.5, 4.0, 8.0])
