"""What a server adds to acting: `imagewam serve` and its clients against `Policy.act`.

    python benchmarks/serving.py --checkpoint=runs/mine [--clients 1 8 32] [--seconds 10]

The server is a process of its own; all clients share another one, this one. Acting without a
server and one client take turns, so that both see the machine in the same state. Then come several
clients at once, in a closed loop: each sends its next request when it has its answer; and then
those that ask at random times (Poisson), 2/3 as often in all as the closed loop could.

- call: from sending a request, or from the time at which it was due, to having its actions. acting:
  `Policy.act` for one robot.
- own: of a call, what is neither waiting for a batch nor the batch itself, as the server tells:
  packing, sockets, checks, stacking.
- fairness: in a closed loop, chunks of the client that got most over those of the one that got
  fewest.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import connect

from imagewam_jax.client.remote import LIMITS
from imagewam_jax.policy.noise import sample_noise
from imagewam_jax.policy.policy import load_policy
from imagewam_jax.preprocess.inputs import Observations
from imagewam_jax.serving.statistics import percentiles_ms
from imagewam_jax.wire.messages import pack, unpack

_TURN = 25  # calls of each side in a turn


@contextlib.contextmanager
def server(checkpoint: Path, buckets: str) -> Iterator[str]:
    """The address of a server that is ready, and ends with the block."""
    command = [
        sys.executable,
        "-c",
        "import sys; from imagewam_jax.cli import main; sys.exit(main())",
    ]
    command += ["serve", f"--checkpoint={checkpoint}", "--port=0", "--rate=1e9"]
    command += [f"--buckets={buckets}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = ""
            for line in process.stdout:
                if found := re.match(r"listening on (\S+)", line):
                    address = found[1]
                if re.search(r"\((\d+) of \1\)", line):  # the last size of batch is compiled
                    break
            if process.poll() is not None:
                raise SystemExit("the server has ended")
            yield address
        finally:
            process.terminate()
            process.stdout.read()


def request(metadata: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What a robot sees: other things with each seed."""
    rng = np.random.default_rng(seed)
    images = {
        key: rng.integers(0, 256, (*metadata["image_resolution"][key], 3)).astype(np.uint8)
        for key in metadata["image_keys"]
    }
    state = {metadata["state_key"]: np.zeros(metadata["state_dim"], np.float32)}
    state = state if metadata["state_key"] else {}
    return {**images, **state, metadata["prompt_key"]: metadata["instructions"][0]}


class Client:
    """One robot. calls, own: seconds of each request."""

    def __init__(self) -> None:
        self.calls: list[float] = []
        self.own: list[float] = []

    async def ask(self, connection: Any, frame: bytes, due: float | None = None) -> None:
        start = time.perf_counter()
        await connection.send(frame)
        reply = unpack(await connection.recv(), LIMITS)
        end = time.perf_counter()
        timing = reply["server_timing"]
        self.calls.append(end - (start if due is None else due))
        self.own.append(end - start - (timing["queue_ms"] + timing["infer_ms"]) / 1000)


async def _connected(stack: contextlib.AsyncExitStack, address: str) -> tuple[Any, dict]:
    connection = await stack.enter_async_context(connect(address, compression=None, max_size=None))
    return connection, unpack(await connection.recv(), LIMITS)


async def in_turns(address: str, checkpoint: Path, turns: int) -> dict[str, Any]:
    """Acting and one client, in turns."""
    policy = load_policy(checkpoint)
    async with contextlib.AsyncExitStack() as stack:
        connection, metadata = await _connected(stack, address)
        asked = request(metadata, 0)
        images = np.stack([asked[key] for key in metadata["image_keys"]])[None]
        state = np.zeros((1, policy.state_dim), np.float32)
        instructions = [asked[metadata["prompt_key"]]]
        frame, client, acting = pack(asked), Client(), []

        def act() -> None:
            noise = sample_noise([[0, 0]], (policy.horizon, policy.action_dim))
            policy.act(Observations(images, state, policy.text_ids(instructions)), noise)

        act()
        await client.ask(connection, frame)
        client = Client()
        for _ in range(turns):
            for _ in range(_TURN):
                start = time.perf_counter()
                act()
                acting.append(time.perf_counter() - start)
            for _ in range(_TURN):
                await client.ask(connection, frame)
    added = np.median(client.calls) - np.median(acting)
    return {
        "acting": percentiles(acting),
        "call": percentiles(client.calls),
        "own": percentiles(client.own),
        "added_ms": round(1000 * float(added), 3),
        "ratio": round(float(np.median(client.calls) / np.median(acting)), 3),
    }


async def together(
    address: str, clients: int, seconds: float, rate: float | None = None
) -> dict[str, Any]:
    """So many clients at once, in a closed loop, or at random times with `rate` requests per second
    of all together."""
    async with contextlib.AsyncExitStack() as stack:
        connected = [await _connected(stack, address) for _ in range(clients)]
        robots = [Client() for _ in connected]
        frames = [pack(request(about, seed)) for seed, (_, about) in enumerate(connected)]

        async def loop(number: int, until: float) -> None:
            rng, due = np.random.default_rng(number), time.perf_counter()
            while (now := time.perf_counter()) < until:
                if rate is not None:
                    due += rng.exponential(clients / rate)
                    await asyncio.sleep(max(due - now, 0.0))
                due_or_none = None if rate is None else due
                await robots[number].ask(connected[number][0], frames[number], due_or_none)

        async def all_of(length: float) -> None:
            until = time.perf_counter() + length
            await asyncio.gather(*(loop(number, until) for number in range(clients)))

        await all_of(1.0)
        for robot in robots:
            robot.calls.clear()
            robot.own.clear()
        start = time.perf_counter()
        await all_of(seconds)
        took = time.perf_counter() - start
    chunks = [len(robot.calls) for robot in robots]
    return {
        "clients": clients,
        "asking": "closed loop" if rate is None else f"{rate:.0f}/s at random",
        "chunks_per_second": round(sum(chunks) / took, 2),
        "call": percentiles([call for robot in robots for call in robot.calls]),
        "own": percentiles([own for robot in robots for own in robot.own]),
        "fairness": round(max(chunks) / max(min(chunks), 1), 3) if rate is None else None,
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    names, values = ("p50", "p95", "p99"), percentiles_ms(seconds)
    return {name: round(value, 2) for name, value in zip(names, values, strict=True)}


def table(result: Mapping[str, Any]) -> str:
    """The result in lines for people."""
    one, lines = result["in_turns"], []
    lines.append(f"load of the machine {result['load_1min']:.1f}")
    lines.append(
        f"acting, 1 robot     p50 {one['acting']['p50']} ms  p99 {one['acting']['p99']} ms"
    )
    lines.append(
        f"served, 1 client    p50 {one['call']['p50']} ms  p99 {one['call']['p99']} ms; added "
        f"{one['added_ms']} ms, ratio {one['ratio']}"
    )
    lines.append("clients, asking: chunks/s; call p50, p95, p99 ms; own p50, p99 ms; fairness")
    for row in result["together"]:
        call, own = row["call"], row["own"]
        lines.append(
            f"{row['clients']}, {row['asking']}: {row['chunks_per_second']}; {call['p50']}, "
            f"{call['p95']}, {call['p99']}; {own['p50']}, {own['p99']}; {row['fairness'] or '-'}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--buckets", default="1,2,4,8")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of clients")
    parser.add_argument("--turns", type=int, default=20, help="of acting and asking in turn")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args(argv)
    with server(arguments.checkpoint, arguments.buckets) as address:
        result = {
            "in_turns": asyncio.run(in_turns(address, arguments.checkpoint, arguments.turns)),
            "together": [],
            "load_1min": os.getloadavg()[0],
        }
        for clients in arguments.clients:
            closed = asyncio.run(together(address, clients, arguments.seconds))
            rate = closed["chunks_per_second"] * 2 / 3
            at_random = asyncio.run(together(address, clients, arguments.seconds, rate))
            result["together"] += [closed, at_random]
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
