"""Weights & Biases without their server."""

import sys
import time

import pytest

from imagewam_jax.errors import ConfigError
from imagewam_jax.training.metrics.sinks import WandbSink, import_wandb, wandb_run_id
from imagewam_jax.training.metrics.watch import Watch, check_watch
from imagewam_jax.training.metrics.work import Work


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = pytest.importorskip("wandb")
    yield wandb
    wandb.teardown()


def test_rows_are_kept_for_a_later_upload(offline, tmp_path):
    """And a resumed run goes on with the same one."""
    for steps in ((1, 2), (2, 3)):
        sink = WandbSink("faucets", tmp_path, {"train": {"steps": 3}})
        for step in steps:
            sink.write("train", step, {"loss": 0.5 / step})
        sink.close()
    offline.teardown()  # waits for the service that writes the file
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{wandb_run_id(tmp_path)}.wandb"] * 2
    assert all(b"train/loss" in path.read_bytes() for path in files)


def test_a_run_writes_to_it_if_its_config_says_so(offline, tmp_path):
    config = {"watch": {"profile": (0, 0), "profile_on_signal": 0, "wandb": "faucets"}}
    check_watch(config["watch"])
    with Watch(config, tmp_path, 0, Work(1), time.perf_counter()):
        pass
    offline.teardown()  # waits for the service that writes the file
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"goodput/startup_seconds" in file.read_bytes()


def test_each_folder_is_a_run_of_its_own(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert wandb_run_id(tmp_path / "a") != wandb_run_id(tmp_path / "b")
    assert wandb_run_id(tmp_path / "a") == wandb_run_id(tmp_path / "a")


def test_what_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"watch.wandb is 'faucets', .* pip install wandb"):
        import_wandb("faucets")


def test_a_machine_that_is_not_logged_in(offline, monkeypatch, tmp_path):
    offline.teardown()
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConfigError, match=r"there is no API key: run `wandb login`, or set"):
        import_wandb("faucets")
