"""Weights & Biases, for those who want it: the same rows as a run of one of their projects."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from imagewam_jax.errors import ConfigError

ID_FILE = "wandb_run_id"


def import_wandb(project: str) -> ModuleType:
    """The library. ConfigError: it is not installed, or cannot log in where it would have to."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"watch.wandb is {project!r}, and the library is not installed: pip install wandb"
        ) from error
    online = wandb.setup().settings.mode == "online"
    try:
        known = not online or wandb.login(prompt=False)
    except wandb.Error as error:
        raise ConfigError(f"watch.wandb is {project!r}: {error}") from error
    if not known:
        raise ConfigError(
            f"watch.wandb is {project!r}, and there is no API key: run `wandb login`, or set "
            "WANDB_MODE=offline and `wandb sync` later"
        )
    return wandb


class WandbSink:
    """A run of a project, which a resumed run goes on with.

    Rows have their step as a number like any other: a run that repeats steps may write them again,
    which W&B's own counter would refuse.
    """

    def __init__(self, project: str, workdir: Path, config: Mapping[str, Any]):
        wandb = import_wandb(project)
        try:
            self._run = wandb.init(
                project=project,
                id=run_id(workdir),
                name=workdir.name,
                resume="allow",
                dir=workdir,
                config=dict(config),
            )
        except wandb.Error as error:
            raise ConfigError(f"watch.wandb is {project!r}: {error}") from error
        self._run.define_metric("*", step_metric="step")

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step} | {f"{kind}/{name}": v for name, v in values.items()})

    def close(self) -> None:
        self._run.finish()


def run_id(workdir: Path) -> str:
    """The name that W&B knows a run's folder by: made once, and kept in the folder."""
    file = workdir / ID_FILE
    if not file.exists() or not file.read_text():
        file.write_text(secrets.token_hex(8))
    return file.read_text()
