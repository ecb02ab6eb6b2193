"""Errors on recorded episodes, against the same sums written out."""

import dataclasses

import numpy as np
import pytest

from imagewam_jax.data.datasets import config_data
from imagewam_jax.data.loading import samples
from imagewam_jax.errors import BadFrameError, DataError
from imagewam_jax.evaluation import offline
from imagewam_jax.evaluation.episode_means import EpisodeMeans
from imagewam_jax.evaluation.offline import LAST_ACTION, MEAN_ACTION, POLICY, evaluate_offline
from imagewam_jax.policy.policy import load_policy
from imagewam_jax.preprocess.inputs import Observations
from tests.training.tiny import trained_run

SAMPLES = 12


@pytest.fixture(scope="module")
def policy():
    return load_policy(trained_run())


@pytest.fixture(scope="module")
def dataset(policy):
    return config_data(policy.config)["metaworld_faucet"]


@pytest.fixture(scope="module")
def result(policy, dataset):
    # Batches of 5 leave one that is not full.
    frames = offline.chosen_frames(offline.evaluation_frames(dataset, "val"), SAMPLES)
    return evaluate_offline(policy, dataset, "val", frames, batch_size=5)


@pytest.fixture(scope="module")
def start_frames(dataset):
    """Frames that are evaluated: spread over all but the first of each episode."""
    starts = dataset.index.split("val").episode_start
    frames = [f for f in range(starts[-1]) if f not in set(starts.tolist())]
    return [frames[int(i)] for i in np.linspace(0, len(frames) - 1, SAMPLES)]


def mean_error(dataset, start_frames, guess):
    """Mean over samples of |guess - recorded action|, for each step ahead that was recorded."""
    index = dataset.index.split("val")
    actions = index.steps["action"][:]
    total, count = np.zeros((4, 4)), np.zeros(4)
    for number, frame in enumerate(start_frames):
        end = index.episode_start[index.frame_episode[frame] + 1]
        for ahead in range(4):
            if frame + ahead < end:
                total[ahead] += np.abs(guess(number, frame)[ahead] - actions[frame + ahead])
                count[ahead] += 1
    assert count[3] < count[0] == SAMPLES  # some chunks run beyond the end of their episode
    return total / count[:, None]


def test_guesses_that_need_no_model(dataset, result, start_frames):
    actions = dataset.index.split("val").steps["action"][:]
    last = mean_error(
        dataset, start_frames, lambda _, frame: np.repeat(actions[frame - 1 : frame], 4, 0)
    )
    np.testing.assert_allclose(
        result.action_error[LAST_ACTION].mean().value, last, rtol=1e-5, atol=1e-6
    )
    everything = dataset.index.split("train").steps["action"][:].astype(np.float64)
    mean = mean_error(dataset, start_frames, lambda *_: np.repeat(everything.mean(0)[None], 4, 0))
    np.testing.assert_allclose(
        result.action_error[MEAN_ACTION].mean().value, mean, rtol=1e-5, atol=1e-6
    )


def test_the_policy(policy, dataset, result, start_frames):
    """Errors are those of acting on one sample at a time, each with its own noise."""
    reader = dataset.reader("val")
    chunks, imagined, copied = [], [], []
    for number, frame in enumerate(start_frames):
        batch = reader.read(np.array([frame]))
        observations = Observations(
            batch["images"][:, :, 0],
            batch["proprio"],
            policy.text_ids([dataset.instructions[batch["text_id"][0]]]),
        )

        def noise(shape, number=number):
            return np.random.default_rng(number).standard_normal(shape, np.float32)[None]

        chunks.append(policy.act(observations, noise((4, 4)))[0])
        guess = policy.imagine(observations, noise((4, 4, 8)))
        now, true = (policy.encode(batch["images"][:, :, moment]) for moment in (0, 1))
        imagined.append(np.mean((guess - true) ** 2))
        copied.append(np.mean((now - true) ** 2))
    reader.close()
    expected = mean_error(dataset, start_frames, lambda number, _: chunks[number])
    found = result.action_error[POLICY].mean().value
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    of_episode = dataset.index.split("val").frame_episode[start_frames]
    for means, errors, rtol in (
        (result.imagined_error, imagined, 1e-3),
        (result.copied_error, copied, 1e-4),
    ):
        sums = np.bincount(of_episode, errors, len(means.total))
        np.testing.assert_allclose(means.total, sums, rtol=rtol, atol=1e-7)
        np.testing.assert_array_equal(means.weight, np.bincount(of_episode, minlength=len(sums)))


def test_a_split_without_samples(dataset):
    with pytest.raises(DataError, match=r"'val\[:0\]' has no "):
        offline.evaluation_frames(dataset, "val[:0]")


def test_first_steps_alone(policy, dataset, monkeypatch):
    """Nothing came before them that could be repeated, and all of them are in the sums."""
    firsts = dataclasses.replace(dataset, every=10_000)
    starts = dataset.index.split("val").episode_start[:-1]
    frames = offline.evaluation_frames(firsts, "val")
    assert frames.tolist() == starts.tolist()

    def predict(policy, dataset, batch, seeds):
        latent = np.zeros((len(seeds), 1, 1, 1), np.float32)
        true = batch["actions"]
        return offline.Predictions(0 * true, true, batch["action_is_pad"], latent, latent, latent)

    monkeypatch.setattr(offline, "predict", predict)
    errors = evaluate_offline(policy, firsts, "val", frames).action_error
    assert set(errors) == {POLICY, MEAN_ACTION}
    actions = dataset.index.split("val").steps["action"][:]
    np.testing.assert_allclose(
        errors[POLICY].mean().value[0], np.abs(actions[starts]).mean(0), rtol=1e-5
    )


def test_samples_whose_images_cannot_be_read(dataset, monkeypatch):
    """They are an error, or are left out if training was allowed to."""
    reader = dataset.reader("val")
    frames = np.arange(1, 5)
    whole = reader.read(frames)
    decode = samples.decode_frame

    def damaged(split, stored, image):
        if stored.frame == 3:
            raise BadFrameError("damaged")
        return decode(split, stored, image)

    monkeypatch.setattr(samples, "decode_frame", damaged)
    with pytest.raises(BadFrameError, match="damaged"):
        offline.read_samples(reader, frames, skip_bad=False)
    batch, good = offline.read_samples(reader, frames, skip_bad=True)
    assert good.tolist() == [True, True, False, True]
    for key, values in batch.items():
        np.testing.assert_array_equal(values[good], whole[key][good])
    reader.close()


def test_numbers_that_are_not_there_are_null():
    error = means([[[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]], [[[1], [1], [0]]])
    result = offline.OfflineResult({POLICY: error}, means([np.inf]), means([1.0]), np.array([1, 0]))
    summary = result.summary()
    assert summary["action_error"] == {POLICY: [2.0, 3.0]}
    assert summary["action_error_by_step"] == {POLICY: [1.5, 3.5, None]}
    assert summary["imagined_latent_error"] is None and summary["copied_latent_error"] == 1.0
    # One episode tells nothing of another.
    assert summary["action_error_interval"] == {POLICY: [None, None]}
    assert summary["copied_latent_error_interval"] is None


def means(values, weight=(1,)):
    values = np.array(values)
    result = EpisodeMeans(1, values.shape[1:])
    result.add(np.zeros(len(values), int), values, np.array(weight, float))
    return result


def test_summary(result):
    summary = result.summary()
    assert summary["samples"] == SAMPLES and 1 < summary["episodes"] <= SAMPLES
    for name, error in result.action_error.items():
        value, half_width = error.mean()
        np.testing.assert_allclose(summary["action_error"][name], value.mean(0))
        np.testing.assert_allclose(summary["action_error_by_step"][name], value.mean(1))
        # Errors of one step or dimension go with those of others, at most altogether.
        widths = np.array(summary["action_error_interval"][name])
        assert widths.any() and (widths <= half_width.mean(0) + 1e-12).all()
    assert summary["imagined_latent_error"] == pytest.approx(result.imagined_error.mean().value)


def test_all_samples(policy, dataset):
    """Without a limit each sample that can be evaluated counts."""
    frames = offline.evaluation_frames(dataset, "val")
    chosen = offline.chosen_frames(frames, None)
    whole = evaluate_offline(policy, dataset, "val", chosen)
    assert whole.samples == len(frames) > SAMPLES
    of_episode = np.bincount(dataset.index.split("val").frame_episode[frames])
    np.testing.assert_array_equal(whole.imagined_error.weight, of_episode)
