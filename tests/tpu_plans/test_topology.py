"""TPU slices by name, and the errors without such a slice or without a compiler."""

import pytest

from imagewam_jax import cli
from imagewam_jax.errors import PlanError
from imagewam_jax.tpu_plans import topology
from imagewam_jax.tpu_plans.topology import tpu_topology
from tests.tpu_compiler import needs_libtpu


def test_without_a_compiler_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"pip install 'imagewam-jax\[aot\]'"):
        tpu_topology("v5e:4x4")
    arguments = ["aot", "--config=configs/quickstart.py", "--topology=v5e:4x4"]
    assert cli.main(arguments) == 1
    assert "imagewam aot: compiling for TPUs takes" in capsys.readouterr().err


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "chip", "chips", "hosts"),
    [
        ("v5e:1x1", "v5e", 1, 1),
        ("v5e:2x4", "v5e", 8, 2),
        ("v5p:2x2x1", "v5p", 4, 1),
        ("v5p:4x4x4", "v5p", 64, 16),
        ("v6e:8x8", "v6e", 64, 16),
    ],
)
def test_slices(name, chip, chips, hosts):
    found = tpu_topology(name)
    assert (found.name, found.chip.name, len(found.devices), found.hosts) == (
        name,
        chip,
        chips,
        hosts,
    )


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:3x5", "v99:2x2", "a pod", "v4:2x2x1"])
def test_there_is_no_such_slice(name):
    with pytest.raises(PlanError, match=name):
        tpu_topology(name)
