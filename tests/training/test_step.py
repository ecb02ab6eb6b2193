"""The train step: its loss, its optimizer, what it keeps in float32, and that it repeats."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagewam_jax.checkpoints.store import METRICS_FILE, open_checkpoint, read_metrics
from imagewam_jax.config.schema import policy_config
from imagewam_jax.data.datasets import config_data
from imagewam_jax.errors import CheckpointError, ConfigError
from imagewam_jax.models.imagewam import Context, ImageWAM, Sample, sample_draws
from imagewam_jax.models.parameters import policy_builder
from imagewam_jax.training.optimizer import learning_rate, update_ema, updates_made
from imagewam_jax.training.prepare import check_delay
from imagewam_jax.training.resume import check_same, restore
from imagewam_jax.training.state import all_params, flat_params
from imagewam_jax.training.step import (
    abstract_state,
    init_state,
    prepare_batch,
    step_settings,
    train_step,
    validation_losses,
)
from tests.training.tiny import one_device, trained_run


class Run:
    """A trained run: its state and assets, one batch of its data, and its functions."""

    def __init__(self, workdir):
        checkpoints, step = open_checkpoint(workdir)
        metadata = checkpoints.restore_json(step, "metadata")
        self.config = metadata["config"]
        self.policy = policy_config(self.config["model"])
        self.settings = step_settings(self.config, self.policy)
        abstract = abstract_state(self.settings, one_device())
        restored = restore(checkpoints, step, abstract, self.config)
        self.state, self.assets = restored.state, restored.assets
        checkpoints.close()
        (self.dataset,) = config_data(self.config).datasets
        reader = self.dataset.reader("train")
        start_frames = self.dataset.start_frames("train")
        # The last of these are near the end of an episode, so that some actions are padding.
        self.batch = reader.read(start_frames[[0, 70, -2, -1]])
        reader.close()
        self.step = partial(jit_step, self.settings)


jit_step = jax.jit(train_step, static_argnums=0)
jit_init = jax.jit(init_state, static_argnums=0)


def as_numpy(tree):
    """Arithmetic on many small arrays would compile each operation for each shape."""
    return jax.tree.map(np.asarray, tree)


@pytest.fixture(scope="module")
def run():
    return Run(trained_run())


def test_training_lowers_the_loss():
    rows = read_metrics(trained_run() / METRICS_FILE)
    losses = [r["loss"] for r in rows if r["kind"] == "validation"]
    assert len(losses) == 4 and losses[-1] < 0.9 * losses[0], losses


def test_the_loss_is_that_of_the_policy_on_a_sample_made_by_hand(run):
    """Numbers go through `make_sample`: normalisation, latents, text, and what is padding."""
    batch, assets = run.batch, jax.tree.map(np.asarray, run.assets)
    assert batch["action_is_pad"].any() and len(set(batch["text_id"].tolist())) == 2
    steps = run.dataset.index.split("train").steps
    statistics = {
        name: steps[key][:]
        for name, key in (("actions", "action"), ("proprio", "observation/state"))
    }

    def normalized(name):
        low, high = statistics[name].min(0), statistics[name].max(0)
        constant = high - low < 1e-4  # such a dimension is only shifted to 0
        scaled = 2 * (batch[name] - low) / np.where(constant, 1, high - low) - 1
        return np.where(constant, batch[name] - low, scaled).clip(-5, 5).astype(np.float32)

    def latent(images):
        patches = images.reshape(4, 4, 16, 4, 16, 3).swapaxes(2, 3).reshape(4, 4, 4, 768)
        autoencoder = assets.autoencoder
        centered = patches / np.float32(127.5) - 1 - autoencoder.mean[...]
        return (centered @ autoencoder.basis[...] / autoencoder.scale[...]).astype(np.float32)

    sample = Sample(
        Context(
            text=assets.text[batch["text_id"]],
            text_length=assets.text_length[batch["text_id"]],
            references=latent(batch["images"][:, 0, 0])[:, None],
            proprio=normalized("proprio"),
        ),
        target=latent(batch["images"][:, 0, 1]),
        actions=normalized("actions"),
        action_is_pad=batch["action_is_pad"],
        action_dim_is_pad=np.zeros((4, 4), bool),
    )
    key = jax.random.fold_in(jax.random.key(run.config["seed"]), run.state.step)
    model = policy_builder(run.policy)(all_params(run.state))
    loss, parts = jax.jit(ImageWAM.training_loss)(model, sample, sample_draws(key, sample))
    _, metrics = run.step(run.state, run.batch, run.assets)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["target_loss"], parts["target_loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["action_loss"], parts["action_loss"], rtol=1e-5)


def test_a_step_repeats_exactly_and_depends_on_its_number(run):
    first, second = (run.step(run.state, run.batch, run.assets) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    step = jax.device_put(np.int32(run.state.step + 1), run.state.step.sharding)
    later = run.state._replace(step=step)
    assert run.step(later, run.batch, run.assets)[1]["loss"] != first[1]["loss"]


def test_validation_does_not_depend_on_the_step_but_on_the_batch_number(run):
    validate = jax.jit(validation_losses, static_argnums=0)
    params = flat_params(run.state, average=True)
    first, again, other = (
        float(validate(run.settings, params, run.batch, run.assets, n)["loss"]) for n in (0, 0, 1)
    )
    assert first == again != other


def test_master_weights_stay_float32_when_computing_in_bfloat16(run):
    config = {**run.config, "train": {**run.config["train"], "compute_dtype": "bfloat16"}}
    before = run.state
    after, metrics = jit_step(step_settings(config, run.policy), before, run.batch, run.assets)
    for name in ("params", "ema", "optimizer"):
        for leaf in jax.tree.leaves(getattr(after, name)):
            assert leaf.dtype == jnp.float32 or leaf.shape == (), name  # counters are integers
    # They hold updates that bfloat16 could not.
    exact = jax.tree.leaves(as_numpy(after.params))
    assert any((leaf != leaf.astype(jnp.bfloat16)).any() for leaf in exact)
    assert all(value.dtype == jnp.float32 for value in metrics.values())
    # And the step computes in bfloat16 indeed: near the float32 loss, not equal to it.
    expected = run.step(before, run.batch, run.assets)[1]["loss"]
    assert metrics["loss"] != expected
    np.testing.assert_allclose(metrics["loss"], expected, rtol=0.05)


def test_moving_average():
    ema, params = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([3.0, 6.0])}
    for step, decay in ((0, 0.1), (9, 10 / 19), (10**6, 0.995)):
        found = update_ema(ema, params, jnp.asarray(step), 0.995)["w"]
        expected = decay * np.array([1.0, -2.0]) + (1 - decay) * np.array([3.0, 6.0])
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(update_ema(ema, params, jnp.asarray(5), 0.0)["w"], params["w"])


def test_a_step_updates_the_average_from_the_new_parameters(run):
    state, step = run.step(run.state, run.batch, run.assets)[0], int(run.state.step)
    decay = min(run.config["optimizer"]["ema_decay"], (1 + step) / (10 + step))
    for old, new, found in zip(
        *(jax.tree.leaves(as_numpy(t)) for t in (run.state.ema, state.params, state.ema)),
        strict=True,
    ):
        np.testing.assert_allclose(found, decay * old + (1 - decay) * new, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("steps", [20, 1000])
def test_learning_rate(steps):
    section = {"learning_rate": 3e-4, "warmup_fraction": 0.05, "final_fraction": 0.01}
    rate, warmup = learning_rate(section, steps), steps // 20
    np.testing.assert_allclose(rate(0), 3e-4 / warmup, rtol=1e-5)
    np.testing.assert_allclose(rate(warmup), 3e-4, rtol=1e-5)
    middle = (warmup + steps) / 2  # of the cosine
    np.testing.assert_allclose(rate(middle), 3e-4 * (1 + 0.01) / 2, rtol=1e-4)
    np.testing.assert_allclose(rate(steps), 3e-6, rtol=1e-4)
    assert rate(warmup // 2) < 3e-4 or warmup == 1


def test_the_rate_and_clipping_of_a_step(run):
    """A first step of AdamW written out, on gradients whose norm is above the limit."""

    def zeros(x):
        return jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)

    fresh = jax.tree.map(zeros, run.state.optimizer)
    state = run.state._replace(step=zeros(run.state.step), optimizer=fresh)
    after, metrics = run.step(state, run.batch, run.assets)
    state, after = as_numpy((state, after))
    section = run.config["optimizer"]
    assert metrics["grad_norm"] > 1.1 * section["clip_norm"]
    adam = after.optimizer[1][0]
    norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(adam.mu))) / (1 - section["b1"])
    np.testing.assert_allclose(norm, section["clip_norm"], rtol=1e-4)
    for before, now, mu, nu in zip(
        *(jax.tree.leaves(t) for t in (state.params, after.params, adam.mu, adam.nu)), strict=True
    ):
        direction = mu / (1 - section["b1"]) / (np.sqrt(nu / (1 - section["b2"])) + section["eps"])
        rate = float(metrics["learning_rate"])
        expected = before - rate * (direction + section["weight_decay"] * before)
        np.testing.assert_allclose(now, expected, rtol=1e-4, atol=1e-6)


def changed(config, section, **fields):
    return {**config, section: {**config[section], **fields}}


def test_a_batch_in_parts_is_the_same_batch(run):
    """Also where some of its targets do not count, more of them in one part than in another."""
    config = changed(run.config, "train", mask_padded_targets=True)
    batch = {**run.batch, "target_is_pad": np.array([True, False, True, False])}

    def step(parts):
        settings = step_settings(changed(config, "train", accumulate=parts), run.policy)
        return jit_step(settings, run.state, batch, run.assets)

    expected, found = step(1), step(2)
    assert expected[1]["target_loss"] != run.step(run.state, batch, run.assets)[1]["target_loss"]
    for key, value in expected[1].items():
        np.testing.assert_allclose(found[1][key], value, rtol=1e-5, err_msg=key)


def test_delays_are_drawn_from_the_key_of_the_step_beside_its_noise(run):
    """Without them a batch is what it always was, and with them noise and times stay the same."""

    def prepared(key, **fields):
        settings = step_settings(changed(run.config, "train", **fields), run.policy)
        batch, draws = prepare_batch(settings, run.batch, run.assets, jax.random.key(key))
        return batch, as_numpy(draws)

    off, draws = prepared(0)
    assert "delay" not in off
    delays = []
    for key in range(8):
        batch, of_key = prepared(key, max_delay=2)
        np.testing.assert_array_equal(batch["delay"], prepared(key, max_delay=2)[0]["delay"])
        delays.append(batch["delay"])
        if key == 0:
            jax.tree.map(np.testing.assert_array_equal, of_key, draws)
    assert set(np.ravel(delays).tolist()) == {0, 1, 2}
    assert len({tuple(each.tolist()) for each in delays}) > 1


def test_known_actions_change_the_loss_of_actions_alone(run):
    validate = jax.jit(validation_losses, static_argnums=0)
    params = flat_params(run.state, average=True)
    known = step_settings(changed(run.config, "train", max_delay=3), run.policy)
    off, on = (validate(s, params, run.batch, run.assets, 0) for s in (run.settings, known))
    np.testing.assert_allclose(on["target_loss"], off["target_loss"], rtol=1e-6)
    assert abs(on["action_loss"] - off["action_loss"]) > 1e-3


def test_a_run_from_before_there_were_delays_is_one_without(run):
    before = changed(run.config, "train")
    del before["train"]["max_delay"]
    check_same(before, run.config, "here")
    with pytest.raises(CheckpointError, match=r"here: .*train\.max_delay: 0 -> 2"):
        check_same(before, changed(run.config, "train", max_delay=2), "here")


def test_some_actions_are_left_to_predict(run):
    config = changed(run.config, "train", max_delay=4)
    with pytest.raises(ConfigError, match=r"train\.max_delay is 4, expected less than .* 4: "):
        check_delay(config)
    check_delay(changed(run.config, "train", max_delay=3))


def test_what_is_frozen_stays_and_has_no_moments(run):
    config = changed(run.config, "train", frozen=["backbone", "expert.head"])
    settings = step_settings(config, run.policy)
    state = jit_init(settings, {})
    assert {path.split(".")[0] for path in state.params} == {"expert", "proprio_in"}
    assert any(path.startswith("expert.head.") for path in state.frozen_params)
    assert not state.params.keys() & state.frozen_params.keys()
    assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)
    moments = state.optimizer[1][0].mu
    assert jax.tree.structure(moments) == jax.tree.structure(state.params)
    after, metrics = jit_step(settings, state, run.batch, run.assets)
    for old, new in zip(*(jax.tree.leaves(s.frozen_params) for s in (state, after)), strict=True):
        np.testing.assert_array_equal(old, new)
    assert metrics["grad_norm_backbone"] == 0 < metrics["grad_norm_expert"]
    assert metrics["grad_norm"] >= metrics["grad_norm_expert"] and np.isfinite(metrics["loss"])


def test_an_average_is_kept_only_where_one_is_wanted(run):
    config = changed(run.config, "optimizer", ema_decay=0.0)
    settings = step_settings(config, run.policy)
    state, _ = jit_step(settings, jit_init(settings, {}), run.batch, run.assets)
    assert state.ema is None and abstract_state(settings, one_device()).ema is None
    for one, other in zip(
        *(jax.tree.leaves(all_params(state, average=a)) for a in (True, False)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_skipped_step_changes_nothing_and_a_good_one_what_it_always_does(run):
    config = {**run.config, "train": {**run.config["train"], "skip_not_finite": 1}}
    settings = step_settings(config, run.policy)
    bad = {**run.batch, "proprio": np.full_like(run.batch["proprio"], np.nan)}
    after, found = jit_step(settings, run.state, bad, run.assets)
    assert np.isnan(found["loss"]) and np.isnan(found["grad_norm"])
    assert int(after.step) == int(run.state.step) + 1
    for a, b in zip(
        jax.tree.leaves(after._replace(step=run.state.step)),
        jax.tree.leaves(run.state),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    expected = run.step(run.state, run.batch, run.assets)[0]
    again, _ = jit_step(settings, run.state, run.batch, run.assets)
    assert int(updates_made(again.optimizer)) == int(updates_made(run.state.optimizer)) + 1
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)
