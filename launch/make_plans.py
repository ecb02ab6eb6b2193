"""Compiles the plans that `plans/` lacks, and writes its pages.

    python -m launch.make_plans [NAME ...]

Each plan is one `imagewam aot` command in a process of its own, which takes minutes and a few GB.
The mesh, batch and rematerialization of each plan are chosen here, with the reasons.
"""

import argparse
import subprocess
from pathlib import Path
from typing import NamedTuple

from imagewam_jax.tpu_plans.report import index_rows, plan_from_json
from launch.local import IMAGEWAM

PLANS = Path(__file__).parent / "plans"
ROOT = PLANS.parents[1]


class Wanted(NamedTuple):
    """A plan to make.

    config: the name of a file in configs/ and its argument. fields: fields of the config to change.
    why: the reason of these choices; the page begins with it. options: for `imagewam aot`.
    """

    title: str
    config: str
    topology: str
    fields: dict[str, str | int]
    why: str
    options: tuple[str, ...] = ()


# What the backward pass keeps of each layer (imagewam_jax/models/remat.py): all that it would have
# to compute again by products with kernels, or as much of it as leaves a tenth of the memory.
ALL = {"model.remat": "qkv+attended+mlp+out"}
MOST = {"model.remat": "attended+mlp+out"}
SOME = {"model.remat": "qkv+attended+out"}
# The size in which LIBERO's images are stored.
STORED = ("--stored-size", "256", "256")

WANTED = {
    "4b-full-v5p-2x2x1": Wanted(
        "4B, all of it, on 4 chips of v5p",
        "libero:4b",
        "v5p:2x2x1",
        ALL,
        "The smallest slice of v5p, one host, with the official batch of 80.",
    ),
    "4b-full-v5e-4x4": Wanted(
        "4B, all of it, on 16 chips of v5e",
        "libero:4b",
        "v5e:4x4",
        ALL,
        "The official batch of 80, 5 samples a chip.",
    ),
    "4b-full-v6e-4x4": Wanted(
        "4B, all of it, on 16 chips of v6e",
        "libero:4b",
        "v6e:4x4",
        ALL,
        "The official batch of 80, 5 samples a chip.",
    ),
    "4b-act-v5e-1x1": Wanted(
        "4B acting on 1 chip of v5e",
        "libero:4b",
        "v5e:1x1",
        {},
        "One robot, weights in bfloat16 (imagewam convert --dtype=bfloat16): from two images to a "
        "chunk of actions in 10 Euler steps. Float32 weights do not fit one chip.",
        ("--what=act",),
    ),
    "4b-act-v6e-1x1": Wanted(
        "4B acting on 1 chip of v6e",
        "libero:4b",
        "v6e:1x1",
        {},
        "One robot, weights in bfloat16 (imagewam convert --dtype=bfloat16), as on v5e.",
        ("--what=act",),
    ),
    "4b-lora-v5e-2x4": Wanted(
        "4B with LoRA on 8 chips of v5e",
        "libero:4b",
        "v5e:2x4",
        {"model.lora.rank": 16, "model.lora.alpha": 16.0, **SOME},
        "The official rank of 16 on the smallest slice of v5e that the batch of 80 fits well: the "
        "backbone is frozen, in bfloat16, without moments; the expert is trained whole.",
    ),
    "9b-full-v5p-2x2x1": Wanted(
        "9B, all of it, on 4 chips of v5p",
        "libero:9b",
        "v5p:2x2x1",
        SOME,
        "One host with the official batch of 96. Parameters and moments take a third of the "
        "memory, so the MLP is computed again in the backward pass.",
    ),
    "9b-full-v5e-4x4": Wanted(
        "9B, all of it, on 16 chips of v5e",
        "libero:9b",
        "v5e:4x4",
        {"train.batch_size": 64},
        "Parameters and moments take half of each chip, which leaves room for 4 samples whose "
        "layers are computed again in the backward pass.",
    ),
    "4b-lora-v6e-2x2": Wanted(
        "4B with LoRA on 4 chips of v6e",
        "libero:4b",
        "v6e:2x2",
        {"model.lora.rank": 16, "model.lora.alpha": 16.0, **SOME},
        "The official rank and batch on half a host.",
    ),
    "9b-full-v6e-8x8": Wanted(
        "9B, all of it, on 64 chips of v6e",
        "libero:9b",
        "v6e:8x8",
        {"mesh.data": 8, "mesh.fsdp": 8, "train.batch_size": 384, **MOST},
        "6 samples a chip, as with the official batch of 96 on 16 chips. 8 copies of the "
        "parameters, each over a row of 8 chips, so that gradients are scattered.",
    ),
    "4b-full-v5p-4x4x4": Wanted(
        "4B, all of it, on 64 chips of v5p",
        "libero:4b",
        "v5p:4x4x4",
        {
            "mesh.data": 4,
            "mesh.fsdp": 16,
            "train.batch_size": 256,
            **ALL,
        },
        "4 copies of the parameters, each over 16 chips, so that layers are gathered among "
        "neighbours; only gradients go between copies. The official batch of 80 is too small for "
        "64 chips: with 4 samples each computing still takes longer than sending.",
    ),
    "4b-full-v6e-8x8": Wanted(
        "4B, all of it, on 64 chips of v6e",
        "libero:4b",
        "v6e:8x8",
        {"mesh.data": 8, "mesh.fsdp": 8, "train.batch_size": 256, **ALL},
        "8 copies of the parameters, each over a row of 8 chips, so that gradients are scattered. "
        "4 samples a chip, as this chip computes fast for its links: with fewer, gathering layers "
        "takes longer than computing them.",
    ),
}

INDEX = """\
# Plans

What `imagewam train` and acting would take on TPU slices, computed by the TPU compiler without a
TPU: each page has the command that makes it again. Recipes are those of LIBERO: two cameras, text
in 47 rows and that of the robot's state. `python -m launch.make_plans` makes all of them; the
choices and their reasons are in it.

{table}

Times and MFU (model FLOPs utilisation) are estimates, not measurements: the TPU compiler's own of
each operation, and what its schedule leaves of the traffic between chips to be waited for. Each
page says what is assumed, with a range, and which lines of code cost most. The floor is what a step
takes at the peaks of the chips. Products are the share of products of matrices in computing,
without those of attention. Samples are of one step on all chips.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WANTED)}")
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(WANTED)):
        parser.error(f"no plans {unknown}")
    PLANS.mkdir(exist_ok=True)
    for name, wanted in WANTED.items():
        is_there = (PLANS / f"{name}.json").exists()
        if name in names or (not names and not is_there):
            subprocess.run(command(name, wanted), cwd=ROOT, check=False)
        write_pages()


def command(name: str, wanted: Wanted) -> list[str]:
    """The command that makes a plan. Run in the project's folder, its page shows relative paths."""
    config, _, size = wanted.config.partition(":")
    return [
        *IMAGEWAM,
        "aot",
        f"--config=configs/{config}.py:{size}",
        f"--topology={wanted.topology}",
        *STORED,
        *wanted.options,
        *(f"--config.{field}={value}" for field, value in wanted.fields.items()),
        *("--output", str(PLANS.relative_to(ROOT)), "--name", name),
        *("--title", wanted.title, "--note", wanted.why),
    ]


def write_pages() -> None:
    """Write a page for each plan in `plans/`, and an index of them."""
    found = {}
    for path in sorted(PLANS.glob("*.json")):
        found[path.stem] = plan_from_json(path.read_text())
        path.with_suffix(".md").write_text(found[path.stem].markdown())
    (PLANS / "README.md").write_text(INDEX.format(table=index_rows(found)))


if __name__ == "__main__":
    main()
