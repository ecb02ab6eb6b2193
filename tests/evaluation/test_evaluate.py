"""What `imagewam evaluate` chooses by itself."""

from types import SimpleNamespace

import jax
import pytest

from imagewam_jax.errors import ConfigError
from imagewam_jax.evaluation.evaluate import _mesh, _simulated

LIBERO = ("libero_goal_no_noops", "libero_10_no_noops")


def chosen(simulator: str, names: tuple[str, ...], *, pooled: bool = False, official: bool = False):
    policy = SimpleNamespace(
        config={"data": {"pool_statistics": pooled}},
        statistics={"source": {"official": official}} if official else {},
    )
    found = _simulated(simulator, policy, [SimpleNamespace(name=name) for name in names])
    return None if found is None else found.name


def test_which_dataset_a_simulator_plays(capsys):
    assert chosen("metaworld_faucet", (*LIBERO, "metaworld_faucet")) == "metaworld_faucet"
    assert chosen("", LIBERO) is None
    assert chosen("metaworld_faucet", LIBERO) is None
    assert "'libero_goal_no_noops', 'libero_10_no_noops': recorded" in capsys.readouterr().out
    for one_normalization in ({"pooled": True}, {"official": True}):
        assert chosen("libero", LIBERO, **one_normalization) == LIBERO[0]
    with pytest.raises(ConfigError, match=r"'libero' plays \['libero_goal_no_noops', .* --dataset"):
        chosen("libero", LIBERO)


def test_several_hosts_play_in_no_simulator(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert chosen("", LIBERO) is None
    with pytest.raises(ConfigError, match=r"'libero' is played by one process, and there are 2"):
        chosen("libero", LIBERO)


def test_the_only_device_needs_no_mesh():
    assert _mesh(None) is None and _mesh({}) is None
    assert _mesh({"tensor": 1}).shape == {"data": 1, "fsdp": 1, "tensor": 1, "context": 1}
    with pytest.raises(ConfigError, match=r"tensor 2 .* is not one of 1 devices"):
        _mesh({"tensor": 2})
