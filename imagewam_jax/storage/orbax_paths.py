"""The places of checkpoints as Orbax takes them.

Orbax writes arrays to `gs://` by TensorStore. What it does beside that, listing, small files,
removing, it does by gcsfs and Google's client, which the extra `gcs` installs.
"""

import functools
import importlib.util
import os

import fsspec
from etils import epath

from imagewam_jax.errors import ConfigError
from imagewam_jax.storage.objects import AnyPath, is_remote

# Both are asked for once in a process, maybe by JAX, whose cache of programs can lie there, too.
# etils would import TensorFlow for addresses, wherever that is installed; gcsfs would ask for the
# kind of each bucket, by another service and with a warning where that does not answer.
os.environ["EPATH_USE_TF"] = "false"
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def orbax_path(path: AnyPath) -> epath.Path:
    """The path or address of a checkpoint, or of what is in it, for Orbax.

    ConfigError: Orbax cannot write to an address of this kind, or packages are missing for it.
    """
    if is_remote(path):
        if path.scheme != "gs":
            raise ConfigError(
                f"{path}: checkpoints are read and written at gs:// addresses and in folders, not "
                f"at {path.scheme}://"
            )
        _prepare()
    return epath.Path(str(path))


@functools.cache
def _prepare() -> None:
    """Sees to it that gcsfs shows what other processes have written since. ConfigError: packages
    are missing."""
    if not all(map(_is_installed, ("gcsfs", "google.cloud.storage"))):
        raise ConfigError(
            "checkpoints at gs:// addresses need two packages more: pip install 'imagewam-jax[gcs]'"
        )
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # nor what it is in
        return False
