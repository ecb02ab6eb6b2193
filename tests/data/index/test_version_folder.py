"""The version folder that a path leads to."""

import json

import pytest

from imagewam_jax.data.index.version_folder import version_folder
from imagewam_jax.errors import DataError


def make(root, path, **info):
    folder = root / path
    folder.mkdir(parents=True)
    (folder / "features.json").write_text("{}")
    (folder / "dataset_info.json").write_text(json.dumps({"name": path.split("/")[0], **info}))
    return folder


@pytest.fixture
def root(tmp_path):
    for version in ("9.0.0", "10.0.0", "1.2.3"):
        make(tmp_path, f"arm/{version}", version=version)
    (tmp_path / "arm" / "11.0.0.incompleteABC").mkdir()
    for config in ("joint_space", "eef"):
        for version in ("1.0.0", "2.0.0"):
            make(tmp_path, f"both/{config}/{version}", version=version, configName=config)
    make(tmp_path, "one/only/0.1.0", version="0.1.0", configName="only")
    make(tmp_path, "bridge_orig/1.0.0", name="bridge_dataset", version="1.0.0")
    make(tmp_path, "bare", version="1.0.0")
    (tmp_path / "downloads").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("directory", "name", "version", "config", "found"),
    [
        ("", "arm", "", "", "arm/10.0.0"),
        ("", "arm", "1.2.3", "", "arm/1.2.3"),
        ("arm", "arm", "", "", "arm/10.0.0"),
        ("arm", "row of another name", "9.0.0", "", "arm/9.0.0"),
        ("arm/1.2.3", "arm", "", "", "arm/1.2.3"),
        ("arm/1.2.3", "row of another name", "1.2.3", "", "arm/1.2.3"),
        ("", "both", "", "eef", "both/eef/2.0.0"),
        ("both", "both", "1.0.0", "joint_space", "both/joint_space/1.0.0"),
        ("both/eef", "both", "", "", "both/eef/2.0.0"),
        ("both/eef", "both", "1.0.0", "eef", "both/eef/1.0.0"),
        ("", "one", "", "", "one/only/0.1.0"),
        ("", "bridge_orig", "", "", "bridge_orig/1.0.0"),
        ("bridge_orig", "bridge_dataset", "", "", "bridge_orig/1.0.0"),
        ("", "bare", "", "", "bare"),
    ],
)
def test_what_is_found(root, directory, name, version, config, found):
    assert version_folder(root / directory, name, version, config) == root / found


def test_the_default_builder_config_of_tfds(root):
    (root / "both" / ".config").mkdir()
    metadata = root / "both" / ".config" / "metadata.json"
    metadata.write_text(json.dumps({"default_config_name": "joint_space"}))
    assert version_folder(root, "both") == root / "both" / "joint_space" / "2.0.0"


@pytest.mark.parametrize(
    ("directory", "name", "version", "config", "complaint"),
    [
        ("none", "arm", "", "", "none: no such folder, expected the dataset 'arm' there"),
        (
            "",
            "leg",
            "",
            "",
            r"no dataset 'leg' there; it holds \['arm', 'bare', 'both'",
        ),
        (
            "",
            "bridge_dataset",
            "",
            "",
            "of which 'bridge_orig' has the dataset 'bridge_dat",
        ),
        (
            "",
            "bridge_dataset",
            "",
            "",
            r"'bridge_orig' in the .*: {'like': 'bridge_dataset'}",
        ),
        (
            "",
            "arm",
            "2.0.0",
            "",
            r"no version '2.0.0' of 'arm' there; it holds \['1.2.3', ",
        ),
        ("", "arm", "", "eef", "no builder config 'eef' of 'arm' there; it holds"),
        ("", "both", "", "", r"has the builder configs \['eef', 'joint_space'\]; name one"),
        ("", "both", "", "ee", r"no builder config 'ee' of 'both' .* holds \['eef', 'joint_sp"),
        ("", "both", "3.0.0", "eef", "eef: no version '3.0.0' of 'both' there; it holds"),
        ("arm/1.2.3", "arm", "9.0.0", "", "1.2.3: its version is '1.2.3', not '9.0.0'"),
        ("both/eef/1.0.0", "both", "", "joint_space", "its config is 'eef', not 'joint_space'"),
        ("downloads", "arm", "", "", r"downloads: no dataset 'arm' there; it holds \[\]"),
    ],
)
def test_what_is_not_there(root, directory, name, version, config, complaint):
    with pytest.raises(DataError, match=complaint):
        version_folder(root / directory, name, version, config)


def test_the_versions_are_those_of_tfds(root):
    splits = pytest.importorskip("tensorflow_datasets.core.utils.version")
    newest = str(max(splits.list_all_versions(root / "arm")))
    assert version_folder(root, "arm").name == newest == "10.0.0"
