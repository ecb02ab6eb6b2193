"""features.json in every form that TFDS has written means the same."""

import json

import pytest

from imagewam_jax.data.index.features import declared_features, read_features
from imagewam_jax.data.index.tfds_folder import read_tfds_folder
from imagewam_jax.errors import DataError
from tests.data.features_forms import FORMS, NOW, features_of, shape


def read(declared):
    return read_features(declared_features(declared))


def test_features_of_today():
    found = read(NOW)
    kinds = {f.key: (f.kind, f.dtype, f.shape, f.encoding) for f in found.steps}
    assert kinds == {
        "observation/image": ("image", "uint8", (64, -1, 3), "jpeg"),
        "observation/mask": ("image", "uint8", (8, 8, 1), "unstated"),
        "observation/state": ("number", "float32", (4,), "zlib"),
        "observation/film/0": ("image", "uint8", (9, 9, 3), "png"),
        "observation/film/1": ("image", "uint8", (9, 9, 3), "png"),
        "is_first": ("number", "bool", (), "none"),
        "language_instruction": ("text", "string", (), "none"),
        "kind": ("number", "int64", (), "none"),
        "box": ("number", "float32", (4,), "none"),
        "words": ("text", "string", (-1,), "none"),
    }
    assert [f.key for f in found.episodes] == ["episode_id"]
    assert found.skipped == {
        "steps/sound": "a feature 'Audio' is not read",
        "steps/own": "a feature 'Pose' is not read",
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_form_means_the_same(form):
    changed = FORMS[form](NOW)
    assert changed != NOW
    assert read(changed) == read(NOW)


def test_tfds_opens_every_form_as_the_same(rlds_folder):
    """That these forms are those of TFDS is for TFDS to say: write_rlds.py asked it."""
    found = json.loads((rlds_folder / "forms.json").read_text())
    assert found == dict.fromkeys(FORMS, True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"tensor": {"shape": {"dimensions": ["4", "x"]}, "dtype": "float32"}},
            "'bad' has the s",
        ),
        ({"tensor": {"shape": {"dimensions": [-3]}, "dtype": "float32"}}, "'bad' has the size -3"),
        ({"tensor": {"shape": 4, "dtype": "float32"}}, "'bad' has the shape 4, expected a list"),
        ({"type": "lab.Tensor", "content": "none"}, "at steps/bad: 'none', expected a feature"),
        ([], r"at steps/bad: '\[\]', expected a feature"),
    ],
)
def test_what_tfds_never_wrote_is_named(change, complaint):
    with pytest.raises(DataError, match=complaint):
        read(features_of({"bad": change}, {}))


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        ({"image": {"shape": shape(2, 9, 9, 3)}}, "an image of the shape (2, 9, 9, 3) is not read"),
        ({"text": {"useEncoder": True}}, "a feature 'of no known class' is not read"),
        ({"translation": {"languages": ["a"]}}, "a feature 'of no known class' is not read"),
        ({}, "a feature 'of no known class' is not read"),
        (
            {"sequence": {"feature": {"image": {"shape": shape(9, 9, 3)}}, "length": "-1"}},
            "a sequence of images whose number per step is not declared and not always the same",
        ),
    ],
)
def test_a_leaf_that_is_not_read_is_skipped_with_a_reason(leaf, reason):
    assert read(features_of({"leaf": leaf}, {})).skipped == {"steps/leaf": reason}


def test_a_folder_without_features_json_or_with_a_pointer(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match=r"no features.json; .*save_config\(this folder\)"):
        read_tfds_folder(tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n"
    (tmp_path / "features.json").write_text(pointer)
    with pytest.raises(DataError, match=r"features.json: a Git-LFS pointer, .*git lfs pull"):
        read_tfds_folder(tmp_path)
    (tmp_path / "features.json").write_text(json.dumps(NOW))
    with pytest.raises(DataError, match=r"dataset_info.json has no 'name'"):
        read_tfds_folder(tmp_path)
    split = {"name": "train", "shardLengths": ["1"], "filepathTemplate": "{ABSENT}"}
    info = {"name": "x", "splits": [split]}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"'train' has .*'{ABSENT}', from which no names of shards"):
        read_tfds_folder(tmp_path)


def test_a_folder_of_versions_names_them(tmp_path):
    for version in ("1.0.0", "1.1.0"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "dataset_info.json").write_text("{}")
    with pytest.raises(
        DataError, match=r"holds the versions \['1.0.0', '1.1.0'\]; give the folder"
    ):
        read_tfds_folder(tmp_path)
