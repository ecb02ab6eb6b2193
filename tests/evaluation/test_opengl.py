"""Finding a headless OpenGL backend, and saying what to install."""

import os

import pytest

from imagewam_jax.evaluation.simulators import opengl

find_backend = opengl.configure_opengl.__wrapped__  # Without the cache.


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(opengl.sys, "platform", "linux")


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(opengl, "find_spec", lambda name: name)


def test_the_first_backend_that_renders_is_chosen(monkeypatch, installed):
    monkeypatch.setattr(opengl, "_probe", {"egl": "no device", "osmesa": None}.get)
    assert find_backend() == "osmesa"
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_a_chosen_backend_is_the_only_candidate(monkeypatch, installed):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(opengl, "_probe", {"egl": None, "osmesa": "library is missing"}.get)
    with pytest.raises(opengl.OpenGLUnavailable, match="MUJOCO_GL=osmesa: library is missing"):
        find_backend()


def test_the_error_says_what_was_tried_and_what_to_install(monkeypatch, installed):
    monkeypatch.setattr(opengl, "_probe", {"egl": "no device", "osmesa": "no library"}.get)
    with pytest.raises(opengl.OpenGLUnavailable) as error:
        find_backend()
    for part in (
        "MUJOCO_GL=egl: no device",
        "MUJOCO_GL=osmesa: no library",
        "apt-get install libegl1 libopengl0 libgl1-mesa-dri",
        "apt-get install libosmesa6",
    ):
        assert part in str(error.value)


@pytest.mark.skipif(opengl.find_spec("mujoco") is None, reason="needs the extra 'sim'")
def test_a_backend_that_does_not_exist_fails_in_the_probe():
    assert "invalid value for environment variable MUJOCO_GL" in opengl._probe("nonsense")


def test_a_missing_simulator_package_is_not_blamed_on_opengl(monkeypatch):
    monkeypatch.setattr(opengl, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install imagewam-jax\[sim\]"):
        find_backend()
