"""`imagewam train`: train a policy, on one host or several."""

import argparse
import sys
import time
from typing import TYPE_CHECKING

from imagewam_jax.cli.devices import add_hosts_arguments, together
from imagewam_jax.errors import HostsError
from imagewam_jax.paths import path_or_address

if TYPE_CHECKING:
    from imagewam_jax.config.loading import LoadedConfig


def add_train_verb(verbs: argparse._SubParsersAction) -> None:
    """Add the verb `train`."""
    train = verbs.add_parser(
        "train",
        help="train a policy on RLDS demonstrations",
        description="Trains a policy. Any field of the config can be changed: "
        "--config.train.steps=100. SIGTERM or Ctrl-C makes it save and end with exit code 75; a "
        "second Ctrl-C ends it at once. One run at a time writes into a folder.",
    )
    train.add_argument("--config", required=True, help="such as configs/quickstart.py")
    train.add_argument(
        "--workdir",
        required=True,
        type=path_or_address,
        help="the folder of the run, or its address at gs://",
    )
    train.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint, if any"
    )
    add_hosts_arguments(train)
    train.set_defaults(run=_train)


def _train(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.config.loading import read_config
    from imagewam_jax.training.metrics.goodput import process_seconds
    from imagewam_jax.training.preemption import EXIT_STATUS, Preempted
    from imagewam_jax.training.train import train

    loaded = read_config(arguments.config, rest)
    began = time.perf_counter() - process_seconds()
    with together(arguments):
        try:
            _check(loaded, arguments)
            train(loaded.config, arguments.workdir, resume=arguments.resume, began=began)
        except Preempted as error:
            print(f"imagewam train: {error}; go on with --resume", file=sys.stderr)
            return EXIT_STATUS
    return 0


def _check(loaded: "LoadedConfig", arguments: argparse.Namespace) -> None:
    """Let the first process look for everything that would stop the run; if there is something, all
    processes end."""
    from imagewam_jax import distributed
    from imagewam_jax.preflight.report import Refused, preflight

    report = None
    if distributed.is_first():
        resume = arguments.resume
        report = preflight(loaded, arguments.workdir, resume=resume, evaluation=False)
    distributed.wait_for_all("the checks before the run, by the first process")
    if not distributed.all_agree(report is None or not report.problems):
        if report is None:
            raise HostsError("the first process found what would stop the run; its log says what")
        raise Refused(report)
