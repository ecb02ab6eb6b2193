"""Simulators by name. Importing this package imports none of them."""

import inspect
from importlib import import_module
from typing import NamedTuple

from imagewam_jax.errors import ConfigError
from imagewam_jax.evaluation.simulators.base import Simulator

SIMULATORS_PER_WORKER = 8  # where neither a simulator's memory nor its drawing says otherwise


class _Registered(NamedTuple):
    """Where a simulator is, and what it plays.

    location: "module:Class".
    datasets: those that were recorded in it; empty: what a config trains on.
    per_worker: how many of it share a process.
    """

    location: str
    datasets: tuple[str, ...] = ()
    per_worker: int = SIMULATORS_PER_WORKER


_LIBERO = tuple(f"libero_{suite}_no_noops" for suite in ("spatial", "object", "goal", "10"))
_REGISTRY = {
    "libero": _Registered(
        "imagewam_jax.evaluation.simulators.libero:Libero",
        datasets=_LIBERO,
        per_worker=1,  # its renderer draws the images of one environment in a process
    ),
    "libero_plus": _Registered(
        "imagewam_jax.evaluation.simulators.libero_plus:LiberoPlus", datasets=_LIBERO, per_worker=1
    ),
    "metaworld": _Registered("imagewam_jax.evaluation.simulators.metaworld:Metaworld"),
    "metaworld_faucet": _Registered(
        "imagewam_jax.evaluation.simulators.metaworld_faucet:MetaworldFaucet",
        datasets=("metaworld_faucet",),
    ),
    "robotwin": _Registered(
        "imagewam_jax.evaluation.simulators.robotwin:RoboTwin",
        datasets=("robotwin",),
        per_worker=1,  # it changes the working directory, and holds a scene on the GPU
    ),
    "simpler": _Registered(
        "imagewam_jax.evaluation.simulators.simpler:Simpler",
        datasets=("bridge_dataset",),
        per_worker=1,
    ),
}


def make_simulator(name: str, **options) -> Simulator:
    """Builds a simulator from its registered name, or from "module:Class" if it is elsewhere.

    ConfigError: no simulator has that name, or it has no such option. OpenGLUnavailable: it
    renders, this machine cannot.
    """
    location = _REGISTRY[name].location if name in _REGISTRY else name
    module, separator, class_name = location.partition(":")
    if not separator:
        known = ", ".join(sorted(_REGISTRY))
        raise ConfigError(f"unknown simulator {name!r}; known: {known}, or module:Class")
    simulator = getattr(import_module(module), class_name)
    try:
        inspect.signature(simulator).bind(**options)
    except TypeError as error:
        raise ConfigError(f"options of the simulator {name!r}: {error}") from error
    return simulator(**options)


def simulates(name: str, dataset: str) -> bool:
    """Whether a policy in the units of `dataset` can act in a simulator.

    A registered simulator plays the datasets that were recorded in it, and no other; one without
    any, or that a config names as "module:Class", plays what that config trains on.
    """
    datasets = _REGISTRY[name].datasets if name in _REGISTRY else ()
    return not datasets or dataset in datasets


def simulators_per_worker(name: str) -> int:
    """How many simulators of a kind share a process."""
    return _REGISTRY[name].per_worker if name in _REGISTRY else SIMULATORS_PER_WORKER
