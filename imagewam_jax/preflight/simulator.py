"""Can the trained policy be played in the simulator that the config names?"""

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.errors import SimulatorError, UserError, raise_all
from imagewam_jax.evaluation.simulators import simulates
from imagewam_jax.evaluation.simulators.base import SimulatorSpec
from imagewam_jax.evaluation.simulators.pool import SimulatorPool
from imagewam_jax.preflight.data import datasets, rows
from imagewam_jax.preflight.run import NotChecked, Run, about

_FIELD = "evaluation.simulator"


def simulator(run: Run) -> SimulatorSpec | None:
    """It is known, can be imported, takes its options and can draw; None: there is none."""
    section = run.config("evaluation")["evaluation"]
    name = section["simulator"]
    if not name:
        return None
    others = [spec.name for _, spec in run.of(rows) if not simulates(name, spec.name)]
    if others:
        run.note(
            f"{_FIELD} {name!r} does not play {', '.join(others)}: policies of it are evaluated on "
            "recorded data alone"
        )
        return None
    with (
        about(_FIELD),
        SimulatorPool(name, num_simulators=1, num_workers=1, options=section["options"]) as pool,
    ):
        return pool.spec


def robot(run: Run) -> None:
    """It is the robot of the demonstrations: widths, cameras and instructions are the same."""
    spec = run.of(simulator)
    if spec is None:
        return
    name = run.config("evaluation")["evaluation"]["simulator"]
    errors = [
        SimulatorError(
            f"{_FIELD} {name!r} is not of the robot of {dataset.name!r}: {what}; set "
            "evaluation.simulator to that of your robot, or to '' for recorded data alone"
        )
        for _, dataset in run.of(rows)
        for what in _differences(run, spec, dataset)
    ]
    raise_all(errors)


def _differences(run: Run, spec: SimulatorSpec, dataset: DatasetSpec) -> list[str]:
    found = [
        f"its {what} have {there} dimensions, those of the dataset {here}"
        for what, there, here in (
            ("actions", len(spec.action_names), len(dataset.action.dims)),
            ("states", len(spec.state_names), len(dataset.state.dims)),
        )
        if there != here
    ]
    if run.usable("data.cameras"):
        roles = run.config()["data"]["cameras"]
        if len(roles) != len(spec.cameras):
            found.append(f"it has the cameras {list(spec.cameras)}, data.cameras are {list(roles)}")
    opened = run.outcome(datasets)
    if not isinstance(opened, UserError | NotChecked):
        unknown = set(spec.all_instructions) - set(opened.data.instructions)
        if unknown:
            found.append(f"no episode has its instruction {sorted(unknown)[0]!r}")
    return found
