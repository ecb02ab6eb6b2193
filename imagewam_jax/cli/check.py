"""`imagewam check`: everything that would stop a run, before it begins."""

import argparse
import sys

from imagewam_jax.paths import path_or_address


def add_check_verb(verbs: argparse._SubParsersAction) -> None:
    """Add the verb `check`."""
    check = verbs.add_parser(
        "check",
        help="say everything that would stop a run, at once",
        description="Looks at config, data, text, weights, devices, disk and simulator, and prints "
        "a line for each thing that would stop the run or its evaluation; the exit code is then 1. "
        "Otherwise it says what the run would be. Nothing is trained. A small dataset is indexed "
        "on the way. Fields of the config can be changed as for train, which makes the same checks "
        "first, but for those of the evaluation.",
    )
    check.add_argument("--config", required=True, help="such as configs/quickstart.py")
    check.add_argument("--workdir", type=path_or_address, help="the folder of the run")
    check.add_argument(
        "--resume", action="store_true", help="the run is to go on from what is in its folder"
    )
    check.set_defaults(run=_check)


def _check(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.config.loading import read_config
    from imagewam_jax.preflight.report import preflight

    loaded = read_config(arguments.config, rest)
    report = preflight(loaded, arguments.workdir, resume=arguments.resume)
    print(report.text(), file=sys.stderr if report.problems else sys.stdout)
    return int(bool(report.problems))
