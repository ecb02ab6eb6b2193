"""What accelerators can do: found by the names that JAX has for them."""

import pytest

from imagewam_jax.training.chips import CHIPS, chip_named, chip_of_kind


def test_every_kind_is_one_chip():
    kinds = [kind for chip in CHIPS for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))
    assert all(chip_of_kind(kind) is chip for chip in CHIPS for kind in chip.kinds)
    assert all(chip_named(chip.name) is chip for chip in CHIPS)


def test_unknown_chips_are_not_guessed():
    assert chip_of_kind("cpu") is None
    with pytest.raises(KeyError, match="v5e"):
        chip_named("v99")
