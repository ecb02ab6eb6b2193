"""Config files, and the overrides of the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from imagewam_jax.config.defaults import defaults
from imagewam_jax.errors import ConfigError

# Sections whose fields depend on what they name, or are names that a user chooses.
OPEN_SECTIONS = (
    "autoencoder",
    "model.backbone",
    "model.expert",
    "data.rows",
    "data.mixtures",
    "evaluation.options",
)
# Fields that are paths on this machine.
PATHS = (
    ("data", "directory"),
    ("data", "index_directory"),
    ("text", "weights"),
    ("text", "table"),
    ("autoencoder", "weights"),
    ("train", "initial_weights"),
)


def load_config(path: str, overrides: Sequence[str]) -> ConfigDict:
    """Loads a config file and applies `--config.field=value` overrides.

    ConfigError: there is no such file, its fields are not those of the defaults, or an override
    names no field or does not fit it.
    """
    path = _in_home(path)
    file = path.rsplit(":", 1)[0]
    if not Path(file).is_file():
        raise ConfigError(f"{file}: no such config file")
    config = _parse_config(path, [])
    _check_known(file, config.to_dict(), defaults().to_dict())
    _check_fields(file, config, overrides)
    config = _parse_config(path, overrides)
    for section, field in PATHS:
        config[section][field] = _in_home(config[section][field])
    return config


def _in_home(path: str) -> str:
    """The path with a leading ~ replaced, which shells leave in `--config.data.directory=~/x`."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise ConfigError(f"{path}: {error}") from error


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


def _check_known(file: str, found: Mapping, known: Mapping, prefix: str = "") -> None:
    """ConfigError: the file has a field that the defaults lack, or lacks one that they have."""
    if differing := sorted(found.keys() ^ known.keys()):
        name = differing[0]
        what = "an unknown field" if name in found else "no field"
        raise ConfigError(f"{file} has {what} {prefix + name!r}; known are {sorted(known)}")
    for name, section in known.items():
        path = f"{prefix}{name}"
        if isinstance(section, Mapping) and path not in OPEN_SECTIONS:
            _check_known(file, found[name], section, f"{path}.")


def _check_fields(file: str, config: ConfigDict, overrides: Sequence[str]) -> None:
    """ConfigError: an override names no field of the config."""
    for override in overrides:
        name, section = override.split("=")[0].removeprefix("--config."), config
        for part in name.split(".") if override.startswith("--config.") else ():
            if not isinstance(section, ConfigDict) or part not in section:
                known = sorted(section) if isinstance(section, ConfigDict) else "no fields"
                raise ConfigError(f"{file} has no field {name!r}: no {part!r} among {known}")
            section = section[part]
