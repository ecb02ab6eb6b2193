"""Arguments of verbs that run on meshes and on several hosts, and what is done about an error of
one of their processes."""

import argparse
import contextlib
import traceback
from collections.abc import Iterator

from imagewam_jax.errors import UserError

# Fields of a config's `mesh` section, each with its help text.
_MESH = {
    "data": "copies of the policy; batches are divided",
    "fsdp": "what batches and parameters are divided over",
    "tensor": "what heads and MLP channels are divided over",
    "context": "what tokens are divided over",
    "slices": "slices of a multi-slice pod, of which `data` is a multiple",
}


def add_mesh_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the fields of a config's `mesh` section, for a verb that takes no config."""
    mesh = parser.add_argument_group(
        "mesh",
        "How the devices of all hosts share the work, as for train (docs/training.md): -1 is what "
        "the others leave. By default one device, or with several --config.mesh.fsdp=-1.",
    )
    for field, meaning in _MESH.items():
        mesh.add_argument(f"--config.mesh.{field}", type=int, metavar="N", help=meaning)


def mesh_of(arguments: argparse.Namespace) -> dict[str, int]:
    """The fields of the `mesh` section that were given."""
    given = {field: getattr(arguments, f"config.mesh.{field}") for field in _MESH}
    return {field: value for field, value in given.items() if value is not None}


def add_hosts_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments by which the processes of several hosts find each other."""
    hosts = parser.add_argument_group(
        "several hosts", "The same command runs on each; process 0 writes."
    )
    hosts.add_argument(
        "--distributed",
        action="store_true",
        help="they find each other: on Cloud TPU, GKE and Slurm",
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="otherwise: where process 0 is")
    hosts.add_argument("--processes", type=int, metavar="N", help="how many there are")
    hosts.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")


@contextlib.contextmanager
def together(arguments: argparse.Namespace) -> Iterator[None]:
    """Joins the processes that `add_hosts_arguments` speaks of, if there are several.

    Of several, one that meets an error within says so and ends at once: the others cannot go on
    without it. ConfigError, HostsError: as of `distributed.initialize`.
    """
    from imagewam_jax import distributed

    distributed.initialize(
        automatic=arguments.distributed,
        coordinator=arguments.coordinator,
        processes=arguments.processes,
        process=arguments.process,
    )
    try:
        yield
    except BaseException as error:
        distributed.end_if_several(
            f"imagewam {arguments.verb}: {error}"
            if isinstance(error, UserError)
            else "".join(traceback.format_exception(error))
        )
        raise
