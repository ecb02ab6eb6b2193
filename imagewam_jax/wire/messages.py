"""Messages of the openpi dialect: msgpack with NumPy arrays (docs/spec/serving.md, 2).

An array travels as a map of four binary keys, in this order: `__ndarray__` (true), `data` (its
bytes in C order), `dtype` (NumPy's name) and `shape`; a NumPy scalar as a map of three. Nothing
that a peer sends reaches NumPy before it is checked: the dtype is one of a short list, the shape
fits the data, and every size has a limit. Objects are never built from bytes.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack
import numpy as np

from imagewam_jax.errors import MessageError


class Limits(NamedTuple):
    """What a message may hold at most.

    array_bytes: of the data of one array. text_bytes: of one text or key. items: in one map or
    list. containers: maps and lists in all. depth: of maps and lists in each other.
    """

    array_bytes: int
    text_bytes: int = 8192
    items: int = 64
    containers: int = 256
    depth: int = 8


_MAX_DIMS = 4
_DTYPES = {name: np.dtype(name) for name in ("|u1", "|b1", "<i4", "<i8", "<f2", "<f4", "<f8")}
_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_ARRAY_KEYS = {_ARRAY, b"data", b"dtype", b"shape"}
_SCALAR_KEYS = {_SCALAR, b"data", b"dtype"}
_NOT_PACKED = "VOc"  # kinds of dtypes: void, objects, complex numbers


def pack(tree: Any) -> bytes:
    """Packs a tree of maps, lists, texts, numbers, and NumPy arrays and scalars.

    MessageError: it holds something else.
    """
    try:
        return msgpack.packb(tree, default=_marked)
    except (TypeError, ValueError, OverflowError) as error:
        raise MessageError(f"a message cannot be packed: {error}") from error


def _marked(value: Any) -> dict[bytes, Any]:
    """The map that an array or a NumPy scalar travels as."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _NOT_PACKED:
        raise MessageError(f"a message cannot hold the dtype {value.dtype}")
    if isinstance(value, np.ndarray):
        return {
            _ARRAY: True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise MessageError(f"a message cannot hold a {type(value).__name__}")


def unpack(frame: bytes, limits: Limits) -> dict[str, Any]:
    """Unpacks a map whose keys are texts. Arrays are read-only views of copied bytes.

    MessageError names the key, what was expected and what was found.
    """
    containers = 0

    def counted() -> None:
        nonlocal containers
        containers += 1
        if containers > limits.containers:
            raise MessageError(f"message: expected at most {limits.containers} maps and lists")

    def as_map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        counted()
        found = dict(pairs)
        if len(found) != len(pairs):
            raise MessageError("message: a key occurs twice in one map")
        return found

    def as_list(items: list[Any]) -> list[Any]:
        counted()
        return items

    try:
        tree = msgpack.unpackb(
            frame,
            object_pairs_hook=as_map,
            list_hook=as_list,
            max_str_len=limits.text_bytes,
            max_bin_len=limits.array_bytes,
            max_array_len=limits.items,
            max_map_len=limits.items,
            max_ext_len=0,
        )
    except MessageError:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise MessageError(f"message: expected a msgpack map, got {_why(error)}") from error
    if not isinstance(tree, dict) or _ARRAY in tree or _SCALAR in tree:
        raise MessageError(f"message: expected a map of texts, got {_kind(tree)}")
    return _decoded(tree, "message", limits, 1)


def _decoded(value: Any, where: str, limits: Limits, depth: int) -> Any:
    """The value with its marked maps as arrays and scalars; `where` is its key, for errors."""
    if not isinstance(value, dict | list):
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        raise MessageError(f"{where}: expected no extension type, got {_kind(value)}")
    if depth > limits.depth:
        raise MessageError(f"{where}: expected at most {limits.depth} levels")
    if isinstance(value, list):
        return [_decoded(item, where, limits, depth + 1) for item in value]
    if _ARRAY in value:
        return _array(value, where, limits)
    if _SCALAR in value:
        return _scalar(value, where)
    for key in value:
        if not isinstance(key, str):
            raise MessageError(f"{where}: expected keys of text, got {shown(key)}")
    return {key: _decoded(each, shown(key), limits, depth + 1) for key, each in value.items()}


def _array(value: Mapping[Any, Any], where: str, limits: Limits) -> np.ndarray:
    _check_marker(value, where, _ARRAY, _ARRAY_KEYS)
    data, dtype, shape = value[b"data"], _dtype(value[b"dtype"], where), value[b"shape"]
    if not isinstance(data, bytes):
        raise MessageError(f"{where}: expected an array's data in bytes, got {_kind(data)}")
    whole = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not whole or len(shape) > _MAX_DIMS:
        raise MessageError(
            f"{where}: expected a shape of at most {_MAX_DIMS} sizes from 0, got {shown(shape)}"
        )
    # An empty array may not claim other sizes without end.
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize > limits.array_bytes:
        raise MessageError(
            f"{where}: expected at most {limits.array_bytes} bytes, got the shape {shown(shape)}"
        )
    if math.prod(shape) * dtype.itemsize != len(data):
        raise MessageError(
            f"{where}: expected {math.prod(shape) * dtype.itemsize} bytes for {dtype} "
            f"{shown(shape)}, got {len(data)}"
        )
    if not data:
        return np.empty(shape, dtype)
    if dtype.kind == "b" and max(data) > 1:
        raise MessageError(f"{where}: expected bytes 0 and 1 for {dtype}, got {max(data)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(value: Mapping[Any, Any], where: str) -> np.generic:
    _check_marker(value, where, _SCALAR, _SCALAR_KEYS)
    data, dtype = value[b"data"], _dtype(value[b"dtype"], where)
    if dtype.kind == "b":
        right = type(data) is bool
    elif dtype.kind == "f":
        right = type(data) is float
    else:
        limits = np.iinfo(dtype)
        right = type(data) is int and limits.min <= data <= limits.max
    if not right:
        raise MessageError(f"{where}: expected a number of {dtype}, got {shown(data)}")
    with np.errstate(over="ignore"):  # what the dtype cannot hold becomes infinite
        return dtype.type(data)


def _check_marker(value: Mapping[Any, Any], where: str, marker: bytes, keys: set[bytes]) -> None:
    if value.keys() != keys or value[marker] is not True:
        expected = ", ".join(sorted(key.decode() for key in keys))
        raise MessageError(
            f"{where}: expected the binary keys {expected}, with {marker.decode()} true, got "
            f"{shown(list(value))}"
        )


def _dtype(name: Any, where: str) -> np.dtype:
    if not isinstance(name, str) or name not in _DTYPES:
        raise MessageError(f"{where}: expected a dtype of {', '.join(_DTYPES)}, got {shown(name)}")
    return _DTYPES[name]


def shown(value: Any, length: int = 80) -> str:
    """A value that a peer sent, for an error or the log: short, on one line, control characters
    escaped."""
    text = ascii(value) if not isinstance(value, str) else ascii(value)[1:-1]
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _kind(value: Any) -> str:
    return "a marked array" if isinstance(value, dict) else type(value).__name__


def _why(error: Exception) -> str:
    return shown(str(error)) or type(error).__name__
