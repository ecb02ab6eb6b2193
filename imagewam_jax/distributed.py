"""Several hosts of one job: how they find each other, and what one does before others."""

import contextlib
import itertools
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from imagewam_jax.errors import ConfigError, HostsError

T = TypeVar("T")
# Of waiting for a host that indexes a dataset, fits an autoencoder or encodes text.
TIMEOUT_S = 3600
WAITING_S = 30  # after which a process says that it waits to begin

_barriers = itertools.count()


def initialize(
    *,
    automatic: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Joins the processes of a run; without arguments this one is all of it.

    automatic: as Cloud TPU, GKE or Slurm say. Otherwise `coordinator` is HOST:PORT of process 0,
    and this is number `process` of `processes`. To be called before any array is made.
    ConfigError: only some of these are given. Until all are there it says now and then that it
    waits; a process that waits in vain is ended by JAX after five minutes.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if not automatic:
            return
    elif missing or automatic:
        raise ConfigError(
            "give --coordinator, --processes and --process together, or --distributed alone"
        )
    who = "this process" if process is None else f"process {process} of {processes}"
    where = f" at {coordinator}" if coordinator else ""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(WAITING_S):
            print(f"{who} waits for the others of the run{where}", file=sys.stderr, flush=True)

    threading.Thread(target=tell, daemon=True).start()
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        raise HostsError(f"the processes of the run did not find each other: {error}") from error
    finally:
        done.set()


def end_if_several(message: str) -> None:
    """Ends this process at once, with exit code 1, where there are others: at a normal end JAX
    would wait minutes for them, and they for this one. Without it they end within JAX's
    heartbeat."""
    if jax.process_count() > 1:
        print(message, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def wait_for_all(what: str, timeout_s: int = TIMEOUT_S) -> None:
    """Until every process is here. HostsError names those that did not come in time."""
    if jax.process_count() == 1:
        return
    everyone = set(range(jax.process_count()))
    name = f"{what} {next(_barriers)}"  # each barrier is used once
    try:
        multihost.sync_global_processes(name, timeout=timeout_s, processes=everyone)
    except Exception as error:
        late = _late(str(error))
        who = f"process {', '.join(map(str, late))}" if late else "some process"
        raise HostsError(
            f"{who} of {len(everyone)} did not come to {what!r} within {timeout_s} s; "
            f"its own log says why ({error})"
        ) from error


def _late(message: str) -> list[int]:
    """The processes that a barrier waited for in vain: the coordination service ends each line of
    their names with a number."""
    _, _, names = message.partition("timed out task names:\n")
    found = (re.search(r"(\d+)$", line) for line in names.partition("\n\n")[0].splitlines())
    return sorted(int(match[0]) for match in found if match)


@contextlib.contextmanager
def first_alone(what: str) -> Iterator[None]:
    """The first process does what is within, then the others do: they find what it left on disk,
    and nothing is made twice in one place."""
    if not is_first():
        wait_for_all(f"{what}, by the first process")
    yield
    if is_first():
        wait_for_all(f"{what}, by the first process")


def from_first(tree: T) -> T:
    """The first process's arrays, on all of them: none differs in a last bit."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def from_each(tree: T) -> T:
    """The arrays of all processes, which are of one shape, on all of them: each has a new first
    axis, of processes."""
    if jax.process_count() == 1:
        return jax.tree.map(lambda x: np.asarray(x)[None], tree)
    return multihost_utils.process_allgather(tree)


def all_agree(value: bool) -> bool:
    """Whether it is true in every process."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.array(value))))
