"""Runs all checks of a run, and says what they found."""

from collections.abc import Mapping
from typing import NamedTuple

from imagewam_jax.checkpoints.store import tree_bytes
from imagewam_jax.config.loading import LoadedConfig
from imagewam_jax.errors import SeveralErrors, UserError
from imagewam_jax.preflight.checks import EVALUATION, TRAINING
from imagewam_jax.preflight.data import training_samples
from imagewam_jax.preflight.devices import mesh, training_state
from imagewam_jax.preflight.run import Check, NotChecked, Run, name_of
from imagewam_jax.storage.objects import AnyPath, as_path
from imagewam_jax.training.resume import state_trees
from imagewam_jax.training.train import summary


class Report(NamedTuple):
    """What was found of a run.

    problems: what would stop it, by section. not_checked: names of checks, by the reason why they
    could not be made. notes: what is worth a look. summary: what the run would be, if nothing is
    wrong and all of it is known.
    """

    problems: dict[str, list[str]]
    not_checked: dict[str, list[str]]
    notes: list[str]
    summary: str

    @property
    def count(self) -> int:
        return sum(map(len, self.problems.values()))

    def text(self) -> str:
        """The report, a line for each finding."""
        found = self.count
        lines = [f"{found} problem{'s' * (found != 1)}"] if found else []
        for section, problems in self.problems.items():
            lines += [section, *(f"  {problem}" for problem in problems)]
        if self.not_checked:
            lines.append("not checked")
            lines += [
                f"  {', '.join(names)}, since {why}" for why, names in self.not_checked.items()
            ]
        if self.notes:
            lines += ["worth a look", *(f"  {note}" for note in self.notes)]
        return "\n".join([*lines, *([self.summary] if self.summary else [])])


class Refused(UserError):
    """A run would not come to its end; the message is one problem, or the report of all."""

    def __init__(self, report: Report):
        (first, *more) = [p for problems in report.problems.values() for p in problems]
        super().__init__(report.text() if more else first)


def preflight(
    loaded: LoadedConfig,
    workdir: AnyPath | str | None = None,
    *,
    resume: bool = False,
    evaluation: bool = True,
) -> Report:
    """Look for everything that would stop a run, and its evaluation if wanted."""
    run = Run(loaded, None if workdir is None else as_path(workdir), resume)
    problems: dict[str, list[str]] = {}
    if loaded.errors:
        problems["fields"] = [_line(error) for error in loaded.errors]
    not_checked: dict[str, list[str]] = {}
    checks: Mapping[str, tuple[Check, ...]] = {**TRAINING, **(EVALUATION if evaluation else {})}
    for section, functions in checks.items():
        for check in functions:
            found = run.outcome(check)
            if isinstance(found, NotChecked):
                not_checked.setdefault(str(found), []).append(name_of(check))
            elif isinstance(found, UserError):
                errors = found.errors if isinstance(found, SeveralErrors) else (found,)
                known = {line for lines in problems.values() for line in lines}
                new = [line for line in map(_line, errors) if line not in known]
                if new:
                    problems.setdefault(section, []).extend(new)
    told = "" if problems else _summary(run)
    return Report(problems, not_checked, run.notes, told)


def _line(error: UserError) -> str:
    """An error's message on one line; of a traceback the error at its end."""
    text, _, traceback = str(error).partition("Traceback (most recent call last):")
    if traceback:
        return f"{text.strip()} {traceback.strip().splitlines()[-1].strip()}"
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _summary(run: Run) -> str:
    """What a run would be."""
    state, config = run.of(training_state), run.config()
    sources = run.outcome(training_samples)
    train, size = config["train"], tree_bytes(state_trees(state))
    lines = (
        [] if isinstance(sources, Exception) else [summary(state, sources, config, run.of(mesh))]
    )
    lines.append(
        f"{train['steps']:,} steps of {train['batch_size']} samples; a checkpoint each "
        f"{train['checkpoint_every']:,} steps, of {size / 1e6:,.1f} MB, "
        f"{train['keep_checkpoints']} are kept"
    )
    return "\n".join(lines)
