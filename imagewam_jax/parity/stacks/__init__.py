"""The recordings of each backbone's policies. A new one is a file here and an entry below."""

from collections.abc import Callable
from typing import Any

from imagewam_jax.errors import ConversionError
from imagewam_jax.parity.cases.folder import Folder, Tensors
from imagewam_jax.parity.stacks.base import Stack
from imagewam_jax.parity.stacks.flux2 import Flux2Stack
from imagewam_jax.parity.stacks.omnigen2 import OmniGen2Stack
from imagewam_jax.parity.stacks.ovis_u1 import OvisU1Stack

STACKS: tuple[Stack, ...] = (Flux2Stack(), OmniGen2Stack(), OvisU1Stack())


def stack_of(backbone: Any) -> Stack:
    """The recordings of policies whose backbone has this configuration. ConversionError: there are
    none of such policies."""
    found = next((stack for stack in STACKS if isinstance(backbone, stack.backbone)), None)
    if found is None:
        raise ConversionError(f"no recordings are known of policies on {type(backbone).__name__}")
    return found


def recorded_stack(folder: Folder) -> Stack:
    """The kind of recordings that a folder says it is of; those that do not say are of FLUX.2.

    ConversionError: it is unknown.
    """
    name = folder.config.get("stack", Flux2Stack.name)
    found = next((stack for stack in STACKS if stack.name == name), None)
    if found is None:
        known = ", ".join(stack.name for stack in STACKS)
        raise ConversionError(f"{folder.path}: recorded of {name!r}, known are {known}")
    return found


def having_of(stack: type[Stack], *names: str) -> Callable[[Folder], Tensors | None]:
    """The `find` of a kind whose tensors are named as others are in recordings of other stacks."""
    return lambda folder: (
        folder.having(*names) if recorded_stack(folder).name == stack.name else None
    )


def checked_stack(folder: Folder, backbone: Any) -> Stack:
    """The kind of a folder's recordings. ConversionError: it is unknown, or not that of the
    checkpoint's backbone."""
    found, expected = recorded_stack(folder), stack_of(backbone)
    if found.name != expected.name:
        raise ConversionError(
            f"{folder.path}: recorded of {found.name}, the checkpoint is of {expected.name}"
        )
    return found
