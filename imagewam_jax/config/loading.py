"""Config files, and the overrides of the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from imagewam_jax.config.defaults import defaults
from imagewam_jax.config.fields import OPEN_SECTIONS, field_errors
from imagewam_jax.errors import ConfigError, raise_all
from imagewam_jax.paths import in_home

# Fields that are paths, or addresses in object storage.
PATHS = (
    ("data", "directory"),
    ("data", "index_directory"),
    ("text", "weights"),
    ("text", "table"),
    ("autoencoder", "weights"),
    ("train", "initial_weights"),
)


class LoadedConfig(NamedTuple):
    """A config with the overrides that fit it, and what is wrong with its fields.

    unusable: dotted names of fields whose value is missing or does not fit.
    """

    config: ConfigDict
    errors: tuple[ConfigError, ...]
    unusable: frozenset[str]


def load_config(path: str, overrides: Sequence[str]) -> ConfigDict:
    """Loads a config file and applies `--config.field=value` overrides.

    ConfigError, or all of them together: there is no such file, its fields are not those of the
    defaults, an override names no field or does not fit it, or a value is of another type or
    beyond its range.
    """
    loaded = read_config(path, overrides)
    raise_all(loaded.errors)
    return loaded.config


def read_config(path: str, overrides: Sequence[str]) -> LoadedConfig:
    """Loads a config file, and all that can be known to be wrong with its fields.

    ConfigError: there is no such file, or it makes no config.
    """
    path = in_home(path)
    file = path.rsplit(":", 1)[0]
    if not Path(file).is_file():
        raise ConfigError(f"{file}: no such config file")
    config = _parse_config(path, [])
    errors, unusable = _unknown_and_missing(file, config.to_dict(), defaults().to_dict())
    fitting: list[str] = []
    for override in _arguments(overrides):
        try:
            _check_field(file, config, override[0])
            _parse_config(path, override)  # alone: the others are read all the same
            fitting += override
        except ConfigError as error:
            errors.append(error)
            unusable.append(_field(override[0]))
    config = _parse_config(path, fitting)
    wrong = field_errors(config.to_dict())
    errors += [error for name, error in wrong.items() if name not in unusable]
    for section, field in PATHS:
        name = f"{section}.{field}"
        if field in config.get(section, ()) and name not in wrong:
            config[section][field] = in_home(config[section][field])
    return LoadedConfig(config, tuple(errors), frozenset(unusable) | wrong.keys())


def _arguments(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides one by one: `--config.field=value`, or `--config.field` and `value`."""
    found: list[list[str]] = []
    for word in overrides:
        follows = found and found[-1][0].startswith("--config.") and "=" not in found[-1][0]
        if follows and len(found[-1]) == 1 and not word.startswith("--"):
            found[-1].append(word)
        else:
            found.append([word])
    return found


def _parse_config(path: str, overrides: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()
    argv = ["imagewam", f"--config={path}", *overrides]
    flag = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("imagewam_jax"):
            raise
        raise ConfigError(
            f"{path} imports {error.name}, which this version does not have: `defaults`, "
            "`klein_recipe` and `official_recipe` are in imagewam_jax.config.defaults"
        ) from error
    except (flags.Error, TypeError) as error:
        first = error  # the flags library wraps an error of the config file itself twice
        while first.__context__:
            first = first.__context__
        raise ConfigError(str(first if isinstance(first, ConfigError) else error)) from error
    if len(rest) > 1:
        raise ConfigError(f"unexpected arguments: {' '.join(rest[1:])}")
    return values[flag.name].value


def _unknown_and_missing(
    file: str, found: Mapping, known: Mapping, prefix: str = ""
) -> tuple[list[ConfigError], list[str]]:
    """An error for each field of the file that the defaults lack, or that they alone have; and the
    names of the latter."""
    errors, missing = [], []
    for name in sorted(found.keys() ^ known.keys()):
        what = "an unknown field" if name in found else "no field"
        error = f"{file} has {what} {prefix + name!r}; known are {sorted(known)}"
        errors.append(ConfigError(error))
        if name in known:
            missing.append(prefix + name)
    for name, section in known.items():
        path = f"{prefix}{name}"
        sections = all(isinstance(x, Mapping) for x in (section, found.get(name)))
        if sections and path not in OPEN_SECTIONS:
            more, lost = _unknown_and_missing(file, found[name], section, f"{path}.")
            errors, missing = errors + more, missing + lost
    return errors, missing


def _check_field(file: str, config: ConfigDict, override: str) -> None:
    """ConfigError: an override names no field of the config."""
    name, section = _field(override), config
    for part in name.split(".") if override.startswith("--config.") else ():
        if not isinstance(section, ConfigDict) or part not in section:
            known = sorted(section) if isinstance(section, ConfigDict) else "no fields"
            raise ConfigError(f"{file} has no field {name!r}: no {part!r} among {known}")
        section = section[part]


def _field(override: str) -> str:
    return override.split("=")[0].removeprefix("--config.")
