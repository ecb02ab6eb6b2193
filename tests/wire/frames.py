"""Messages by the letter of docs/spec/serving.md, 2, without msgpack; and frames that are not."""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np


def packed(value) -> bytes:
    """msgpack, written here from its specification: the shortest form of everything."""
    if isinstance(value, np.ndarray):
        return packed(marks(value))
    if isinstance(value, np.generic) and not isinstance(value, float):
        scalar = {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        return packed(scalar)
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return _head(len(text), (0xA0, 32), 0xD9, 0xDA, 0xDB) + text
    if isinstance(value, bytes):
        return _head(len(value), None, 0xC4, 0xC5, 0xC6) + value
    if isinstance(value, list | tuple):
        return _head(len(value), (0x90, 16), None, 0xDC, 0xDD) + b"".join(map(packed, value))
    items = b"".join(packed(key) + packed(each) for key, each in value.items())
    return _head(len(value), (0x80, 16), None, 0xDE, 0xDF) + items


def marks(array: np.ndarray) -> dict[bytes, Any]:
    """The map that an array travels as."""
    return {
        b"__ndarray__": True,
        b"data": array.tobytes(),
        b"dtype": array.dtype.str,
        b"shape": list(array.shape),
    }


def _head(length: int, fixed, one: int | None, two: int, four: int) -> bytes:
    if fixed and length < fixed[1]:
        return bytes([fixed[0] | length])
    if one and length < 2**8:
        return struct.pack(">BB", one, length)
    if length < 2**16:
        return struct.pack(">BH", two, length)
    return struct.pack(">BI", four, length)


def _integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b" if value < 0 else ">B", value)
    for code, form, low, high in (
        (0xCC, ">BB", 0, 2**8),
        (0xCD, ">BH", 0, 2**16),
        (0xCE, ">BI", 0, 2**32),
        (0xCF, ">BQ", 0, 2**64),
        (0xD0, ">Bb", -(2**7), 0),
        (0xD1, ">Bh", -(2**15), 0),
        (0xD2, ">Bi", -(2**31), 0),
        (0xD3, ">Bq", -(2**63), 0),
    ):
        if low <= value < high:
            return struct.pack(form, code, value)
    raise OverflowError(value)


_DTYPES = ("|u1", "|b1", "<i4", "<i8", "<f2", "<f4", "<f8")
_WRONG = (
    None,
    True,
    False,
    -1,
    2**40,
    0.5,
    float("nan"),
    "|O",
    "O",
    "<M8[s]",
    "|V8",
    "<c8",
    "<U4",
    "|S4",
    ">f4",
    "<f4,<f4",
    "x" * 9000,
    b"",
    b"\x00" * 8,
    [],
    {},
    [-1],
    [2**62, 0],
    [2**62, 4],
    [1.0],
    [True],
    [1] * 5,
    ["3"],
)


_MANY = packed({"x": [[[]] * 60] * 60})


def same(found, expected) -> bool:
    """Whether two trees are equal, with the dtypes of their arrays."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            same(found[key], expected[key]) for key in expected
        )
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, np.ndarray | np.generic):
        # A float64 scalar is a Python float to msgpack.
        is_right = isinstance(expected, float) or found.dtype == expected.dtype
        return is_right and np.shape(found) == expected.shape and np.array_equal(found, expected)
    return type(found) is type(expected) and found == expected


def random_tree(rng: np.random.Generator, depth: int = 3):
    """A tree of what messages may hold."""
    kinds = ("array", "scalar", "int", "float", "text", "bool", "none", "bytes")
    kind = rng.choice([*kinds, *(("map", "list") if depth else ())])
    if kind == "array":
        shape = rng.integers(0, 4, rng.integers(0, 4))
        return np.asarray(rng.integers(0, 2, shape)).astype(rng.choice(_DTYPES))
    if kind == "scalar":
        return np.dtype(rng.choice(_DTYPES)).type(rng.integers(0, 2))
    if kind == "list":
        return [random_tree(rng, depth - 1) for _ in range(rng.integers(0, 20))]
    if kind == "map":
        return {f"k{n}": random_tree(rng, depth - 1) for n in range(rng.integers(0, 20))}
    return {
        "int": int(rng.integers(-(2**40), 2**40) >> rng.integers(0, 40)),
        "float": float(rng.normal()),
        "text": "ü" * int(rng.integers(0, 300)),
        "bool": bool(rng.integers(2)),
        "none": None,
        "bytes": rng.bytes(int(rng.integers(0, 300))),
    }[kind]


def bad_frames(rng: np.random.Generator, good: dict, count: int) -> Iterator[bytes]:
    """Frames that are almost a good message, or nothing like one. A few may happen to be good."""
    frame = packed(good)
    arrays = [key for key, value in good.items() if isinstance(value, np.ndarray)]
    for number in range(count):
        kind = number % 8
        if kind == 0:
            yield rng.bytes(int(rng.integers(0, 400)))
        elif kind == 1:  # some bytes of the head changed, where all the structure is
            changed = bytearray(frame)
            for place in rng.integers(0, min(len(frame), 200), rng.integers(1, 5)):
                changed[place] = rng.integers(256)
            yield bytes(changed)
        elif kind == 2:
            yield frame[: rng.integers(0, len(frame))]
        elif kind == 3:
            yield frame + rng.bytes(int(rng.integers(1, 9)))
        elif kind == 4:  # one field of a marked array is another thing
            key = str(rng.choice(arrays))
            marked = marks(good[key])
            field = list(marked)[rng.integers(4)]
            if rng.random() < 0.2:
                del marked[field]
            else:
                marked[field] = _WRONG[rng.integers(len(_WRONG))]
            if rng.random() < 0.1:
                marked[b"more"] = 1
            yield packed({**good, key: marked})
        elif kind == 5:  # a key of the message is another thing
            key = str(rng.choice([*good, "imagewam/step", "imagewam/seed", "endpoint"]))
            yield packed({**good, key: _WRONG[rng.integers(len(_WRONG))]})
        elif kind == 6:  # a key twice, or claims of sizes that are not there
            claims = (b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9")
            claim = claims[rng.integers(len(claims))] + struct.pack(">I", 2 ** rng.integers(8, 32))
            twice = bytes([frame[0] + 1]) + frame[1:] + packed("prompt") + packed("x")
            yield twice if rng.random() < 0.5 else b"\x81\xa1a" + claim
        else:  # depth and numbers of containers
            deep = int(rng.integers(1, 6000))
            yield (b"\x91" * deep, b"\x81\xa1a" * deep, _MANY)[rng.integers(3)]
