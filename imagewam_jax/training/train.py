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
from imagewam_jax.preprocess.inputs import PolicyAssets
from imagewam_jax.training.batches import (
    DevicePrefetch,
    model_keys,
    train_iterator,
    validation_batches,
)
from imagewam_jax.training.distributed import first_alone, from_first, is_first, replicate
from imagewam_jax.training.flat import FlatStep
from imagewam_jax.training.metrics.watch import Watch, check_watch
from imagewam_jax.training.metrics.work import step_work
from imagewam_jax.training.preemption import Notice, Preempted
from imagewam_jax.training.prepare import check_fits, make_assets, starting_weights
from imagewam_jax.training.resume import abstract_state, save, state_trees
from imagewam_jax.training.resume import resume as resume_run
from imagewam_jax.training.sharding import batch_rows, make_mesh, put_batch, replicated
from imagewam_jax.training.state import TrainState, all_params
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
        made = None if resumed else make_assets(config, data)
    batches = train_iterator(config, sources, rows)
    if resumed:
        _, state, assets, metadata, position = resumed
        batches.set_state(position)
    else:
        assets, metadata = made
        assets = replicate(from_first(assets), everywhere)
        weights, start = starting_weights(
            config["train"]["initial_weights"], policy, all_params(trainer.shardings)
        )
        metadata = {"config": config, **metadata, **start}
        init = jax.jit(trainer.init, donate_argnums=1, out_shardings=trainer.shardings)
        state = init(config["seed"], weights)
        del weights, made  # or they would stay in memory for as long as the run
    keys, batch_size = model_keys(data), config["train"]["batch_size"]

    def put(batch: Batch) -> dict[str, jax.Array]:
        return put_batch(mesh, {key: batch[key] for key in keys}, rows, batch_size)

    validation = [put(batch) for batch in validation_batches(config, data, rows)]
    run = _Run(config["train"], trainer, checkpoints, state, assets, metadata, validation)
    work = step_work(config, policy, assets, mesh)
    watch = Watch(config, workdir, int(state.step), work, began)
    if is_first():
        print(summary(state, sources, config, mesh))
    ahead = DevicePrefetch(batches, put)
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
        assets: PolicyAssets,
        metadata: Mapping[str, Any],
        validation: Sequence[Mapping[str, jax.Array]],
    ):
        self.config, self.validation = config, validation
        self.checkpoints, self.assets, self.metadata = checkpoints, assets, metadata
        self.step = FlatStep(trainer, state, assets)
        self.validate = jax.jit(trainer.validate, out_shardings=trainer.shardings.step)

    def steps(
        self, batches: DevicePrefetch, watch: Watch, bad_frames: BadFrames, notice: Notice
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
        save(self.checkpoints, step, self.step.state, self.assets, self.metadata, position)

    def validation_losses(self, state: TrainState) -> list[Metrics]:
        """Of the averaged weights, on each batch of held-out samples."""
        params = all_params(state, average=True)
        return [
            self.validate(params, batch, self.assets, number)
            for number, batch in enumerate(self.validation)
        ]


def summary(
    state: TrainState, sources: Sequence[Source], config: Mapping[str, Any], mesh: Mesh
) -> str:
    """Parameters by part, samples by dataset, devices by axis of their mesh."""
    start_frames = sum(len(source.start_frames) for source in sources)
    shares = ", ".join(f"{s.reader.dataset.name} {s.share:.1%}" for s in sources)
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in all_params(state).items()
    }
    parts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    frozen_params = sum(x.size for x in jax.tree.leaves(state.frozen_params))
    frozen = f", of which {frozen_params:,} are frozen" if frozen_params else ""
    shared = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    epochs = config["train"]["steps"] * config["train"]["batch_size"] / start_frames
    return (
        f"parameters: {sum(sizes.values()):,} ({parts}){frozen}\n"
        f"data: {start_frames:,} samples, {epochs:.1f} epochs of them ({shares}); "
        f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}"
        f"{f' ({shared})' if shared else ''}"
    )
