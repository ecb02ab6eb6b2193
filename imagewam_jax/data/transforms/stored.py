"""Actions and states as they are stored."""

from typing import TYPE_CHECKING

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.transforms.base import Standardised, Steps, transform
from imagewam_jax.data.transforms.features import joined, numbers

if TYPE_CHECKING:
    from imagewam_jax.data.registry.spec import DatasetSpec


@transform(version=1)
def as_stored(steps: Steps, spec: "DatasetSpec") -> Standardised:
    """In: the features of action_keys and state_keys. Out: each group side by side, unchanged."""
    if not spec.action_keys:
        raise DataError(f"{spec.name}: the transform 'as_stored' needs action_keys")
    length = len(numbers(steps, spec.action_keys[0]))
    return joined(steps, spec.action_keys, length), joined(steps, spec.state_keys, length)
