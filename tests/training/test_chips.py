"""What accelerators can do: found by the names that JAX has for them."""

from types import SimpleNamespace

import jax
import pytest

from imagewam_jax.training.chips import (
    CHIPS,
    chip_named,
    chip_of_kind,
    peak_flops,
)


def test_every_kind_is_one_chip():
    kinds = [kind for chip in CHIPS for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))
    assert all(chip_of_kind(kind) is chip for chip in CHIPS for kind in chip.kinds)
    assert all(chip_named(chip.name) is chip for chip in CHIPS)


def test_unknown_chips_are_not_guessed():
    assert chip_of_kind("cpu") is None
    assert peak_flops(jax.devices()) is None
    with pytest.raises(KeyError, match="v5e"):
        chip_named("v99")


def test_the_peak_is_that_of_all_devices():
    device = SimpleNamespace(device_kind="TPU v5 lite")
    assert peak_flops([device] * 16) == 16 * 197e12
    assert peak_flops([device, *jax.devices()]) is None
