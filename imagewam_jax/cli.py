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
    arguments, rest = parser.parse_known_args(argv)
    return arguments.run(arguments, rest)


def _train(arguments: argparse.Namespace, rest: list[str]) -> int:
    config = load_config(arguments.config, rest)
    from imagewam_jax.training.loop import train

    train(config, arguments.workdir, resume=arguments.resume)
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
