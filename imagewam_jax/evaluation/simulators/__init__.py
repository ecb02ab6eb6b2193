"""Simulators by name. Importing this package imports none of them."""

from importlib import import_module
from typing import NamedTuple

from imagewam_jax.errors import ConfigError
from imagewam_jax.evaluation.simulators.base import Simulator


class _Registered(NamedTuple):
    """Where a simulator is, as "module:Class", and the dataset that was recorded in it."""

    location: str
    dataset: str


_REGISTRY = {
    "metaworld_faucet": _Registered(
        "imagewam_jax.evaluation.simulators.metaworld_faucet:MetaworldFaucet", "metaworld_faucet"
    ),
}


def make_simulator(name: str, **options) -> Simulator:
    """Builds a simulator from its registered name, or from "module:Class" if it is elsewhere.

    ConfigError: no simulator has that name. OpenGLUnavailable: it renders, this machine cannot.
    """
    location = _REGISTRY[name].location if name in _REGISTRY else name
    module, separator, class_name = location.partition(":")
    if not separator:
        known = ", ".join(sorted(_REGISTRY))
        raise ConfigError(f"unknown simulator {name!r}; known: {known}, or module:Class")
    return getattr(import_module(module), class_name)(**options)


def simulates(name: str, dataset: str) -> bool:
    """Whether a policy in the units of `dataset` can act in a simulator.

    A registered simulator plays the dataset that was recorded in it, and no other; one that a
    config names as "module:Class" plays what that config trains on.
    """
    return name not in _REGISTRY or _REGISTRY[name].dataset == dataset
