"""What is known about each dataset, as rows of data. A user's own row needs no edit here."""

import dataclasses
from types import MappingProxyType

from imagewam_jax.data.errors import DataError


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """How the pipeline reads one RLDS dataset.

    Keys are paths below `steps`, such as "observation/image".

    image_keys: (camera role, key) pairs, for instance (("primary", "observation/image"),). The
      roles are what sample specifications ask for.
    relative_action_mask: per action dimension, whether it is a displacement (past an episode's end
      it is 0: stand still) or an absolute target (it repeats). Its length is the action dimension.
    control_hz: steps per second of the recorded control loop.
    """

    name: str
    image_keys: tuple[tuple[str, str], ...]
    state_key: str
    action_key: str
    language_key: str
    relative_action_mask: tuple[bool, ...]
    control_hz: float


METAWORLD_FAUCET = DatasetSpec(
    name="metaworld_faucet",
    image_keys=(("primary", "observation/image"),),
    state_key="observation/state",
    action_key="action",
    language_key="language_instruction",
    relative_action_mask=(True, True, True, False),  # dx, dy, dz of the hand; gripper effort
    control_hz=80.0,
)

REGISTRY = MappingProxyType({spec.name: spec for spec in (METAWORLD_FAUCET,)})


def dataset_spec(name: str) -> DatasetSpec:
    """The registry's row of that name; DataError with the known names if there is none."""
    if name not in REGISTRY:
        raise DataError(f"no dataset {name!r} in the registry, which has {sorted(REGISTRY)}")
    return REGISTRY[name]
