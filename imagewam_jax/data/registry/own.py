"""The datasets that this project makes itself."""

from imagewam_jax.data.dataset_spec import Camera, DatasetSpec, Encoding
from imagewam_jax.data.registry.encodings import absolute

METAWORLD_FAUCET = DatasetSpec(
    name="metaworld_faucet",
    cameras=(("primary", Camera("observation/image")),),
    # Displacement of the hand, and the effort of the gripper.
    action=Encoding("hand_delta", ("x", "y", "z", "gripper"), (True, True, True, False)),
    state=absolute("hand", "x", "y", "z", "gripper"),
    control_hz=80.0,
    action_keys=("action",),
    state_keys=("observation/state",),
)

ROWS = (METAWORLD_FAUCET,)
