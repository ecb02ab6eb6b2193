"""The protobuf reader against messages that TensorFlow serialised, and against broken ones."""

import zlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from imagewam_jax.data.index.raw_images import decode_pixels
from imagewam_jax.data.index.tf_example import cut_ints, parse_example
from imagewam_jax.errors import DataError
from tests.data import write_records
from tests.data.write_records import field


def example(list_number, list_payload):
    """An Example with the one feature "x"."""
    entry = field(1, b"x") + field(2, field(list_number, list_payload))
    return field(1, field(1, entry))


def test_values_equal_those_tensorflow_wrote(toy):
    message, values = toy.examples["message"], toy.examples["values"]
    features = parse_example(message)
    assert features.keys() == values.keys()
    for key in ("ints", "small", "ö"):
        assert features[key].kind == "int64"
        np.testing.assert_array_equal(features[key].values, values[key])
    assert features["floats"].kind == "float"
    np.testing.assert_array_equal(features["floats"].values, values["floats"])
    assert features["bytes"].kind == "bytes"
    found = [message[start : start + n] for start, n in features["bytes"].values.tolist()]
    assert found == values["bytes"]


def test_unpacked_numbers():
    floats = np.array([1.5, -2.0], "<f4")
    unpacked = b"".join(b"\x0d" + value.tobytes() for value in floats)
    np.testing.assert_array_equal(parse_example(example(2, unpacked))["x"].values, floats)
    unpacked = b"\x08\x05\x08\xac\x02\x08" + b"\xff" * 9 + b"\x01"
    np.testing.assert_array_equal(parse_example(example(3, unpacked))["x"].values, [5, 300, -1])


def test_a_list_of_pixels_is_cut_into_images_without_being_decoded():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 5, 3)).astype(np.uint8)
    entry = {"x": write_records.int64_list(*pixels.ravel().tolist())}
    message = write_records.example(entry)
    found = parse_example(message, {"x"})["x"]
    assert found.kind == "packed int64"
    ((start, length),) = found.values.tolist()
    ranges = cut_ints(message, start, length, 30)
    assert (ranges[1:, 0] == ranges[:-1].sum(1)).all() and ranges[:, 1].sum() == length
    for (first, size), image in zip(ranges.tolist(), pixels, strict=True):
        decoded = decode_pixels(message[first : first + size], "list", (2, 5, 3))
        np.testing.assert_array_equal(decoded, image, strict=True)
    with pytest.raises(DataError, match="90 numbers, expected a multiple of 31"):
        cut_ints(message, start, length, 31)
    with pytest.raises(DataError, match="expected a multiple of 30"):
        cut_ints(message, start, length - 1 if message[start + length - 1] < 128 else length, 30)
    assert parse_example(example(3, b""), {"x"})["x"].kind == "empty"
    with pytest.raises(DataError, match="a list of pixels in 0 pieces"):
        parse_example(example(3, b"\x08\x05\x08\x06"), {"x"})


@pytest.mark.parametrize(
    ("encoded", "encoding", "complaint"),
    [
        (b"\x05\xac\x02", "list", "not one of 0 to 255"),
        (b"\x05", "list", "1 numbers, expected the shape"),
        (b"\x05\xff", "list", "ends inside of a number"),
        (b"\xff\xff\x01\x05", "list", "not one of 0 to 255"),
        (b"abc", "bytes", "3 numbers, expected the shape"),
        (b"abc", "zlib", "not zlib"),
        (zlib.compress(b"ab")[:-3], "zlib", "cut off"),
        (zlib.compress(bytes(10**6)), "zlib", "3 numbers, expected the shape"),
    ],
)
def test_pixels_that_are_no_image(encoded, encoding, complaint):
    with pytest.raises(DataError, match=complaint):
        decode_pixels(encoded, encoding, (1, 2, 1))


def test_a_feature_without_values():
    entry = field(1, b"x") + field(2, b"")
    assert parse_example(field(1, field(1, entry)))["x"].kind == "empty"
    assert parse_example(example(1, b""))["x"].values.shape == (0, 2)


@pytest.mark.parametrize(
    "message, complaint",
    [
        (b"\x0a\x7fabc", "byte 2: a field of 127 bytes exceeds its message"),
        (b"\x0a\xff", "cut off"),
        (b"\x0b\x00", "wire type 3"),
        (example(5, b""), "list number 5"),
        (example(2, field(1, b"abc")), "3 bytes are not whole float32"),
        (example(2, b"\x08\x01"), "wire type 0 in a float list"),
        (example(3, b"\x0d\x01\x01\x01\x01"), "wire type 5 in an int64 list"),
        (example(3, field(1, b"\x01\x80")), "ends inside a number"),
        (example(3, field(1, b"\x80" * 10 + b"\x01")), "a number of 11 bytes"),
        (b"\xff" * 12, "more than 10 bytes"),
        (b"\x15abc", "a field of 4 bytes exceeds"),
        (field(1, field(1, field(1, b"\xff"))), "a key is not UTF-8"),
    ],
)
def test_what_is_not_an_example_is_an_error(message, complaint):
    with pytest.raises(DataError, match=complaint):
        parse_example(message)


GOOD = write_records.example(
    {
        "steps/words": write_records.bytes_list(b"left", b"right"),
        "steps/x": write_records.float_list(1.5, -2.5),
        "steps/n": write_records.int64_list(3, -4),
        "steps/m": write_records.int64_list(300, 5, packed=False),
    }
)


@hypothesis.given(strategies.binary(max_size=200))
@hypothesis.settings(max_examples=300, deadline=1000)
def test_random_bytes_are_an_error_or_a_result(message):
    parse_or_refuse(message)


@hypothesis.given(
    strategies.lists(strategies.tuples(strategies.integers(0, len(GOOD) - 1), strategies.binary())),
    strategies.integers(0, len(GOOD)),
)
@hypothesis.settings(max_examples=300, deadline=1000)
def test_a_damaged_message_is_an_error_or_a_result(changes, size):
    message = bytearray(GOOD)
    for position, content in changes:
        message[position : position + len(content)] = content
    parse_or_refuse(bytes(message[:size]))


def parse_or_refuse(message):
    try:
        features = parse_example(message)
    except DataError:
        return
    for feature in features.values():
        assert feature.kind in ("bytes", "float", "int64", "empty")
        if feature.kind == "bytes":
            start, length = feature.values.T
            assert (start >= 0).all() and (start + length <= len(message)).all()
