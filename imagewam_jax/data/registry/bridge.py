"""BridgeData V2: the original release and the copy in Open-X.

Sources: TFDS catalog (`bridge`), the data's website (`bridge_dataset`), and the public loaders of
Octo and OpenVLA, which both relabel the motion of an action by what the robot reached. The action
of an episode's first step is stored as zeros, so no sample starts there. 5 Hz.
"""

from imagewam_jax.data.dataset_spec import DatasetSpec, views
from imagewam_jax.data.registry.encodings import EEF_DELTA, POS_EULER

ROWS = (
    DatasetSpec(
        name="bridge_dataset",  # about 60,000 trajectories; what the public mixtures mean
        cameras=views(primary="image_0", secondary="image_1"),
        action=EEF_DELTA,
        state=POS_EULER,
        control_hz=5.0,
        transform="reached",
        action_keys=("action",),
        state_keys=("observation/state",),
        filters=("not_first",),
        options=(("gripper", "binarise"),),
    ),
    DatasetSpec(
        name="bridge",  # 25,460 trajectories of training, one camera
        cameras=views(primary="image"),
        action=EEF_DELTA,
        state=POS_EULER,
        control_hz=5.0,
        language=("observation/natural_language_instruction",),
        transform="reached",
        action_keys=("action/world_vector", "action/rotation_delta", "action/open_gripper"),
        state_keys=("observation/state",),
        filters=("not_first",),
    ),
)
