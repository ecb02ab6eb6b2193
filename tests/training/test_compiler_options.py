"""Options of XLA, and the devices that each is for."""

import jax
import pytest

from imagewam_jax.config.defaults import defaults
from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import ConfigError
from imagewam_jax.models.sharding import make_mesh
from imagewam_jax.training import step as step_module
from imagewam_jax.training.compiler_options import (
    check_compiler_options,
    compiler_options,
    options_for,
)
from imagewam_jax.training.step import abstract_state, jit_train_step, step_settings
from tests.training.tiny import tiny_config

GIVEN = ("xla_a=1", "tpu:xla_b=x=y:z", "gpu:xla_c=3", "cpu:xla_a=4")


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("tpu", {"xla_a": "1", "xla_b": "x=y:z"}),
        ("gpu", {"xla_a": "1", "xla_c": "3"}),
        ("cuda", {"xla_a": "1", "xla_c": "3"}),
        ("cpu", {"xla_a": "4"}),
    ],
)
def test_an_option_is_for_every_platform_or_for_its_own(platform, expected):
    assert options_for(platform, compiler_options(GIVEN)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "'fast' is no NAME=VALUE or PLATFORM:NAME=VALUE"),
        ("tpu:fast", "'tpu:fast' is no NAME=VALUE or PLATFORM:NAME=VALUE"),
        ("tpu:=1", "'tpu:=1' is no NAME=VALUE or PLATFORM:NAME=VALUE"),
        ("xla_a=", "'xla_a=' is no NAME=VALUE or PLATFORM:NAME=VALUE"),
        ("npu:xla_a=1", r"is for 'npu'; choose from \['cpu', 'gpu', 'tpu'\]"),
    ],
)
def test_what_is_no_option_is_told(text, message):
    with pytest.raises(ConfigError, match=message):
        compiler_options([text])


def test_options_of_other_devices_are_not_asked_of_the_compiler_here():
    check_compiler_options(compiler_options(defaults().train.compiler_options))
    check_compiler_options(compiler_options(["tpu:xla_no=1"]))
    with pytest.raises(ConfigError, match=r"\{'xla_no': '1'\} are not for cpu"):
        check_compiler_options(compiler_options(["cpu:xla_no=1"]))


def test_the_step_has_the_options_of_its_mesh(tmp_path, monkeypatch):
    """A run on this machine's devices; `test_plan` compiles for devices that are not here."""
    config = tiny_config(tmp_path)
    config.train.compiler_options = ("cpu:xla_a=1", "tpu:xla_b=2")
    config = config.to_dict()
    settings = step_settings(config, policy_config(config["model"]))
    given = {}
    monkeypatch.setattr(step_module.jax, "jit", lambda _, **options: given.update(options))
    abstract = abstract_state(settings, make_mesh(config["mesh"], jax.devices()[:1]))
    jit_train_step(settings, abstract)
    assert given["compiler_options"] == {"xla_a": "1"}


def test_layers_are_gathered_whole_on_tpus_by_default():
    options = compiler_options(defaults().train.compiler_options)
    assert "xla_jf_spmd_threshold_for_windowed_einsum_mib" in options_for("tpu", options)
    assert options_for("cpu", options) == options_for("gpu", options) == {}
