"""What a served policy takes and gives, by the names that clients use (docs/spec/serving.md, 2)."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.datasets import config_mixture, entry_spec
from imagewam_jax.data.tools.rollouts import recorded_row
from imagewam_jax.errors import ConfigError, DataError
from imagewam_jax.policy.checks import check_euler_steps
from imagewam_jax.policy.policy import Policy
from imagewam_jax.policy.real_time import TRAINED, longest_delay, offered_methods
from imagewam_jax.wire.messages import Limits
from imagewam_jax.wire.protocol import MODES, PROTOCOL, RTC_GUIDED, RTC_TRAINED

PRIMARY = "primary"
STATE, PROMPT = "observation/state", "prompt"
_MOST_INSTRUCTIONS = 1000  # that the metadata list
OFF = "off"  # in place of a method of real-time chunking
_FRAME_ROOM = 2**16  # bytes of a request beside its images
LARGEST_FRAME = 2**25


class ActionRange(NamedTuple):
    """Where actions of the data lie: their 1 % and 99 % quantiles, wider by a quarter of their
    distance on both sides. Dimensions that never change have no range."""

    low: Float[np.ndarray, " a"]
    high: Float[np.ndarray, " a"]


class RealTime(NamedTuple):
    """How chunks go on from what a robot executes: by one of `policy.real_time.METHODS`, after at
    most so many steps."""

    method: str
    max_delay: int

    @property
    def mode(self) -> str:
        """What clients call it."""
        return RTC_TRAINED if self.method == TRAINED else RTC_GUIDED


class Contract(NamedTuple):
    """image_keys: one for each camera of the policy, in its order. state_key: "" without a state.
    image_size: rows and columns that every image has. max_frame: bytes of the largest request.
    action_shape: steps and dimensions of a chunk. real_time: None where chunks do not go on. row:
    the entry of `data.rows` that reads what robots did, None where their units are unknown."""

    image_keys: tuple[str, ...]
    state_key: str
    prompt_key: str
    image_size: tuple[int, int]
    state_dim: int
    limits: Limits
    max_frame: int
    action_range: ActionRange | None
    action_shape: tuple[int, int]
    real_time: RealTime | None
    row: Mapping[str, Any] | None
    metadata: Mapping[str, Any]


def make_contract(
    policy: Policy,
    checkpoint: Path | str,
    *,
    keys: Mapping[str, str] | None = None,
    image_size: tuple[int, int] | None = None,
    euler_steps: int | None = None,
    real_time: str | None = None,
) -> Contract:
    """What clients must know of a policy.

    keys: other names for what a request holds: of a camera by its role, of "state" and "prompt".
    image_size: of the images that clients send; by default that which the model sees. Others are
        resized as training resized the stored ones.
    euler_steps: by default as the policy's config says.
    real_time: how chunks go on from what robots execute, one of `policy.real_time.METHODS`, or OFF;
        by default the best that the policy offers.
    ConfigError: a name is of nothing that the policy takes, or two are the same; the images are
        larger than a request may be; the policy does not go on so.
    """
    names = _names(policy, keys or {})
    image_size = tuple(image_size or policy.config["data"]["image_size"])
    image_keys = tuple(names[role] for role in policy.cameras)
    image_bytes = 3 * image_size[0] * image_size[1]
    max_frame = int(1.1 * image_bytes * len(image_keys)) + _FRAME_ROOM
    if min(image_size) < 1 or max_frame > LARGEST_FRAME:
        raise ConfigError(
            f"images of {image_size[0]} x {image_size[1]} from {len(image_keys)} cameras: expected "
            f"at least one pixel and at most {LARGEST_FRAME} bytes in a request"
        )
    continues, spec = _real_time(policy, euler_steps, real_time), _spec(policy)
    return Contract(
        image_keys=image_keys,
        state_key=names["state"] if policy.state_dim else "",
        prompt_key=names["prompt"],
        image_size=image_size,
        state_dim=policy.state_dim,
        limits=Limits(array_bytes=max(image_bytes, _FRAME_ROOM)),
        max_frame=max_frame,
        action_range=_action_range(policy),
        action_shape=(policy.horizon, policy.action_dim),
        real_time=continues,
        row=recorded_row(spec, policy.cameras) if spec else None,
        metadata=_metadata(policy, spec, checkpoint, names, image_size, continues),
    )


def _real_time(policy: Policy, euler_steps: int | None, wanted: str | None) -> RealTime | None:
    steps = policy.config["acting"]["euler_steps"] if euler_steps is None else euler_steps
    offered = offered_methods(policy.config, check_euler_steps(steps))
    if wanted is None:
        wanted = next(iter(offered), OFF)
    if wanted == OFF:
        return None
    if wanted not in offered:
        raise ConfigError(
            f"real_time is {wanted!r}, expected one of {[*offered, OFF]} for a policy of {steps} "
            "Euler steps; 'trained' is for policies trained with train.max_delay"
        )
    return RealTime(wanted, longest_delay(policy.config, policy.horizon, wanted))


def _names(policy: Policy, given: Mapping[str, str]) -> dict[str, str]:
    """The key of each camera's role, of the state and of the prompt."""
    names = {role: _image_key(role) for role in policy.cameras} | {"state": STATE, "prompt": PROMPT}
    if unknown := sorted(given.keys() - names.keys()):
        raise ConfigError(f"keys of {unknown}: the policy takes {list(names)}")
    names |= given
    if len(set(names.values())) != len(names):
        raise ConfigError(f"keys {names}: expected a key of its own for each")
    return names


def _image_key(role: str) -> str:
    """As the clients of LIBERO name them: `observation/image`, `observation/wrist_image`."""
    return "observation/image" if role == PRIMARY else f"observation/{role}_image"


def _metadata(
    policy: Policy,
    spec: DatasetSpec | None,
    checkpoint: Path | str,
    names: Mapping[str, str],
    image_size: tuple[int, int],
    real_time: RealTime | None,
) -> dict[str, Any]:
    """The first message to every client."""
    wrist = [role for role in policy.cameras if "wrist" in role]
    instructions = policy.instructions
    return {
        "protocol": PROTOCOL,
        "image_keys": [names[role] for role in policy.cameras],
        "image_resolution": {names[role]: list(image_size) for role in policy.cameras},
        "state_key": names["state"] if policy.state_dim else None,
        "state_dim": policy.state_dim,
        "prompt_key": names["prompt"],
        "action_dim": policy.action_dim,
        "action_horizon": policy.horizon,
        "execute_steps": policy.config["acting"]["execute_steps"],
        "control_hz": spec.control_hz if spec else None,
        "action_names": list(spec.action.dims) if spec else None,
        "action_relative": list(spec.action.relative) if spec else None,
        "instructions": list(instructions[:_MOST_INSTRUCTIONS]),
        "any_instruction": policy.encodes_text,
        "modes": [*MODES, *([real_time.mode] if real_time else [])],
        "max_delay": real_time.max_delay if real_time else 0,
        "checkpoint_step": policy.step,
        "policy_hash": policy_hash(checkpoint, policy.step),
        # What RoboArena's clients look for:
        "n_external_cameras": len(policy.cameras) - len(wrist),
        "needs_wrist_camera": bool(wrist),
        "needs_stereo_camera": False,
        "needs_session_id": False,
        "action_space": spec.action.name if spec else None,
    }


def _spec(policy: Policy) -> DatasetSpec | None:
    """The dataset in whose units the policy acts; None where the registry does not have it."""
    section = policy.config["data"]
    try:
        entries = config_mixture(section).entries
        specs = [entry_spec(section, e) for e in entries if e.dataset == policy.dataset]
    except (DataError, ConfigError):  # the data of a converted policy may have no such names
        return None
    fits = specs and len(specs[0].action.dims) == policy.action_dim
    return specs[0] if fits else None


def policy_hash(checkpoint: Path | str, step: int) -> str:
    """16 hexadecimal digits of the checkpoint's arrays and metadata; options of the server do not
    change them."""
    checkpoints, _ = open_checkpoint(checkpoint)
    with contextlib.closing(checkpoints):
        parts = [checkpoints.checksums(step), checkpoints.restore_json(step, "metadata")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _action_range(policy: Policy) -> ActionRange | None:
    actions = policy.statistics.get("action", {})
    if not {"q01", "q99"} <= actions.keys():
        return None
    low, high = (np.asarray(actions[key], np.float32) for key in ("q01", "q99"))
    if low.shape != (policy.action_dim,):
        return None
    constant = low == high
    margin = np.where(constant, np.inf, (high - low) / 4).astype(np.float32)
    return ActionRange(low - margin, high + margin)
