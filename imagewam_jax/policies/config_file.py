"""Config files and what the command line changes of them."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from imagewam_jax.policies.errors import ConfigError


def load_config(path: str, overrides: Sequence[str]) -> ConfigDict:
    """A config file with `--config.field=value` overrides.

    ConfigError: there is no such file, or an override names no field or does not fit it.
    """
    file = path.rsplit(":", 1)[0]
    if not Path(file).is_file():
        raise ConfigError(f"{file}: no such config file")
    _check_fields(file, _parse_config(path, []), overrides)
    return _parse_config(path, overrides)


def _parse_config(path: str, overrides: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()
    argv = ["imagewam", f"--config={path}", *overrides]
    flag = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
    except (flags.Error, TypeError) as error:
        first = error  # the flags library wraps an error of the config file itself twice
        while first.__context__:
            first = first.__context__
        raise ConfigError(str(first if isinstance(first, ConfigError) else error)) from error
    if len(rest) > 1:
        raise ConfigError(f"unexpected arguments: {' '.join(rest[1:])}")
    return values[flag.name].value


def _check_fields(file: str, config: ConfigDict, overrides: Sequence[str]) -> None:
    for override in overrides:
        name, section = override.split("=")[0].removeprefix("--config."), config
        for part in name.split(".") if override.startswith("--config.") else ():
            if not isinstance(section, ConfigDict) or part not in section:
                known = sorted(section) if isinstance(section, ConfigDict) else "no fields"
                raise ConfigError(f"{file} has no field {name!r}: no {part!r} among {known}")
            section = section[part]
