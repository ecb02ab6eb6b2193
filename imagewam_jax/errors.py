"""The errors that a user can do something about.

Each message names the file, key or tensor, what was expected and what was found. The command line
prints them without a traceback; everything else that is raised is a fault of this package.
"""

import contextlib
import errno
from collections.abc import Iterator, Sequence

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of errors of the system


class UserError(Exception):
    """The common base; raised as one of the kinds below."""


class ConfigError(UserError, ValueError):
    """A config has a field or a value that does not fit."""


class MissingWeights(ConfigError):
    """The config names a part that has weights and does not say where they are."""


class DataError(UserError, ValueError):
    """A dataset, an index, statistics or a text table cannot be used as asked."""


class BadFrameError(DataError):
    """A stored image cannot be read: wrong bytes, not an image, or of another size."""


class CheckpointError(UserError):
    """A checkpoint is missing, holds something else, or cannot be written."""


class Unreadable(CheckpointError):
    """A checkpoint is there and damaged."""


class StorageError(UserError):
    """An object storage does not answer, or refuses: what lies there may be as it was."""


class InputError(UserError, ValueError):
    """A policy was given observations, noise or an instruction that it cannot act on."""


class MessageError(UserError, ValueError):
    """A message between a policy server and its client is not what the protocol allows."""


class ServingError(UserError):
    """A policy server cannot be started or reached, or it did not answer in time."""


class RequestRefused(ServingError):
    """A policy server answered a request with an error."""


class WriteError(UserError):
    """A file cannot be written: the disk is full, or the folder is not writable."""


class InUseError(UserError):
    """Another process is writing the same files."""


class NotFiniteError(UserError):
    """A loss, a gradient or a trained weight of a run is NaN or infinite."""


class ConversionError(UserError, ValueError):
    """Foreign weights are not what they should be."""


class HostsError(UserError):
    """Processes that train together lost one of them."""


class PlanError(UserError):
    """A program cannot be compiled for a TPU topology."""


class SimulatorError(UserError, RuntimeError):
    """A simulator cannot be started, or one of its processes failed."""


class OpenGLUnavailable(SimulatorError):
    """A simulator draws, and this machine cannot."""


class SeveralErrors(UserError):
    """Errors that were found together; the message has a line for each."""

    def __init__(self, errors: Sequence[UserError]):
        super().__init__("\n".join(map(str, errors)))
        self.errors = tuple(errors)


@contextlib.contextmanager
def collecting(errors: list[UserError]) -> Iterator[None]:
    """Add the errors that are raised within to a list, instead of ending there."""
    try:
        yield
    except SeveralErrors as error:
        errors.extend(error.errors)
    except UserError as error:
        errors.append(error)


def raise_all(errors: Sequence[UserError]) -> None:
    """Raise what was found: nothing, the only error as it is, or all of them together."""
    if errors:
        raise errors[0] if len(errors) == 1 else SeveralErrors(errors)
