"""Standardized episodes: transforms, filters and instructions, made once."""

import dataclasses
import json
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import simplejpeg

from imagewam_jax.data.datasets import open_data
from imagewam_jax.data.index.columns import Coded, Text
from imagewam_jax.data.loading.samples import SampleReader
from imagewam_jax.data.transforms import standardize as module
from imagewam_jax.data.transforms import step_filter, transform
from imagewam_jax.data.transforms.standardize import standardize, standardized_digest
from imagewam_jax.errors import DataError
from tests.data.toy import TOY, TOY_SAMPLE
from tests.data.write_records import bytes_list, float_list, made_section, write_set
from tests.training.tiny import ROOT


@transform(version=1)
def doubled_but_the_last(steps, spec):
    return 2 * steps["action"][:-1], steps["observation/state"][:-1]


@step_filter(version=1)
def from_the_third(steps, spec, action, state):
    return np.arange(len(action)) >= 2


CHANGED = dataclasses.replace(
    TOY,
    transform=f"{__name__}:doubled_but_the_last",
    filters=(f"{__name__}:from_the_third",),
)


def test_what_is_stored_as_it_is(toy, toy_index, tmp_path):
    found = standardize(toy_index, TOY, tmp_path, progress=False)
    assert found.instructions == ("put the cup left", "öffne die Tür")
    for name, episodes in toy.truth.items():
        split = found.splits[name]
        for field, key in (("actions", "action"), ("states", "observation/state")):
            expected = np.concatenate([episode[key] for episode in episodes])
            np.testing.assert_array_equal(getattr(split, field), expected)
        np.testing.assert_array_equal(split.episode_steps, [len(e["action"]) for e in episodes])
        assert split.can_start.all() and split.text_ids.shape == (len(split.actions), 1)
        texts = [found.instructions[row].encode() for row in split.text_ids[:, 0]]
        assert texts == [text for e in episodes for text in e["language_instruction"]]


def test_a_transform_that_drops_steps_and_a_filter(toy, toy_index, tmp_path):
    split = standardize(toy_index, CHANGED, tmp_path, progress=False).splits["train"]
    start = 0
    for number, episode in enumerate(toy.truth["train"]):
        steps = len(episode["action"])
        assert split.episode_steps[number] == steps - 1
        found = split.actions[start : start + steps]
        np.testing.assert_array_equal(found[:-1], 2 * episode["action"][:-1])
        assert not found[-1].any()
        can_start = [2 <= t < steps - 1 for t in range(steps)]
        np.testing.assert_array_equal(split.can_start[start : start + steps], can_start)
        start += steps


@step_filter(version=1)
def every_third(steps, spec, action, state):
    return np.arange(len(action)) % 3 == 0


def test_steps_that_are_dropped(toy, toy_index, tmp_path):
    """The steps before and after follow each other, in actions, states, texts and images."""
    spec = dataclasses.replace(CHANGED, drop_filters=(f"{__name__}:every_third",))
    found = standardize(toy_index, spec, tmp_path, progress=False)
    split, standardized = toy_index.splits["train"], found.splits["train"]
    number = int(np.argmax(np.diff(split.episode_start)))
    episode, start = toy.truth["train"][number], int(split.episode_start[number])
    steps = standardized.episode_steps[number]
    assert steps == 13  # 0, 3, ..., 36 of 39
    mine = slice(start, start + steps)
    np.testing.assert_array_equal(standardized.actions[mine], 2 * episode["action"][:-1:3])
    np.testing.assert_array_equal(standardized.frames[mine] - start, np.arange(0, 39, 3))
    can_start = [False] + [True] * 12 + [False] * 27
    np.testing.assert_array_equal(standardized.can_start[start : start + 40], can_start)
    sample = dataclasses.replace(TOY_SAMPLE, horizon=4)
    batch = SampleReader(split, standardized, spec, sample).read(start + np.array([2, 11]))
    assert batch["step"].tolist() == [6, 33] and batch["target_is_pad"].tolist() == [False, True]
    np.testing.assert_array_equal(batch["actions"][0], 2 * episode["action"][6:18:3])
    assert batch["action_is_pad"][1].tolist() == [False, False, True, True]
    for row, frames in enumerate(([6, 18], [33, 36])):
        images = [
            simplejpeg.decode_jpeg(episode["encoded"]["observation/image"][t]) for t in frames
        ]
        np.testing.assert_array_equal(batch["images"][row, 0], images)


def test_it_is_made_once_and_anew_when_anything_changes(toy_index, tmp_path, monkeypatch):
    standardize(toy_index, TOY, tmp_path, progress=False)
    write, made = module._write, []
    monkeypatch.setattr(module, "_write", lambda *args: (made.append(1), write(*args)))
    standardize(toy_index, TOY, tmp_path, progress=False)
    assert not made
    others = [
        dataclasses.replace(TOY, action=dataclasses.replace(TOY.action, relative=(True,) * 4)),
        dataclasses.replace(TOY, language=()),
        CHANGED,
        dataclasses.replace(CHANGED, drop_filters=CHANGED.filters),
    ]
    digests = {standardized_digest(toy_index, spec) for spec in (TOY, *others)}
    digests.add(standardized_digest(dataclasses.replace(toy_index, checksum="0" * 16), TOY))
    for spec in others:
        standardize(toy_index, spec, tmp_path, progress=False)
    assert len(digests) == 6 and len(made) == 4
    assert all(not path.name.startswith(".") for path in (tmp_path / "standardized").iterdir())


def with_steps(index, **columns):
    """The index with other columns of the split "val" alone."""
    split = index.splits["val"]
    changed = dataclasses.replace(split, steps={**split.steps, **columns})
    return dataclasses.replace(index, splits={"val": changed}, checksum=json.dumps([*columns]))


def test_alternatives_and_codes_and_steps_without_an_instruction(toy_index, tmp_path):
    frames = toy_index.splits["val"].num_frames
    ids = np.arange(frames, dtype=np.int32) % 3
    codes = np.zeros((2, 80), np.int32)
    codes[1, :4] = list(map(ord, "très"))
    index = with_steps(
        toy_index,
        first=Text(ids, (b"lift", b"  ", b"push \n")),
        second=Text(np.zeros(frames, np.int32), (b"",)),
        third=Coded(np.arange(frames, dtype=np.int32) % 2, codes),
    )
    spec = dataclasses.replace(TOY, language=("first", "second", "third"))
    found = standardize(index, spec, tmp_path, progress=False)
    assert found.instructions == ("lift", "push \n", "très")
    lift, push, tres, none = 0, 1, 2, -1
    expected = [[lift, none], [tres, none], [push, none], [lift, tres], [none] * 2, [push, tres]]
    np.testing.assert_array_equal(found.splits["val"].text_ids[:6], expected)


def test_an_instruction_of_the_whole_episode(toy_index, tmp_path):
    split = toy_index.splits["val"]
    text = Text(np.array([1, 0, 1], np.int32), (b"a", b"b"))
    changed = dataclasses.replace(split, episodes={**split.episodes, "about/task": text})
    index = dataclasses.replace(toy_index, splits={"val": changed})
    spec = dataclasses.replace(TOY, language=("about/task",))
    found = standardize(index, spec, tmp_path, progress=False)
    rows = found.splits["val"].text_ids[split.episode_start[:-1], 0]
    assert [found.instructions[row] for row in rows] == ["b", "a", "b"]


def test_a_dataset_without_language(toy_index, tmp_path):
    spec = dataclasses.replace(TOY, language=())
    found = standardize(toy_index, spec, tmp_path, progress=False)
    assert found.instructions == ("",)
    assert not found.splits["train"].text_ids.any()


@transform(version=1)
def too_wide(steps, spec):
    return np.zeros((len(steps["action"]), 5), np.float32), steps["observation/state"]


@transform(version=1)
def of_two_lengths(steps, spec):
    return steps["action"], steps["observation/state"][:0]


@transform(version=1)
def of_another_key(steps, spec):
    return steps["actions"], steps["observation/state"]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("too_wide", r"made \(\d+, 5\) of toy, expected at most \d+ steps of 4"),
        ("of_two_lengths", r"\d+ actions and 0 states"),
        ("of_another_key", r"no feature 'actions', there are \['action', "),
    ],
)
def test_a_transform_that_does_not_make_what_the_spec_says(toy_index, tmp_path, name, complaint):
    spec = dataclasses.replace(TOY, transform=f"{__name__}:{name}")
    with pytest.raises(DataError, match=f"toy_arm: split 'train', episode 0.*: .*{complaint}"):
        standardize(toy_index, spec, tmp_path, progress=False)
    assert not list((tmp_path / "standardized").iterdir())


def test_a_folder_that_cannot_be_written_and_one_that_was_damaged(toy_index, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.*could not be written"):
        standardize(toy_index, TOY, tmp_path / "file", progress=False)
    standardize(toy_index, TOY, tmp_path, progress=False)
    (folder,) = (tmp_path / "standardized").iterdir()
    (folder / "val" / "states.npy").unlink()
    with pytest.raises(DataError, match=rf"{folder}: cannot be read .*; remove it to have it made"):
        standardize(toy_index, TOY, tmp_path, progress=False)
    shutil.rmtree(folder)
    standardize(toy_index, TOY, tmp_path, progress=False)
    np.save(folder / "val" / "text_ids.npy", np.zeros((52, 1, 3), np.int32))
    with pytest.raises(DataError, match=r"text_ids of val are \(52, 1, 3\)\); remove it"):
        standardize(toy_index, TOY, tmp_path, progress=False)


def test_a_folder_of_a_version_that_refused_numbers_that_are_not_finite(toy_index, tmp_path):
    standardize(toy_index, TOY, tmp_path, progress=False)
    for name in ("train", "val"):
        next(tmp_path.glob(f"standardized/*/{name}/not_finite.npy")).unlink()
    found = standardize(toy_index, TOY, tmp_path, progress=False)
    assert found.splits["val"].not_finite.shape == (0,)


@pytest.mark.parametrize("lengths", [(0, 3, 2), (3, 0, 2), (3, 2, 0)])
def test_episodes_without_steps(tmp_path, lengths):
    """There are none of their samples, wherever they stand."""
    jpeg = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    tensor = {"tensor": {"dtype": "float32", "shape": {"dimensions": ["2"]}}}
    number = {"tensor": {"dtype": "float32", "shape": {}}}
    image = {"image": {"dtype": "uint8", "shape": {"dimensions": ["16", "16", "3"]}}}
    episodes = [
        {
            "steps/action": float_list(*range(2 * steps)),
            "steps/state": float_list(*range(steps)),
            "steps/image": bytes_list(*[jpeg] * steps),
        }
        for steps in lengths
    ]
    folder = write_set(tmp_path, {"action": tensor, "state": number, "image": image}, [episodes])
    section = made_section(folder, {"primary": "image"})
    data = open_data(section, horizon=4, action_dim=2, state_dim=1)
    (source,) = data.sources("train")
    assert len(source.start_frames) == 5
    batch = source.reader.read(source.start_frames)
    assert batch["step"].tolist() == [t for steps in lengths for t in range(steps)]
    assert batch["proprio"][:, 0].tolist() == [t for steps in lengths for t in range(steps)]


@pytest.mark.parametrize("small_disk", ["16k"], indirect=True)
def test_a_full_disk(toy, small_disk):
    """Writing through a memory map would kill the process."""
    program = f"""
        from pathlib import Path
        from imagewam_jax.errors import DataError
        from imagewam_jax.data.index.dataset_index import open_index
        from imagewam_jax.data.transforms.standardize import standardize
        from tests.data.toy import TOY
        try:
            standardize(open_index({str(toy.dataset_dir)!r}), TOY, Path({str(small_disk)!r}))
        except DataError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.returncode
    assert "could not be written: " in done.stdout and "No space left" in done.stdout
