"""The training run: from a config to a folder of checkpoints and metrics."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagewam_jax.checkpoints.store import CHECKPOINTS_FOLDER, Checkpoints, check_space, tree_bytes
from imagewam_jax.config.schema import policy_config
from imagewam_jax.data.datasets import config_data, resolve_widths
from imagewam_jax.data.loading.loader import BadFrames, Source
from imagewam_jax.distributed import first_alone, from_first, is_first
from imagewam_jax.errors import CheckpointError
from imagewam_jax.models.sharding import (
    batch_rows,
    batch_sharding,
    make_mesh,
    replicate,
    replicated,
    shardings_of,
)
from imagewam_jax.preprocess.inputs import PolicyAssets
from imagewam_jax.storage.folders import WrittenFolder, folder_to_write
from imagewam_jax.storage.objects import AnyPath, as_path, retries
from imagewam_jax.training.batches import (
    DevicePrefetch,
    model_keys,
    put_batch,
    train_iterator,
    validation_batches,
)
from imagewam_jax.training.compiler_options import check_compiler_options
from imagewam_jax.training.finite import FiniteSteps
from imagewam_jax.training.metrics.watch import Watch, check_watch
from imagewam_jax.training.metrics.work import step_work
from imagewam_jax.training.optimizer import updates_made
from imagewam_jax.training.preemption import Preempted, PreemptionNotice
from imagewam_jax.training.prepare import check_fits, make_assets, starting_weights
from imagewam_jax.training.resume import resume as resume_run
from imagewam_jax.training.resume import save, state_trees
from imagewam_jax.training.state import TrainState, all_params, flat_params
from imagewam_jax.training.step import (
    Metrics,
    StepSettings,
    abstract_state,
    init_state,
    jit_train_step,
    step_settings,
    validation_losses,
)


def train(
    config: ConfigDict, workdir: AnyPath | str, *, resume: bool = False, began: float | None = None
) -> AnyPath:
    """Train to the config's last step; return the folder of checkpoints.

    `resume` continues from the newest checkpoint that can be read and repeats exactly what an
    uninterrupted run would have done; where there is none, the run begins. Everything that can be
    wrong with config, devices, data, disk or the folder is an error before the first step.
    Preempted: the run was told to stop, and saved where it is. InUseError: another run writes
    there. `began` is the `time.perf_counter()` at which the start-up did, if not now.
    """
    began = time.perf_counter() if began is None else began
    place = as_path(workdir)
    with PreemptionNotice() as notice, only_run(place) as written:
        return _train(json.loads(config.to_json()), place, written, resume, began, notice)


def only_run(workdir: AnyPath) -> contextlib.AbstractContextManager[WrittenFolder]:
    """Keeps other runs out of a run's folder, and gives the folder that all but its checkpoints is
    written to (`folder_to_write`).

    InUseError names another run that is writing there. WriteError: it cannot be written to.
    """
    return folder_to_write(
        workdir, "imagewam train", first=is_first(), leave_out=CHECKPOINTS_FOLDER
    )


def _train(
    config: dict[str, Any],
    workdir: AnyPath,
    written: WrittenFolder,
    resume: bool,
    began: float,
    notice: PreemptionNotice,
) -> AnyPath:
    # What can be wrong with the config and the devices.
    config = resolve_widths(config)
    policy = policy_config(config["model"])
    check_fits(config, policy)
    check_watch(config["watch"])
    mesh = make_mesh(config["mesh"])
    batch_size = config["train"]["batch_size"]
    rows = batch_rows(mesh, batch_size, config["train"]["accumulate"])
    settings = step_settings(config, policy)
    abstract = abstract_state(settings, mesh)
    check_compiler_options(settings.compiler_options)

    # A new run, or the newest checkpoint of an earlier one.
    checkpoints = _open_checkpoints(config, workdir, resume, mesh, abstract)
    resumed = resume_run(checkpoints, abstract, config)
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
        assets = replicate(from_first(assets), replicated(mesh))
        weights, start = starting_weights(
            config["train"]["initial_weights"], policy, shardings_of(all_params(abstract))
        )
        metadata = {"config": config, **metadata, **start}
        state = _first_state(settings, abstract, mesh, weights)
        del weights, made  # or they would stay in memory for as long as the run

    # The loop, with the next batches on their way to the devices.
    put = partial(
        put_batch, keys=model_keys(data), sharding=batch_sharding(mesh), global_batch=batch_size
    )

    validation = [put(batch) for batch in validation_batches(config, data, rows)]
    run = Run(config["train"], settings, mesh, checkpoints, written, assets, metadata, validation)
    watch = Watch(
        config, written.folder, int(state.step), step_work(config, policy, assets, mesh), began
    )
    if is_first():
        print(summary(state, sources, config, mesh))
    ahead = DevicePrefetch(batches, put)
    step = jit_train_step(settings, abstract)
    try:
        with watch, jax.set_mesh(mesh):
            run_steps(run, step, state, ahead, batches.bad_frames, watch, notice)
    finally:
        ahead.close()
        checkpoints.close()
    return checkpoints.directory


@dataclasses.dataclass(frozen=True)
class Run:
    """All that the loop needs and no step changes. `config` is the `train` section of the run's."""

    config: Mapping[str, Any]
    settings: StepSettings
    mesh: Mesh
    checkpoints: Checkpoints
    written: WrittenFolder
    assets: PolicyAssets
    metadata: Mapping[str, Any]
    validation: Sequence[Mapping[str, jax.Array]]


def run_steps(
    run: Run,
    step: Callable,
    state: TrainState,
    batches: DevicePrefetch,
    bad_frames: BadFrames,
    watch: Watch,
    notice: PreemptionNotice,
) -> None:
    """Take all steps that are left; log, validate and save as often as the config says.

    Preempted: the run was told to stop, and has saved. NotFiniteError: a loss, a gradient or a
    weight is not finite; the last checkpoint is from before.
    """
    config, steps = run.config, run.config["steps"]
    skipped = int(state.step) - int(updates_made(state.optimizer))
    finite = FiniteSteps(config["skip_not_finite"], skipped)
    validate = jax.jit(validation_losses, static_argnums=0, out_shardings=replicated(run.mesh))
    stop = False
    for done in watch.steps(steps):
        with watch.phase("data_wait"):
            batch = next(batches)
        state, metrics = step(state, batch, run.assets)
        watch.dispatched(metrics)
        finite.dispatched(done, metrics)
        last = done == steps
        stop = notice.stops_after(done) and not last
        if done % config["log_every"] == 0 or last or stop:
            watch.log(done, {"bad_frames": len(bad_frames), "read_retries": retries()})
        if run.validation and (done % config["validate_every"] == 0 or last):
            with watch.pause("validation"):
                finite.check()
                losses = jax.block_until_ready(_validate(run, validate, state))
            watch.write("validation", done, losses)
            finite.check_validation(done, losses)
        if done % config["checkpoint_every"] == 0 or last or stop:
            with watch.pause("checkpoints"):
                finite.check()
                watch.flush()
                run.written.copy()  # so that a checkpoint is never without the rows before it
                position = batches.get_state()
                save(run.checkpoints, done, state, run.assets, run.metadata, position)
            watch.account(done)
        if stop:
            break
    with watch.pause("checkpoints"):
        run.checkpoints.wait()
    if stop:
        raise Preempted(f"told to stop, saved after step {done} of {steps}")


def summary(
    state: TrainState, sources: Sequence[Source], config: Mapping[str, Any], mesh: Mesh
) -> str:
    """Parameters by component, samples by dataset, devices by axis of their mesh."""
    samples = sum(len(source.start_frames) for source in sources)
    shares = ", ".join(f"{s.reader.dataset.name} {s.share:.1%}" for s in sources)
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in all_params(state).items()
    }
    components = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    count = sum(x.size for x in state.frozen_params.values())
    frozen = f", of which {count:,} are frozen" if count else ""
    shared = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    epochs = config["train"]["steps"] * config["train"]["batch_size"] / samples
    return (
        f"parameters: {sum(sizes.values()):,} ({components}){frozen}\n"
        f"data: {samples:,} samples, {epochs:.1f} epochs of them ({shares}); "
        f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}"
        f"{f' ({shared})' if shared else ''}"
    )


def _open_checkpoints(
    config: Mapping[str, Any], workdir: AnyPath, resume: bool, mesh: Mesh, abstract: TrainState
) -> Checkpoints:
    """The checkpoints of a run, with room for those to come.

    CheckpointError: there are some and the run is not to be resumed, or the disk is too small.
    """
    keep = config["train"]["keep_checkpoints"]
    checkpoints = Checkpoints(workdir / CHECKPOINTS_FOLDER, keep=keep, placement=replicated(mesh))
    check_new_or_resumed(workdir, checkpoints.steps, resume)
    check_room(config, workdir, abstract, kept=len(checkpoints.steps))
    return checkpoints


def check_new_or_resumed(workdir: AnyPath, steps: Sequence[int], resume: bool) -> None:
    """CheckpointError: the folder has checkpoints of these steps, and the run is a new one."""
    if steps and not resume:
        raise CheckpointError(
            f"{workdir} has checkpoints up to step {steps[-1]}: resume it or choose another folder"
        )


def check_room(
    config: Mapping[str, Any], workdir: AnyPath, abstract: TrainState, kept: int
) -> None:
    """CheckpointError: the disk is too small for the checkpoints of a run that are not there."""
    copies = max(1, config["train"]["keep_checkpoints"] + 1 - kept)
    check_space(workdir, tree_bytes(state_trees(abstract)), copies=copies)


def _first_state(
    settings: StepSettings, abstract: TrainState, mesh: Mesh, weights: Mapping[str, Any]
) -> TrainState:
    """The state before the first step, made where it lies."""
    init = jax.jit(
        init_state, static_argnums=0, donate_argnums=1, out_shardings=shardings_of(abstract)
    )
    with jax.set_mesh(mesh):
        return init(settings, weights)


def _validate(run: Run, validate: Callable, state: TrainState) -> list[Metrics]:
    """Losses of the averaged weights on each batch of held-out samples."""
    params = flat_params(state, average=True)
    return [
        validate(run.settings, params, batch, run.assets, number)
        for number, batch in enumerate(run.validation)
    ]
