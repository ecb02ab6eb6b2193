"""The protobuf reader against messages that TensorFlow serialised, and against broken ones."""

import numpy as np
import pytest

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.tf_example import parse_example


def field(number, payload):
    """A length-delimited protobuf field of fewer than 128 bytes."""
    return bytes([number << 3 | 2, len(payload)]) + payload


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
    ],
)
def test_what_is_not_an_example_is_an_error(message, complaint):
    with pytest.raises(DataError, match=complaint):
        parse_example(message)
