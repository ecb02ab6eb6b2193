"""Losses, gradients and weights that are not finite: the run stops, or skips the step."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagewam_jax.checkpoints.checksums import not_finite
from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics
from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import NotFiniteError
from imagewam_jax.models.sharding import shardings_of
from imagewam_jax.training import train as loop
from imagewam_jax.training.batches import DevicePrefetch
from imagewam_jax.training.finite import FiniteSteps
from imagewam_jax.training.optimizer import updates_made
from imagewam_jax.training.resume import restore
from imagewam_jax.training.step import abstract_state, step_settings
from imagewam_jax.training.train import train
from tests.training.tiny import copy_sample, one_device, tiny_config

GOOD = {
    "loss": 1.0,
    "target_loss": 1.0,
    "action_loss": 1.0,
    "grad_norm": 1.0,
    "grad_norm_backbone": 1.0,
    "grad_norm_expert": 1.0,
}


def metrics(**values):
    return {name: jnp.float32(value) for name, value in {**GOOD, **values}.items()}


def test_the_step_and_the_streams_are_named():
    finite = FiniteSteps(allowed=0, skipped=0)
    finite.dispatched(1, metrics())
    finite.dispatched(2, metrics(loss=np.nan, action_loss=np.nan, grad_norm=np.inf))
    with pytest.raises(NotFiniteError, match=r"step 2: not finite are action loss; the newest"):
        finite.dispatched(3, metrics())
    other = FiniteSteps(allowed=0, skipped=0)
    other.dispatched(7, metrics(grad_norm=np.inf, grad_norm_expert=np.inf))
    with pytest.raises(NotFiniteError, match="step 7: not finite are gradient of the expert; "):
        other.check()
    other.dispatched(8, metrics(grad_norm=np.inf))  # of a part that has no stream of its own
    with pytest.raises(NotFiniteError, match="step 8: not finite are the gradients; "):
        other.check()


def test_skipped_steps_are_counted_up_to_the_limit(capsys):
    finite = FiniteSteps(allowed=2, skipped=1)
    finite.dispatched(1, metrics(loss=np.nan, target_loss=np.nan))
    finite.dispatched(2, metrics())
    assert finite.skipped == 2
    assert "step 1: not finite are target loss; skipped, the 2. of" in capsys.readouterr().out
    finite.dispatched(3, metrics(loss=np.nan))
    with pytest.raises(NotFiniteError, match=r"step 3: .*; 2 steps were skipped already"):
        finite.check()


def test_a_loss_of_held_out_samples():
    finite = FiniteSteps(allowed=9, skipped=0)
    rows = [metrics(), metrics(target_loss=np.nan)]
    with pytest.raises(NotFiniteError, match=r"after step 4: .* target loss of held-out batch 1; "):
        finite.check_validation(4, rows)


@pytest.mark.slow(minutes=1)
def test_a_run_that_diverges_stops_and_keeps_what_is_finite(tmp_path):
    config = tiny_config(copy_sample(tmp_path))
    config.train.update(checkpoint_every=1, skip_not_finite=0)
    config.optimizer.learning_rate = 1e30
    with pytest.raises(NotFiniteError, match="step 2: not finite are target loss, action loss, "):
        train(config, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["1"]
    assert not_finite(saved(config, tmp_path / "run", 1)) == []


def saved(config, workdir, step):
    """The state that a run saved."""
    config = json.loads(config.to_json())
    abstract = abstract_state(step_settings(config, policy_config(config["model"])), one_device())
    checkpoints = loop.Checkpoints(workdir / "checkpoints", placement=abstract.step.sharding)
    state = restore(checkpoints, step, abstract, config).state
    checkpoints.close()
    assert shardings_of(state) == shardings_of(abstract)
    return state


class Spoiled(DevicePrefetch):
    """The batches of the steps 3 and 6 have states that are not finite."""

    def __next__(self):
        batch = dict(super().__next__())
        if self.get_state()["next_batch"] in (3, 6):
            batch["proprio"] = batch["proprio"] * jnp.nan
        return batch


@pytest.mark.slow(minutes=1)
def test_a_run_that_skips_goes_on_as_it_would_have(tmp_path, monkeypatch):
    """It is stopped by the second bad step, and resumed with more of them allowed. The count is
    that of the whole run."""
    monkeypatch.setattr(loop, "DevicePrefetch", Spoiled)
    config = tiny_config(copy_sample(tmp_path))
    config.train.update(skip_not_finite=2, log_every=2)
    train(config, tmp_path / "whole")
    config.train.skip_not_finite = 1
    with pytest.raises(NotFiniteError, match=r"step 6: .*; 1 steps were skipped already"):
        train(config, tmp_path / "stopped")
    config.train.skip_not_finite = 2
    train(config, tmp_path / "stopped", resume=True)
    states = [saved(config, tmp_path / name, 8) for name in ("whole", "stopped")]
    assert int(updates_made(states[0].optimizer)) == 6
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("whole", "stopped"):
        rows = [r for r in read_metrics(tmp_path / name / METRICS_FILE) if r["kind"] == "train"]
        assert [row.get("not_finite", 0) for row in rows] == [0, 1, 1, 0]
        assert np.isfinite([row["loss"] for row in rows]).all()
