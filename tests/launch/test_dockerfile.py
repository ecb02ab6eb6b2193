"""The files of the image, as far as can be checked without building it."""

import re

from tests.launch.scripts import LAUNCH, ROOT

DOCKERFILE = (LAUNCH / "Dockerfile").read_text()
IGNORED = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()


def test_what_is_copied_is_there_and_not_ignored():
    kept = {line[1:] for line in IGNORED if line.startswith("!")}
    assert "*" in IGNORED
    assert all((ROOT / name).exists() for name in kept)
    copied = {
        name
        for names in re.findall(r"^COPY (.+) \./?$", DOCKERFILE, re.M)
        for name in names.split()
    }
    assert copied - {"."} < kept
    assert {"configs", "imagewam_jax"} < kept  # the rest of the copy of all


def test_it_has_the_versions_that_were_tested_together():
    python = re.search(r"^FROM python:(\d+\.\d+)-", DOCKERFILE, re.M)[1]
    assert f"Python {python}" in (ROOT / "constraints.txt").read_text().splitlines()[0]
    assert "--constraint constraints.txt" in DOCKERFILE


def test_it_installs_jax_for_tpus_unless_told_otherwise():
    assert re.search(r"^ARG JAX=tpu$", DOCKERFILE, re.M) and '"jax[${JAX}]"' in DOCKERFILE
