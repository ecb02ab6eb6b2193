"""The commands of docs/your_data.md, run from a fresh copy of the project as a reader would."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from launch.local import IMAGEWAM
from tests.commands import run

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "your_data.md").read_text()
NOT_IN_A_CLONE = (".git", ".venv", "runs", "imagewam_index", "__pycache__", ".*_cache")
PROGRAMS = {
    "python": [sys.executable],
    "imagewam": IMAGEWAM,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def typed(command: str, folder: Path) -> str:
    """What a command of the page prints."""
    program, *arguments = shlex.split(command.replace("\\\n", ""))
    here = {"PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    return run([*PROGRAMS[program], *arguments], folder, **here)


@pytest.mark.whole
def test_five_commands_lead_from_an_unknown_set_to_an_evaluated_policy(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="writes the page's dataset")
    clone = Path(
        shutil.copytree(ROOT, tmp_path / "clone", ignore=shutil.ignore_patterns(*NOT_IN_A_CLONE))
    )
    write, describe, *others = blocks("sh")
    assert len(others) == 4
    typed(write, clone)
    printed = typed(describe, clone)
    fields = printed[printed.index("config.data.directory") :]
    # What the page shows is what is printed, but for where the reader's clone is.
    (shown,) = blocks("python")
    assert fields.replace(str(clone), "/...") == shown

    quickstart = (clone / "configs" / "quickstart.py").read_text()
    before, after = quickstart.split("    return config\n")
    indented = "".join(f"    {line}\n" for line in fields.splitlines())
    (clone / "configs" / "mine.py").write_text(f"{before}{indented}    return config\n{after}")
    for command in others:
        typed(command, clone)

    assert "desk_arm: episodes" in (clone / "runs" / "mine.html").read_text()
    evaluation = clone / "runs" / "mine" / "evaluation"
    assert (evaluation / "report.html").is_file()
    errors = json.loads((evaluation / "evaluation.json").read_text())["offline"]["desk_arm"][
        "action_error"
    ]
    assert sum(errors["policy"]) < sum(errors["mean action"])
