"""Describing datasets that nobody registered, and rows that read them."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from imagewam_jax import cli
from imagewam_jax.config.defaults import defaults
from imagewam_jax.data.datasets import config_data
from imagewam_jax.data.index.columns import Coded, Dense, Ragged, Text
from imagewam_jax.data.index.dataset_index import DatasetIndex, SplitIndex
from imagewam_jax.data.index.tfds_folder import Features, TfdsFolder
from imagewam_jax.data.registry import dataset_spec
from imagewam_jax.data.tools.camera_roles import camera_roles
from imagewam_jax.data.tools.describe.folder import Opened, find_version
from imagewam_jax.data.tools.describe.language import all_texts, guess_language, unlabelled_steps
from imagewam_jax.data.tools.describe.numbers import guess_action_and_state
from imagewam_jax.data.tools.describe.rate import control_rate
from imagewam_jax.errors import DataError
from tests.data.public_layouts import LAYOUTS
from tests.training.tiny import copy_sample


def described(directory: Path, capsys) -> str:
    assert cli.main(["data", "describe", str(directory)]) == 0
    return capsys.readouterr().out


def pasted(text: str):
    """The default config with what the description suggests."""
    config = defaults()
    exec(text[text.index("config.data.directory") :], {"config": config})
    return config


def row(text: str, *cells: str) -> bool:
    """Whether a line of a table has these cells."""
    return any(line.split() == [*" ".join(cells).split()] for line in text.splitlines())


def split_of(steps=(), episodes=(), images=(), lengths=(60, 70), name="train") -> SplitIndex:
    """A split in memory, of columns or of plain arrays of numbers."""

    def column(value):
        return Dense(value) if isinstance(value, np.ndarray) else value

    start = np.array([0, *np.cumsum(lengths)])
    return SplitIndex(
        name=name,
        shards=(Path("shard"),),
        episode_start=start,
        episode_shard=np.zeros(len(lengths), np.int32),
        record_offset=np.zeros(len(lengths), np.int64),
        record_length=np.zeros(len(lengths), np.int64),
        frame_episode=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        steps={key: column(value) for key, value in dict(steps).items()},
        episodes={key: column(value) for key, value in dict(episodes).items()},
        images=dict(images),
    )


def index_of(*splits: SplitIndex) -> DatasetIndex:
    return DatasetIndex("arm", "1.0.0", "", {split.name: split for split in splits}, {})


def numbers(width: int, seed: int = 0, steps: int = 130) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, width)).astype(np.float32)


def test_a_set_is_described_and_its_row_reads_it(toy, capsys):
    out = described(toy.dataset_dir, capsys)
    assert row(out, "train 9 138 1 16 40 0") and row(out, "val 3 52 4 18 30 0")
    assert row(out, "observation/clock [2] int64 -2, 1000000000000")
    assert row(out, "observation/image [32, 48, 3] uint8 image see below")
    assert row(out, "observation/wrist_image 32 x 48")
    assert "language_instruction: one per step, 2 different" in out
    every = [t for e in toy.truth["train"] + toy.truth["val"] for t in e["language_instruction"]]
    for text in set(every):
        assert row(out, f"{every.count(text)} '{text.decode()}'")
    assert row(out, "is_first set in 9 of 138 steps")
    config = pasted(out)
    assert config.data.rows.toy_arm.cameras.to_dict() == {
        "primary": "observation/image",
        "wrist": "observation/wrist_image",
    }
    assert config.data.rows.toy_arm.state_keys == ["observation/state"]
    assert (config.data.train_split, config.data.eval_split) == ("train", "val")
    assert (config.data.layout, config.data.image_size) == ("row", (32, 48))
    # The longest instruction has 16 letters of UTF-8, and two tokens frame it.
    assert config.text.buckets == (20,)
    (dataset,) = config_data(config.to_dict()).datasets
    for split in ("train", "val"):
        batch = dataset.reader(split).read(dataset.start_frames(split)[:3])
        assert batch["actions"].shape == (3, 16, 4) and batch["proprio"].shape == (3, 5)


# Roles of cameras, keys of action, state and language.
EXPECTED = {
    "bridge": (
        {"primary": "observation/image_0", "secondary": "observation/image_1"},
        ["action"],
        ["observation/state"],
        ["language_instruction"],
    ),
    "fractal": (
        {"primary": "observation/image"},
        ["action/world_vector", "action/rotation_delta", "action/gripper_closedness_action"],
        ["observation/base_pose_tool_reached", "observation/gripper_closed"],
        ["observation/natural_language_instruction"],
    ),
    "libero": (
        {"primary": "observation/image", "wrist": "observation/wrist_image"},
        ["action"],
        ["observation/state"],
        ["language_instruction"],
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_public_layouts_are_read_as_the_registry_reads_them(layouts, name, capsys, tmp_path):
    folder = Path(shutil.copytree(layouts[name].dataset_dir, tmp_path / "1.0.0"))
    out = described(folder, capsys)
    config = pasted(out)
    (spec,) = config.data.rows.to_dict().values()
    found = (spec["cameras"], spec["action_keys"], spec["state_keys"], spec["language"])
    assert found == EXPECTED[name]
    if name == "fractal":
        assert spec["action"]["dims"] == ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
        assert spec["action"]["relative"] == [True] * 6 + [False]
        assert "left out: 'action/base_displacement" in out.replace("\n        # ", " ")
    (dataset,) = config_data(config.to_dict()).datasets
    for split in (config.data.train_split, config.data.eval_split):
        frames = dataset.start_frames(split)
        assert len(frames) and dataset.reader(split).read(frames[:1])["images"].any()
    trained, held_out = map(dataset.episodes, (config.data.train_split, config.data.eval_split))
    every = range(dataset.index.splits["train"].num_episodes)
    assert [*trained.tolist(), *held_out.tolist()] == [*every]
    if name == "bridge":  # an episode without an instruction
        assert config.data.unlabelled == "drop" and "steps have no instruction" in out


def test_what_cannot_be_an_action_is_said(layouts, capsys, tmp_path):
    folder = Path(shutil.copytree(layouts["odd"].dataset_dir, tmp_path / "1.0.0"))
    out = described(folder, capsys)
    assert "No row can be suggested: nothing looks like an action among the numbers\n" in out
    assert re.search(r"\n  ragged +\[any, 2\] +float32", out)
    assert re.search(r"\n  pair +\[2\] +text +'x', '\d'\n", out)
    assert "  8 x 10" in out.replace("observation/rgb", "") and "8 x 11 (" in out
    assert row(out, "steps/tree a sequence of sequences is not read")


def test_a_registered_set_is_said_to_be_and_its_index_can_lie_elsewhere(tmp_path, capsys):
    folder, elsewhere = copy_sample(tmp_path), tmp_path / "indexes"
    assert cli.main(["data", "describe", str(folder), f"--index-directory={elsewhere}"]) == 0
    out = capsys.readouterr().out
    assert pasted(out).data.index_directory == str(elsewhere)
    assert (elsewhere / "metaworld_faucet" / "meta.json").is_file()
    assert not (folder / "imagewam_index").exists()
    assert "The registry has a row 'metaworld_faucet'" in out
    assert "Displacement of the hand in centimetres (x, y, z), force" in out  # from features.json
    spec = pasted(out).data.rows.metaworld_faucet
    assert spec.action.relative == [True, True, True, False]  # measured
    assert spec.control_hz == 80


def test_the_folder_above(tmp_path):
    def version(*names):
        folder = tmp_path.joinpath(*names)
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text(f'{{"name": "{names[0]}"}}')
        return folder

    old, new = version("arm", "9.0.0"), version("arm", "10.0.0")
    assert find_version(old) == (old, "")
    newest = "the newest of ['10.0.0', '9.0.0']"
    assert find_version(tmp_path / "arm") == (new, f"below {tmp_path / 'arm'}, {newest}")
    assert find_version(tmp_path)[0] == new
    nested = version("hand", "joints", "1.0.0")
    assert find_version(tmp_path / "hand")[0] == nested
    with pytest.raises(DataError, match=r"holds 2 datasets; name one of them: .*/arm, .*/hand$"):
        find_version(tmp_path)


def test_a_folder_that_is_none(tmp_path, capsys):
    assert cli.main(["data", "describe", str(tmp_path / "no")]) == 1
    assert f"{tmp_path / 'no'}: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("widths", "action", "state"),
    [
        # One vector has everything.
        ({"action": 7, "observation/state": 8, "joint_pos": 7}, "action", "observation/state"),
        # DROID: a dictionary of alternatives beside the vector.
        (
            {"action": 7, "action_dict/cartesian_velocity": 6, "observation/joint_position": 7,
             "observation/cartesian_position": 6, "observation/gripper_position": 1},
            "action",
            "observation/cartesian_position observation/gripper_position",
        ),
        # Without the vector, one way of saying the same is taken.
        (
            {"action_dict/cartesian_position": 6, "action_dict/cartesian_velocity": 6,
             "action_dict/gripper_position": 1, "action_dict/gripper_velocity": 1},
            "action_dict/cartesian_velocity action_dict/gripper_position",
            "",
        ),
        # Joints go with joints.
        (
            {"control/joint_cmd": 7, "control/gripper_cmd": 0, "observation/joint_pos": 7,
             "observation/eef_pos": 3, "observation/gripper": 1},
            "control/joint_cmd control/gripper_cmd",
            "observation/joint_pos observation/gripper",
        ),
        # Scalars; what counts time, rewards or embeds text is neither.
        (
            {"action": 0, "observation/x": 0, "observation/timestamp": 0, "reward": 0,
             "observation/depth_mean": 0, "language_embedding": 32, "frame_index": 0},
            "action",
            "observation/x",
        ),
        ({"step/commands/velocity": 2, "reward": 0}, "step/commands/velocity", ""),
        ({"observation/state": 4, "reward": 0}, None, "observation/state"),
    ],
)  # fmt: skip
def test_keys_of_actions_and_states(widths, action, state):
    steps = {
        key: numbers(width, seed) if width else numbers(1, seed)[:, 0]
        for seed, (key, width) in enumerate(widths.items())
    }
    found_action, found_state = guess_action_and_state(split_of(steps))
    assert found_state.keys == tuple(state.split())
    assert len(found_state.dims) == sum(max(1, widths[key]) for key in found_state.keys)
    if action is None:
        assert found_action is None
    else:
        assert found_action.keys == tuple(action.split())
        assert len(set(found_action.dims)) == len(found_action.dims) == len(found_action.relative)


# What no name tells: where a row takes part of the action from the state, or from another key than
# "action"; a camera on the hand that is called "image"; which of several views is the main one.
OTHERWISE = {
    "action": {"bc_z", "berkeley_fanuc_manipulation", "droid"},
    "state": set(),
    "cameras": {"dobbe", "nyu_door_opening_surprising_effectiveness", "robo_set"},
}


def test_most_public_sets_are_guessed_as_the_registry_reads_them():
    differing = {what: set() for what in OTHERWISE}
    for name, layout in LAYOUTS.items():
        spec = dataset_spec(name)
        widths = {key: width for key, width in layout.items() if isinstance(width, int)}
        steps = {key: numbers(max(width, 1)) for key, width in widths.items()}
        steps = {key: v if widths[key] else v[:, 0] for key, v in steps.items()}
        steps |= {key: np.ones(130, bool) for key, kind in layout.items() if kind is bool}
        action, state = guess_action_and_state(split_of(steps))
        cameras = camera_roles(key for key, kind in layout.items() if kind == "image")
        rows = {role: camera.key for role, camera in spec.cameras}
        found = {
            "action": action.keys == spec.action_keys,
            "state": state.keys == spec.state_keys,
            "cameras": rows.items() <= cameras.items(),
        }
        for what, same in found.items():
            if not same:
                differing[what].add(name)
    assert differing == OTHERWISE


def test_what_the_numbers_of_an_action_are_is_measured():
    moves = np.sin(numbers(3).cumsum(0))
    state = np.cumsum(np.concatenate([np.zeros((1, 3)), moves[:-1]]), 0).astype(np.float32)
    target = np.concatenate([state[1:], state[-1:]])
    gripper = (np.arange(130) // 20 % 2).astype(np.float32)[:, None]
    both = np.concatenate([moves[:, :2], target[:, 2:], gripper], 1).astype(np.float32)
    steps = {"action": both, "observation/state": state}
    action, _ = guess_action_and_state(split_of(steps, lengths=(130,)))
    assert action.relative == (True, True, False, False)
    assert action.dims == ("action_0", "action_1", "action_2", "gripper")
    assert "action_0: relative; it goes with the change of state 0, r = 1.00" in action.reasons
    assert "gripper: absolute; a gripper's, which is a target" in action.reasons
    alone, _ = guess_action_and_state(split_of({"action": 3 + 0.1 * numbers(2)}))
    assert alone.relative == (False, False) and "a guess" in alone.reasons[-1]


def test_a_quaternion_is_noticed():
    angle = np.linspace(0.1, 2, 130)[:, None]
    zero = np.zeros_like(angle)
    turn = np.concatenate([numbers(3), zero, zero, np.sin(angle), np.cos(angle), angle], 1)
    action, _ = guess_action_and_state(split_of({"action": turn}))
    assert any(reason.startswith("columns 3 to 6 have length 1") for reason in action.reasons)


@pytest.mark.parametrize(
    ("keys", "roles"),
    [
        (["observation/image"], {"primary": 0}),
        (["observation/hand_image", "observation/image"], {"primary": 1, "wrist": 0}),
        (["observation/side", "observation/front"], {"primary": 1, "secondary": 0}),
        (["observation/image_1", "observation/image_0"], {"primary": 1, "secondary": 0}),
        (["agentview_rgb", "eye_in_hand_rgb"], {"primary": 0, "wrist": 1}),
        (
            ["cam_high", "cam_left_wrist", "cam_low", "cam_right_wrist"],
            {"primary": 0, "secondary": 2, "left_wrist": 1, "right_wrist": 3},
        ),
        (["exterior_image_2_left", "exterior_image_1_left", "wrist_image_left"],
         {"primary": 1, "secondary": 0, "wrist": 2}),
        (["a", "b", "c"], {"primary": 0, "secondary": 1}),
    ],
)  # fmt: skip
def test_roles_of_cameras(keys, roles):
    assert camera_roles(keys) == {role: keys[number] for role, number in roles.items()}


def texts(*words: str | bytes, ids=None, steps: int = 130) -> Text:
    coded = [word.encode() if isinstance(word, str) else word for word in words]
    ids = np.arange(steps, dtype=np.int32) % len(coded) if ids is None else ids
    return Text(np.asarray(ids, np.int32), tuple(coded))


def test_instructions_where_people_keep_them():
    wordings = Ragged(texts("open", "pull", ids=[0, 1, 0]), np.array([0, 2, 3]))
    steps = {
        "language_instruction": texts("open it", ""),
        "language_instruction_2": texts("", "turn it", " "),
        "task_id": texts("7"),
        "observation/instruction": Coded(
            np.zeros(130, np.int32), np.array([[*map(ord, "öff"), 0, 0]], np.int32)
        ),
        "pair": texts("a", "b", ids=np.tile([[0, 1]], (130, 1))),
    }
    split = split_of(steps, episodes={"episode_metadata/wordings": wordings})
    found = all_texts(index_of(split))
    assert found["language_instruction"].counts == {"open it": 65, "": 65}
    assert found["language_instruction"].blank == 65
    assert found["observation/instruction"].counts == {"öff": 130}
    assert found["pair"].where == "one per step, up to 2 wordings"
    assert found["pair"].counts == {"a": 130, "b": 130}
    assert found["episode_metadata/wordings"].where == "one per episode, up to 2 wordings"
    assert found["episode_metadata/wordings"].counts == {"open": 2, "pull": 1}
    keys, why = guess_language(found)
    assert keys == ("language_instruction", "language_instruction_2")
    assert "left out: 'observation/instruction'" in why
    # "turn it" stands at steps 1, 4, 7, ...; half of them have an instruction under the other key.
    assert unlabelled_steps(split, keys) == 130 - 65 - len(range(1, 130, 6))
    assert unlabelled_steps(split, ("episode_metadata/wordings",)) == 0


def test_instructions_that_cannot_be_read_are_said():
    found = all_texts(index_of(split_of({"task": texts("öffne".encode("latin-1"))})))
    assert guess_language(found) == ((), "'task': not UTF-8, so it cannot be read")
    found = all_texts(index_of(split_of({"task": texts(""), "file_path": texts("a")})))
    assert guess_language(found) == ((), "no text looks like an instruction")


@pytest.mark.parametrize(
    ("steps", "episodes", "description", "rate", "why"),
    [
        ({}, {}, "", 10.0, "nothing in the dataset states it"),
        ({}, {"episode_metadata/fps": np.array([30.0, 30.0])}, "at 5 Hz", 30.0, "fps' says so"),
        ({}, {}, "Recorded at 12.5 Hz by hand", 12.5, "description says '12.5 Hz'"),
        ({"observation/timestamp": np.arange(130) * 0.2}, {}, "", 5.0, "0.2 s per step"),
        ({"timestamp_ns": np.arange(130) * 50_000_000}, {}, "", 20.0, "5e+07 ns per step"),
        ({"observation/time": np.arange(130)}, {}, "", 10.0, "nothing"),
    ],
)
def test_the_control_rate_if_anything_says_it(steps, episodes, description, rate, why):
    split = split_of(steps, episodes)
    folder = TfdsFolder(Path("arm"), "arm", "1.0.0", Features((), (), {}), {})
    found = control_rate(Opened(folder, index_of(split), "", description, {}))
    assert found[0] == pytest.approx(rate) and why in found[1]
