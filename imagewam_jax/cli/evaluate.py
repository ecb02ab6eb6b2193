"""`imagewam evaluate`: measure a checkpoint on held-out episodes and in its simulator."""

import argparse
import ast
import contextlib
from pathlib import Path
from typing import Any

from imagewam_jax.cli.devices import (
    add_hosts_arguments,
    add_mesh_arguments,
    mesh_of,
    together,
)
from imagewam_jax.errors import ConfigError
from imagewam_jax.paths import path_or_address


def add_evaluate_verb(verbs: argparse._SubParsersAction) -> None:
    """Add the verb `evaluate`."""
    evaluate = verbs.add_parser(
        "evaluate",
        help="measure a checkpoint on held-out episodes and in its simulator",
        description="Writes evaluation.json, and then report.html with pictures. The simulator "
        "that the config names plays policies of its own dataset; several hosts have recorded data "
        "alone.",
    )
    evaluate.add_argument(
        "--checkpoint",
        required=True,
        type=path_or_address,
        help="a run's folder, or one step's in it; like the next three also at gs://",
    )
    evaluate.add_argument(
        "--output", type=path_or_address, help="default: evaluation, in the run's folder"
    )
    evaluate.add_argument(
        "--autoencoder",
        type=path_or_address,
        help="a checkpoint with it, where a converted policy lacks it",
    )
    evaluate.add_argument(
        "--text-table",
        type=path_or_address,
        help="of encode-text, where a converted policy has no text",
    )
    evaluate.add_argument("--data", help="the data's folder, if it is not where it was")
    evaluate.add_argument(
        "--split", help="the episodes, such as 'train[90%%:]'; default: data.eval_split"
    )
    evaluate.add_argument(
        "--dataset", help="of several that it was trained on, the one to take; default: all"
    )
    evaluate.add_argument(
        "--samples",
        type=count_or_all,
        default=512,
        help="recorded samples of each dataset, spread over the split, or 'all'; default: 512",
    )
    evaluate.add_argument(
        "--batch-size",
        type=int,
        default=64,
        help="recorded samples at once, over all devices; default: 64",
    )
    evaluate.add_argument("--episodes", type=int, default=100, help="played by each policy variant")
    evaluate.add_argument(
        "--execute-steps", type=int, help="of each chunk, before the next; default: as the config"
    )
    evaluate.add_argument(
        "--delay",
        type=int,
        metavar="STEPS",
        help="play also the policy with chunks that arrive so late, while the robot goes on",
    )
    evaluate.add_argument(
        "--real-time",
        type=methods,
        metavar="METHODS",
        help="with a delay, of naive,guided,identity,trained; default: naive and the best that the "
        "policy offers",
    )
    evaluate.add_argument("--workers", type=int, default=2, help="simulator processes")
    evaluate.add_argument(
        "--resume",
        action="store_true",
        help="go on where an interrupted evaluation was, with recorded data and in the simulator",
    )
    evaluate.add_argument(
        "--record",
        type=Path,
        metavar="DIR",
        help="write what the policy does in the simulator as a dataset (RLDS) in this folder",
    )
    played = evaluate.add_mutually_exclusive_group()
    played.add_argument("--no-simulator", action="store_true", help="recorded data alone")
    played.add_argument("--simulator", help="the one to play; default: that of the config")
    evaluate.add_argument(
        "--option",
        action="append",
        default=[],
        type=option,
        metavar="NAME=VALUE",
        help="of the simulator, in place of all of the config's, such as "
        "--option=\"suites=('libero_goal',)\"; can be repeated",
    )
    add_mesh_arguments(evaluate)
    add_hosts_arguments(evaluate)
    evaluate.set_defaults(run=_evaluate)


def count_or_all(text: str) -> int | None:
    """The limit that `--samples` names; None for all."""
    return None if text == "all" else int(text)


def methods(text: str) -> tuple[str, ...]:
    """`naive,guided`."""
    return tuple(text.split(","))


def option(text: str) -> tuple[str, Any]:
    """A name and its value, a Python literal or else text."""
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise ValueError(text)
    with contextlib.suppress(ValueError, SyntaxError):
        return name, ast.literal_eval(value)
    return name, value


def _evaluate(arguments: argparse.Namespace, rest: list[str]) -> int:
    output = arguments.output
    if isinstance(output, Path) and output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file, expected a folder")
    from imagewam_jax import distributed
    from imagewam_jax.evaluation.evaluate import evaluate

    with together(arguments):
        report = evaluate(
            arguments.checkpoint,
            output,
            autoencoder=arguments.autoencoder,
            text_table=arguments.text_table,
            dataset=arguments.dataset,
            data_directory=arguments.data,
            split=arguments.split,
            samples=arguments.samples,
            batch_size=arguments.batch_size,
            mesh=mesh_of(arguments),
            simulator="" if arguments.no_simulator else arguments.simulator,
            options=dict(arguments.option) or None,
            episodes=arguments.episodes,
            workers=arguments.workers,
            resume=arguments.resume,
            record=arguments.record,
            execute_steps=arguments.execute_steps,
            delay=arguments.delay,
            real_time=arguments.real_time,
        )
        if distributed.is_first():
            print(f"report: {report}")
    return 0
