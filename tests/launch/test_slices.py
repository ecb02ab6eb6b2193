"""Hosts and chips of TPU slices, against the tables of Google's documentation."""

import pytest

from launch.slices import GENERATIONS, SliceError, parse_slice

HOSTS_3D = {
    "2x2x1": 1,
    "2x2x2": 2,
    "2x2x4": 4,
    "2x4x4": 8,
    "4x4x4": 16,
    "4x4x8": 32,
    "4x8x8": 64,
    "8x8x8": 128,
    "8x8x16": 256,
}
HOSTS_2D = {"2x2": 1, "2x4": 2, "4x4": 4, "4x8": 8, "8x8": 16, "8x16": 32, "16x16": 64}
DOCUMENTED = [(f"{g}:{t}", n) for g in ("v4", "v5p") for t, n in HOSTS_3D.items()] + [
    (f"{g}:{t}", n) for g in ("v5e", "v6e") for t, n in HOSTS_2D.items()
]


@pytest.mark.parametrize(("text", "hosts"), DOCUMENTED)
def test_hosts_have_four_chips(text, hosts):
    found = parse_slice(text)
    assert (found.hosts, found.chips_per_host) == (hosts, 4)
    assert f"{found.generation}:{found.topology}" == text


def test_one_chip():
    assert parse_slice("v6e:1x1")[2:] == (1, 1)


@pytest.mark.parametrize("generation", ["v5e", "v6e"])
def test_eight_chips_are_one_machine_or_two(generation):
    assert parse_slice(f"{generation}:2x4", 8).hosts == 1
    assert parse_slice(f"{generation}:2x4", 4).hosts == 2


def test_labels_of_nodes():
    assert {name: g.accelerator for name, g in GENERATIONS.items()} == {
        "v4": "tpu-v4-podslice",
        "v5e": "tpu-v5-lite-podslice",
        "v5p": "tpu-v5p-slice",
        "v6e": "tpu-v6e-slice",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p", "no slice"),
        ("v5p-8", "no slice"),
        ("v9:2x2", "no slice"),
        ("v5p:4x4", "have 3 sides, not 2"),
        ("v6e:4x4x4", "have 2 sides, not 3"),
        ("v6e:3x3", "v6e has 1x1, 2x2, 2x4"),
        ("v5p:2x2x3", "2x2x4, 2x4x4 and multiples of 4"),
        ("v5p:0x4x4", "multiples of 4"),
        ("v4:16x16x32", "8192 chips, the largest slice of v4 has 4096"),
    ],
)
def test_what_there_is_not(text, message):
    with pytest.raises(SliceError, match=message):
        parse_slice(text)


@pytest.mark.parametrize(("text", "chips"), [("v6e:4x4", 8), ("v5p:2x2x2", 8), ("v6e:2x4", 2)])
def test_hosts_that_there_are_not(text, chips):
    with pytest.raises(SliceError, match=f"hosts of 4 chips, not of {chips}"):
        parse_slice(text, chips)
