"""The training run: from a config to a folder of checkpoints and metrics."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagewam_jax.checkpoints.store import Checkpoints, check_space, tree_bytes
from imagewam_jax.config.schema import policy_config
from imagewam_jax.data.datasets import config_data
from imagewam_jax.data.loading.loader import BadFrames, Source
from imagewam_jax.data.loading.samples import Batch
from imagewam_jax.errors import CheckpointError
from imagewam_jax.preprocess.inputs import Frozen
from imagewam_jax.training.batches import (
    DeviceBatches,
    model_keys,
    train_iterator,
    validation_batches,
)
from imagewam_jax.training.distributed import first_alone, from_first, is_first, replicate
from imagewam_jax.training.flat import FlatStep
from imagewam_jax.training.metrics.watch import Watch, check_watch
from imagewam_jax.training.metrics.work import step_work
from imagewam_jax.training.preemption import Notice, Preempted
from imagewam_jax.training.prepare import check_fits, make_frozen, starting_weights
from imagewam_jax.training.resume import abstract_state, save, state_trees
from imagewam_jax.training.resume import resume as resume_run
from imagewam_jax.training.sharding import batch_rows, make_mesh, put_batch, replicated
from imagewam_jax.training.state import TrainState, whole_policy
from imagewam_jax.training.step import Metrics, Trainer, check_compiler_options, make_trainer


def train(
    config: ConfigDict, workdir: Path | str, *, resume: bool = False, began: float | None = None
) -> Path:
    """Trains to the config's last step; returns the folder of checkpoints.

    `resume` continues from the newest checkpoint that can be read and repeats exactly what an
    uninterrupted run would have done; where there is none, the run begins. Everything that can be
    wrong with config, devices, data, disk or the folder is an error before the first step.
    Preempted: the run was told to stop, and saved where it is. `began` is the
    `time.perf_counter()` at which the start-up did, if not now.
    """
    began = time.perf_counter() if began is None else began
    with Notice() as notice:
        return _train(config, Path(workdir), resume, began, notice)


def _train(config: ConfigDict, workdir: Path, resume: bool, began: float, notice: Notice) -> Path:
    config = json.loads(config.to_json())
    policy = policy_config(config["model"])
    check_fits(config, policy)
    check_watch(config["watch"])
    mesh = make_mesh(config["mesh"])
    rows = batch_rows(mesh, config["train"]["batch_size"], config["train"]["accumulate"])
    trainer = make_trainer(config, policy, mesh)
    check_compiler_options(trainer.compiler_options)
    everywhere = replicated(mesh)
    checkpoints = Checkpoints(
        workdir / "checkpoints", keep=config["train"]["keep_checkpoints"], placement=everywhere
    )
    if checkpoints.steps and not resume:
        raise CheckpointError(
            f"{workdir} has checkpoints up to step {checkpoints.steps[-1]}: resume it or choose "
            "another folder"
        )
    needed = tree_bytes(state_trees(abstract_state(trainer)))
    keep = config["train"]["keep_checkpoints"]
    check_space(workdir, needed, copies=max(1, keep + 1 - len(checkpoints.steps)))
    resumed = resume_run(checkpoints, trainer, config)
    with first_alone("preparing the data"):
        data = config_data(config)
        sources = data.sources(config["data"]["train_split"])
        made = None if resumed else make_frozen(config, data)
    batches = train_iterator(config, sources, rows)
    if resumed:
        _, state, frozen, about, position = resumed
        batches.set_state(position)
    else:
        frozen, about = made
        frozen = replicate(from_first(frozen), everywhere)
        weights, start = starting_weights(
            config["train"]["initial_weights"], policy, whole_policy(trainer.shardings)
        )
        about = {"config": config, **about, **start}
        init = jax.jit(trainer.init, donate_argnums=1, out_shardings=trainer.shardings)
        state = init(config["seed"], weights)
        del weights, made  # or they would stay in memory for as long as the run
    keys, batch_size = model_keys(data), config["train"]["batch_size"]

    def put(batch: Batch) -> dict[str, jax.Array]:
        return put_batch(mesh, {key: batch[key] for key in keys}, rows, batch_size)

    validation = [put(batch) for batch in validation_batches(config, data, rows)]
    run = _Run(config["train"], trainer, checkpoints, state, frozen, about, validation)
    work = step_work(config, policy, frozen, mesh)
    watch = Watch(config, workdir, int(state.step), work, began)
    if is_first():
        print(summary(state, sources, config, mesh))
    ahead = DeviceBatches(batches, put)
    try:
        with watch:
            run.steps(ahead, watch, batches.bad_frames, notice)
    finally:
        ahead.close()
        checkpoints.close()
    return checkpoints.directory


class _Run:
    """The loop and what it does now and then."""

    def __init__(
        self,
        config: Mapping[str, Any],
        trainer: Trainer,
        checkpoints: Checkpoints,
        state: TrainState,
        frozen: Frozen,
        about: Mapping[str, Any],
        validation: Sequence[Mapping[str, jax.Array]],
    ):
        self.config, self.validation = config, validation
        self.checkpoints, self.frozen, self.about = checkpoints, frozen, about
        self.step = FlatStep(trainer, state, frozen)
        self.validate = jax.jit(trainer.validate, out_shardings=trainer.shardings.step)

    def steps(
        self, batches: DeviceBatches, watch: Watch, bad_frames: BadFrames, notice: Notice
    ) -> None:
        config, steps = self.config, self.config["steps"]
        stop = False
        for done in watch.steps(steps):
            with watch.phase("data_wait"):
                batch = next(batches)
            watch.dispatched(self.step(batch))
            last = done == steps
            stop = notice.stops_after(done) and not last
            if done % config["log_every"] == 0 or last or stop:
                watch.log(done, {"bad_frames": len(bad_frames)})
            if self.validation and (done % config["validate_every"] == 0 or last):
                with watch.pause("validation"):
                    losses = jax.block_until_ready(self.validation_losses(self.step.state))
                watch.write("validation", done, losses)
            if done % config["checkpoint_every"] == 0 or last or stop:
                with watch.pause("checkpoints"):
                    self.save(done, batches.get_state())
                watch.account(done)
            if stop:
                break
        with watch.pause("checkpoints"):
            self.checkpoints.wait()
        if stop:
            raise Preempted(f"told to stop, saved after step {done} of {steps}")

    def save(self, step: int, position: Mapping[str, Any]) -> None:
        save(self.checkpoints, step, self.step.state, self.frozen, self.about, position)

    def validation_losses(self, state: TrainState) -> list[Metrics]:
        """Of the averaged weights, on each batch of held-out samples."""
        params = whole_policy(state, average=True)
        return [
            self.validate(params, batch, self.frozen, number)
            for number, batch in enumerate(self.validation)
        ]


def summary(
    state: TrainState, sources: Sequence[Source], config: Mapping[str, Any], mesh: Mesh
) -> str:
    """Parameters by part, samples by dataset, devices by axis of their mesh."""
    anchors = sum(len(source.anchors) for source in sources)
    shares = ", ".join(f"{s.reader.dataset.name} {s.share:.1%}" for s in sources)
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(tree))
        for name, tree in whole_policy(state).items()
    }
    parts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    fixed = sum(x.size for x in jax.tree.leaves(state.fixed))
    frozen = f", of which {fixed:,} are frozen" if fixed else ""
    shared = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    epochs = config["train"]["steps"] * config["train"]["batch_size"] / anchors
    return (
        f"parameters: {sum(sizes.values()):,} ({parts}){frozen}\n"
        f"data: {anchors:,} samples, {epochs:.1f} epochs of them ({shares}); "
        f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}"
        f"{f' ({shared})' if shared else ''}"
    )
