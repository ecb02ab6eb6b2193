"""Simulators by name. Importing this package imports none of them."""

from importlib import import_module

from imagewam_jax.evaluation.simulators.base import Simulator

_REGISTRY = {
    "metaworld_faucet": "imagewam_jax.evaluation.simulators.metaworld_faucet:MetaworldFaucet",
}


def make_simulator(name: str, **options) -> Simulator:
    """Builds a simulator from its registered name, or from "module:Class" if it is elsewhere.

    ValueError: no simulator has that name. OpenGLUnavailable: it renders, this machine cannot.
    """
    location = _REGISTRY.get(name, name)
    module, separator, class_name = location.partition(":")
    if not separator:
        known = ", ".join(sorted(_REGISTRY))
        raise ValueError(f"unknown simulator {name!r}; known: {known}, or module:Class")
    return getattr(import_module(module), class_name)(**options)
