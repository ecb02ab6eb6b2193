"""Makes a plan from a config and the name of a TPU topology."""

import contextlib
import importlib.metadata
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from imagewam_jax.errors import PlanError
from imagewam_jax.models.sharding import make_mesh
from imagewam_jax.tpu_plans.arguments import Inputs
from imagewam_jax.tpu_plans.compile import DoesNotFit, compile_program
from imagewam_jax.tpu_plans.programs import Program, act_program, train_program
from imagewam_jax.tpu_plans.report import Plan
from imagewam_jax.tpu_plans.topology import Topology, tpu_topology
from imagewam_jax.training.compiler_options import compiler_options, options_for

TICK_SECONDS = 1.0  # between two updates of a stage's time in a terminal


def make_plan(
    config: Mapping[str, Any],
    topology: str,
    inputs: Inputs,
    *,
    what: str = "train",
    batch: int = 1,
    text_file: Path | None = None,
    title: str = "",
    command: str = "",
    note: str = "",
) -> Plan:
    """Compile the train step, or acting for `batch` robots, and find what it takes.

    What does not fit the chips' memory is a plan that says so. PlanError, ConfigError, DataError:
    it cannot be compiled.
    """
    if config["mesh"]["slices"] != 1:
        raise PlanError("mesh.slices: one slice is compiled for; plan with 1 and more of mesh.data")
    slice_ = tpu_topology(topology)
    mesh = make_mesh(config["mesh"], slice_.devices)
    with _stage("tracing"):
        if what == "train":
            program = train_program(config, inputs, mesh)
        else:
            program = act_program(config, inputs, mesh, batch)
    compiled, shortage, chips = None, "", len(slice_.devices)
    kernel_flops = {name: flops / chips for name, flops in program.kernel_flops.items()}
    try:
        with _stage(f"compiling for {chips} x {slice_.chip.name}, which takes minutes"):
            compiled = compile_program(program.traced, slice_, kernel_flops, text_file)
    except DoesNotFit as error:
        shortage = str(error)
    return Plan(
        title=title or f"{what} on {topology}",
        command=command,
        note=note,
        topology=topology,
        chip=slice_.chip.name,
        chips=chips,
        setup=_setup(config, program, slice_, mesh),
        samples=program.sizes.batch,
        memory=program.memory,
        counts=program.counts,
        stages=program.stages,
        compiled=compiled,
        shortage=shortage,
        versions={name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    )


def _setup(
    config: Mapping[str, Any], program: Program, slice_: Topology, mesh: Mesh
) -> dict[str, str]:
    sizes, train, model = program.sizes, config["train"], config["model"]
    chips = len(slice_.devices)
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    rows, columns = sizes.reference_grid
    setup = {
        "slice": f"{chips} x {slice_.chip.name}, {slice_.name}",
        "mesh": axes or "one chip",
        "samples": f"{sizes.batch}, {sizes.batch / chips:g} a chip",
        "rows of text": f"{sizes.text_tokens} (its bucket)",
        "latent cells of an image": f"{rows} x {columns}",
        "attention": model["attention"],
        "computes in": train["compute_dtype"],
    }
    if program.name == "train":
        decay = config["optimizer"]["ema_decay"]
        setup |= {
            "parts that a batch runs in": str(train["accumulate"]),
            "kept for the backward pass": model["remat"],
            "moving average": f"decay {decay}" if decay else "none",
        }
        if model["lora"]["rank"]:
            setup["LoRA"] = f"rank {model['lora']['rank']}, the rest of the backbone is frozen"
        options = options_for("tpu", compiler_options(train["compiler_options"]))
        if options:
            setup["compiler options"] = ", ".join(f"{k}={v}" for k, v in options.items())
    else:
        setup["Euler steps"] = str(config["acting"]["euler_steps"])
        setup["keys and values kept"] = f"{program.cache / 2**20:.1f} MiB on each chip"
    return setup


@contextlib.contextmanager
def _stage(what: str) -> Iterator[None]:
    """Shows on stderr what is being done and for how long: compilers are silent for minutes.

    A terminal has a line that is updated, a log a line at the beginning and one at the end.
    """
    started, done = time.monotonic(), threading.Event()
    is_terminal = sys.stderr.isatty()

    def show(end: str) -> None:
        seconds = time.monotonic() - started
        print(f"\r{what}: {seconds:.0f} s", end=end, file=sys.stderr, flush=True)

    def tick() -> None:
        while not done.wait(TICK_SECONDS):
            show("")

    if is_terminal:
        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
    else:
        print(f"{what} ...", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        done.set()
        if is_terminal:
            thread.join()
        show("\n")
