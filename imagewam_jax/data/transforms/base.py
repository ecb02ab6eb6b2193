"""What a transform and a filter are, and how they are found by name.

A transform brings the features of one episode into the form that training uses: one array of
actions and one of states. A filter says which of its steps may start a sample. Both are NumPy
functions with a version, and the version is part of what standardised data is filed under: whoever
changes what one of them makes counts its version up, and stale results are not found again.
"""

import dataclasses
import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float32

from imagewam_jax.data.errors import DataError

if TYPE_CHECKING:
    from imagewam_jax.data.registry.spec import DatasetSpec

Steps = Mapping[str, np.ndarray]
Standardised = tuple[Float32[np.ndarray, "t a"], Float32[np.ndarray, "t p"]]
TransformFunction = Callable[[Steps, "DatasetSpec"], Standardised]
FilterFunction = Callable[
    [Steps, "DatasetSpec", Float32[np.ndarray, "t a"], Float32[np.ndarray, "t p"]],
    Bool[np.ndarray, " t"],
]


@dataclasses.dataclass(frozen=True)
class Transform:
    """function(steps, spec) -> action [t, A], state [t, P], both float32, t <= T.

    steps: the episode's features by key, each with T rows: step features by their key below
      `steps` ("observation/state"), episode features by their key from the record's root
      ("episode_metadata/file_path"), the same in each row. Text is bytes in object arrays.
    t may be smaller than T: the last T - t steps then do not belong to the episode.
    options: the names of `DatasetSpec.options` that the function reads.
    """

    function: TransformFunction
    version: int
    options: tuple[str, ...] = ()

    def __call__(self, steps: Steps, spec: "DatasetSpec") -> Standardised:
        return self.function(steps, spec)


@dataclasses.dataclass(frozen=True)
class StepFilter:
    """function(steps, spec, action [t, A], state [t, P]) -> bool [t]: may a sample start here.

    steps is what the transform was given, with T >= t rows.
    """

    function: FilterFunction
    version: int
    options: tuple[str, ...] = ()

    def __call__(self, steps: Steps, spec: "DatasetSpec", action: np.ndarray, state: np.ndarray):
        return self.function(steps, spec, action, state)


def transform(
    *, version: int, options: tuple[str, ...] = ()
) -> Callable[[TransformFunction], Transform]:
    """Makes a transform of a function: @transform(version=1)."""
    return lambda function: Transform(function, version, options)


def step_filter(
    *, version: int, options: tuple[str, ...] = ()
) -> Callable[[FilterFunction], StepFilter]:
    """Makes a filter of a function: @step_filter(version=1)."""
    return lambda function: StepFilter(function, version, options)


def find(name: str, known: Mapping[str, Any], kind: type) -> Any:
    """The entry of `known`, or what "package.module:function" names.

    kind: Transform or StepFilter. DataError: there is none of that name, it cannot be imported, or
    it has no version because its decorator is missing.
    """
    what = {Transform: "transform", StepFilter: "step_filter"}[kind]
    if name in known:
        return known[name]
    if ":" not in name:
        raise DataError(
            f"no {what} {name!r}, there are {sorted(known)}; name your own as "
            '"package.module:function"'
        )
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(
            f"{what} {name!r}: {error}; expected a function of a module that Python finds "
            "(installed, or on PYTHONPATH)"
        ) from error
    if isinstance(found, Transform | StepFilter) and not isinstance(found, kind):
        raise DataError(f"{name!r} is a {type(found).__name__}, expected a {kind.__name__}")
    if not isinstance(found, kind):
        raise DataError(
            f"{what} {name!r} is a {type(found).__name__} without a version; write "
            f"`from imagewam_jax.data.transforms import {what}` and put `@{what}(version=1)` above "
            f"{attribute}, then count the version up whenever its results change"
        )
    return found


def describe_version(name: str, found: Transform | StepFilter) -> dict[str, Any]:
    """Name and version for an identity; of a user's own also a digest of its module's source.

    Our own versions are guarded by tests, a user's are not: their edits must not go unnoticed.
    """
    identity: dict[str, Any] = {"name": name, "version": found.version}
    if ":" in name:
        source = Path(inspect.getsourcefile(inspect.unwrap(found.function))).read_bytes()
        identity["source"] = hashlib.sha256(source).hexdigest()[:16]
    return identity
