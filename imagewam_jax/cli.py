"""`imagewam <verb>`: one entry point for everything a user runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="imagewam", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    train = verbs.add_parser(
        "train",
        help="train a policy on RLDS demonstrations",
        description="Trains a policy. Any field of the config can be changed: "
        "--config.train.steps=100",
    )
    train.add_argument("--config", required=True, help="a config file, such as configs/quickstart.py")
    train.add_argument("--workdir", required=True, type=Path, help="the folder of the run")
    train.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    train.set_defaults(run=_train)
    evaluate = verbs.add_parser(
        "evaluate",
        help="measure a checkpoint on held-out episodes and in its simulator",
        description="Writes evaluation.json and report.html.",
    )
    evaluate.add_argument(
        "--checkpoint", required=True, type=Path, help="a run's folder, or one step's in it"
    )
    evaluate.add_argument("--output", type=Path, help="default: evaluation, in the run's folder")
    evaluate.add_argument("--data", help="the dataset's folder, if it is not where it was")
    evaluate.add_argument("--episodes", type=int, default=100, help="played for each way to act")
    evaluate.add_argument("--workers", type=int, default=2, help="simulator processes")
    evaluate.add_argument("--no-simulator", action="store_true", help="recorded data alone")
    evaluate.set_defaults(run=_evaluate)
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.verb != "train":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    return arguments.run(arguments, rest)


def _train(arguments: argparse.Namespace, rest: list[str]) -> int:
    config = load_config(arguments.config, rest)
    from imagewam_jax.training.loop import train

    train(config, arguments.workdir, resume=arguments.resume)
    return 0


def _evaluate(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.evaluation.evaluate import evaluate

    report = evaluate(
        arguments.checkpoint,
        arguments.output,
        data_directory=arguments.data,
        simulate=not arguments.no_simulator,
        episodes=arguments.episodes,
        workers=arguments.workers,
    )
    print(f"report: {report}")
    return 0


def load_config(path: str, overrides: Sequence[str]) -> ConfigDict:
    """A config file with `--config.field=value` overrides; an unknown field is an error."""
    values = flags.FlagValues()
    argv = ["imagewam", f"--config={path}", *overrides]
    flag = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    rest = values(argv)
    if len(rest) > 1:
        raise SystemExit(f"imagewam: unexpected arguments: {' '.join(rest[1:])}")
    return values[flag.name].value


if __name__ == "__main__":
    sys.exit(main())
