"""What a pool and its workers say to each other: JSON and arrays, and never pickle.

A worker may run under another Python, with another NumPy, so a message has nothing of either. It is

    "IWSM" | protocol: u16 | length of the JSON: u32 | JSON | the bytes of all arrays in turn

little-endian. In the JSON an array is {"array": [dtype, shape]}, with a dtype of numbers such as
"<f4". `multiprocessing.connection` sends messages as they are, with their lengths.

To a worker, the first message is {"simulator", "options", "count"}; those that follow are {"call",
"arguments"}: "reset" or "execute", and [simulator, ...] for each. It answers each with {"status",
"answer"}.
"""

import dataclasses
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagewam_jax.errors import SimulatorError
from imagewam_jax.evaluation.simulators.base import ChunkOutcome, Observation, SimulatorSpec

PROTOCOL = 1  # counts up whenever a message changes
_START = struct.Struct("<4sHI")
_NAME = b"IWSM"


def pack(message: Any) -> bytes:
    """The bytes of a message: JSON values, arrays of numbers, and the tuples that simulators have.

    TypeError: it holds something else.
    """
    arrays: list[bytes] = []

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "biuf":
                raise TypeError(f"an array of {value.dtype} cannot be sent")
            value = value.astype(value.dtype.newbyteorder("<"), copy=False)
            arrays.append(value.tobytes())
            return {"array": [value.dtype.str, value.shape]}
        if isinstance(value, np.generic):
            return value.item()
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            return plain(value._asdict())
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    text = json.dumps(plain(message)).encode()
    return b"".join([_START.pack(_NAME, PROTOCOL, len(text)), text, *arrays])


def unpack(message: bytes) -> Any:
    """The content of a message: dictionaries, lists, and arrays, which are read-only.

    SimulatorError: it is of another protocol.
    """
    name, protocol, length = _START.unpack_from(message)
    if name != _NAME or protocol != PROTOCOL:
        found = f"protocol {protocol}" if name == _NAME else f"{message[:16]!r}"
        raise SimulatorError(
            f"simulators talk by protocol {PROTOCOL}, found {found}: pool and worker are of "
            "different versions of imagewam_jax"
        )
    position = _START.size + length

    def restored(value: dict[str, Any]) -> Any:
        nonlocal position
        if list(value) != ["array"]:
            return value
        dtype, shape = np.dtype(value["array"][0]), value["array"][1]
        array = np.frombuffer(message, dtype, math.prod(shape), position).reshape(shape)
        position += array.nbytes
        return array

    return json.loads(message[_START.size : position], object_hook=restored)


def spec_from(content: Mapping[str, Any]) -> SimulatorSpec:
    """A specification as it was before it was sent."""

    def restored(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: restored(item) for key, item in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return SimulatorSpec(**restored(content))


def observation_from(content: Mapping[str, Any]) -> Observation:
    return Observation(**content)


def outcome_from(content: Mapping[str, Any]) -> ChunkOutcome:
    return ChunkOutcome(
        **{
            **content,
            "observation": observation_from(content["observation"]),
            "seen": tuple(map(observation_from, content["seen"])),
        }
    )
