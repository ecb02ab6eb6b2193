"""Messages byte for byte, and what is refused of a peer's."""

import resource
import struct
import subprocess
import sys

import numpy as np
import pytest

from imagewam_jax.errors import MessageError
from imagewam_jax.wire.messages import Limits, pack, shown, unpack
from tests.wire.frames import bad_frames, packed, random_tree, same

LIMITS = Limits(array_bytes=2**16)
GOLDEN = bytes.fromhex(
    "81a7616374696f6e7384c40b5f5f6e6461727261795f5fc3c40464617461c418"
    "000000000000803f0000004000004040000080400000a040"
    "c4056474797065a33c6634c4057368617065920302"
)
IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
OBSERVATION = {"observation/image": IMAGE, "observation/state": np.ones(4), "prompt": "go"}


def test_the_bytes_of_an_array_both_ways():
    actions = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert pack({"actions": actions}) == GOLDEN
    found = unpack(GOLDEN, LIMITS)
    assert same(found, {"actions": actions}) and not found["actions"].flags.writeable


def test_the_bytes_of_a_scalar():
    """float32 travels as the float64 of msgpack."""
    frame = bytes.fromhex(
        "81a17883c40d5f5f6e7067656e657269635f5fc3c40464617461cb3ff8000000"
        "000000c4056474797065a33c6634"
    )
    assert pack({"x": np.float32(1.5)}) == frame
    assert same(unpack(frame, LIMITS), {"x": np.float32(1.5)})


def test_random_trees():
    """The bytes are those that the specification says, and come back as they were."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        tree = {"a": random_tree(rng), "b": random_tree(rng)}
        assert pack(tree) == packed(tree)
        limits = Limits(2**16, containers=10_000)
        assert same(unpack(pack(tree), limits), tree)


def test_the_order_in_memory_does_not_matter():
    image = IMAGE.transpose(1, 0, 2)
    assert same(unpack(pack({"x": image}), LIMITS)["x"], np.ascontiguousarray(image))


def marked(**changes) -> bytes:
    fields = {
        b"__ndarray__": True,
        b"data": bytes(8),
        b"dtype": "<f4",
        b"shape": [2],
    }
    for name, value in changes.items():
        fields[name.encode()] = value
    return packed({"x": {k: v for k, v in fields.items() if v != "gone"}})


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (marked(dtype="|O", shape=[1]), r"x: expected a dtype of \|u1, .* got \|O"),
        (marked(dtype="<M8[s]", shape=[1]), "x: expected a dtype"),
        (marked(dtype="|V4"), "x: expected a dtype"),
        (marked(dtype="<c8", shape=[1]), "x: expected a dtype"),
        (marked(dtype=b"<f4"), "x: expected a dtype"),
        (marked(__ndarray__=False), "x: expected the binary keys __ndarray__, data, dtype, shape"),
        (marked(__ndarray__=1), "x: expected the binary keys"),
        (marked(more=1), "x: expected the binary keys"),
        (marked(dtype="gone"), "x: expected the binary keys"),
        (marked(data="12345678"), "x: expected an array's data in bytes, got str"),
        (marked(shape=[-2]), r"x: expected a shape of at most 4 sizes from 0, got \[-2\]"),
        (marked(shape=[1] * 5), "x: expected a shape"),
        (marked(shape=[True]), "x: expected a shape"),
        (marked(shape=2), "x: expected a shape"),
        (marked(shape=[3]), r"x: expected 12 bytes for float32 \[3\], got 8"),
        (marked(shape=[2**62]), "x: expected at most 65536 bytes"),
        (marked(shape=[0, 2**62], data=b""), "x: expected at most 65536 bytes"),
        (marked(dtype="|b1", shape=[8], data=b"\2" * 8), r"x: expected bytes 0 and 1 for bool"),
        (packed({"x": bytes(2**16 + 1)}), "exceeds max_bin_len"),
        (packed({"x": "y" * 8193}), "exceeds max_str_len"),
        (packed({"x": [0] * 65}), "exceeds max_array_len"),
        (packed({str(n): 0 for n in range(65)}), "exceeds max_map_len"),
        (packed({"x": [[[]] * 60] * 60}), "at most 256 maps and lists"),
        (packed({"x": [[[[[[[[0]]]]]]]]}), "x: expected at most 8 levels"),
        (b"\x91" * 5000, "StackError"),
        (b"\x81\xa1x\xd4\x05a", "max_ext_len"),
        (b"\x81\xa1x\xd6\xff\0\0\0\0", "max_ext_len"),
        (b"\x82\xa1x\x01\xa1x\x02", "a key occurs twice"),
        (b"\x81\x01\x02", "int is not allowed for map key"),
        (packed({b"x": 1}), "message: expected keys of text, got b'x'"),
        (packed({"x": {b"y": 1}}), "x: expected keys of text"),
        (packed([1]), "message: expected a map of texts, got list"),
        (packed(IMAGE), "message: expected a map of texts, got a marked array"),
        (packed({"x": 1}) + b"\0", "extra data"),
        (b"\x81\xa1\xff\x01", "utf-8"),
        (b"", "incomplete input"),
        (b"\x81\xa1x\xc6\xff\xff\xff\xff", "incomplete input"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(frame, message):
    with pytest.raises(MessageError, match=message):
        unpack(frame, LIMITS)


@pytest.mark.parametrize(
    "scalar",
    [
        {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"},
        {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"},
        {b"__npgeneric__": True, b"data": True, b"dtype": "<i4"},
        {b"__npgeneric__": True, b"data": 1, b"dtype": "|b1"},
        {b"__npgeneric__": True, b"data": 1.0, b"dtype": "|O"},
        {b"__npgeneric__": 1, b"data": 1.0, b"dtype": "<f4"},
    ],
)
def test_scalars_that_are_refused(scalar):
    with pytest.raises(MessageError, match="x: expected"):
        unpack(packed({"x": scalar}), LIMITS)


@pytest.mark.parametrize(
    "value", [np.array([object()]), np.ones(1, complex), np.zeros(1, "V4"), object(), {1, 2}, 2**70]
)
def test_what_cannot_be_packed(value):
    with pytest.raises(MessageError, match="a message can"):
        pack({"x": value})


def test_what_is_shown_of_a_peer_is_short_and_plain():
    assert shown("x\n\x1b[31m" + "y" * 200) == "x\\n\\x1b[31m" + "y" * 66 + "..."


def fuzz(count: int) -> int:
    """How many of so many frames are refused. Whatever is not a MessageError is an error."""
    refused = 0
    for frame in bad_frames(np.random.default_rng(0), OBSERVATION, count):
        try:
            unpack(frame, LIMITS)
        except MessageError as error:
            refused += 1
            assert len(str(error)) < 300
    return refused


def test_frames_that_are_almost_good():
    count = 4000
    assert 0.7 * count < fuzz(count) < count


@pytest.mark.slow
def test_a_hundred_thousand_frames():
    fuzz(1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fuzz(100_000) > 70_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 50 * 1024  # KiB


def test_neither_jax_nor_flax_is_imported():
    code = "import sys, imagewam_jax.wire.messages, imagewam_jax.wire.protocol\n"
    code += "print({'jax', 'flax', 'jaxtyping'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_lengths_are_big_endian():
    """Of the tests' own packer, by an example of msgpack's specification."""
    assert packed("x" * 300)[:3] == b"\xda" + struct.pack(">H", 300)
