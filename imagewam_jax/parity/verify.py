"""Compares a checkpoint with recorded tensors, and reports the error of each."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from imagewam_jax.errors import ConversionError
from imagewam_jax.parity.cases import KINDS
from imagewam_jax.parity.cases.base import Kind, NotChecked, Output
from imagewam_jax.parity.cases.folder import Folder, read_folder, recorded_folders, recorded_name
from imagewam_jax.parity.cases.limits import ABSOLUTE, LARGEST, Limit
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.storage.objects import AnyPath

# Recorded tensors that nothing here computes again: patterns of their names, and why.
NOT_REPEATED = {
    r"kvref\..*|pred_kv_.*": "of the cached editing path, another function than ImageWAM's",
    r"attention_mask(_.*)?": "masks over queries are never built here; predictions show them",
    r"pred_base|pred_legacy_merge": "without adapters, or wrongly merged: another model",
    r".*\.lora_[AB]|loss_weight": "of LoRA adapters, which are merged when they are converted",
    r"mot\.mixtures\.video\.(\w+_)?blocks\..*": "aliases, the same tensors a second time",
    r"model\.(layers\..*|norm\.weight)|lm_head\.weight": "behind the last layer of the encoder",
    r"bn\.num_batches_tracked": "a counter of training, which no model has",
    r"text_attention_mask": "an input, as attention_mask is",
    r"native_second_ref_of_sample0": "a reference of another size than the first",
}
# Recorded files that nothing here computes again, and why.
FILES_NOT_REPEATED = {
    "train_nopack.safetensors": "of a policy that reads the features of padded text, which tables "
    "of text do not hold",
}
OTHERWISE = "nothing here repeats it"
LACKING = "nothing that the checkpoint has repeats it"


@dataclass(frozen=True)
class Check:
    """One tensor, and its error against the recorded one.

    `largest_error` is the largest absolute error, `relative_error` the same divided by the largest
    entry. `error` is the one that its limit is about, and decides. `problem` says why nothing could
    be compared.
    """

    folder: str
    kind: str
    file: str
    name: str
    shape: tuple[int, ...]
    largest_error: float
    relative_error: float
    error: float
    limit: Limit
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem and self.error <= self.limit.value  # False for NaN

    @property
    def equal(self) -> bool:
        return not self.problem and self.largest_error == 0

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON, which has no infinities or NaNs: None replaces them, and the check
        failed."""
        values = {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in vars(self).items()
        }
        return {"passed": self.passed, **values, "limit": self.limit._asdict()}


@dataclass
class Report:
    """The result of a verification."""

    checkpoint: str
    references: str
    saved_in: str
    computed_in: str
    checks: list[Check] = field(default_factory=list)
    not_checked: list[NotChecked] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            **vars(self),
            "checks": [check.to_json() for check in self.checks],
            "not_checked": [n._asdict() for n in self.not_checked],
        }


def verify(
    checkpoint: AnyPath | str,
    references: Path,
    *,
    dtype: str = "float32",
    weights: str | None = None,
) -> Report:
    """Repeat every recording whose component the checkpoint has, and print each comparison.

    references: a folder of recorded tensors, or of such folders.
    dtype: parameters are cast to it, and everything is computed in it; limits are for float32.
    weights: "ema" or "params" of a training run; None takes the moving average if there is one.

    ConversionError: nothing could be compared, or a recording belongs to another model.
    """
    folders = [read_folder(path) for path in recorded_folders(references)]
    with contextlib.closing(Loaded(checkpoint, dtype, weights)) as loaded:
        report = Report(str(loaded.path), str(references), loaded.stored_dtype, dtype)
        print(
            f"{loaded.path}: {', '.join(loaded.configs)}; saved in {report.saved_in}, computed in "
            f"{dtype}, positions and times too"
        )
        # By default, accelerators multiply float32 matrices with fewer bits.
        with jax.default_matmul_precision("highest"):
            for folder in folders:
                _verify_folder(loaded, folder, report)
    if not report.checks:
        reasons = "; ".join(f"{n.what}: {n.why}" for n in report.not_checked)
        raise ConversionError(f"{references}: nothing in it could be compared: {reasons}")
    print(summary(report))
    return report


def _verify_folder(loaded: Loaded, folder: Folder, report: Report) -> None:
    not_checked: list[NotChecked] = []
    recorded_in = folder.config.get("dtype", loaded.dtype)
    if recorded_in != loaded.dtype:
        print(f"{folder.path.name}: recorded in {recorded_in}, whose rounding shows below")
    with tqdm(unit=" tensors", desc=folder.path.name, leave=False) as bar:
        for kind in KINDS:
            file = kind.find(folder)
            if file is None:
                continue
            if kind.part and kind.part not in loaded:
                has = ", ".join(loaded.configs)
                why = f"needs the {kind.part} of a checkpoint, this one has: {has}"
                not_checked.append(NotChecked(kind.name, why))
                continue
            checks = []
            bar.set_postfix_str(kind.name)
            for output in _outputs(kind, loaded, folder, file.file):
                if isinstance(output, NotChecked):
                    not_checked.append(output)
                elif (found := _expected(folder, file.file, output)) is not None:
                    checks.append(_compare(folder, kind, *found, output))
                    bar.update()
            bar.clear()
            _print_table(folder, kind, checks)
            report.checks += checks
    not_checked += _unread(folder, not_checked)
    for what, why in not_checked:
        print(f"not checked: {what}: {why}")
    report.not_checked += not_checked


def _outputs(
    kind: Kind, loaded: Loaded, folder: Folder, file: str
) -> Iterator[Output | NotChecked]:
    """What a kind computes from the recorded inputs. ConversionError: these do not fit each other,
    or the checkpoint."""
    try:
        yield from kind.outputs(loaded, folder)
    except ConversionError:
        raise
    except (TypeError, ValueError) as error:  # from NumPy and JAX, about shapes
        problem = str(error).splitlines()[0]
        raise ConversionError(f"{file}: {kind.name} cannot be repeated: {problem}") from error


def _expected(folder: Folder, default: str, output: Output) -> tuple[str, np.ndarray] | None:
    """The recorded tensor and its file; None if the recording lacks it."""
    file = output.file or recorded_name(Path(default))
    if output.expected is not None:
        return file, output.expected
    tensors = folder.files.get(file)
    if tensors is None or output.name not in tensors:
        return None
    return file, tensors[output.name]


def _compare(folder: Folder, kind: Kind, file: str, expected: np.ndarray, output: Output) -> Check:
    actual, shape = np.asarray(output.array), expected.shape
    error = largest = relative = float("nan")
    problem = ""
    if actual.shape != shape:
        problem = f"ours is {list(actual.shape)}"
    else:
        if output.valid is not None:
            actual, expected = actual[output.valid], expected[output.valid]
        if not expected.size:
            problem = "nothing of it is valid"
    if not problem:
        actual, expected = (np.ravel(x).astype(np.float64) for x in (actual, expected))
        error = output.limit.error(actual, expected)
        largest = Limit(0, ABSOLUTE).error(actual, expected)
        relative = Limit(0, LARGEST).error(actual, expected)
    return Check(
        folder=folder.path.name,
        kind=kind.name,
        file=file,
        name=output.name,
        shape=shape,
        largest_error=largest,
        relative_error=relative,
        error=error,
        limit=output.limit,
        problem=problem,
    )


def _unread(folder: Folder, known: list[NotChecked]) -> Iterator[NotChecked]:
    """The tensors that no kind has read, by file and reason, without those already in `known`."""
    mentioned = {n.what for n in known}
    otherwise = LACKING if mentioned & {kind.name for kind in KINDS} else OTHERWISE
    for file, tensors in folder.files.items():
        if file in mentioned:
            continue
        reasons: dict[str, list[str]] = {}
        for name in sorted(tensors.unread - mentioned):
            found = (why for pattern, why in NOT_REPEATED.items() if re.fullmatch(pattern, name))
            why = FILES_NOT_REPEATED.get(file) or next(found, otherwise)
            reasons.setdefault(why, []).append(name)
        for why, names in reasons.items():
            yield NotChecked(f"{file}: {_listed(names)}", why)


def _listed(names: list[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _print_table(folder: Folder, kind: Kind, checks: list[Check]) -> None:
    for file in sorted({check.file for check in checks}):
        of_file = [c for c in checks if c.file == file]
        listed = [c for c in of_file if not (kind.counted and c.equal)]
        print(f"\n{folder.path.name}/{file}: {kind.name}")
        if len(of_file) > len(listed):
            print(f"  {len(of_file) - len(listed)} tensors are equal bit for bit")
        rows = [("tensor", "shape", "largest error", "of largest entry", "limit", "")]
        for c in listed:
            errors = f"{c.largest_error:.1e}", f"{c.relative_error:.1e}"
            verdict = "pass" if c.passed else "FAIL"
            rows.append((c.name, str(list(c.shape)), *errors, c.problem or str(c.limit), verdict))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows if listed else ():
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("  " + "  ".join(cells).rstrip())


def summary(report: Report) -> str:
    """A line with the number of tensors, and those that failed or the one nearest to its limit."""
    failed = [check.name for check in report.checks if not check.passed]
    count = f"{len(report.checks)} tensors compared with {report.references}"
    if failed:
        return f"\n{count}: {len(failed)} FAILED: {_listed(failed)}"
    nearest = max(report.checks, key=lambda c: c.error / c.limit.value if c.limit.value else 0)
    share = nearest.error / nearest.limit.value if nearest.limit.value else 0
    return f"\n{count}: all pass; nearest to its limit is {nearest.name}, at {share:.0%} of it"


def write_json(report: Report, path: Path) -> None:
    path.write_text(json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n")
