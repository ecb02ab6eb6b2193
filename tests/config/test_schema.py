"""From config to sizes: every field is known, needed ones are there, and errors name them."""

import pytest

from imagewam_jax.config.schema import choose, from_fields, policy_config
from imagewam_jax.errors import ConfigError
from imagewam_jax.models.backbones.flux2 import Flux2Config
from imagewam_jax.models.imagewam import ImageWAMConfig
from tests.training.tiny import tiny_config


def model(**changes) -> dict:
    return tiny_config("").to_dict()["model"] | changes


def test_fields_arrive_where_they_belong():
    config = policy_config(model(horizon=6, remat="none"))
    assert isinstance(config.backbone, Flux2Config) and config.backbone.rope_axes == (2, 2, 2, 2)
    assert (config.horizon, config.remat, config.expert.action_dim) == (6, "none", 4)
    assert config.target_flow.train_shift == 5.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3}, r"model has unknown fields \['depth'\]; it has \['action_flow'"),
        ({"expert": {"width": 3}}, r"model.expert has unknown fields \['width'\]"),
        ({"target_flow": {"shift": 3}}, r"model.target_flow has unknown fields \['shift'\]"),
        ({"backbone": {"dim": 16}}, r"model.backbone.name is None; choose from \['flux2'"),
        (
            {"backbone": {"name": "flux2", "dim": 16, "heads": 2}},
            r"model.backbone: rope_axes \(32, 32, 32, 32\) must add up to dim / heads = 8",
        ),
    ],
)
def test_a_field_that_does_not_fit_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        policy_config(model(**changes))


def test_a_field_that_is_needed_is_named():
    with pytest.raises(ConfigError, match=r"model lacks the fields \['backbone', 'expert'\]"):
        from_fields(ImageWAMConfig, {"horizon": 4}, "model")


def test_choose():
    assert choose({"a": 1, "b": 2}, "b", "x.y") == 2
    with pytest.raises(ConfigError, match=r"x.y is 'c'; choose from \['a', 'b'\]"):
        choose({"a": 1, "b": 2}, "c", "x.y")
