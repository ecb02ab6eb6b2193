"""The registered dataset specs, users' own, and the identity of what a spec makes."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from imagewam_jax.data.dataset_spec import Camera, DatasetSpec, Encoding
from imagewam_jax.data.registry import REGISTRY, dataset_spec
from imagewam_jax.data.registry.config import spec_from_config
from imagewam_jax.data.registry.mixtures import MIXTURES
from imagewam_jax.data.tools.listing import dataset_table
from imagewam_jax.data.transforms import check_spec, find_filter, find_transform, spec_identity
from imagewam_jax.errors import DataError
from tests.data.public_layouts import LAYOUTS, features_of

MINE = {
    "name": "mine",
    "cameras": {"primary": "observation/top", "wrist": {"key": "observation/hand", "bgr": True}},
    "action": {"name": "delta", "dims": ["x", "y", "grip"], "relative": [True, True, False]},
    "state": {"name": "pose", "dims": ["x", "y"]},
    "control_hz": 12,
    "action_keys": ["action"],
    "state_keys": ["observation/state"],
}


def test_specs_are_found_by_name():
    for name in REGISTRY:
        assert dataset_spec(name).name == name
    with pytest.raises(DataError, match=r"no dataset 'x' .*: imagewam data describe DIR$"):
        dataset_spec("x")
    with pytest.raises(DataError, match=r"but \['bridge.*: imagewam data describe '/my sets/b'$"):
        dataset_spec("bridge_datasets", "/my sets/b")


def test_every_spec_has_a_known_layout_and_mixtures_hold_only_known_datasets():
    assert REGISTRY.keys() == LAYOUTS.keys()
    for mixture in MIXTURES.values():
        assert {entry.dataset for entry in mixture.entries} <= REGISTRY.keys()


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_spec_reads_its_dataset_as_it_is_stored(name):
    """The layout has its keys, of the right kind, and the widths are what the spec says."""
    spec, layout = REGISTRY[name], LAYOUTS[name]
    check_spec(spec)
    assert {layout[camera.key] for _, camera in spec.cameras} == {"image"}
    for key in spec.language:
        assert layout[key] == (512 if name == "language_table" else "text")
    features = features_of(name, 9)
    action, state = find_transform(spec.transform)(features, spec)
    length = 8 if spec.transform == "reached" else 9
    assert action.shape == (length, len(spec.action.dims))
    assert state.shape == (length, len(spec.state.dims))
    assert action.dtype == state.dtype == np.float32
    assert np.isfinite(action).all() and np.isfinite(state).all()
    for filter_name in spec.filters:
        can_start = find_filter(filter_name)(features, spec, action, state)
        assert can_start.shape == (length,) and can_start.dtype == bool and can_start.any()


SETTLED = ("binarise", "relative", "open")
BOUNDED = (*SETTLED, "clip", "clip_invert")


@pytest.mark.parametrize(
    "name", sorted(n for n, s in REGISTRY.items() if s.option("gripper") in BOUNDED)
)
def test_grippers_end_between_closed_and_open(name):
    """The others are stored between them."""
    spec = REGISTRY[name]
    action, _ = find_transform(spec.transform)(features_of(name, 9), spec)
    gripper = action[:, -1]
    assert gripper.min() >= 0 and gripper.max() <= 1
    if spec.option("gripper") in SETTLED:
        assert set(gripper) <= {0.0, 1.0}


def test_facts_that_are_easily_lost():
    hydra = dataset_spec("stanford_hydra_dataset_converted_externally_to_rlds")
    assert [camera.bgr for _, camera in hydra.cameras] == [True, True]
    ur5 = dataset_spec("berkeley_autolab_ur5")
    assert [camera.bgr for _, camera in ur5.cameras] == [False, True]
    bgr = {n for n, s in REGISTRY.items() if any(camera.bgr for _, camera in s.cameras)}
    assert bgr == {hydra.name, ur5.name, "utaustin_mutex", "berkeley_fanuc_manipulation"}
    absolute = {n for n, s in REGISTRY.items() if not any(s.action.relative)}
    assert absolute == {
        "toto",
        "ucsd_kitchen_dataset_converted_externally_to_rlds",
        "iamlab_cmu_pickup_insert_converted_externally_to_rlds",
        "robo_set",
        "robotwin",
    }
    faucet = dataset_spec("metaworld_faucet")
    assert faucet.action.relative == (True, True, True, False) and faucet.control_hz == 80
    assert len(dataset_spec("droid").language) == 3
    assert dataset_spec("libero_10_no_noops").camera("wrist") == Camera("observation/wrist_image")


def test_an_identity_is_json_and_knows_nothing_of_names_and_cameras():
    spec = dataset_spec("droid")
    identity = spec_identity(spec)
    assert json.loads(json.dumps(identity)) == identity
    renamed = dataclasses.replace(
        spec, name="other", cameras=(("primary", Camera("x", upside_down=True)),)
    )
    assert spec_identity(renamed) == identity
    shuffled = dataclasses.replace(spec, options=spec.options[::-1])
    assert json.dumps(spec_identity(shuffled)) == json.dumps(identity)
    assert identity["filters"] == [
        {"name": "success", "version": 1},
        {"name": "non_idle", "version": 1},
    ]
    assert identity["transform"] == {"name": "columns", "version": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"filters": ("success",)},
        {"filters": ("non_idle", "success")},
        {"transform": "as_stored"},
        {"options": (("gripper", "as_stored"),)},
        {"language": ("language_instruction",)},
        {"state_keys": ("observation/gripper_position",)},
        {"action": Encoding("targets", ("x",), (False,))},
    ],
)
def test_an_identity_changes_with_what_decides_the_data(change):
    spec = dataset_spec("droid")
    assert spec_identity(dataclasses.replace(spec, **change)) != spec_identity(spec)


USERS = """
import numpy as np
from imagewam_jax.data.transforms import step_filter, transform

@transform(version=VERSION, options=("scale",))
def scaled(steps, spec):
    action = np.asarray(steps["action"], np.float32) * spec.option("scale", 1.0)
    return action, np.zeros((len(action), 0), np.float32)

@step_filter(version=5)
def even(steps, spec, action, state):
    return np.arange(len(action)) % 2 == 0

def plain(steps, spec):
    return steps["action"], steps["action"]
"""


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    """Writes the user's module and imports it anew, as another run would."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(version: int, comment: str = "") -> None:
        (tmp_path / "my_robot.py").write_text(USERS.replace("VERSION", str(version)) + comment)
        sys.modules.pop("my_robot", None)

    yield write
    sys.modules.pop("my_robot", None)


def test_a_users_own_transform_and_filter(users_module):
    users_module(3)
    section = {**MINE, "transform": "my_robot:scaled", "filters": ["my_robot:even"]}
    spec = spec_from_config({**section, "options": {"scale": 2.0}})
    steps = {"action": np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])}
    action, state = find_transform(spec.transform)(steps, spec)
    np.testing.assert_array_equal(action, [[2, 4, 6], [8, 10, 12]])
    assert find_filter(spec.filters[0])(steps, spec, action, state).tolist() == [True, False]
    identity = spec_identity(spec)
    assert identity["transform"]["version"] == 3 and identity["filters"][0]["version"] == 5
    assert identity["options"] == {"scale": 2.0}
    users_module(4)
    assert spec_identity(spec)["transform"]["version"] == 4


def test_an_edit_of_a_users_module_is_noticed_without_a_new_version(users_module):
    users_module(1)
    spec = spec_from_config({**MINE, "transform": "my_robot:scaled"})
    first = spec_identity(spec)
    assert spec_identity(spec) == first
    users_module(1, "\nOFFSET = 1\n")
    assert spec_identity(spec) != first


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing", r"no transform 'nothing', there are \['as_stored'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("my_robot:missing", "no attribute 'missing'"),
        ("my_robot:plain", r"put `@transform\(version=1\)` above plain"),
        ("my_robot:even", "'my_robot:even' is a StepFilter, expected a Transform"),
    ],
)
def test_a_transform_that_cannot_be_used(users_module, name, expected):
    users_module(1)
    with pytest.raises(DataError, match=expected):
        spec_from_config({**MINE, "transform": name})


def test_a_users_spec():
    assert spec_from_config(MINE) == DatasetSpec(
        name="mine",
        cameras=(
            ("primary", Camera("observation/top")),
            ("wrist", Camera("observation/hand", bgr=True)),
        ),
        action=Encoding("delta", ("x", "y", "grip"), (True, True, False)),
        state=Encoding("pose", ("x", "y"), (False, False)),
        control_hz=12.0,
        action_keys=("action",),
        state_keys=("observation/state",),
    )


def test_the_former_name_of_drop_filters_in_older_checkpoints():
    section = {"name": "mine", "like": "libero_10_no_noops"}
    old = spec_from_config({**section, "cuts": ["non_idle"]})
    assert old == spec_from_config({**section, "drop_filters": ["non_idle"]})
    assert old.drop_filters == ("non_idle",)
    with pytest.raises(DataError, match=r"unknown fields \['cuts'\], expected .*'drop_filters'"):
        spec_from_config({**section, "cuts": ["non_idle"], "drop_filters": ["non_idle"]})


def test_a_users_spec_like_another():
    libero = dataset_spec("libero_goal_no_noops")
    mine = spec_from_config({"name": "mine", "like": libero.name, "control_hz": 10, "language": []})
    assert mine == dataclasses.replace(libero, name="mine", control_hz=10.0, language=())
    shared = spec_from_config({**MINE, "action": "eef_delta", "state": "pos_quat"})
    assert shared.action == libero.action and len(shared.state.dims) == 8


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"colour": "bgr"}, r"row 'mine': unknown fields \['colour'\]"),
        ({"like": "nothing"}, "no dataset 'nothing' to be like"),
        ({"cameras": {"front": "a"}}, r"camera roles \['front'\], expected different ones of"),
        ({"cameras": ["a"]}, "cameras is .*, expected a mapping of roles"),
        ({"cameras": {"wrist": {"bgr": True}}}, "cameras: wrist is .*, expected the key"),
        ({"cameras": {"wrist": {"key": "a", "bgr": 1}}}, "bgr is 1, expected true or false"),
        ({"cameras": {"wrist": {"key": "a", "flip": True}}}, r"unknown fields \['flip'\]"),
        ({"action": "eef"}, r"action is 'eef', expected one of \['eef_delta'"),
        ({"action": {"name": "a", "dims": ["x"]}}, r"action: missing fields \['relative'\]"),
        (
            {"action": {"name": "a", "dims": ["x"], "relative": [True, False]}},
            "2 flags of `relative` for 1 dims",
        ),
        (
            {"action": {"name": "a", "dims": ["x", "x"], "relative": [True, False]}},
            "a dim occurs twice",
        ),
        ({"control_hz": "fast"}, "control_hz is 'fast', expected a number"),
        ({"control_hz": 0}, "control_hz is 0.0, expected more than 0"),
        ({"language": "text"}, "language is 'text', expected a list"),
        ({"filters": ["happy"]}, r"no step_filter 'happy', there are \['bimanual_non_idle'"),
        ({"options": {"grip": 1}}, r"options \['grip'\] are read by neither"),
        ({"options": ["a"]}, "options is .*, expected a mapping"),
    ],
)
def test_a_users_spec_that_is_wrong(change, expected):
    with pytest.raises(DataError, match=expected):
        spec_from_config({**MINE, **change})


def test_a_users_spec_without_what_it_needs():
    with pytest.raises(
        DataError, match=r"row 'a': missing fields \['cameras', 'action', 'state', "
    ):
        spec_from_config({"name": "a"})
    with pytest.raises(DataError, match=r"missing fields \['name'\]"):
        spec_from_config({"like": "droid"})


def test_a_camera_that_is_not_there():
    with pytest.raises(DataError, match=r"'toto' has no camera 'wrist', it has \['primary'\]"):
        dataset_spec("toto").camera("wrist")


def test_the_table_of_datasets():
    specs = [dataset_spec("roboturk"), dataset_spec("berkeley_autolab_ur5")]
    assert dataset_table(specs, {"soup": MIXTURES["oxe_magic_soup"]}).splitlines() == [
        "dataset               Hz  cameras                                action         "
        "state         language                      transform                        mixtures",
        "--------------------  --  -------------------------------------  -------------  "
        "------------  ----------------------------  -------------------------------  "
        "--------------",
        "berkeley_autolab_ur5  5   primary=image, wrist=hand_image (bgr)  eef_delta [7]  "
        "pos_quat [8]  natural_language_instruction  columns v1, gripper relative     soup 2",
        "roboturk              10  primary=front_rgb                      eef_delta [7]  "
        "-             natural_language_instruction  columns v1, gripper clip_invert  "
        "soup 2 (blank)",
    ]
