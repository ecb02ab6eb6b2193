"""How many files a process may have open: each shard and each mapped array is one."""

import errno
import resource

from imagewam_jax.data.errors import DataError

_WITHOUT_LIMIT = 2**16  # what is asked for where the hard limit is infinite


def allow_open_files() -> None:
    """Raises this process's soft limit, which is 1,024 on most machines and small for a mixture, to
    its hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WITHOUT_LIMIT if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_open_files(error: OSError | ValueError) -> None:
    """DataError if that is what an error is about."""
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        raise DataError(
            f"{error}: each shard and each array of an index is an open file, and this process may "
            f"have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} (ulimit -Hn)"
        ) from error
