"""From a client's message to a row of observations, refused unless it fits the policy."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from imagewam_jax.errors import InputError
from imagewam_jax.policy.checks import check_numbers
from imagewam_jax.policy.real_time import Running
from imagewam_jax.serving.contract import Contract
from imagewam_jax.wire import protocol
from imagewam_jax.wire.messages import shown

LONGEST_PROMPT = 512  # characters
_LONGEST_NAME = 128  # characters of a session
_LARGEST = 2**63 - 1
SEEDS = 4  # numbers of a seed
_OURS = {
    protocol.SESSION,
    protocol.STEP,
    protocol.RESET,
    protocol.SEED,
    protocol.DEADLINE_MS,
    protocol.OBSERVE,
    protocol.PREV_ACTIONS,
    protocol.PREV_CHUNK,
    protocol.EXECUTED,
    protocol.DELAY,
    protocol.EXECUTE,
}


class SentRunning(NamedTuple):
    """What a robot executes, as `Running`: of a chunk that it was sent, what is behind the first
    `executed` actions."""

    chunk: int
    executed: int
    delay: int
    execute: int


class Request(NamedTuple):
    """session: "" is the connection's own. step: None where the client says nothing, and so is
    seed: one number or several. deadline: seconds within which it must be begun. running: what the
    robot executes in the meantime, from which its chunk is to go on."""

    images: UInt8[np.ndarray, "camera h w 3"]
    state: Float32[np.ndarray, " p"]
    prompt: str
    session: str
    step: int | None
    seed: tuple[int, ...] | None
    reset: bool
    deadline: float | None
    observe: bool
    running: Running | SentRunning | None


class ResetRequest(NamedTuple):
    """The client begins another episode."""

    session: str


def read_request(message: Mapping[str, Any], contract: Contract) -> Request | ResetRequest:
    """A request of a message. InputError: `<key>: expected ..., got ...`.

    Keys that are neither ours nor the policy's are passed over: clients send all that they have.
    """
    endpoint = message.get(protocol.ENDPOINT, protocol.INFER_ENDPOINT)
    known = (protocol.INFER_ENDPOINT, protocol.RESET_ENDPOINT)
    if not isinstance(endpoint, str) or endpoint not in known:
        raise _unlike(
            protocol.ENDPOINT,
            f"{protocol.INFER_ENDPOINT!r} or {protocol.RESET_ENDPOINT!r}",
            shown(endpoint),
        )
    session = _session(message)
    if endpoint == protocol.RESET_ENDPOINT:
        return ResetRequest(session)
    for key in message:
        if key.startswith(protocol.OURS) and key not in _OURS:
            raise _unlike(shown(key), f"one of {', '.join(sorted(_OURS))}", "an unknown key")
    deadline_ms = message.get(protocol.DEADLINE_MS)
    if deadline_ms is not None and not (_is_number(deadline_ms) and 0 < deadline_ms < 1e9):
        raise _unlike(protocol.DEADLINE_MS, "milliseconds above 0", shown(deadline_ms))
    return Request(
        images=np.stack([_image(message, key, contract) for key in contract.image_keys]),
        state=_state(message, contract),
        prompt=_prompt(message, contract),
        session=session,
        step=_whole_number(message, protocol.STEP),
        seed=_seed(message),
        reset=_flag(message, protocol.RESET),
        deadline=None if deadline_ms is None else float(deadline_ms) / 1000,
        observe=_flag(message, protocol.OBSERVE),
        running=_running(message, contract),
    )


def _image(message: Mapping[str, Any], key: str, contract: Contract) -> UInt8[np.ndarray, "h w 3"]:
    height, width = contract.image_size
    image = message.get(key)
    expected = f"uint8 RGB [{height}, {width}, 3]"
    if not isinstance(image, np.ndarray):
        raise _unlike(key, expected, _kind(message, key))
    if image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise _unlike(key, expected, f"{image.dtype} {list(image.shape)}")
    return image


def _state(message: Mapping[str, Any], contract: Contract) -> Float32[np.ndarray, " p"]:
    if not contract.state_key:
        return np.zeros(0, np.float32)
    key = contract.state_key
    state = message.get(key)
    expected = f"{contract.state_dim} numbers"
    if not isinstance(state, np.ndarray | list):
        raise _unlike(key, expected, _kind(message, key))
    if isinstance(state, list) and not all(map(_is_number, state)):
        raise _unlike(key, expected, shown(state))
    return _numbers(state, key, "[state dimension]", (contract.state_dim,))


def _numbers(
    given: Any, key: str, axes: str, shape: tuple[int, ...] | None = None
) -> Float32[np.ndarray, "..."]:
    """Finite numbers; a shape of None is that which they have."""
    try:
        return check_numbers(given, key, axes, given.shape if shape is None else shape)
    except InputError as error:  # its own words, with the one that this protocol has
        raise InputError(str(error).replace(", found ", ", got ")) from error


def _prompt(message: Mapping[str, Any], contract: Contract) -> str:
    key = contract.prompt_key
    prompt = message.get(key)
    if not isinstance(prompt, str):
        raise _unlike(key, "a text", _kind(message, key))
    if not 0 < len(prompt) <= LONGEST_PROMPT:
        raise _unlike(key, f"1 to {LONGEST_PROMPT} characters", str(len(prompt)))
    return prompt


def _running(message: Mapping[str, Any], contract: Contract) -> Running | SentRunning | None:
    given, chunk = message.get(protocol.PREV_ACTIONS), _whole_number(message, protocol.PREV_CHUNK)
    if given is None and chunk is None:
        for key in (protocol.EXECUTED, protocol.DELAY, protocol.EXECUTE):
            if message.get(key) is not None:
                needed = f"{protocol.PREV_ACTIONS} or {protocol.PREV_CHUNK} beside it"
                raise _unlike(key, needed, "neither")
        return None
    key = protocol.PREV_CHUNK if given is None else protocol.PREV_ACTIONS
    if contract.real_time is None:
        modes = ", ".join(contract.metadata["modes"])
        raise _unlike(key, f"none, since the modes of this policy are {modes}", "one")
    horizon, action_dim = contract.action_shape
    if given is None:
        executed = _bounded(message, protocol.EXECUTED, 0, horizon - 1, "of an unfinished chunk")
        length = horizon - executed
    elif chunk is not None:
        raise _unlike(key, f"it or {protocol.PREV_CHUNK}", "both")
    else:
        actions = _prev_actions(given, horizon, action_dim)
        length = len(actions)
    execute = contract.metadata["execute_steps"]
    if message.get(protocol.EXECUTE) is not None:
        execute = _bounded(message, protocol.EXECUTE, 1, horizon, "of a chunk")
    limits = {
        "max_delay": contract.real_time.max_delay,
        "actions that are left": length,
        "actions of a chunk that are not executed": horizon - execute,
    }
    why = min(limits, key=limits.get)
    delay = _bounded(message, protocol.DELAY, 0, limits[why], why)
    if given is None:
        return SentRunning(chunk, executed, delay, execute)
    return Running(actions, delay, execute)


def _prev_actions(given: Any, horizon: int, action_dim: int) -> Float32[np.ndarray, "k a"]:
    key = protocol.PREV_ACTIONS
    expected = f"numbers [1 to {horizon}, {action_dim}]"
    if not isinstance(given, np.ndarray):
        raise _unlike(key, expected, f"a {type(given).__name__}")
    if given.ndim != 2 or not 1 <= len(given) <= horizon or given.shape[1] != action_dim:
        raise _unlike(key, expected, f"{given.dtype} {list(given.shape)}")
    return _numbers(given, key, "[step, action dimension]")


def _bounded(message: Mapping[str, Any], key: str, low: int, high: int, why: str) -> int:
    number = message.get(key)
    if not _is_whole(number) or not low <= number <= high:
        raise _unlike(key, f"a whole number from {low} to {high} ({why})", shown(number))
    return int(number)


def _session(message: Mapping[str, Any]) -> str:
    for key in (protocol.SESSION, protocol.SESSION_ID):
        name = message.get(key)
        if name is not None:
            if not isinstance(name, str) or len(name) > _LONGEST_NAME:
                raise _unlike(key, f"a text of at most {_LONGEST_NAME} characters", shown(name))
            return name
    return ""


def _whole_number(message: Mapping[str, Any], key: str) -> int | None:
    number = message.get(key)
    if number is None:
        return None
    if not _is_whole(number):
        raise _unlike(key, "a whole number from 0", shown(number))
    return int(number)


def _seed(message: Mapping[str, Any]) -> tuple[int, ...] | None:
    seed = message.get(protocol.SEED)
    if seed is None:
        return None
    numbers = seed if isinstance(seed, list) else [seed]
    if not 0 < len(numbers) <= SEEDS or not all(map(_is_whole, numbers)):
        raise _unlike(
            protocol.SEED, f"a whole number from 0, or up to {SEEDS} of them", shown(seed)
        )
    return tuple(map(int, numbers))


def _is_whole(value: Any) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and 0 <= value <= _LARGEST


def _flag(message: Mapping[str, Any], key: str) -> bool:
    flag = message.get(key, False)
    if not isinstance(flag, bool | np.bool_):
        raise _unlike(key, "true or false", shown(flag))
    return bool(flag)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _kind(message: Mapping[str, Any], key: str) -> str:
    return f"a {type(message[key]).__name__}" if key in message else "nothing"


def _unlike(key: str, expected: str, found: str) -> InputError:
    return InputError(f"{key}: expected {expected}, got {found}")
