"""Options of XLA for the train step, of which each may be for one kind of device alone.

A config that is meant for several kinds of devices names options of their compilers as
"tpu:name=value"; an option without a platform is for whatever the step is compiled for. Plans
compile for devices that are not here, with the options that a run on them would have.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from imagewam_jax.errors import ConfigError

PLATFORMS = ("cpu", "gpu", "tpu")


class CompilerOption(NamedTuple):
    """An option of XLA; `platform` is one of `PLATFORMS`, or None for every one."""

    platform: str | None
    name: str
    value: str


def compiler_options(given: Sequence[str]) -> tuple[CompilerOption, ...]:
    """Options from a config. ConfigError: one is no "name=value" or names no known platform."""
    options = []
    for text in given:
        name, separator, value = text.partition("=")
        platform, colon, rest = name.partition(":")
        if colon and platform not in PLATFORMS:
            raise ConfigError(
                f"train.compiler_options: {text!r} is for {platform!r}; choose from "
                f"{list(PLATFORMS)}, or name no platform"
            )
        name = rest if colon else name
        if not (name and separator and value):
            raise ConfigError(
                f"train.compiler_options: {text!r} is no NAME=VALUE or PLATFORM:NAME=VALUE"
            )
        options.append(CompilerOption(platform if colon else None, name, value))
    return tuple(options)


def options_for(platform: str, options: Sequence[CompilerOption]) -> dict[str, str]:
    """The options that a program for devices of this platform is compiled with, as JAX takes them.

    Of two with one name the later counts.
    """
    kind = "gpu" if platform in ("cuda", "rocm") else platform
    return {o.name: o.value for o in options if o.platform in (None, kind)}


def check_compiler_options(options: Sequence[CompilerOption]) -> None:
    """ConfigError: the compiler for this machine's devices does not know one that it would get."""
    platform = jax.default_backend()
    chosen = options_for(platform, options)
    try:
        jax.jit(lambda: 0, compiler_options=chosen).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"train.compiler_options {chosen} are not for {platform}: {error}"
        ) from error
