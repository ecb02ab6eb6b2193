"""A policy from a checkpoint: it needs nothing else, and acts on each observation by itself."""

import os
import pickle
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from imagewam_jax.checkpoints.assets import restore_assets
from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import CheckpointError, DataError, InputError
from imagewam_jax.models.parameters import abstract_params, policy_builder
from imagewam_jax.policy.policy import _dataset, load_policy
from imagewam_jax.preprocess.images import ImageSpec
from imagewam_jax.preprocess.inputs import Observations, make_context
from imagewam_jax.preprocess.resize import resize
from imagewam_jax.text.tables import write_text_table
from tests.training.tiny import INSTRUCTIONS, trained_run

BATCH = 3
ACT = """
import pickle, sys
from imagewam_jax.policy.policy import _dataset, load_policy
from imagewam_jax.preprocess.inputs import Observations
path, inputs, outputs = sys.argv[1:]
images, state, instructions, noise = pickle.load(open(inputs, "rb"))
policy = load_policy(path)
observations = Observations(images, state, policy.text_ids(instructions))
pickle.dump(policy.act(observations, noise), open(outputs, "wb"))
"""


@pytest.fixture(scope="module")
def policy():
    return load_policy(trained_run())


@pytest.fixture(scope="module")
def case(policy):
    """Observations of both instructions, and noise."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 1, 64, 64, 3)).astype(np.uint8)
    state = rng.uniform(0, 0.5, (BATCH, 4)).astype(np.float32)
    instructions = [INSTRUCTIONS[i % 2] for i in range(BATCH)]
    noise = rng.normal(size=(BATCH, policy.horizon, policy.action_dim)).astype(np.float32)
    return Observations(images, state, policy.text_ids(instructions)), noise


def test_a_copied_step_is_all_that_a_fresh_process_needs(policy, case, tmp_path):
    """The step was moved, without the rest of its run, and the dataset is gone."""
    observations, noise = case
    source = trained_run() / "checkpoints" / str(policy.step)
    step = shutil.copytree(source, tmp_path / "moved" / str(policy.step))
    metadata = step / "metadata" / "metadata"
    text = metadata.read_text()
    directory = policy.config["data"]["directory"]
    assert directory in text
    metadata.write_text(text.replace(directory, "/gone"))
    inputs, outputs = tmp_path / "inputs", tmp_path / "outputs"
    instructions = [INSTRUCTIONS[row] for row in observations.text_id]
    inputs.write_bytes(pickle.dumps((observations.images, observations.state, instructions, noise)))
    done = subprocess.run(
        [sys.executable, "-c", ACT, str(step), str(inputs), str(outputs)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    np.testing.assert_array_equal(pickle.loads(outputs.read_bytes()), policy.act(*case))


def test_a_batch_is_its_observations_one_by_one(policy, case):
    together = policy.act(*case)
    assert together.shape == (BATCH, 4, 4) and np.isfinite(together).all()
    for i in range(BATCH):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], case)
        np.testing.assert_allclose(policy.act(*one)[0], together[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("field", ["images", "state", "text_id", "noise"])
def test_everything_that_is_given_matters(policy, case, field):
    observations, noise = case
    changed = {
        "images": observations._replace(images=255 - observations.images),
        "state": observations._replace(state=observations.state + 0.1),
        "text_id": observations._replace(text_id=1 - observations.text_id),
    }.get(field, observations)
    other_noise = -noise if field == "noise" else noise
    difference = policy.act(changed, other_noise) - policy.act(observations, noise)
    assert np.abs(difference).max(axis=(1, 2)).min() > 1e-5


def test_more_euler_steps_are_another_integral(policy, case):
    assert np.abs(policy.act(*case) - policy.act(*case, euler_steps=1)).max() > 1e-4
    np.testing.assert_array_equal(policy.act(*case), policy.act(*case, euler_steps=2))


def test_actions_are_those_of_the_model_in_units_of_the_dataset(policy, case):
    observations, noise = case
    checkpoints, step = open_checkpoint(trained_run())
    config = policy_config(policy.config["model"])
    params = checkpoints.restore(step, {"ema": abstract_params(config)})["ema"]
    assets = restore_assets(checkpoints, step, policy.config["autoencoder"])
    checkpoints.close()

    @jax.jit
    def act(params, assets, observations, noise):
        model = policy_builder(config)(params)
        images = ImageSpec("single", (64, 64), "")
        context = make_context(assets, images, observations)
        return model.act(model.prefill(context), noise, model.action_schedule(2))[0]

    normalized = np.asarray(act(params, assets, observations, noise))
    statistics = policy.metadata["statistics"]["metaworld_faucet"]["action"]
    low, high = np.array(statistics["min"]), np.array(statistics["max"])
    constant = high == low  # such a dimension is only shifted
    assert not constant.all()
    expected = np.where(constant, low + normalized, low + (normalized + 1) / 2 * (high - low))
    np.testing.assert_allclose(policy.act(*case), expected, rtol=1e-4, atol=1e-5)


def test_every_way_in_is_checked(policy, case):
    """Nothing is computed from what does not fit."""
    observations, noise = case
    wide = observations._replace(state=observations.state[:, :1])
    latent = np.zeros((BATCH, 4, 4, 8), np.float32)
    for call, message in (
        (lambda: policy.act(wide, noise), r"state: .* = \[3, 4\], found \[3, 1\]"),
        (lambda: policy.act(observations, noise[:, :2]), r"noise: .* = \[3, 4, 4\], found \[3, 2"),
        (lambda: policy.act(observations, noise[:1]), r"noise: .* found \[1, 4, 4\]"),
        (lambda: policy.act(observations, noise * np.nan), "noise: expected finite numbers"),
        (lambda: policy.act(observations, noise, euler_steps=0), "euler_steps: .* found 0"),
        (lambda: policy.imagine(wide, latent), "state: expected"),
        (lambda: policy.imagine(observations, latent[:, :2]), r"= \[3, 4, 4, 8\], found \[3, 2"),
        (lambda: policy.imagine(observations, latent, euler_steps=2.5), "euler_steps: .* 2.5"),
        (lambda: policy.attention_on_reference(observations, noise, time=2), "time: .* found 2"),
        (lambda: policy.attention_on_reference(observations, noise[:1]), "noise: expected"),
        (lambda: policy.decode(latent[..., :4]), r"latent: .* = \[any, 4, 4, 8\], found \[3, 4"),
        (lambda: policy.encode(observations.images[:, :, :0]), "images: .* no axis may be empty"),
        (lambda: policy.latent_shape(observations.images[:0]), "images: .* no axis may be empty"),
        (lambda: policy.seen(observations.images, np.ones((3, 1, 2), int) * 65), "image_size: "),
        (lambda: policy.text_ids("open the faucet"), "instructions: .* found one text"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_images_of_any_size_are_seen_as_training_saw_them(policy, case):
    """Alone, or in the corner of a larger buffer whose other pixels are never looked at."""
    observations, noise = case
    images = observations.images[:, :, :37, :61]
    buffer = np.full((BATCH, 1, 50, 64, 3), 99, np.uint8)
    buffer[:, :, :37, :61] = images
    sizes = np.broadcast_to([37, 61], (BATCH, 1, 2))
    seen = policy.seen(buffer, sizes)
    assert seen.shape == (BATCH, 1, 64, 64, 3)
    stretched = resize(images[:, 0] / np.float32(255), (64, 64))
    np.testing.assert_allclose(seen[:, 0], 255 * np.asarray(stretched), atol=0.51)
    np.testing.assert_array_equal(seen, policy.seen(images))
    np.testing.assert_allclose(policy.encode(buffer, sizes), policy.encode(images), atol=1e-5)
    packed = policy.act(observations._replace(images=buffer, image_size=sizes), noise)
    resized = policy.act(observations._replace(images=seen), noise)  # rounded to uint8
    np.testing.assert_allclose(packed, resized, atol=1e-3)
    assert np.abs(packed - policy.act(observations, noise)).max() > 1e-2


def test_a_state_far_outside_the_data_is_logged_once(case, caplog):
    observations, noise = case
    policy = load_policy(trained_run())
    far = observations._replace(state=observations.state + np.array([0, 1e3, 0, 0], np.float32))
    for _ in range(2):
        policy.act(far, noise)
    (record,) = [r for r in caplog.records if r.name == "imagewam_jax.policy.policy"]
    assert "state dimensions [1] are so far outside the data" in record.getMessage()


def test_an_instruction_that_is_not_known(policy):
    assert policy.text_ids(INSTRUCTIONS).tolist() == [0, 1]
    with pytest.raises(CheckpointError, match=r"no text features of \['wash the faucet'\]; it k"):
        policy.text_ids(["open the faucet", "wash the faucet"])


def test_a_text_table_of_another_encoder(policy, tmp_path):
    """A trained policy knows its encoder exactly."""
    text = tmp_path / "text"
    encoder, channels = "bytes(dim=1)", policy.config["model"]["backbone"]["text_dim"]
    write_text_table(text, ["go"], [2], [np.zeros((2, channels), np.float32)], channels, encoder)
    with pytest.raises(DataError, match=r"made by the encoder 'bytes\(dim=1\)', expected"):
        load_policy(trained_run(), text_table=text)


def test_encoding_and_decoding_images(policy, case):
    images = case[0].images
    latent = policy.encode(images)
    assert latent.shape == policy.latent_shape(images) == (BATCH, 4, 4, 8)
    decoded = policy.decode(latent)
    assert decoded.shape == (BATCH, 64, 64, 3)
    # Decoding keeps what the autoencoder keeps: to encode it again changes nothing.
    again = policy.encode(((np.clip(decoded, -1, 1) + 1) * 127.5).round().astype(np.uint8)[:, None])
    np.testing.assert_allclose(again, latent, atol=0.05 * np.abs(latent).max())


def test_imagined_latents_depend_on_noise_and_observation(policy, case):
    observations, _ = case
    noise = np.random.default_rng(1).normal(size=(BATCH, 4, 4, 8)).astype(np.float32)
    imagined = policy.imagine(observations, noise)
    assert imagined.shape == noise.shape
    for other in (
        policy.imagine(observations, -noise),
        policy.imagine(observations._replace(images=255 - observations.images), noise),
    ):
        assert np.abs(other - imagined).max() > 1e-4


def test_attention_on_the_reference_is_a_share(policy, case):
    weight = policy.attention_on_reference(*case)
    assert weight.shape == (BATCH, 2, 4, 4)
    assert (weight >= 0).all() and (weight.sum((2, 3)) < 1).all()
    assert (weight.sum((2, 3)) > 0).all()


def test_the_average_and_the_last_weights_are_different_policies(policy, case):
    last = load_policy(trained_run() / "checkpoints" / "40", average=False)
    assert np.abs(last.act(*case) - policy.act(*case)).max() > 1e-4


def test_official_statistics_are_those_of_every_dataset():
    """A trained policy has its own for each, and refuses the names of others."""
    official = {"official": {"source": {"file": "dataset_stats.json", "official": True}}}
    metadata = {"config": {"data": {}}, "datasets": ["official"], "statistics": official}
    assert _dataset(metadata, "libero_goal_no_noops") == ("libero_goal_no_noops", 0)
    assert _dataset(metadata, None) == ("official", 0)
    with pytest.raises(CheckpointError, match=r"trained on \['official'\]; .* not 'toy'"):
        _dataset(metadata | {"statistics": {"official": {}}}, "toy")
