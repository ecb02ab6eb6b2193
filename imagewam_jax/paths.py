"""Paths as users write them. The command line's help imports this, and nothing that takes long."""

import re
from pathlib import Path

from imagewam_jax.errors import ConfigError

# Two slashes, of which `Path` leaves one.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:/")


def path_or_address(text: str) -> Path | str:
    """A path that a user gave; an address, such as gs://bucket/x, stays what it is."""
    return text if _ADDRESS.match(text) else Path(text)


def refuse_address(place: Path | str, what: str = "") -> None:
    """ConfigError: `place` is the address of an object, such as gs://bucket/x, where what is
    expected lies on a file system. A path would be made of it, below this folder.

    what: the beginning of the message.
    """
    if _ADDRESS.match(str(place)):
        address = re.sub(":/+", "://", str(place), count=1)
        raise ConfigError(
            f"{what}{address} is an address in object storage, and what is given here lies on a "
            "file system: copy it, or give the path of a mounted bucket"
        )


def in_home(path: str) -> str:
    """The path with a leading ~ replaced by the home folder: shells leave it in `--to=~/weights`.

    ConfigError: it is the home folder of nobody.
    """
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise ConfigError(f"{path}: {error}") from error
