"""Acting latency and a training step of a policy, against plain PyTorch.

    python benchmarks/against_torch.py [--pairs 15] [--json result.json]
    python benchmarks/against_torch.py --policy=klein_4b --device=cuda --tasks act
    python benchmarks/against_torch.py --policy=klein_4b --device=cuda --tasks train --alone

The contestants live in processes of their own on the same cores or the same GPU and take turns: the
others wait while one measures, so that a busy machine slows all of them. With --alone they live one
after another, for what fits a GPU only once. The ratio of medians is that of the faster PyTorch
(eager or compiled) over ours.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

AIMS = {"act": 1.5, "train": 1.0}
CALLS = {"act": 20, "train": 1}  # calls per measurement, which is their mean
CONTESTANTS = ("ours", "torch eager", "torch compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="quickstart", help="quickstart or klein_4b")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tasks", nargs="+", choices=list(CALLS), default=list(CALLS))
    parser.add_argument("--batch", type=int, help="samples of a training step")
    parser.add_argument("--pairs", type=int, default=15, help="measurements of each contestant")
    parser.add_argument("--threads", type=int, default=2, help="cores that each of them may use")
    parser.add_argument("--alone", action="store_true", help="one contestant at a time")
    parser.add_argument("--json", type=Path, help="a file for the result")
    args = parser.parse_args()

    seconds = {name: {task: [] for task in args.tasks} for name in CONTESTANTS}
    for names in [[name] for name in CONTESTANTS] if args.alone else [CONTESTANTS]:
        with contextlib.ExitStack() as stack:
            pipes = {}
            for name in tqdm(names, desc="compile", unit="contestant"):
                pipes[name] = stack.enter_context(contestant(name, args))
            for _ in tqdm(range(args.pairs), desc="measure", unit="pair"):
                for task in args.tasks:
                    for name, pipe in pipes.items():
                        pipe.send(task)
                        seconds[name][task].append(pipe.recv())
    result = summarize(seconds, args)
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


@contextlib.contextmanager
def contestant(name: str, args: argparse.Namespace):
    """The pipe to a new process that has made its first calls; leaving ends the process."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, name, args))
    process.start()
    theirs.close()
    try:
        pipe.recv()
        yield pipe
    finally:
        pipe.close()
        process.join()


def summarize(seconds: dict[str, dict[str, list[float]]], args: argparse.Namespace) -> dict:
    """Compute medians in milliseconds and ratios, and add where they were measured."""
    medians = {
        name: {task: 1e3 * statistics.median(values) for task, values in tasks.items()}
        for name, tasks in seconds.items()
    }
    best = {task: min(medians[name][task] for name in CONTESTANTS[1:]) for task in args.tasks}
    return {
        "policy": args.policy,
        "machine": f"{_machine(args.device)}, {args.threads} threads of {os.cpu_count()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "torch", "numpy")},
        "load_1min": os.getloadavg()[0],
        "median_ms": medians,
        "ratio": {task: best[task] / medians["ours"][task] for task in args.tasks},
        "aim": AIMS,
        "seconds": seconds,
    }


def table(result: dict) -> str:
    """Format the result for a terminal."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    head = f"{'':6}" + "".join(f"{name:>16}" for name in CONTESTANTS) + f"{'ratio':>8}{'aim':>6}"
    lines = [result["machine"], f"{versions}; load {result['load_1min']:.1f}", head]
    for task in result["ratio"]:
        medians = "".join(f"{result['median_ms'][name][task]:13.1f} ms" for name in CONTESTANTS)
        lines.append(f"{task:6}{medians}{result['ratio'][task]:8.2f}{AIMS[task]:6.1f}")
    return "\n".join(lines)


def _serve(pipe, name: str, args: argparse.Namespace) -> None:
    """Measures the task that each message names, until the pipe is closed."""
    os.environ["JAX_PLATFORMS"] = args.device if name == "ours" else "cpu"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # others need memory of the GPU too
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    os.sched_setaffinity(0, cores)  # before JAX makes its threads, one per core
    import torch

    from benchmarks.contestants import jax_calls, torch_calls
    from benchmarks.workload import make_workload

    torch.set_num_threads(args.threads)
    work = make_workload(args.policy, args.batch)
    if name == "ours":
        calls = jax_calls(work, args.tasks)
    else:
        calls = torch_calls(work, name == "torch compiled", args.device, args.tasks)
    for _ in range(3):
        for call in calls.values():
            call()
    pipe.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            task = pipe.recv()
            calls[task]()  # wakes the threads: another process has just had the cores
            start = time.perf_counter()
            for _ in range(CALLS[task]):
                calls[task]()
            pipe.send((time.perf_counter() - start) / CALLS[task])


def _machine(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
