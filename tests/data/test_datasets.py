"""Datasets and mixtures, opened as configs say."""

import shutil

import numpy as np
import pytest

from imagewam_jax.data.datasets import resolve_widths, shared_splits
from imagewam_jax.data.index.dataset_index import open_index
from imagewam_jax.errors import DataError
from tests.data.toy import TOY_ROW, toy_data

OTHER_ROW = TOY_ROW | {
    "cameras": {"wrist": "observation/image"},
    "action": {"name": "xy", "dims": ["x", "y"], "relative": [True, False]},
    "action_keys": ["observation/clock"],
    "language": [],
}


ENTRIES = [{"dataset": "toy_arm", "weight": 3.0}, {"dataset": "other", "weight": 1.0}]


@pytest.fixture(scope="module")
def root(toy, tmp_path_factory):
    """Two datasets in one folder: the set, and the same bytes read by another row."""
    root = tmp_path_factory.mktemp("root")
    for name in ("toy_arm", "other"):
        shutil.copytree(toy.dataset_dir, root / name / "1.0.0")
    return root


def mixture(root, **changes):
    entries = changes.pop("entries", ENTRIES)
    rows = {"toy_arm": TOY_ROW, "other": OTHER_ROW}
    section = {"dataset": "", "mixture": "mine", "mixtures": {"mine": entries}}
    section |= {"rows": rows, "scale_by_size": False}
    return toy_data(root, **section | changes)


def test_one_dataset(toy, toy_index):
    data = toy_data(toy.dataset_dir)
    (source,) = data.sources("train")
    assert data["toy_arm"] is data.datasets[0] and source.share == 1.0
    assert data.instructions == ("put the cup left", "öffne die Tür")
    batch = source.reader.read(np.arange(138))
    texts = [data.instructions[row].encode() for row in batch["text_id"]]
    assert texts == [text for e in toy.truth["train"] for text in e["language_instruction"]]
    assert source.identity["dataset"] == "toy_arm/1.0.0"
    assert source.reader.sample.buffer_size == (32, 48)
    with pytest.raises(DataError, match=r"no dataset 'arm' among \['toy_arm'\]"):
        data["arm"]


def test_a_mixture(root):
    data = mixture(root)
    assert data.instructions == ("", "put the cup left", "öffne die Tür")
    first, second = data.sources("train")
    assert (first.share, second.share) == (0.75, 0.25)
    one, two = (source.reader.read(np.array([5, 30])) for source in (first, second))
    assert one["dataset_id"].tolist() == [0, 0] and two["dataset_id"].tolist() == [1, 1]
    assert two["text_id"].tolist() == [0, 0] and set(one["text_id"].tolist()) <= {1, 2}
    assert two["action_dim_mask"].tolist() == [[True, True, False, False]] * 2
    np.testing.assert_array_equal(two["images"][:, 1], one["images"][:, 0])


def test_shares_by_size_and_blank_language(root):
    entries = [
        {"dataset": "toy_arm", "weight": 1.0, "blank_language": True},
        {"dataset": "other", "weight": 1.0},
    ]
    data = mixture(root, entries=entries, scale_by_size=True, sample_every=4)
    first, second = data.sources("train[:50%]")
    total = len(first.start_frames) + len(second.start_frames)
    assert first.share == len(first.start_frames) / total
    assert data.instructions == ("",)
    assert not first.reader.read(first.start_frames)["text_id"].any()


def test_what_has_no_instruction_can_be_kept(toy):
    assert toy_data(toy.dataset_dir, unlabelled="blank").instructions[0] == ""


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dataset": ""}, "either data.dataset, one dataset, or data.mixture, several"),
        ({"dataset": "arm"}, "no dataset 'arm' in the registry"),
        ({"cameras": ("head",)}, r"no dataset has a camera 'head'; .*\['primary', 'wrist'\]"),
        ({"action_dim": 7}, r"the configured action_dim is 7, the datasets have {'toy_arm': 4}"),
        ({"state_dim": 4}, r"the configured state_dim is 4, the datasets have {'toy_arm': 5}"),
        (
            {"rows": {"toy_arm": TOY_ROW | {"cameras": {"primary": "image"}}}},
            r"has camera 'primary' at 'image', images are \['observation/image', 'obs",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_set(toy, changes, complaint):
    if changes.get("rows"):
        changes["cameras"] = ("primary",)
    with pytest.raises(DataError, match=complaint):
        toy_data(toy.dataset_dir, **changes)


def test_mixtures_that_do_not_fit(root, tmp_path):
    with pytest.raises(DataError, match=r"'other' has none of the cameras \['primary'\]"):
        mixture(root, cameras=("primary",))
    with pytest.raises(DataError, match="configured action_dim is 7"):
        mixture(root, action_dim=7)
    with pytest.raises(DataError, match=r"no dataset 'toy_arm' there; it holds \[\]"):
        mixture(tmp_path)
    with pytest.raises(DataError, match=r"no mixture 'soup', .*'libero', 'mine', 'oxe_ma"):
        mixture(root, mixture="soup")


def model(**expert) -> dict:
    return {"expert": {"dim": 16, **expert}, "proprio_dim": -1}


def test_widths_are_those_of_the_rows():
    rows = {"toy_arm": TOY_ROW, "other": OTHER_ROW}
    section = {"dataset": "other", "mixture": "", "mixtures": {"mine": ENTRIES}, "rows": rows}
    section["directory"] = ""
    one = resolve_widths({"data": section, "model": model(action_dim=-1)})
    assert one["model"] == {"expert": {"dim": 16, "action_dim": 2}, "proprio_dim": 5}
    both = section | {"dataset": "", "mixture": "mine"}
    assert resolve_widths({"data": both, "model": model()})["model"]["expert"]["action_dim"] == 4
    given = {"data": section, "model": model(action_dim=9)}
    assert resolve_widths(given)["model"] == {**model(action_dim=9), "proprio_dim": 5}
    assert given["model"]["proprio_dim"] == -1  # what is given stays as it is
    with pytest.raises(DataError, match="no dataset 'none' in the registry"):
        resolve_widths({"data": section | {"dataset": "none"}, "model": model()})


def test_an_index_elsewhere(toy, tmp_path):
    """The index goes to a folder of its own where the dataset's cannot be written."""
    plain = shutil.ignore_patterns("imagewam_index")
    folder = shutil.copytree(toy.dataset_dir, tmp_path / "set", ignore=plain)
    data = toy_data(folder, index_directory=str(tmp_path / "indexes"))
    assert not (folder / "imagewam_index").exists()
    found = open_index(folder, tmp_path / "indexes" / "toy_arm")
    assert found.checksum == open_index(toy.dataset_dir).checksum
    assert len(data.datasets[0].start_frames("train")) == 138


def test_versions_and_builder_configs_of_a_mixture(toy, tmp_path):
    """An entry names them, or has the newest; one dataset is found from any folder above it."""
    for path in ("toy_arm/1.0.0", "toy_arm/10.0.0", "toy_arm/9.0.0", "other/joints/1.0.0"):
        shutil.copytree(toy.dataset_dir, tmp_path / path)
    entries = [ENTRIES[0] | {"version": "9.0.0"}, ENTRIES[1] | {"config": "joints"}]
    named = mixture(tmp_path, entries=entries)
    assert [d.index_folder.parent.relative_to(tmp_path).as_posix() for d in named.datasets] == [
        "toy_arm/9.0.0",
        "other/joints/1.0.0",
    ]
    for folder in (tmp_path, tmp_path / "toy_arm", tmp_path / "toy_arm" / "10.0.0"):
        (dataset,) = toy_data(folder).datasets
        assert dataset.index_folder.parent == tmp_path / "toy_arm" / "10.0.0"
    with pytest.raises(DataError, match=r"no version '2.0.0' of 'toy_arm' there; it holds"):
        mixture(tmp_path, entries=[ENTRIES[0] | {"version": "2.0.0"}])


def test_episodes_in_both_splits_are_told(toy):
    held_out = {"train_split": "train[:80%]", "eval_split": "train[70%:]+val"}
    data = toy_data(toy.dataset_dir, **held_out)
    (told,) = shared_splits(data.datasets, held_out)
    assert told.startswith(r"toy_arm: 1 of the 6 episodes of data.eval_split='train[70%:]+val' are")
    assert not shared_splits(data.datasets, held_out | {"eval_split": "train[80%:]+val"})
