"""What one layer's attention costs on a TPU, by kernel, from the compiler alone.

    python -m benchmarks.attention_cycles xla splash --topology=v5p:2x2x1

One training step of the attention of one 4B layer: target, context and action, forward and
backward, with the pads, copies and casts around the kernels. Operations of XLA carry the
compiler's `estimated_cycles`. Kernels of Pallas carry none; theirs are the instruction bundles of
the kernel's loop, one a cycle, times its iterations on each core, as the compiler writes them
down. Waiting for memory is in the former and not in the latter. No TPU is needed.
"""

import argparse
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp

from imagewam_jax.models.attention import BACKENDS, KV, backend
from imagewam_jax.models.partitioning import MESH_AXES
from imagewam_jax.models.sharding import make_mesh, replicated
from imagewam_jax.tpu_plans.compile import compile_afresh
from imagewam_jax.tpu_plans.cost import cycles
from imagewam_jax.tpu_plans.hlo import computed_instructions, count_runs, parse_module
from imagewam_jax.tpu_plans.topology import tpu_topology

# LIBERO with 47 tokens of text and the robot's state: samples a chip, tokens of each stream, heads.
SAMPLES, TARGET, CONTEXT, ACTION, HEADS, HEAD_DIM = 4, 392, 440, 16, 24, 128


def training_attention(attend):
    """(q, k, v of the backbone and of the action; valid keys; cotangents) -> results, gradients."""

    def forward(backbone, action, length_b):
        q, k, v = (x.reshape(*x.shape[:2], HEADS, HEAD_DIM) for x in backbone)
        aq, ak, av = (x.reshape(*x.shape[:2], HEADS, HEAD_DIM) for x in action)
        context = KV(k[:, TARGET:], v[:, TARGET:])
        outputs = (
            attend(q[:, :TARGET], [KV(k, v)], TARGET + length_b),
            attend(q[:, TARGET:], [context], length_b),
        )
        attended = attend(aq, [KV(ak, av), context], ACTION + length_b)
        both = jnp.concatenate(outputs, axis=1), attended
        return [x.reshape(*x.shape[:2], -1) for x in both]

    def step(backbone, action, length_b, cotangents):
        results, pull = jax.vjp(lambda b, a: forward(b, a, length_b), backbone, action)
        return results, pull(cotangents)

    return step


def compiled_text(name: str, topology: str) -> str:
    one = dict.fromkeys((*MESH_AXES, "slices"), 1)
    mesh = make_mesh(one, tpu_topology(topology).devices[:1])
    here = replicated(mesh)

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=here)

    tokens = [array(SAMPLES, n, HEADS * HEAD_DIM) for n in (TARGET + CONTEXT, ACTION)]
    backbone, action = ((x,) * 3 for x in tokens)
    with jax.set_mesh(mesh):
        step = jax.jit(training_attention(backend(name)))
        lowered = step.lower(backbone, action, array(SAMPLES, dtype=jnp.int32), tokens)
    return compile_afresh(lowered).as_text()


def operation_cycles(text: str) -> Counter[str]:
    """Estimated cycles by opcode."""
    module = parse_module(text)
    runs, found = count_runs(module), Counter()
    for computation, instruction in computed_instructions(module):
        found[instruction.opcode] += runs.counts[computation.name] * cycles(instruction)
    return +found


def kernel_cycles(folder: Path) -> dict[str, int]:
    """Cycles of each splash kernel, from the schedules that the compiler left in a folder."""
    cycles = {}
    for path in folder.glob("*splash*-final_bundles.txt"):
        if "schedule-analysis" in path.name:
            continue
        text = path.read_text()
        begin = re.search(r"^\s*(0x[0-9a-f]+)\s+LB:", text, re.M)
        end = re.findall(r"^\s*(0x[0-9a-f]+)[^\n]*sbr\.rel \(!", text, re.M)[-1]
        # Two iterations more than there are blocks: the first loads, the last stores.
        iterations = int(re.search(r", (\d+) /\* loop exit test", text).group(1)) - 2
        name = re.search(r"splash_\w+", path.name).group() + path.name.split("-")[0][-6:]
        cycles[name] = iterations * (int(end, 16) - int(begin.group(1), 16) + 1)
    return cycles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="+", choices=sorted(set(BACKENDS) - {"cudnn"}))
    parser.add_argument("--topology", default="v5p:2x2x1")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Read by the compiler once, when it is loaded.
        os.environ["LIBTPU_INIT_ARGS"] = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
            "--xla_jf_dump_llo_pass_label_regex=final_bundles"
        )
        for name in given.kernels:
            operations = operation_cycles(compiled_text(name, given.topology))
            kernels = kernel_cycles(Path(folder))
            for path in Path(folder).iterdir():
                path.unlink()
            total = operations.total() + sum(kernels.values())
            print(f"{name}: {total:,} cycles; operations {dict(operations)}, kernels {kernels}")


if __name__ == "__main__":
    main()
