"""`imagewam evaluate`: measures a policy and writes `evaluation.json` and `report.html`."""

import contextlib
import json
import logging
from pathlib import Path

import numpy as np

from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics
from imagewam_jax.data.datasets import Dataset, config_data, shared_splits
from imagewam_jax.errors import DataError
from imagewam_jax.evaluation import report
from imagewam_jax.evaluation.closed_loop import evaluate_closed_loop
from imagewam_jax.evaluation.offline import (
    evaluate_offline,
    predict,
    recorded_observations,
    sample_noise,
)
from imagewam_jax.html.page import write_page
from imagewam_jax.policy.policy import Policy, load_policy

_LOG = logging.getLogger(__name__)
SHOWN_SAMPLES = 6


def evaluate(
    checkpoint: Path | str,
    output: Path | str | None = None,
    *,
    autoencoder: Path | None = None,
    text_table: Path | None = None,
    dataset: str | None = None,
    data_directory: str | None = None,
    simulate: bool = True,
    episodes: int = 100,
    workers: int = 2,
) -> Path:
    """Evaluates a checkpoint on held-out episodes and in its simulator; returns the report.

    output: a folder; by default `evaluation` beside the checkpoints.
    autoencoder, text_table: what a converted policy lacks (`load_policy`).
    dataset: the one to evaluate on, if the policy was trained on several.
    data_directory: where the data is now, if it was moved since training.
    """
    policy = load_policy(
        checkpoint, autoencoder=autoencoder, text_table=text_table, dataset=dataset
    )
    config = policy.config
    output = Path(output) if output else _run_folder(Path(checkpoint)) / "evaluation"
    output.mkdir(parents=True, exist_ok=True)
    section = config["data"] | ({"directory": data_directory} if data_directory else {})
    opened = config_data({**config, "data": section})[policy.dataset]
    with contextlib.suppress(DataError):  # the training episodes need not be here
        for shared in shared_splits([opened], section):
            _LOG.warning("%s", shared)
    results: dict = {"checkpoint_step": policy.step}
    sections = []
    simulator = config["evaluation"]["simulator"]
    names = [f"action {i}" for i in range(policy.action_dim)]
    if simulate and simulator:
        success, rollouts, spec = evaluate_closed_loop(
            policy, opened, simulator, episodes=episodes, workers=workers
        )
        names = list(spec.action_names)
        results["closed_loop"] = {name: s._asdict() for name, s in success.items()}
        sections += [
            report.success_section(success),
            report.episode_section(rollouts, spec.instructions),
        ]
    offline = evaluate_offline(policy, opened, section["eval_split"])
    results["offline"] = offline.summary()
    sections.append(report.offline_section(offline, names))
    sections.append(report.prediction_section(policy, *_examples(policy, opened), names))
    metrics = read_metrics(_run_folder(Path(checkpoint)) / METRICS_FILE)
    if metrics:
        sections.append(report.training_section(metrics))
    (output / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    title = f"{opened.name}: step {policy.step}"
    subtitle = f"{Path(checkpoint)}; dataset {opened.index.name} {opened.index.version}"
    write_page(output / "report.html", title, subtitle, sections)
    print(_summary(results))
    return output / "report.html"


def _examples(policy: Policy, dataset: Dataset):
    """Predictions on a few held-out samples, and what the action stream attended to in them."""
    split = policy.config["data"]["eval_split"]
    reader, start_frames = dataset.reader(split), dataset.start_frames(split)
    chosen = start_frames[
        np.linspace(0, len(start_frames) - 1, SHOWN_SAMPLES + 2)[1:-1].astype(int)
    ]
    batch = reader.read(chosen)
    reader.close()
    seeds = range(len(chosen))
    predictions = predict(policy, dataset, batch, seeds)
    observations = recorded_observations(policy, dataset, batch)
    noise = sample_noise(seeds, (policy.horizon, policy.action_dim))
    return predictions, policy.attention_on_reference(observations, noise)


def _run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint path belongs to."""
    checkpoint = checkpoint.absolute()
    if checkpoint.name.isdigit():
        checkpoint = checkpoint.parent
    return checkpoint.parent if checkpoint.name == "checkpoints" else checkpoint


def _summary(results: dict) -> str:
    lines = [
        f"{name:28s} {s['successes']:3d} / {s['episodes']}   {s['low']:.0%} - {s['high']:.0%}"
        for name, s in results.get("closed_loop", {}).items()
    ]
    offline = results["offline"]
    for name, error in offline["action_error"].items():
        lines.append(f"action error, {name:20s} {np.mean(error):.3f}")
    lines.append(f"latent error, imagined             {offline['imagined_latent_error']:.3f}")
    lines.append(f"latent error, copied current frame {offline['copied_latent_error']:.3f}")
    return "\n".join(lines)
