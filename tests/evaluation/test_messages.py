"""Messages between a pool and its workers: what goes in comes out, and nothing else is read."""

import struct
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from imagewam_jax.errors import SimulatorError
from imagewam_jax.evaluation.simulators import messages
from imagewam_jax.evaluation.simulators.base import ChunkOutcome, Observation
from imagewam_jax.evaluation.simulators.messages import (
    observation_from,
    outcome_from,
    pack,
    spec_from,
    unpack,
)
from tests.evaluation.fake_simulator import FakeSimulator


def observation(seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, 3, 5, 3)).astype(np.uint8)
    return Observation(images, rng.normal(size=7).astype(np.float32), f"say “{seed}”")


def assert_same(found: Observation, expected: Observation) -> None:
    for a, b in zip(found[:2], expected[:2], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert found.instruction == expected.instruction


def test_outcomes_come_out_as_they_went_in():
    outcome = ChunkOutcome(
        observation(0), np.bool_(True), 7, False, (observation(1), observation(2))
    )
    found = outcome_from(unpack(pack(outcome)))
    assert found[1:4] == (True, 7, False) and type(found.success) is bool
    for a, b in zip((found.observation, *found.seen), (outcome[0], *outcome.seen), strict=True):
        assert_same(a, b)
    assert_same(
        observation_from(unpack(pack({"answer": observation(3)}))["answer"]), observation(3)
    )


@pytest.mark.parametrize("trials", [None, {"forward": 3, "backward": np.int64(2)}])
def test_specifications_come_out_as_they_went_in(trials):
    spec = replace(
        FakeSimulator.spec,
        trials=trials,
        max_steps=MappingProxyType({"forward": 12, "backward": 7}),
        action_low=(-0.1,),
        control_hz=1 / 3,
    )
    found = spec_from(unpack(pack(spec)))
    assert found == replace(spec, max_steps=dict(spec.max_steps))
    assert found.action_low[0] == -0.1 and found.control_hz == 1 / 3


@pytest.mark.parametrize("dtype", ["?", "u1", ">i4", "<i8", "f2", ">f4", "f8"])
def test_arrays_keep_every_bit(dtype):
    arrays = [np.arange(6).reshape(2, 1, 3).astype(dtype), np.zeros((0, 4), dtype)]
    arrays.append(np.asfortranarray(arrays[0][:, 0]))
    message = unpack(pack({"call": "x", "arguments": [(0, arrays[0]), (1, *arrays[1:])]}))
    (_, first), (_, *others) = message["arguments"]
    for found, expected in zip((first, *others), arrays, strict=True):
        assert found.shape == expected.shape and found.dtype.itemsize == expected.dtype.itemsize
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [object(), np.array([object()]), np.array(["text"]), {1j: 0}])
def test_what_is_no_number_or_text_is_not_sent(value):
    with pytest.raises(TypeError):
        pack({"options": value})


def test_another_protocol_is_refused(monkeypatch):
    message = pack({"status": "ok"})
    monkeypatch.setattr(messages, "PROTOCOL", 2)
    with pytest.raises(SimulatorError, match="talk by protocol 2, found protocol 1: pool and work"):
        unpack(message)
    with pytest.raises(SimulatorError, match=r"found b'\\x80"):
        unpack(struct.pack("<12s", b"\x80\x05\x95pickled"))
