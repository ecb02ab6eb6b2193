"""`imagewam <verb>`: one entry point for everything a user runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from imagewam_jax.data.errors import DataError
from imagewam_jax.evaluation.simulators.opengl import OpenGLUnavailable
from imagewam_jax.evaluation.simulators.pool import SimulatorWorkerError
from imagewam_jax.policies.errors import CheckpointError, ConfigError

USER_ERRORS = (ConfigError, DataError, CheckpointError, OpenGLUnavailable, SimulatorWorkerError)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="imagewam", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    train = verbs.add_parser(
        "train",
        help="train a policy on RLDS demonstrations",
        description="Trains a policy. Any field of the config can be changed: "
        "--config.train.steps=100",
    )
    train.add_argument("--config", required=True, help="such as configs/quickstart.py")
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
    index = verbs.add_parser(
        "index",
        help="make an RLDS dataset random-access",
        description="Writes the sidecar index of one TFDS dataset version, checking every record. "
        "Training makes it too where there is none.",
    )
    index.add_argument("directory", type=Path, help="the folder with features.json")
    index.add_argument("--dataset", required=True, help="its row in the registry")
    index.add_argument("--workers", type=int, help="processes; default: as many as help")
    index.set_defaults(run=_index)

    encode = verbs.add_parser(
        "encode-text",
        help="encode a dataset's instructions once",
        description="Writes a table of text features for --config.text.table. Fields of the config "
        "can be changed as for train.",
    )
    encode.add_argument("--config", required=True, help="a config file")
    encode.add_argument("--output", required=True, type=Path, help="a .safetensors file")
    encode.set_defaults(run=_encode_text)

    arguments, rest = parser.parse_known_args(argv)
    if rest and not hasattr(arguments, "config"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        return arguments.run(arguments, rest)
    except USER_ERRORS as error:
        # What is wrong is in the message; where it was noticed is not the user's concern.
        print(f"imagewam {arguments.verb}: {error}", file=sys.stderr)
        return 1


def _train(arguments: argparse.Namespace, rest: list[str]) -> int:
    config = load_config(arguments.config, rest)
    from imagewam_jax.training.loop import train

    train(config, arguments.workdir, resume=arguments.resume)
    return 0


def _index(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.data.index_builder import build_index
    from imagewam_jax.data.registry import dataset_spec

    index = build_index(
        arguments.directory, dataset_spec(arguments.dataset), workers=arguments.workers
    )
    for name, split in index.splits.items():
        print(f"{index.name}/{name}: {split.num_episodes} episodes, {split.num_frames} steps")
    return 0


def _encode_text(arguments: argparse.Namespace, rest: list[str]) -> int:
    config = load_config(arguments.config, rest).to_dict()
    from imagewam_jax.policies.dataset import config_dataset
    from imagewam_jax.training.prepare import encode_text

    table = encode_text(config["text"], config_dataset(config).index.instructions)
    table.save(arguments.output)
    print(f"{arguments.output}: {len(table.prompts)} prompts, features {table.features.shape}")
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
    """A config file with `--config.field=value` overrides.

    ConfigError: there is no such file, or an override names no field or does not fit it.
    """
    file = path.rsplit(":", 1)[0]
    if not Path(file).is_file():
        raise ConfigError(f"{file}: no such config file")
    _check_fields(file, _parse_config(path, []), overrides)
    return _parse_config(path, overrides)


def _parse_config(path: str, overrides: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()
    argv = ["imagewam", f"--config={path}", *overrides]
    flag = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
    except (flags.Error, TypeError) as error:
        first = error  # the flags library wraps an error of the config file itself twice
        while first.__context__:
            first = first.__context__
        raise ConfigError(str(first if isinstance(first, ConfigError) else error)) from error
    if len(rest) > 1:
        raise ConfigError(f"unexpected arguments: {' '.join(rest[1:])}")
    return values[flag.name].value


def _check_fields(file: str, config: ConfigDict, overrides: Sequence[str]) -> None:
    for override in overrides:
        name, section = override.split("=")[0].removeprefix("--config."), config
        for part in name.split(".") if override.startswith("--config.") else ():
            if not isinstance(section, ConfigDict) or part not in section:
                known = sorted(section) if isinstance(section, ConfigDict) else "no fields"
                raise ConfigError(f"{file} has no field {name!r}: no {part!r} among {known}")
            section = section[part]


if __name__ == "__main__":
    sys.exit(main())
