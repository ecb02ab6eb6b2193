"""Everything that is wrong with a run is told at once, and a right run is told what it would be."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from imagewam_jax import cli
from imagewam_jax.checkpoints import store
from imagewam_jax.config.loading import read_config
from imagewam_jax.data.index.dataset_index import default_index_dir
from imagewam_jax.preflight import data as data_checks
from imagewam_jax.preflight.report import preflight
from tests.evaluation.fake_simulator import NAME as FAKE
from tests.preflight.runs import write_config, write_dataset
from tests.training.tiny import copy_sample, trained_run

FILE = """
from tests.training.tiny import tiny_config

def get_config():
    config = tiny_config({dataset!r})
    {lines}
    return config
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return copy_sample(tmp_path_factory.mktemp("rlds"))


@pytest.fixture
def check(dataset, tmp_path):
    """What is found of the tiny config with some lines of Python and overrides."""

    def run(*overrides: str, lines: str = "", workdir: Path | None = None, **options):
        path = tmp_path / "config.py"
        path.write_text(FILE.format(dataset=str(dataset), lines=lines))
        loaded = read_config(str(path), [f"--config.{o}" for o in overrides])
        return preflight(loaded, workdir or tmp_path / "run", **options)

    return run


def test_what_a_right_run_would_be(check, tmp_path):
    report = check()
    assert report.problems == {} and report.not_checked == {}
    assert report.summary == (
        "parameters: 33,184 (backbone 19,760, expert 12,464, proprio_in 960)\n"
        "data: 380 samples, 0.1 epochs of them (metaworld_faucet 100.0%); devices: 1 x cpu\n"
        "8 steps of 4 samples; a checkpoint each 4 steps, of 0.5 MB, 2 are kept"
    )
    assert report.notes == [  # of the two channels to a head for each axis
        "model.backbone.rope_theta 100 with rope_axes (2, 2, 2, 2) repeats after 6 positions, and "
        "there are 21 text tokens: a larger rope_theta, or wider rope_axes, tell them apart"
    ]
    assert not (tmp_path / "run").exists()  # looking leaves no trace


def found(report, *expected: tuple[str, str]) -> None:
    """The report has these problems, by section, and no others."""
    problems = [(section, line) for section, lines in report.problems.items() for line in lines]
    for section, text in expected:
        (line,) = [p for p in problems if p[0] == section and text in p[1]] or [None]
        assert line is not None, (section, text, problems)
        problems.remove(line)
    assert not problems


def test_fields_of_a_file_and_of_the_command_line(check):
    report = check(
        "trian.steps=3",
        "train.log_every=often",
        "model.expert.dims=3",
        lines="config.train.stepz = 5; config.train.steps = 'many'; config.optimizer.b1 = 2.0\n"
        "    config.data.cameras = 'primary'; del config.optimizer.eps",
    )
    found(
        report,
        ("fields", "has an unknown field 'train.stepz'"),
        ("fields", "has no field 'optimizer.eps'"),
        ("fields", "has no field 'trian.steps': no 'trian' among ['acting'"),
        ("fields", "has no field 'model.expert.dims': no 'dims' among"),
        ("fields", "--config.train.log_every=often: invalid literal"),
        ("fields", "train.steps is 'many', expected a whole number"),
        ("fields", "optimizer.b1 is 2.0, expected 0 or more, and less than 1"),
        ("fields", "data.cameras is 'primary', expected a list of names, such as ('primary',)"),
    )
    assert "cameras" in report.not_checked["data.cameras has no usable value"]


def test_ranges(check):
    report = check(
        "train.batch_size=0",
        "data.image_size=(64, 0)",
        "text.buckets=()",
        "optimizer.warmup_fraction=5.0",
        "train.validate_every=-1",
        "optimizer.learning_rate=nan",
        "data.stride=0",
    )
    found(
        report,
        ("fields", "train.batch_size is 0, expected at least 1"),
        ("fields", "data.image_size is (64, 0), expected at least 1"),
        ("fields", "text.buckets is (), expected at least one"),
        ("fields", "optimizer.warmup_fraction is 5.0, expected 0 to 1"),
        ("fields", "train.validate_every is -1, expected at least 0"),
        ("fields", "optimizer.learning_rate is nan, expected a number"),
        ("fields", "data.stride is 0, expected at least 1"),
    )


def test_a_policy_its_weights_and_its_data(check):
    report = check(
        "model.horizon=9",
        "model.backbone.in_channels=9",
        "train.frozen=('vision',)",
        "train.max_delay=9",
        "train.initial_weights=/no/weights",
        "data.train_split=test",
    )
    found(
        report,
        ("model", "horizon 9 is beyond the expert's limit 8"),
        ("model", "train.frozen has 'vision', which is no part of the policy"),
        ("model", "train.max_delay is 9, expected less than model.horizon 9: some actions of a"),
        ("model", "/no/weights: no such directory, expected a run or a checkpoint in it"),
        ("images", "in_channels is 9, the autoencoder has 8 channels"),
        ("data", "data.train_split is 'test': metaworld_faucet has no split 'test'; its splits"),
    )


def test_images_and_the_parts_that_take_them(check):
    report = check(
        "data.layout=spiral",
        "data.augmentation=some",
        "data.letterbox=('wrist',)",
        "autoencoder.weights=/no/weights",
        "mesh.tensor=2",
    )
    found(
        report,
        ("images", "data.layout: no camera layout 'spiral', there are ['compact_288x256'"),
        ("images", "data.augmentation: no augmentation 'some'"),
        ("images", "data.letterbox has ['wrist'], data.cameras are ['primary']"),
        ("images", "/no/weights: no such directory"),
        ("devices", "a mesh of data 1 x fsdp -1 x tensor 2 x context 1 is not one of 1 devices"),
    )
    assert "latent grid" in report.not_checked["images failed"]
    assert "batch" in report.not_checked["mesh failed"]


def test_widths_cameras_splits_and_texts_of_one_dataset(check):
    report = check(
        "model.expert.action_dim=7",
        "model.proprio_dim=9",
        "data.cameras=('wrist',)",
        "data.unlabelled=keep",
        "text.buckets=(8, 16)",
        "data.normalization=none",
        "train.validate_every=2",
        "data.eval_split=test",
    )
    found(
        report,
        ("data", "the configured action_dim is 7, the datasets have {'metaworld_faucet': 4}"),
        ("data", "the configured state_dim is 9, the datasets have {'metaworld_faucet': 4}"),
        ("data", "data.cameras: no dataset has a camera 'wrist'; they have {'metaworld_faucet'"),
        ("data", "data.unlabelled is 'keep', expected one of ['error', 'drop', 'blank']"),
        ("data", "normalisation mode 'none'"),
        ("data", "data.eval_split is 'test': metaworld_faucet has no split 'test'; its splits"),
        ("text", "'close the faucet' is 18 tokens long, at most 16 fit (2 of 2 prompts are longer"),
    )


def test_a_dataset_that_is_not_there(check):
    report = check(
        "data.directory=/no/set",
        "text.encoder=t5",
        "train.accumulate=3",
        "train.compiler_options=('fast',)",
    )
    found(
        report,
        (
            "data",
            "data.directory: /no/set: no such folder, expected the dataset 'metaworld_faucet'",
        ),
        (
            "text",
            "text.encoder is 't5'; choose from ['byte_qwen3', 'ovis_u1', 'qwen2_5_vl', 'qwen3']",
        ),
        ("devices", "train.batch_size 4 does not divide over data 1 x fsdp 1"),
        ("devices", "train.compiler_options: 'fast' is no NAME=VALUE"),
    )
    assert {"datasets", "training samples"} <= set(report.not_checked["folders failed"])
    assert report.not_checked["text features failed"] == ["text length"]


def test_rows_of_a_mixture(check):
    mine = [{"dataset": "none", "weight": 1.0}, {"dataset": "mine", "weight": 1.0}]
    report = check(
        "text.template=open",
        "mesh.data=3",
        lines="config.data.dataset, config.data.mixture = '', 'ours'\n"
        f"    config.data.mixtures = {{'ours': {mine}}}\n"
        "    config.data.rows = {'mine': {'cameras': {}}}",
    )
    found(
        report,
        ("data", "no dataset 'none' in the registry or in data.rows"),
        ("data", "data.mixture: the dataset row 'mine': missing fields ['action', 'state'"),
        ("text", "text.template is 'open', without {} for the instruction"),
        ("devices", "a mesh of data 3 x fsdp -1"),
    )


def test_a_folder_that_holds_another_run(check, monkeypatch):
    check()  # so that the dataset has an index
    folder = trained_run()
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**5))
    report = check("optimizer.learning_rate=0.5", "text.buckets=(8,)", workdir=folder)
    found(
        report,
        ("text", "add a bucket of at least 18"),
        ("folder", f"{folder} has checkpoints up to step 40: resume it or choose another folder"),
        ("folder", "1 checkpoint(s) of 1 MB do not fit: 0 MB are free"),
    )
    line = report.problems["folder"][0]
    assert "--resume would end with" in line and "train.steps: 40 -> 8" in line
    assert "optimizer.learning_rate: 0.01 -> 0.5" in line


def test_a_run_that_goes_on(check, dataset):
    """The folder's own config goes on; data that has changed since does not."""
    folder = trained_run()
    own = folder.parent / "metaworld_faucet" / "1.0.0"
    same = ("train.steps=40", "train.validation_samples=40", f"data.directory={own}")
    same = (*same, "train.validate_every=10", "train.checkpoint_every=20")
    assert check(*same, workdir=folder, resume=True).problems == {}
    report = check(*same, workdir=folder)
    found(report, ("folder", "choose another folder; --resume would go on from step 40"))
    report = check(*same, "data.sample_every=2", "seed=1", workdir=folder, resume=True)
    found(
        report,
        ("folder", "the checkpoint is of another config (data.sample_every: 1 -> 2; seed: 0 -> 1)"),
        ("folder", "cannot resume the data stream, it has changed ("),
    )


def test_settings_of_the_example_on_another_set(tmp_path):
    """Instructions are too long for the bucket, the simulator is of another robot, and rotary
    embeddings of a small grid repeat themselves."""
    folder = write_dataset(tmp_path / "robotwin" / "1.0.0", "robotwin", episodes=60)
    config = tmp_path / "copied.py"
    config.write_text(
        "from configs.quickstart import get_config as quickstart\n\n"
        "def get_config():\n    config = quickstart()\n"
        f"    config.data.directory, config.data.dataset = {str(folder)!r}, 'robotwin'\n"
        "    config.data.train_split, config.data.eval_split = 'train[:90%]', 'train[90%:]'\n"
        "    config.model.expert.action_dim = config.model.proprio_dim = -1\n"
        "    config.data.image_size = (240, 320)\n"
        "    config.text.buckets = (4, 100)\n    config.text.template = '{} ' + 80 * 'x'\n"
        f"    config.evaluation = {{'simulator': {FAKE!r}, 'options': {{}}}}\n"
        "    return config\n"
    )
    report = preflight(read_config(str(config), []))
    robot = f"evaluation.simulator {FAKE!r} is not of the robot of 'robotwin': "
    found(
        report,
        ("evaluation", robot + "its actions have 1 dimensions, those of the dataset 14; set"),
        ("evaluation", robot + "its states have 1 dimensions, those of the dataset 14"),
        ("evaluation", robot + "it has the cameras ['front', 'back'], data.cameras are ['primary'"),
        ("evaluation", robot + "no episode has its instruction 'go backward'"),
    )
    patch, rope, short = report.notes[-2], report.notes[-1], report.notes[0]
    assert "patch autoencoder" in patch or "240 x 320" in patch
    assert "repeats after 63 positions, and there are 101 text tokens" in rope
    assert "robotwin: 54 of 54 episodes are no longer than a chunk" in short
    report = preflight(read_config(str(config), ["--config.text.buckets=(20,)"]), evaluation=False)
    found(report, ("text", "is 89 tokens long, at most 20 fit (3 of 3 prompts are longer)"))


@pytest.mark.parametrize(
    ("recipe", "names", "samples"),
    [
        ("libero", [f"libero_{s}_no_noops" for s in ("spatial", "object", "goal", "10")], 480),
        ("robotwin", ["robotwin"], 118),
    ],
)
def test_the_recipes_on_tiny_sets(tmp_path, recipe, names, samples):
    for name in names:
        write_dataset(tmp_path / "rlds" / name / "1.0.0", name, episodes=60, steps=2)
    where = tmp_path / "rlds" if len(names) > 1 else tmp_path / "rlds" / names[0] / "1.0.0"
    config = write_config(tmp_path, recipe, where)
    report = preflight(read_config(str(config), []), tmp_path / "run")
    assert report.problems == {} and report.not_checked == {}
    assert f"\ndata: {samples} samples" in report.summary


def test_a_large_set_without_an_index_is_not_indexed(check, dataset, monkeypatch):
    shutil.rmtree(default_index_dir(dataset), ignore_errors=True)
    monkeypatch.setattr(data_checks, "SMALL_BYTES", 1000)
    report = check(
        "mesh.tensor=2",
        "data.cameras=('wrist',)",
        "data.train_split=test[:9]",
        lines="config.data.rows = {'metaworld_faucet': {'like': 'metaworld_faucet', "
        "'language': ['words']}}",
    )
    found(
        report,
        ("data", f"{dataset}: the row 'metaworld_faucet' names ['words'], its features are ['"),
        ("data", f"data.train_split: {dataset} has no split 'test', it has ['train', 'val']"),
        ("data", "no dataset has a camera 'wrist'"),
        ("devices", "is not one of 1 devices"),
    )
    ((why, names),) = [(w, n) for w, n in report.not_checked.items() if "not yet indexed" in w]
    assert f"index it with: imagewam data index {dataset}" in why and "datasets" in names
    assert not default_index_dir(dataset).exists()


def test_the_command(dataset, tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(FILE.format(dataset=str(dataset), lines=""))
    arguments = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(["check", *arguments]) == 0
    assert "8 steps of 4 samples" in capsys.readouterr().out
    wrong = ["--config.mesh.tensor=2", "--config.text.buckets=(8,)", "--config.seed=x"]
    assert cli.main(["check", *arguments, *wrong]) == 1
    told = capsys.readouterr().err
    assert "3 problems\nfields\n  flag --config.seed=x" in told
    assert cli.main(["train", *arguments, *wrong]) == 1
    assert "imagewam train: 3 problems\nfields\n  flag --config.seed=x" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
