"""The launchers accept the commands of docs/pods.md."""

import re
import shlex

import pytest
import yaml

from launch import gke
from tests.launch.scripts import ROOT, run

PAGE = (ROOT / "docs" / "pods.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
VARIABLES = dict(re.findall(r'^(\w+)="(.*?)"$', "\n".join(BLOCKS), re.MULTILINE | re.DOTALL))


def arguments(start: str) -> list[list[str]]:
    """The arguments of each command that begins with `start`, split as a shell splits them."""
    text = "\n".join(BLOCKS).replace("\\\n", " ")
    for _ in range(2):  # one variable holds another
        text = re.sub(r"\$(\w+)", lambda m: VARIABLES[m[1]].replace("\n", " "), text)
    lines = (part.strip() for line in text.splitlines() for part in re.split(r"&&|\|", line))
    return [
        shlex.split(x, comments=True)[len(start.split()) :] for x in lines if x.startswith(start)
    ]


def test_gke(capsys):
    (command,) = arguments("python -m launch.gke")
    gke.main([word.replace("IMAGE", "registry/image") for word in command])
    (job,) = yaml.safe_load(capsys.readouterr().out)["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert "--config.data.directory=gs://BUCKET/rlds" in container["command"]


@pytest.mark.parametrize("script", ["xpk.sh", "queued_resource.sh"])
def test_scripts(script):
    commands = arguments(f"launch/{script}")
    assert commands
    for command in commands:
        own = command.index("--") if "--" in command else len(command)
        done = run(script, *command[:own], "--dry-run", *command[own:])
        assert done.returncode == 0, done.stdout
