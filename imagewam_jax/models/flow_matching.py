"""Flow matching between data (time 0) and noise (time 1) (docs/spec/imagewam_flux2.md, 6).

The official scheduler counts time in timesteps from 0 to 1000. Networks take timesteps, and scale
them as their weights need. `dtype` is the one in which the official code would hold them:
with bfloat16, timesteps, noised samples and Euler steps are rounded as in its bfloat16 runs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

TIMESTEPS = 1000


@dataclass(frozen=True)
class FlowConfig:
    """Time shifts of one modality; a larger shift samples more times near pure noise."""

    train_shift: float = 5.0
    sample_shift: float = 5.0


class Schedule(NamedTuple):
    """Euler steps from noise to data: the timestep of each and its (negative) length in time."""

    timestep: Float[Array, " steps"]
    delta: Float[Array, " steps"]


class Noised(NamedTuple):
    """A training sample at its time, the velocity to be predicted, and the weight of its loss."""

    x: Float[Array, "b ..."]
    timestep_b: Float[Array, " b"]
    velocity: Float[Array, "b ..."]
    weight_b: Float[Array, " b"]


def noised(
    clean: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    u_b: Float[Array, " b"],
    shift: float,
    dtype: jnp.dtype,
) -> Noised:
    """A training sample from data, noise and uniform draws."""
    timestep_b = training_timestep(u_b, shift, dtype)
    return Noised(
        add_noise(clean, noise, timestep_b / TIMESTEPS),
        timestep_b,
        velocity(clean, noise, dtype),
        loss_weight(timestep_b, shift),
    )


def shift_time(u: Float[Array, "..."], shift: float) -> Float[Array, "..."]:
    """`shift u / (1 + (shift - 1) u)`: keeps 0 and 1, and moves all values between towards 1."""
    return shift * u / (1 + (shift - 1) * u)


def training_timestep(
    u_b: Float[Array, " b"], shift: float, dtype: jnp.dtype
) -> Float[Array, " b"]:
    """The timestep of a training sample from a uniform draw."""
    return (TIMESTEPS * shift_time(u_b, shift)).astype(dtype)


def sampling_schedule(steps: int, shift: float, dtype: jnp.dtype) -> Schedule:
    """`steps` Euler steps from time 1 to time 0. ValueError unless there is at least one."""
    if steps < 1:
        raise ValueError(f"a sampling schedule needs at least one step, got {steps}")
    u = np.linspace(1, 0, steps + 1, dtype=np.float32)
    time = shift_time(u, np.float32(shift))
    return Schedule(jnp.asarray(time[:-1] * TIMESTEPS, dtype), jnp.asarray(np.diff(time), dtype))


def add_noise(
    clean: Float[Array, "b ..."], noise: Float[Array, "b ..."], time_b: Float[Array, " b"]
) -> Float[Array, "b ..."]:
    """`(1 - t) clean + t noise`, computed in the dtype of `time_b`."""
    t = time_b.reshape(-1, *[1] * (clean.ndim - 1))
    return (1 - t) * clean.astype(t.dtype) + t * noise.astype(t.dtype)


def velocity(
    clean: Float[Array, "*shape"], noise: Float[Array, "*shape"], dtype: jnp.dtype
) -> Float[Array, "*shape"]:
    """The velocity that the networks predict: `noise - clean`."""
    return noise.astype(dtype) - clean.astype(dtype)


def loss_weight(timestep_b: Float[Array, " b"], shift: float) -> Float[Array, " b"]:
    """Float32 weight of a training sample: a bell over time, 0 at both ends, mean about 1."""
    time_b = timestep_b.astype(jnp.float32) / TIMESTEPS
    bell = jnp.exp(-2 * jnp.square(time_b - 0.5)) - _BELL_MINIMUM
    return bell / (_mean_bell(shift) + 1e-10)


_BELL_MINIMUM = float(np.exp(-0.5))


def _mean_bell(shift: float) -> float:
    """Mean of the bell over the 1000 shifted times 1, 0.999, ..., 0.001."""
    time = shift_time(np.arange(TIMESTEPS, 0, -1) / TIMESTEPS, shift)
    return float(np.mean(np.exp(-2 * (time - 0.5) ** 2) - _BELL_MINIMUM))


def euler_step(
    x: Float[Array, "*shape"], predicted: Float[Array, "*shape"], delta: Float[Array, ""]
) -> Float[Array, "*shape"]:
    """One step along a predicted velocity, in the dtype of `x`."""
    return x + predicted.astype(x.dtype) * delta.astype(x.dtype)


def masked_mean(
    x: Float[Array, "*shape"], valid: Bool[Array, "..."], axis: int
) -> Float[Array, "..."]:
    """Mean over the valid entries of an axis; 0 where there is none."""
    valid = jnp.broadcast_to(valid, x.shape).astype(x.dtype)
    return (x * valid).sum(axis) / jnp.maximum(valid.sum(axis), 1)


def valid_mean(
    error_bsa: Float[Array, "b s a"],
    step_is_out: Bool[Array, "b s"] | None,
    dim_is_out: Bool[Array, "b a"] | None,
) -> Float[Array, " b"]:
    """Mean over dimensions, then over steps, but for those that are out; 0 where none is left."""
    if dim_is_out is None:
        error_bs = error_bsa.mean(-1)
    else:
        error_bs = masked_mean(error_bsa, ~dim_is_out[:, None], axis=-1)
    if step_is_out is None:
        return error_bs.mean(-1)
    return masked_mean(error_bs, ~step_is_out, axis=-1)
