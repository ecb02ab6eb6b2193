"""Dataset specs that users write in their config, in the section `data.rows`."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from imagewam_jax.data.dataset_spec import ENCODINGS, Camera, DatasetSpec, Encoding
from imagewam_jax.data.registry import REGISTRY
from imagewam_jax.data.transforms import check_spec
from imagewam_jax.errors import DataError

REQUIRED = ("name", "cameras", "action", "state", "control_hz")
FIELDS = tuple(field.name for field in dataclasses.fields(DatasetSpec))


def spec_from_config(section: Mapping[str, Any]) -> DatasetSpec:
    """The dataset spec that a config's section describes.

    The section has the fields of `DatasetSpec`: cameras as {role: key} or {role: {"key": ...,
    "bgr": ..., "upside_down": ...}}, action and state as {"name", "dims", "relative"} (a state
    needs no "relative") or the name of a shared encoding, options as a mapping. With
    "like": <a registered name> every other field but the name may be left out, and is then that
    spec's. DataError names what is missing, unknown or of another form.
    """
    given = dict(section)
    if "cuts" in given and "drop_filters" not in given:  # its name in older checkpoints
        given["drop_filters"] = given.pop("cuts")
    where = f"the dataset row {given.get('name', '')!r}"
    unknown = sorted(set(given) - {*FIELDS, "like"})
    if unknown:
        raise DataError(f"{where}: unknown fields {unknown}, expected some of {sorted(FIELDS)}")
    like = given.pop("like", None)
    if like is not None and like not in REGISTRY:
        raise DataError(f"{where}: no dataset {like!r} to be like, there are {sorted(REGISTRY)}")
    missing = [name for name in (REQUIRED if like is None else ("name",)) if name not in given]
    if missing:
        raise DataError(f"{where}: missing fields {missing}")
    fields = {name: _READERS[name](value, f"{where}: {name}") for name, value in given.items()}
    if like is not None:
        spec = dataclasses.replace(REGISTRY[like], **fields)
    else:
        spec = DatasetSpec(**fields)
    check_spec(spec)
    return spec


def _wrong(where: str, expected: str, value: Any) -> DataError:
    return DataError(f"{where} is {value!r}, expected {expected}")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(where, "a name", value)
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _wrong(where, "a list of names", value)
    return tuple(_text(item, where) for item in value)


def _rate(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(where, "a number of steps per second", value)
    return float(value)


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def _only(value: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise DataError(f"{where}: unknown fields {unknown}, expected some of {list(known)}")


def _camera(value: Any, where: str) -> Camera:
    if isinstance(value, str):
        return Camera(value)
    if not isinstance(value, Mapping) or "key" not in value:
        raise _wrong(where, 'the key of an image, or {"key": ..., "bgr": ...}', value)
    _only(value, ("key", "bgr", "upside_down"), where)
    flags = {name: _flag(value[name], f"{where}: {name}") for name in value if name != "key"}
    return Camera(_text(value["key"], f"{where}: key"), **flags)


def _cameras(value: Any, where: str) -> tuple[tuple[str, Camera], ...]:
    if not isinstance(value, Mapping):
        raise _wrong(where, "a mapping of roles to images", value)
    return tuple((role, _camera(camera, f"{where}: {role}")) for role, camera in value.items())


def _encoding(value: Any, where: str, *, is_action: bool) -> Encoding:
    if isinstance(value, str) and value in ENCODINGS:
        return ENCODINGS[value]
    if not isinstance(value, Mapping):
        raise _wrong(where, f"one of {sorted(ENCODINGS)}, or name, dims and relative", value)
    _only(value, ("name", "dims", "relative"), where)
    needed = ("name", "dims", "relative") if is_action else ("name", "dims")
    missing = [name for name in needed if name not in value]
    if missing:
        raise DataError(f"{where}: missing fields {missing}")
    dims = _texts(value["dims"], f"{where}: dims")
    relative = value.get("relative", (False,) * len(dims))
    if not isinstance(relative, Sequence):
        raise _wrong(f"{where}: relative", "a flag for each of dims", relative)
    flags = tuple(_flag(item, f"{where}: relative") for item in relative)
    return Encoding(_text(value["name"], f"{where}: name"), dims, flags)


def _options(value: Any, where: str) -> tuple[tuple[str, Any], ...]:
    if not isinstance(value, Mapping):
        raise _wrong(where, "a mapping", value)
    return tuple((name, _frozen(item)) for name, item in value.items())


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


_READERS = MappingProxyType(
    {
        "name": _text,
        "cameras": _cameras,
        "action": lambda value, where: _encoding(value, where, is_action=True),
        "state": lambda value, where: _encoding(value, where, is_action=False),
        "control_hz": _rate,
        "language": _texts,
        "transform": _text,
        "action_keys": _texts,
        "state_keys": _texts,
        "filters": _texts,
        "drop_filters": _texts,
        "options": _options,
    }
)
