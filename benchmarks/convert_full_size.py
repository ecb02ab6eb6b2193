"""Measures the conversion of synthetic weights of a public model's full size.

    python benchmarks/convert_full_size.py --model 4b --layout original [--scratch DIR]

Writes random weights in a foreign layout, copies them, converts them with `imagewam convert` in a
process of its own, copies them again, and reads the checkpoint back, a layer at a time, to compare
every tensor with what was written. Reports the mean time of the copies over that of the conversion
(1 would be as fast as copying), the conversion's peak resident memory, and how many tensors were
the same. Times are until everything is on disk.

Needs three times the size of the weights on disk (bfloat16: 7.75 GB for the 4B transformer, 18.2
GB for 9B); `--layout official` is the policy's `model.pt`, needs PyTorch and four times.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from imagewam_jax.checkpoints.layer_reader import SavedTree
from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.flux2 import KLEIN_4B, KLEIN_9B
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.weights.components import COMPONENTS
from imagewam_jax.weights.io.safetensors_writer import write_safetensors, write_sharded
from imagewam_jax.weights.io.tensors import TensorSpec
from imagewam_jax.weights.io.torch_files import write_torch_file
from imagewam_jax.weights.layouts import registry as layouts
from imagewam_jax.weights.layouts.flux2_diffusers import flux2_diffusers_json
from imagewam_jax.weights.layouts.imagewam_checkpoint import checkpoint_contents
from imagewam_jax.weights.layouts.mapping import ForeignView, foreign_shapes, under

KLEIN = {"4b": KLEIN_4B, "9b": KLEIN_9B}
LAYOUTS = {
    "original": layouts.FLUX2,
    "diffusers": layouts.FLUX2_DIFFUSERS,
    "official": layouts.IMAGEWAM_FLUX2,
}
SHARD_BYTES = 4 * 10**9  # of a file in the diffusers layout


class RandomWeights:
    """Tensors of finite random bits, which depend on their names alone."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        dtype = np.dtype(ml_dtypes.bfloat16)
        self.specs = {name: TensorSpec(shape, dtype, "random") for name, shape in shapes.items()}

    def read(self, name: str) -> np.ndarray:
        shape = self.specs[name].shape
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        bits = rng.integers(0, 2**16, int(np.prod(shape)), np.uint16)
        bits &= 0xBFFF  # without the highest bit of the exponent: no infinity, no NaN
        return bits.view(ml_dtypes.bfloat16).reshape(shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(KLEIN), default="4b")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="original")
    parser.add_argument("--scratch", type=Path, default=Path("runs/convert_full_size"))
    parser.add_argument("--json", type=Path, help="a file for the result")
    args = parser.parse_args()

    layout, config = LAYOUTS[args.layout], KLEIN[args.model]
    if layout.component == "policy":
        expert = ActionExpertConfig(action_dim=7)
        config = ImageWAMConfig(config, expert, proprio_dim=8, coordinate_dtype="bfloat16")
    abstract = COMPONENTS[layout.component].abstract(config)
    weights = RandomWeights(foreign_shapes(layout.rules(config), abstract))
    args.scratch.mkdir(parents=True)
    try:
        source = write(args.scratch, args.layout, config, weights)
        copies = [copy(source)]
        conversion = convert(source, args.scratch / "out")
        copies.append(copy(source))
        result = {
            "model": args.model,
            "layout": layout.name,
            "tensors": len(weights.specs),
            "numbers": sum(int(np.prod(spec.shape)) for spec in weights.specs.values()),
            "bytes": sum(p.stat().st_size for p in source.parent.rglob("*") if p.is_file()),
            "copy_seconds_before": copies[0],
            "copy_seconds_after": copies[1],
            **conversion,
            "same_tensors": count_same(args.scratch / "out", layout, config, weights),
        }
    finally:
        shutil.rmtree(args.scratch)
    result["speed_of_copy"] = sum(copies) / len(copies) / result["convert_seconds"]
    for name, value in result.items():
        print(f"{name:24}{value:,.2f}" if isinstance(value, float) else f"{name:24}{value:}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def write(scratch: Path, name: str, config, weights: RandomWeights) -> Path:
    """Write the weights alone into a folder; returns the path to convert."""
    folder = scratch / "source"
    folder.mkdir()
    total = sum(int(np.prod(spec.shape)) * 2 for spec in weights.specs.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="writing random weights") as bar:
        if name == "original":
            path = folder / "transformer.safetensors"
            write_safetensors(path, weights, progress=bar.update)
        elif name == "diffusers":
            path = folder / "transformer"
            path.mkdir()
            stem = "diffusion_pytorch_model"
            write_sharded(path, stem, weights, max_bytes=SHARD_BYTES, progress=bar.update)
            (path / "config.json").write_text(json.dumps(flux2_diffusers_json(config)))
        else:
            path = folder / "model.pt"
            contents = checkpoint_contents(config, weights.specs, 10_000)
            write_torch_file(path, contents, weights, bar.update)
    os.sync()
    return path


def copy(source: Path) -> float:
    """Seconds that a plain copy takes until it is on disk."""
    target = source.parent.parent / "copy"
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    os.sync()
    seconds = time.perf_counter() - start
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    os.sync()
    return seconds


def convert(source: Path, out: Path) -> dict[str, float]:
    """Seconds and peak resident memory of the command, checksums and all."""
    program = "import sys; from imagewam_jax.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "convert", str(source), "--to", str(out)]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_resident(process.pid))
        time.sleep(0.05)
    os.sync()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"the conversion failed with status {process.returncode}")
    return {"convert_seconds": seconds, "peak_resident_gib": peak / 2**20}


def peak_resident(pid: int) -> int:
    """Peak resident memory of a running process so far, in KiB.

    What the kernel reports after its end would include that of this process.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def count_same(out: Path, layout: layouts.Layout, config, weights: RandomWeights) -> int:
    """How many tensors come out of the checkpoint as they went in, bit for bit."""
    component = COMPONENTS[layout.component]
    checkpoints, step = open_checkpoint(out)
    tree = SavedTree(checkpoints, step, component.tree)
    view = ForeignView(
        under(layout.rules(config), path=component.path), tree.abstract, tree, str(out)
    )
    same = sum(
        np.array_equal(view.read(name).view(np.uint16), weights.read(name).view(np.uint16))
        for name in tqdm(weights.specs, desc="comparing", unit="tensor")
    )
    checkpoints.close()
    return same


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
