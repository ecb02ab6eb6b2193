"""The training run: from a config to a folder of checkpoints and metrics."""

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from imagewam_jax.data.bad_frames import BadFrames
from imagewam_jax.data.dataset import Data
from imagewam_jax.data.loader import Source, TrainIterator
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.policies.checkpoint import Checkpoints, check_space, tree_bytes
from imagewam_jax.policies.config import policy_config
from imagewam_jax.policies.dataset import config_data
from imagewam_jax.policies.errors import CheckpointError
from imagewam_jax.policies.frozen import Frozen, frozen_trees, restore_frozen
from imagewam_jax.policies.initial import initial_weights
from imagewam_jax.policies.parameters import Params
from imagewam_jax.training.device_batches import DeviceBatches
from imagewam_jax.training.metrics import MetricsWriter
from imagewam_jax.training.prepare import (
    check_fits,
    make_frozen,
    train_iterator,
)
from imagewam_jax.training.step import Metrics, Trainer, TrainState, make_trainer

# What a run may change about itself when it resumes: nothing that its numbers depend on.
RESUMABLE = {
    "train": {
        "log_every",
        "validate_every",
        "checkpoint_every",
        "keep_checkpoints",
        "initial_weights",
    },
    "data": {"directory", "index_directory", "threads", "prefetch", "bad_frames"},
    "text": {"weights", "table"},
    "autoencoder": {"weights"},
}


def train(config: ConfigDict, workdir: Path | str, *, resume: bool = False) -> Path:
    """Trains to the config's last step; returns the folder of checkpoints.

    `resume` continues from the newest checkpoint and repeats exactly what an uninterrupted run
    would have done. Everything that can be wrong with config, data, disk or the folder is an
    error before the first step.
    """
    workdir = Path(workdir)
    config = json.loads(config.to_json())
    policy = policy_config(config["model"])
    check_fits(config, policy)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config["train"]["keep_checkpoints"])
    newest = checkpoints.latest_step
    if newest is not None and not resume:
        raise CheckpointError(
            f"{workdir} has checkpoints up to step {newest}: resume it or choose another folder"
        )
    data = config_data(config)
    trainer = make_trainer(config, policy)
    sources = data.sources(config["data"]["train_split"])
    batches = train_iterator(config, sources)
    if newest is None:
        frozen, about = make_frozen(config, data)
        weights, start = _initial(config["train"]["initial_weights"], policy)
        about = {"config": config, **about, **start}
        state = jax.jit(trainer.init, donate_argnums=1)(config["seed"], weights)
        del weights  # or it would stay in memory for as long as the run
    else:
        about = checkpoints.restore_json(newest, "about")
        check_same(about["config"], config, workdir)
        state, frozen = restore(checkpoints, newest, trainer, about)
        batches.set_state(checkpoints.restore_json(newest, "data"))
    needed = tree_bytes((state, frozen))
    check_space(workdir, needed, copies=config["train"]["keep_checkpoints"] + 1)
    run = _Run(config, data, trainer, checkpoints, frozen, about)
    writer = MetricsWriter(workdir, first_step=int(state.step))
    print(_summary(state, sources, config))
    ahead = DeviceBatches(batches, model_keys(data))
    try:
        run.steps(state, ahead, writer, batches.bad_frames)
    finally:
        ahead.close()
        writer.close()
        checkpoints.close()
    return checkpoints.directory


def _initial(path: str, policy: ImageWAMConfig) -> tuple[Params, dict[str, Any]]:
    """What training starts from, and what a checkpoint says about it."""
    if not path:
        return {}, {}
    initial = initial_weights(path, policy)
    random = f", at random: {', '.join(initial.random)}" if initial.random else ""
    print("; ".join([f"starts from {path}{random}", *initial.differences]))
    return initial.params, {"initial_weights": initial.provenance}


class _Run:
    """The loop and what it does now and then."""

    def __init__(
        self,
        config: Mapping[str, Any],
        data: Data,
        trainer: Trainer,
        checkpoints: Checkpoints,
        frozen: Frozen,
        about: Mapping[str, Any],
    ):
        self.config, self.trainer = config["train"], trainer
        self.checkpoints, self.frozen, self.about = checkpoints, frozen, about
        self.step = jax.jit(trainer.step, donate_argnums=0)
        self.validate = jax.jit(trainer.validate)
        self.validation = _validation_batches(config, data)

    def steps(
        self,
        state: TrainState,
        batches: DeviceBatches,
        writer: MetricsWriter,
        bad_frames: BadFrames,
    ) -> None:
        config, first = self.config, int(state.step)
        window, running = _Window(config["batch_size"]), None
        bar = tqdm(range(first, config["steps"]), initial=first, total=config["steps"], unit="step")
        for number in bar:
            with window.waiting():
                batch = next(batches)
            state, metrics = self.step(state, batch, self.frozen)
            # One step runs while the next is prepared; no more, or times would mean nothing.
            jax.block_until_ready(running)
            running = metrics
            window.rows.append(metrics)
            done = number + 1
            last = done == config["steps"]
            if done % config["log_every"] == 0 or last:
                extra = window.speed() | {"bad_frames": len(bad_frames)}
                writer.write("train", done, window.rows, extra)
                shown = ("target_loss", "action_loss", "samples_per_second")
                bar.set_postfix({k: f"{v:.3g}" for k, v in writer.latest.items() if k in shown})
                window = _Window(config["batch_size"])
            if self.validation and (done % config["validate_every"] == 0 or last):
                with window.paused():
                    writer.write("validation", done, self.validation_losses(state))
            if done % config["checkpoint_every"] == 0 or last:
                with window.paused():
                    self.save(state, done, batches.get_state())
        self.checkpoints.wait()

    def validation_losses(self, state: TrainState) -> list[Metrics]:
        """Of the averaged weights, on each batch of held-out samples."""
        return [
            self.validate(state.ema, batch, self.frozen, number)
            for number, batch in enumerate(self.validation)
        ]

    def save(self, state: TrainState, step: int, data: Mapping[str, Any]) -> None:
        trees = {
            "params": state.params,
            "ema": state.ema,
            "optimizer": state.optimizer,
            **frozen_trees(self.frozen),
        }
        self.checkpoints.save(step, trees, self.about, data)


class _Window:
    """The steps since metrics were last written, and what their time went to."""

    def __init__(self, batch_size: int):
        self.rows: list[Metrics] = []
        self._batch_size = batch_size
        self._started, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self):
        """The time within counts as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextlib.contextmanager
    def paused(self):
        """The time within is not part of a step."""
        before = time.perf_counter()
        yield
        self._started += time.perf_counter() - before

    def speed(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._started
        return {
            "samples_per_second": len(self.rows) * self._batch_size / seconds,
            "data_wait": self._waited / seconds,  # share of the time
        }


def restore(
    checkpoints: Checkpoints, step: int, trainer: Trainer, about: Mapping[str, Any]
) -> tuple[TrainState, Frozen]:
    """State and frozen parts as they were saved."""
    abstract = jax.eval_shape(trainer.init, 0, {})
    trees = checkpoints.restore(
        step,
        {
            "params": abstract.params,
            "ema": abstract.ema,
            "optimizer": abstract.optimizer,
        },
    )
    frozen = restore_frozen(checkpoints, step, about["config"]["autoencoder"])
    return TrainState(step=jax.numpy.asarray(step, jax.numpy.int32), **trees), frozen


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """CheckpointError, naming each field, unless a run's numbers stay what they were."""
    saved, now = _fixed(saved), _fixed(now)
    changed = [k for k in sorted({*saved, *now}) if saved.get(k) != now.get(k)]
    if changed:
        details = "; ".join(f"{k}: {saved.get(k)!r} -> {now.get(k)!r}" for k in changed)
        raise CheckpointError(f"{where}: the checkpoint is of another config ({details})")


def _fixed(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _fixed(value, f"{prefix}{key}.")
        elif key not in RESUMABLE.get(prefix.rstrip("."), ()):
            flat[prefix + key] = value
    return flat


def _validation_batches(config: Mapping[str, Any], data: Data) -> list[dict[str, Any]]:
    """Held-out samples in full batches, mixed as in training."""
    size, section = config["train"]["batch_size"], config["data"]
    count = config["train"]["validation_samples"] // size
    if not config["train"]["validate_every"] or not count:
        return []
    sources = data.sources(section["eval_split"])
    stream = TrainIterator(sources, global_batch=size, seed=0, bad_share=section["bad_frames"])
    batches = [next(stream) for _ in range(count)]
    stream.close()
    return [{key: batch[key] for key in model_keys(data)} for batch in batches]


# What the train step takes of a batch; the rest says where samples come from.
MODEL_KEYS = (
    "images",
    "aug_seed",
    "text_id",
    "proprio",
    "actions",
    "action_is_pad",
    "action_dim_mask",
    "target_is_pad",
    "norm_id",
)


def model_keys(data: Data) -> tuple[str, ...]:
    """What the train step takes of a batch of some data."""
    return MODEL_KEYS if data.fills_buffer else (*MODEL_KEYS, "image_size")


def _summary(state: TrainState, sources: Sequence[Source], config: Mapping[str, Any]) -> str:
    anchors = sum(len(source.anchors) for source in sources)
    shares = ", ".join(f"{s.reader.dataset.name} {s.share:.1%}" for s in sources)
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in state.params.items()
    }
    parts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    epochs = config["train"]["steps"] * config["train"]["batch_size"] / anchors
    return (
        f"parameters: {sum(sizes.values()):,} ({parts})\n"
        f"data: {anchors:,} samples, {epochs:.1f} epochs of them ({shares}); "
        f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}"
    )
