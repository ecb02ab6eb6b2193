"""Compiles a program for a topology and measures the compiled program."""

import dataclasses
import gzip
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from imagewam_jax.errors import PlanError
from imagewam_jax.tpu_plans.collectives import Volume, collective_volumes
from imagewam_jax.tpu_plans.estimate import Cost, program_cost, slice_links
from imagewam_jax.tpu_plans.flops import module_flops
from imagewam_jax.tpu_plans.hlo import count_runs, parse_module
from imagewam_jax.tpu_plans.sources import parse_stacks
from imagewam_jax.tpu_plans.topology import Topology, slice_sides


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What one call of a compiled program takes on each chip.

    Memory is in bytes: `arguments` with the padding of their layouts, `temporaries`, `outputs`, of
    which `aliased` take the place of arguments, and the program's own `code`. flops: of matrix
    products and convolutions. cost: seconds of its operations. collectives: by kind. unknown_loops:
    loops whose number of iterations is not known; their bodies count once. seconds: the time that
    compiling took.
    """

    arguments: int
    temporaries: int
    outputs: int
    aliased: int
    code: int
    flops: int
    cost: Cost
    collectives: dict[str, Volume]
    unknown_loops: tuple[str, ...]
    seconds: float

    @property
    def peak(self) -> int:
        """Bytes that a chip needs."""
        return self.arguments + self.temporaries + self.outputs - self.aliased + self.code


class DoesNotFit(PlanError):
    """The compiler found no way to stay within a chip's memory."""


def compile_program(
    traced: jax.stages.Traced,
    slice_: Topology,
    kernel_flops: Mapping[str, float],
    text_file: Path | None = None,
) -> Compiled:
    """Compile a program for a slice and measure it, which takes minutes for a large policy.

    kernel_flops: of its Pallas kernels by name, on each chip, which a compiled program hides. The
    compiled program's text also goes to `text_file`, compressed with gzip. DoesNotFit: the program
    needs more memory than a chip has.
    """
    lowered, started = traced.lower(), time.perf_counter()
    try:
        compiled = compile_afresh(lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_shortage(str(error))) from error
    seconds, text = time.perf_counter() - started, compiled.as_text()
    if text_file is not None:
        text_file.write_bytes(gzip.compress(text.encode()))
    return measure(compiled.memory_analysis(), text, seconds, slice_, kernel_flops)


def compile_afresh(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile a program for devices that need not be here.

    JAX writes such a program to its cache of compiled programs, where there is one, and then warns
    that it cannot be read without its devices. It is compiled again, so there is nothing to tell.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache", UserWarning)
        return lowered.compile()


def measure(
    memory: Any, text: str, seconds: float, slice_: Topology, kernel_flops: Mapping[str, float]
) -> Compiled:
    """Join the compiler's memory analysis with what is counted in the compiled program's text."""
    module = parse_module(text)
    runs, links = count_runs(module), slice_links(slice_.chip, slice_sides(slice_.name))
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=module_flops(module, runs),
        cost=program_cost(module, runs, parse_stacks(text), kernel_flops, slice_.chip, links),
        collectives=collective_volumes(module, runs),
        unknown_loops=runs.unknown,
        seconds=seconds,
    )


def _shortage(message: str) -> str:
    """The sentence of the compiler's message that says how much memory is lacking."""
    found = re.search(r"[^.\n]*exceeds available HBM \([^)]*\)", message)
    return (found.group() if found else message.splitlines()[0]).strip()
