"""What a user can get wrong ends in one error that names it, before any training."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from imagewam_jax import cli
from imagewam_jax.checkpoints import store as checkpoint
from imagewam_jax.training import prepare
from imagewam_jax.training import train as loop
from tests.training.tiny import copy_sample, tiny_config, trained_run


@pytest.fixture(scope="module")
def finished():
    return trained_run()


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch, finished):
    """Errors come before the first step."""

    def refuse(*_):
        raise AssertionError("training has begun")

    monkeypatch.setattr(loop, "jit_train_step", lambda *_: refuse)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return copy_sample(tmp_path_factory.mktemp("rlds"))


@pytest.fixture
def train(dataset, tmp_path, capsys):
    """Runs `imagewam train` and returns its error: a line for each thing that is wrong."""
    config = tmp_path / "config.py"
    config.write_text(
        "from tests.training.tiny import tiny_config\n"
        f"def get_config(size='16'):\n    return tiny_config({str(dataset)!r})\n"
    )

    def run(*arguments: str, config: str = str(config), workdir: Path = tmp_path / "run") -> str:
        status = cli.main(["train", f"--config={config}", f"--workdir={workdir}", *arguments])
        assert status == 1
        return "imagewam train: " + capsys.readouterr().err.split("imagewam train: ")[1]

    return run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.cameras=('wrist',)", "no dataset has a camera 'wrist'; they have {'metaworld"),
        (
            "data.train_split=test",
            "train_split is 'test': metaworld_faucet has no split 'test';",
        ),
        ("data.image_size=(30, 64)", "height 30 is not a multiple of 16, the autoencoder's factor"),
        ("data.mixture=soup", "either data.dataset, one dataset, or data.mixture, several"),
        ("data.train_split=train[-1000:]", "train[-1000:]' reaches beyond the "),
        (
            "data.not_finite=drop",
            "not_finite is 'drop', expected one of ['error', 'drop_st",
        ),
        ("data.unlabelled=keep", "unlabelled is 'keep', expected one of ['error', 'drop'"),
        ("data.bad_frames=2.0", "the share of bad frames is 2.0, expected 0 to 1"),
        ("data.train_split=train[x]", "split 'train[x]'; expected such as 'train', 'train[:95%]'"),
        ("data.dataset=mine", "no dataset 'mine' in the registry"),
        ("data.layout=spiral", "no camera layout 'spiral', there are ['compact_288x256'"),
        ("data.layout=compact_288x256", "layout 'compact_288x256': 1 cameras, expected 3"),
        ("data.augmentation=some", "no augmentation 'some', there are ['', 'libero', 'robotwin']"),
        ("data.letterbox=('wrist',)", "data.letterbox has ['wrist'], data.cameras are ['primary']"),
        ("data.normalization=none", "normalisation mode 'none'"),
        ("model.expert.action_dim=7", "the configured action_dim is 7, the datasets have {'meta"),
        ("model.expert.action_dim=3", "the configured action_dim is 3, the datasets have {'meta"),
        ("model.proprio_dim=9", "the configured state_dim is 9, the datasets have {'metaworld"),
        ("model.horizon=9", "horizon 9 is beyond the expert's limit 8"),
        ("model.horizon=0", "model.horizon is 0, expected at least 1"),
        ("model.backbone.name=flux9", "model.backbone.name is 'flux9'; choose from ['flux2'"),
        ("model.backbone.in_channels=9", "in_channels is 9, the autoencoder has 8 channels"),
        ("model.backbone.text_dim=9", "text_dim is 9, the text features have 192 channels"),
        ("model.backbone.heads=3", "model.backbone: dim 16 is not a multiple of heads 3"),
        ("model.attention=flash", "unknown attention backend 'flash'; choose from ['cudnn'"),
        ("model.attention=splash", "model.attention: attention 'splash' runs on TPUs and the devi"),
        ("model.attention=cudnn", "model.attention: attention 'cudnn' runs on NVIDIA GPUs and the"),
        ("model.remat=some", "unknown remat policy 'some'; choose from ['full', 'none'"),
        ("model.coordinate_dtype=half", "model.coordinate_dtype is 'half'; choose from"),
        (
            "autoencoder.name=vqgan",
            "autoencoder.name is 'vqgan'; choose from ['flux2', 'kl', 'patch']",
        ),
        ("autoencoder.factor=24", "height 64 is not a multiple of 24, the autoencoder's factor"),
        ("autoencoder.channels=769", "autoencoder: channels 769 must be between 1 and the 768"),
        (
            "text.encoder=t5",
            "text.encoder is 't5'; choose from ['byte_qwen3', 'ovis_u1', 'qwen2_5_vl', 'qwen3']",
        ),
        ("text.encoder=qwen3", "neither text.weights nor text.table names any. Obtain Qwen/Qwen3-"),
        ("text.weights=/no/x", "text.weights is '/no/x': the weights of byte_qwen3 are random"),
        ("text.template=open", "text.template is 'open', without {} for the instruction"),
        ("text.buckets=(8, 16)", "text.buckets (8, 16): prompt 'close the faucet' is 18 tokens"),
        ("text.table=/no/table", "/no/table: no text table"),
        ("train.compute_dtype=half", "train.compute_dtype is 'half'; choose from"),
        ("train.accumulate=3", "train.batch_size 4 does not divide over data 1 x fsdp 1"),
        ("train.accumulate=0", "train.accumulate is 0, expected at least 1"),
        ("train.frozen=('vision',)", "train.frozen has 'vision', which is no part of the policy"),
        ("train.frozen=('backbone','expert','proprio_in')", "leaves nothing to train"),
        ("model.lora.rank=-1", "model.lora: rank -1 with alpha 0.0, expected positive numbers"),
        ("model.lora.rank=4", "model.lora: rank 4 with alpha 0.0, expected positive numbers"),
        ("mesh.tensor=2", "a mesh of data 1 x fsdp -1 x tensor 2 x context 1 is not one of 1 dev"),
        ("mesh.slices=2", "mesh.data 1 does not divide over 2 slices"),
        ("mesh.pipeline=2", "has no field 'mesh.pipeline': no 'pipeline' among ['context', 'data'"),
        ("train.compiler_options=('fast',)", "train.compiler_options: 'fast' is no NAME=VALUE"),
        ("train.compiler_options=('xla_no=1',)", "options {'xla_no': '1'} are not for cpu: "),
        ("train.steps=0", "train.steps is 0, expected at least 1"),
        ("train.log_every=0", "train.log_every is 0, expected at least 1"),
        ("train.steps=many", "--config.train.steps=many"),
        ("train.stepz=3", "has no field 'train.stepz': no 'stepz' among"),
        ("watch.profile=(5,)", "watch.profile is (5,) and watch.profile_on_signal 5, expected"),
        ("watch.profile_on_signal=-1", "watch.profile_on_signal -1, expected a first step"),
        ("trian.steps=3", "has no field 'trian.steps': no 'trian' among ['acting'"),
        ("seed.value=3", "has no field 'seed.value'"),
    ],
)
def test_a_field_that_does_not_fit(train, override, message):
    assert message in train(f"--config.{override}")


def test_arguments_that_do_not_exist(train):
    assert "unexpected arguments: now" in train("now")
    assert "'worker'" in train("--worker=3")


def test_config_files_that_do_not_exist(train):
    assert "/no/config.py: no such config file" in train(config="/no/config.py:4b")


def test_a_size_that_a_recipe_does_not_have(train):
    assert "'5b'; choose from ['4b', '9b', 'omnigen2', 'ovis_u1', 'tiny']" in train(
        config="configs/libero.py:5b"
    )


def test_a_recipe_without_the_weights_that_it_needs(dataset):
    config = tiny_config(dataset)
    config.autoencoder = {"name": "flux2", "weights": ""}
    with pytest.raises(prepare.ConfigError, match="weights must name a checkpoint"):
        prepare.make_autoencoder(config.to_dict(), data=None)


def test_directories_that_are_not_rlds(train, tmp_path, dataset):
    error = train("--config.data.directory=/no/set")
    assert "/no/set: no such folder, expected the dataset 'metaworld_faucet' there" in error
    other = tmp_path / "other"
    other.mkdir()
    (other / "image.jpg").touch()
    error = train(f"--config.data.directory={other}")
    assert f"{other}: no dataset 'metaworld_faucet' there; it holds []" in error
    not_rlds = Path(shutil.copytree(dataset, tmp_path / "flat"))
    shutil.rmtree(not_rlds / "imagewam_index", ignore_errors=True)
    features = {"featuresDict": {"features": {"image": {"image": {}}}}}
    (not_rlds / "features.json").write_text(json.dumps(features))
    assert "not RLDS: features.json has no dataset 'steps'" in train(
        f"--config.data.directory={not_rlds}"
    )


def test_a_camera_key_that_the_dataset_lacks(train, tmp_path, dataset):
    renamed = Path(shutil.copytree(dataset, tmp_path / "renamed"))
    shutil.rmtree(renamed / "imagewam_index", ignore_errors=True)
    features = (renamed / "features.json").read_text()
    assert features.count('"image": {') > 1
    tree = json.loads(features)
    steps = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    observation = steps["featuresDict"]["features"]["observation"]["featuresDict"]["features"]
    observation["front"] = observation.pop("image")
    (renamed / "features.json").write_text(json.dumps(tree))
    error = train(f"--config.data.directory={renamed}")
    assert "has camera 'primary' at 'observation/image', images are []" in error
    assert "'steps/observation/front': " in error


def test_a_workdir_that_is_a_file(train, tmp_path):
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'}" in train(workdir=tmp_path / "file")


def test_a_workdir_with_checkpoints_is_not_overwritten(train, finished):
    error = train(workdir=finished)
    assert f"{finished} has checkpoints up to step 40: resume it" in error


def test_resuming_with_another_config_names_the_fields(train, finished):
    error = train("--resume", "--config.optimizer.learning_rate=0.5", workdir=finished)
    assert "optimizer.learning_rate: 0.01 -> 0.5" in error
    assert "train.steps: 40 -> 8" in error
    assert "validate_every" not in error  # which does not change what is computed


def test_a_disk_that_is_too_small_for_the_run(train, finished, monkeypatch):
    """The error tells it of all checkpoints that will be kept at a time, and that are not there."""
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**5))
    assert "3 checkpoint(s) of 1 MB do not fit: 0 MB are free" in train()
    same = ("--config.train.steps=40", "--config.train.validation_samples=40")
    error = train("--resume", *same, workdir=finished)
    assert "1 checkpoint(s) of 1 MB do not fit: 0 MB are free" in error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.train.stepz = 5", "config.py has an unknown field 'train.stepz'; known are"),
        (
            "config.optimiser = {}",
            "config.py has an unknown field 'optimiser'; known are ['acting'",
        ),
        ("del config.optimizer.b1", "config.py has no field 'optimizer.b1'; known are ['b1'"),
    ],
)
def test_a_config_file_with_other_fields(train, dataset, tmp_path, line, message):
    file = tmp_path / "other" / "config.py"
    file.parent.mkdir()
    file.write_text(
        "from tests.training.tiny import tiny_config\n"
        f"def get_config():\n    config = tiny_config({str(dataset)!r})\n    {line}\n"
        "    return config\n"
    )
    assert message in train(config=str(file))
