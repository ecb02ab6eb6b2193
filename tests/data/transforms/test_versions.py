"""What each row's transform makes of one fixed episode, as a digest.

A digest that no longer fits means that standardized data on disk is stale. Count the version of the
transform or filter up that made it so, and then record the new digest.
"""

import hashlib

import numpy as np

from imagewam_jax.data.registry import REGISTRY
from imagewam_jax.data.transforms import find_filter, find_transform
from tests.data.public_layouts import features_of

RECORDED = {
    "aloha_mobile": "1 c2e38fc59c62",
    "austin_buds_dataset_converted_externally_to_rlds": "1 ca413d656666",
    "austin_sailor_dataset_converted_externally_to_rlds": "1 ca413d656666",
    "austin_sirius_dataset_converted_externally_to_rlds": "1 ca413d656666",
    "bc_z": "1 ba253107d99e",
    "berkeley_autolab_ur5": "1 2d2012638751",
    "berkeley_cable_routing": "1 ea5ea39f28c6",
    "berkeley_fanuc_manipulation": "1 1fde8d0a0325",
    "berkeley_gnm_cory_hall": "1 07a5660a7b1d",
    "berkeley_gnm_recon": "1 07a5660a7b1d",
    "berkeley_gnm_sac_son": "1 07a5660a7b1d",
    "berkeley_mvp_converted_externally_to_rlds": "1 5f6dbb2c563e",
    "berkeley_rpt_converted_externally_to_rlds": "1 5f6dbb2c563e",
    "bridge": "1.1 516d61f01ca8",
    "bridge_dataset": "1.1 51c34c4a751c",
    "cmu_stretch": "1 7fa55d6383b6",
    "dlr_edan_shared_control_converted_externally_to_rlds": "1 285985dc699a",
    "dobbe": "1 4409a8282d3b",
    "droid": "1.1.1 7f9d96420849",
    "fmb_dataset": "1 fab54d6401cb",
    "fractal20220817_data": "1 9eac30c0909d",
    "furniture_bench_dataset_converted_externally_to_rlds": "1 5719535ff62c",
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": "1 444e7ef5433d",
    "jaco_play": "1 96e51688861e",
    "kuka": "1.1 a06cea4647fb",
    "language_table": "1 0aa9d801b0c1",
    "libero_10_no_noops": "1 67002b8e553d",
    "libero_goal_no_noops": "1 67002b8e553d",
    "libero_object_no_noops": "1 67002b8e553d",
    "libero_spatial_no_noops": "1 67002b8e553d",
    "metaworld_faucet": "1 8b474d724cc9",
    "nyu_door_opening_surprising_effectiveness": "1 14352a2c535f",
    "nyu_franka_play_dataset_converted_externally_to_rlds": "1 9fa930768692",
    "robo_set": "1 594ad67a0ad4",
    "roboturk": "1 2e00eb6b7925",
    "robotwin": "1.1 76899afceb47",
    "stanford_hydra_dataset_converted_externally_to_rlds": "1 8da520d3c35e",
    "taco_play": "1 b6b5bae5ba2f",
    "toto": "1 97a4063af931",
    "ucsd_kitchen_dataset_converted_externally_to_rlds": "1 4409a8282d3b",
    "utaustin_mutex": "1 ca413d656666",
    "viola": "1 5227ed5af985",
}


def _digest(name: str) -> str:
    """Versions, and twelve hex digits over actions, states and can_start steps, to 4 decimals."""
    spec, features = REGISTRY[name], features_of(name, 13)
    transform = find_transform(spec.transform)
    action, state = transform(features, spec)
    filters = [find_filter(filter_name) for filter_name in spec.filters + spec.drop_filters]
    parts = [action, state, *(f(features, spec, action, state) for f in filters)]
    # Adding 0 makes -0 a 0.
    content = b"".join((np.round(part * 1e4) + 0.0).astype("<i8").tobytes() for part in parts)
    versions = ".".join(str(part.version) for part in (transform, *filters))
    return f"{versions} {hashlib.sha256(content).hexdigest()[:12]}"


def test_results_change_only_with_versions():
    assert {name: _digest(name) for name in REGISTRY} == RECORDED
