"""`imagewam evaluate`: measures a policy and writes `evaluation.json` and `report.html`.

Numbers are written as soon as they are there: no picture can cost them.
"""

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int64

from imagewam_jax.checkpoints.steps import is_step
from imagewam_jax.checkpoints.store import (
    CHECKPOINTS_FOLDER,
    METRICS_FILE,
    open_checkpoint,
    read_metrics,
)
from imagewam_jax.config.defaults import defaults
from imagewam_jax.data.datasets import Dataset, config_data, shared_splits
from imagewam_jax.data.loading.loader import checksum
from imagewam_jax.distributed import first_alone, is_first
from imagewam_jax.errors import ConfigError, DataError
from imagewam_jax.evaluation import report
from imagewam_jax.evaluation.closed_loop import (
    evaluate_closed_loop,
    mean_of_suites,
    success_by_suite,
    success_by_task,
)
from imagewam_jax.evaluation.identity import episode_identity, policy_identity, versions
from imagewam_jax.evaluation.journal import Journal
from imagewam_jax.evaluation.offline import (
    BATCH_SIZE,
    MAX_SAMPLES,
    TARGET,
    OfflineResult,
    Predictions,
    chosen_frames,
    evaluate_offline,
    evaluation_frames,
    predict,
    read_samples,
    recorded_observations,
    stored_images,
)
from imagewam_jax.evaluation.recording import open_recording
from imagewam_jax.evaluation.rollout import RolloutResult
from imagewam_jax.evaluation.simulators import simulates
from imagewam_jax.evaluation.simulators.base import SimulatorSpec
from imagewam_jax.evaluation.snapshot import Snapshot
from imagewam_jax.html.page import Section, write_page
from imagewam_jax.models.autoencoders import to_uint8
from imagewam_jax.models.sharding import make_mesh
from imagewam_jax.policy.noise import sample_noise
from imagewam_jax.policy.policy import Policy, load_policy
from imagewam_jax.storage.folders import folder_to_write
from imagewam_jax.storage.objects import AnyPath, as_path

_LOG = logging.getLogger(__name__)
SHOWN_SAMPLES = 6


def _alone(function: Callable[..., Path]) -> Callable[..., AnyPath]:
    """`evaluate`, with a lock on its output, held by the process that writes there: InUseError
    names another process that does. An output in object storage is one of this machine."""

    @functools.wraps(function)
    def locked(checkpoint: AnyPath | str, output: AnyPath | str | None = None, **options):
        place = as_path(output) if output else _run_folder(as_path(checkpoint)) / "evaluation"
        with folder_to_write(place, "imagewam evaluate", first=is_first()) as written:
            return place / function(checkpoint, written.folder, **options).name

    return locked


@_alone
def evaluate(
    checkpoint: AnyPath | str,
    output: AnyPath | str | None = None,
    *,
    autoencoder: Path | str | None = None,
    text_table: Path | str | None = None,
    dataset: str | None = None,
    data_directory: str | None = None,
    split: str | None = None,
    samples: int | None = MAX_SAMPLES,
    batch_size: int = BATCH_SIZE,
    mesh: Mapping[str, int] | None = None,
    simulator: str | None = None,
    options: Mapping[str, Any] | None = None,
    episodes: int = 100,
    workers: int = 2,
    resume: bool = False,
    record: Path | None = None,
    execute_steps: int | None = None,
    delay: int | None = None,
    real_time: Sequence[str] | None = None,
) -> Path:
    """Evaluates a checkpoint on held-out episodes and in its simulator; returns the report.

    A simulator that plays another dataset than the policy's is left out, and so is that of the
    config on several hosts. These all call this, and the first of them writes.

    output: a folder; by default `evaluation` beside the checkpoints.
    autoencoder, text_table: what a converted policy lacks (`load_policy`).
    dataset: the one to evaluate on, of several that the policy was trained on, or of an official
        policy any that its config names; by default all of them.
    data_directory: where the data is now, if it was moved since training.
    split: the held-out episodes; by default `data.eval_split`.
    samples: those of the split of each dataset that errors are measured on, spread evenly; None
        takes all.
    batch_size: samples that are predicted at once, over all devices.
    mesh: fields of the section `mesh` of a config that are not as in the defaults; None is one
        device where there is only one.
    simulator: the one to play; None is that of the policy's config, and "" plays none.
    options: of the simulator named, in place of the config's.
    resume: what an interrupted evaluation has predicted is not predicted again (`snapshot.py`), and
        episodes that it has played in the simulator are not played again (`journal.py`).
    record: a folder where what the policy does in the simulator becomes a dataset (`recording.py`).
    execute_steps, delay, real_time: see `evaluate_closed_loop`.
    ConfigError: a count is below 1, the simulator or the mesh does not fit the policy, or `resume`
        finds another evaluation. DataError: there are no held-out samples.
    """
    counts = {"samples": samples, "batch_size": batch_size, "episodes": episodes}
    for name, count in {**counts, "workers": workers}.items():
        if count is not None and count < 1:
            raise ConfigError(f"{name} is {count}, expected at least 1")
    policy = load_policy(
        checkpoint,
        mesh=_mesh(mesh),
        autoencoder=autoencoder,
        text_table=text_table,
        dataset=dataset or next(iter(_trained_on(checkpoint)), None),
    )
    config = policy.config
    section = config["data"] | ({"directory": data_directory} if data_directory else {})
    split = split or section["eval_split"]
    section = {**section, "eval_split": split}
    with first_alone("opening the data"):
        data = config_data({**config, "data": section})
    datasets = [data[dataset]] if dataset else list(data.datasets)
    frames = {}  # at which the samples of each dataset start: none is an error now, not in hours
    for opened in datasets:
        with contextlib.suppress(DataError):  # the training episodes need not be here
            for shared in shared_splits([opened], section):
                _LOG.warning("%s", shared)
        frames[opened.name] = evaluation_frames(opened, split)
    if simulator is None:
        simulator = config["evaluation"]["simulator"] if jax.process_count() == 1 else ""
        options = config["evaluation"]["options"] if options is None else options
    options = dict(options or {})
    simulated = _simulated(simulator, policy, datasets)
    if record is not None and not simulated:
        raise ConfigError(f"--record {record}: there is no simulator to play")
    results: dict = {
        "checkpoint_step": policy.step,
        "datasets": [opened.name for opened in datasets],
        "split": split,
    }
    played, films = None, output / "films"
    in_units_of = {opened.name: policy.of(opened.name) for opened in datasets}
    if simulated:
        policy = in_units_of[simulated.name]
        identity = episode_identity(
            policy, checkpoint, simulator, options, autoencoder, text_table, execute_steps
        )
        with contextlib.ExitStack() as stack:
            recording = None
            if record is not None:
                recording = stack.enter_context(
                    open_recording(record, simulated.spec, policy.cameras, identity, resume=resume)
                )
            journal = stack.enter_context(
                Journal(output / "episodes.jsonl", identity, resume=resume)
            )
            played = evaluate_closed_loop(
                policy,
                simulated,
                simulator,
                options=options,
                episodes=episodes,
                workers=workers,
                journal=journal,
                films=films,
                recording=recording,
                execute_steps=execute_steps,
                delay=delay,
                real_time=real_time,
            )
            success, rollouts, spec = played
            results["closed_loop"] = {
                name: {
                    **success[name]._asdict(),
                    "steps_to_success": rollout.steps_to_success,
                    **(rollout.seam or {}),
                    **_by_task_and_suite(rollout, spec),
                }
                for name, rollout in rollouts.items()
            }
            _write_results(output, results)
            if recording is not None:
                recording.build()
    offline: dict[str, OfflineResult] = {}
    acts = policy_identity(policy, checkpoint, autoencoder, text_table)
    for opened in datasets:
        chosen = chosen_frames(frames[opened.name], samples)
        identity = {
            **acts,
            **opened.identity(split),
            "samples": f"{len(chosen)}:{checksum(chosen)}",
            "versions": versions(("imagewam-jax", "jax", "numpy")),
        }
        snapshot = Snapshot(output / "recorded" / f"{opened.name}.npz", identity, resume=resume)
        offline[opened.name] = evaluate_offline(
            in_units_of[opened.name],
            opened,
            split,
            chosen,
            batch_size=batch_size,
            snapshot=snapshot,
        )
        results.setdefault("offline", {})[opened.name] = {
            "action_names": list(opened.spec.action.dims),
            **offline[opened.name].summary(),
        }
        _write_results(output, results)
    if is_first():
        print(_summary(results))

    sections = []
    if played:
        sections.append(report.success_section(success))
        sections += report.delay_sections(success, rollouts)
        sections.append(report.task_section(rollouts, spec))
        sections.append(report.episode_section(rollouts, spec.instructions, films))
        sections.append(report.video_section(rollouts, films, output))
    for opened in datasets:
        sections += _recorded_sections(
            in_units_of[opened.name],
            opened,
            split,
            frames[opened.name],
            offline[opened.name],
            of=len(datasets),
        )
    metrics = read_metrics(_run_folder(as_path(checkpoint)) / METRICS_FILE)
    if metrics:
        sections.append(report.training_section(metrics))
    if is_first():
        title = f"{', '.join(results['datasets'])}: step {policy.step}"
        read = ", ".join(f"{opened.index.name} {opened.index.version}" for opened in datasets)
        subtitle = f"{as_path(checkpoint)}; dataset {read}, {split}"
        write_page(output / "report.html", title, subtitle, sections)
    return output / "report.html"


def _recorded_sections(
    policy: Policy,
    dataset: Dataset,
    split: str,
    frames: Int64[np.ndarray, " samples"],
    offline: OfflineResult,
    *,
    of: int,
) -> list[Section]:
    """The errors on a dataset, which is one `of` several, and predictions on some samples of it."""
    dims, name = dataset.spec.action.dims, dataset.name if of > 1 else ""
    shown = frames[_spread(len(frames), max(2, SHOWN_SAMPLES // of))]
    examples = _examples(policy, dataset, split, shown)  # which all hosts compute together
    if not is_first():
        return []
    sections = [report.offline_section(offline, dims, name)]
    if examples:
        sections.append(report.prediction_section(*examples, dims, name))
    return sections


def _mesh(fields: Mapping[str, int] | None) -> Mesh | None:
    """The mesh of all devices with these fields. ConfigError: there is none."""
    if not fields and jax.device_count() == 1:
        return None
    return make_mesh(defaults().mesh.to_dict() | dict(fields or {}))


def _trained_on(checkpoint: AnyPath | str) -> list[str]:
    """The datasets that a policy was trained on; none where there is no policy."""
    checkpoints, step = open_checkpoint(checkpoint)
    with contextlib.closing(checkpoints):
        return checkpoints.restore_json(step, "metadata").get("datasets", [])


def _simulated(simulator: str, policy: Policy, datasets: Sequence[Dataset]) -> Dataset | None:
    """The dataset whose robot the simulator plays, None if there is none.

    ConfigError: there are several, each with a normalization of its own, or several hosts.
    """
    if not simulator:
        return None
    if jax.process_count() > 1:
        raise ConfigError(
            f"the simulator {simulator!r} is played by one process, and there are "
            f"{jax.process_count()}: evaluate on recorded data alone with --no-simulator"
        )
    known = [dataset for dataset in datasets if simulates(simulator, dataset.name)]
    names = [dataset.name for dataset in known]
    if not known:
        others = ", ".join(repr(dataset.name) for dataset in datasets)
        print(f"the simulator {simulator!r} does not play {others}: recorded data alone")
        return None
    official = policy.statistics.get("source", {}).get("official")
    if len(known) > 1 and not (policy.config["data"].get("pool_statistics") or official):
        raise ConfigError(
            f"the simulator {simulator!r} plays {names}, each in its own units: name one of them "
            "with --dataset, or evaluate on recorded data alone with --no-simulator"
        )
    return known[0]


def _by_task_and_suite(rollout: RolloutResult, spec: SimulatorSpec) -> dict:
    """Successes of each task and suite, and the mean of the suites if there are several."""
    tasks, suites = success_by_task(rollout), success_by_suite(rollout, spec)
    found: dict = {"tasks": {task: s._asdict() for task, s in tasks.items()}}
    if suites:
        found["suites"] = {suite: s._asdict() for suite, s in suites.items()}
    if len(suites) > 1:
        found["mean_of_suites"] = dict(
            zip(("rate", "standard_error"), mean_of_suites(suites), strict=True)
        )
    return found


def _write_results(output: Path, results: dict) -> None:
    if not is_first():
        return
    text = json.dumps(results, indent=2, allow_nan=False)
    (output / "evaluation.json").write_text(text + "\n")


def _spread(count: int, wanted: int) -> Int64[np.ndarray, " shown"]:
    """Some of `count` places, spread evenly within them; all, if they are few."""
    if count <= wanted:
        return np.arange(count)
    return np.linspace(0, count - 1, wanted + 2)[1:-1].astype(int)


def _examples(
    policy: Policy, dataset: Dataset, split: str, start_frames: Int64[np.ndarray, " shown"]
) -> tuple[report.Pictures, Predictions] | None:
    """Predictions on a few held-out samples, and their pictures; None if no image can be read."""
    with contextlib.closing(dataset.reader(split)) as reader:
        batch, good = read_samples(reader, start_frames, skip_bad=True)
    if not good.any():
        return None
    batch = {key: values[good] for key, values in batch.items()}
    seeds = range(good.sum())
    predictions = predict(policy, dataset, batch, seeds)
    observations = recorded_observations(policy, dataset, batch)
    noise = sample_noise(seeds, (policy.horizon, policy.action_dim))
    pictures = report.Pictures(
        current=policy.seen(observations.images, observations.image_size),
        future=policy.seen(*stored_images(batch, TARGET))[:, 0],
        reconstructed=np.asarray(to_uint8(policy.decode(predictions.true_latent))),
        imagined=np.asarray(to_uint8(policy.decode(predictions.imagined))),
        attention=policy.attention_on_reference(observations, noise).mean(1),
    )
    return pictures, predictions


def _run_folder(checkpoint: AnyPath) -> AnyPath:
    """The folder of the run that a checkpoint path belongs to."""
    checkpoint = checkpoint.absolute()
    if is_step(checkpoint):
        checkpoint = checkpoint.parent
    return checkpoint.parent if checkpoint.name == CHECKPOINTS_FOLDER else checkpoint


def _summary(results: dict) -> str:
    lines = [
        f"{name:28s} {s['successes']:3d} / {s['episodes']}   {s['low']:.0%} - {s['high']:.0%}"
        for name, s in results.get("closed_loop", {}).items()
    ]
    for dataset, offline in results["offline"].items():
        if len(results["offline"]) > 1:
            lines.append(f"{dataset}, {offline['samples']} samples")
        for name, error in offline["action_error"].items():
            lines.append(f"action error, {name:20s} {_mean(error)}")
        for name, key in (("imagined            ", "imagined"), ("copied current frame", "copied")):
            lines.append(f"latent error, {name} {_mean([offline[f'{key}_latent_error']])}")
    return "\n".join(lines)


def _mean(errors: list[float | None]) -> str:
    """The mean as it is printed; None stands for a number that is not finite."""
    return "not finite" if None in errors else f"{np.mean(errors):.3f}"
