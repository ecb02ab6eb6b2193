"""`imagewam <verb>`: one entry point for everything a user runs."""

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from imagewam_jax.cli.aot import add_aot_verb
from imagewam_jax.cli.data import add_data_verbs
from imagewam_jax.config.loading import load_config
from imagewam_jax.errors import ConfigError, UserError
from imagewam_jax.weights.overrides import OVERRIDES

CONVERT = """\
Makes a checkpoint of weights in the layouts of others. A SOURCE is a safetensors file, a folder
of them (with or without an index), or a .pt file; what it is, is told from its tensors:

  FLUX.2 [klein] transformer    original or diffusers layout
  FLUX.2 autoencoder            original or diffusers layout
  Qwen3                         Hugging Face layout, with its tokenizer
  ImageWAM checkpoint           official: plain, LoRA merged or not, or trained tensors only (the
                                transformer that these were trained from is another SOURCE)

Several sources become one checkpoint. What tensors do not tell is read from config.json,
train_config.yaml or config.yaml beside a source, statistics from dataset_stats.json; or give it
with --set:

"""

EXPORT = """\
Writes what a checkpoint holds in the layouts of others. PATH is a folder that is not there yet:

  official    model.pt, as the official code loads it, train_config.yaml and, where statistics are
              known, dataset_stats.json; needs PyTorch
  flux2       transformer.safetensors and ae.safetensors, in the original FLUX.2 layout; PATH can
              be a .safetensors file where the checkpoint has one of the two
  diffusers   transformer/ and vae/, for from_pretrained

flux2 and diffusers take the transformer of a policy alone: its action expert is not part of these
layouts. Text encoders are not written: nothing here changes them.
"""

VERIFY = """\
Repeats recorded runs and prints the error of every tensor beside what it may be; the exit code is
1 when one is beyond its limit. REFERENCE_DIR is a folder of .safetensors files and a config.json,
or of such folders. What was recorded is told from the tensors:

  transformer     velocities with and without a reference image, guided sampling, rotation tables
  autoencoder     moments, latents and images
  text encoder    features, and the states that they are made of
  policy          a training step with its losses, every layer and gradients; acting with keys,
                  values and every Euler step; imagined images
  weights         in a layout that convert knows, or first weights of an action expert

What is recorded and not compared is listed with the reason.
"""

RECORD = """\
Runs what a checkpoint holds on small random inputs and writes both in the layout that verify
reads, a folder for each part, under the names and in the layouts of the official code.
"""


def main(argv: Sequence[str] | None = None) -> int:
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant to be so
    parser = argparse.ArgumentParser(prog="imagewam", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    train = verbs.add_parser(
        "train",
        help="train a policy on RLDS demonstrations",
        description="Trains a policy. Any field of the config can be changed: "
        "--config.train.steps=100. SIGTERM makes it save and end with exit code 75.",
    )
    train.add_argument("--config", required=True, help="such as configs/quickstart.py")
    train.add_argument("--workdir", required=True, type=Path, help="the folder of the run")
    train.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint, if any"
    )
    hosts = train.add_argument_group(
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
    evaluate.add_argument(
        "--autoencoder", type=Path, help="a checkpoint with it, where a converted policy lacks it"
    )
    evaluate.add_argument(
        "--text-table", type=Path, help="of encode-text, where a converted policy has no text"
    )
    evaluate.add_argument("--data", help="the data's folder, if it is not where it was")
    evaluate.add_argument("--dataset", help="of several that it was trained on, the one to take")
    evaluate.add_argument("--episodes", type=int, default=100, help="played for each way to act")
    evaluate.add_argument("--workers", type=int, default=2, help="simulator processes")
    evaluate.add_argument("--no-simulator", action="store_true", help="recorded data alone")
    evaluate.set_defaults(run=_evaluate)
    add_data_verbs(verbs)
    add_aot_verb(verbs)

    encode = verbs.add_parser(
        "encode-text",
        help="encode a dataset's instructions once",
        description="Writes a table of text features for --config.text.table, or adds what it "
        "lacks to one; a run that was killed goes on where it was. Fields of the config can be "
        "changed as for train.",
    )
    encode.add_argument("--config", required=True, help="a config file")
    encode.add_argument("--output", required=True, type=Path, help="a .safetensors file")
    encode.add_argument(
        "--prompts", type=Path, help="a text file, an instruction a line, in place of the dataset"
    )
    encode.set_defaults(run=_encode_text)

    convert = verbs.add_parser(
        "convert",
        help="make a checkpoint of foreign weights",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=CONVERT + "\n".join(f"  {k:24}{v.help}" for k, v in OVERRIDES.items()),
    )
    convert.add_argument("sources", nargs="+", type=Path, metavar="SOURCE")
    convert.add_argument("--to", required=True, type=Path, help="the folder of the new checkpoint")
    convert.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="what no file says"
    )
    convert.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default: that of the source"
    )
    convert.add_argument(
        "--expert-init",
        nargs="?",
        const="official",
        choices=["official", "aligned"],
        help="also make first weights of an action expert from a transformer; aligned: without "
        "mixing q, k, v and MLP rows of fused matrices, as the official recipe does",
    )
    convert.add_argument("--config", help="a policy's data, text and evaluation sections")
    convert.set_defaults(run=_convert)

    export = verbs.add_parser(
        "export",
        help="write a checkpoint in foreign layouts",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=EXPORT,
    )
    export.add_argument("checkpoint", type=Path, help="a run's folder, or one step's in it")
    export.add_argument("--format", required=True, choices=["official", "flux2", "diffusers"])
    export.add_argument("--to", required=True, type=Path, metavar="PATH")
    export.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default: that of the checkpoint"
    )
    export.add_argument(
        "--weights",
        choices=["ema", "params"],
        help="of a training run: their moving average, or as they are; default: the average",
    )
    export.add_argument(
        "--max-shard-bytes",
        type=int,
        default=10**10,
        help="of a file of diffusers; larger weights become several files and an index",
    )
    export.set_defaults(run=_export)

    verify = verbs.add_parser(
        "verify",
        help="compare a checkpoint with recorded tensors",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=VERIFY,
    )
    verify.set_defaults(run=_verify)
    record = verbs.add_parser(
        "record",
        help="record what a checkpoint computes, for others to compare with",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=RECORD,
    )
    record.add_argument("--to", required=True, type=Path, metavar="DIR")
    record.add_argument("--seed", type=int, default=0, help="of the inputs; default: 0")
    record.add_argument("--batch", type=int, default=2, help="samples; default: 2")
    record.add_argument(
        "--grid",
        type=int,
        nargs=2,
        default=(2, 3),
        metavar=("ROWS", "COLUMNS"),
        help="latent cells of an image, 16 x 16 pixels each for FLUX.2; default: 2 3",
    )
    record.add_argument("--text-tokens", type=int, default=7, help="of a padded text; default: 7")
    record.add_argument(
        "--gradients",
        action="store_true",
        help="also of a policy's loss; takes as much memory again as the parameters",
    )
    record.set_defaults(run=_record)
    for runs in (verify, record):
        runs.add_argument("checkpoint", type=Path, help="a run's folder, or one step's in it")
        runs.add_argument(
            "--compute-dtype",
            choices=["float32", "bfloat16"],
            default="float32",
            help="what parameters are cast to; limits are those of float32, the default",
        )
        runs.add_argument(
            "--weights",
            choices=["ema", "params"],
            help="of a training run: their moving average, or as they are; default: the average",
        )
    verify.add_argument("references", type=Path, metavar="REFERENCE_DIR")
    verify.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")

    arguments, rest = parser.parse_known_args(argv)
    if rest and not {"config", "passes_on"} & vars(arguments).keys():
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        return arguments.run(arguments, rest)
    except UserError as error:
        # What is wrong is in the message; where it was noticed is not the user's concern.
        print(f"imagewam {arguments.verb}: {error}", file=sys.stderr)
        return 1


def _train(arguments: argparse.Namespace, rest: list[str]) -> int:
    config = load_config(arguments.config, rest)
    from imagewam_jax.training import distributed
    from imagewam_jax.training.metrics.goodput import process_seconds
    from imagewam_jax.training.preemption import EXIT_STATUS, Preempted
    from imagewam_jax.training.train import train

    began = time.perf_counter() - process_seconds()
    distributed.initialize(
        automatic=arguments.distributed,
        coordinator=arguments.coordinator,
        processes=arguments.processes,
        process=arguments.process,
    )
    try:
        train(config, arguments.workdir, resume=arguments.resume, began=began)
    except Preempted as error:
        print(f"imagewam train: {error}; go on with --resume", file=sys.stderr)
        return EXIT_STATUS
    except BaseException as error:
        distributed.end_if_several(
            f"imagewam train: {error}"
            if isinstance(error, UserError)
            else "".join(traceback.format_exception(error))
        )
        raise
    return 0


def _encode_text(arguments: argparse.Namespace, rest: list[str]) -> int:
    config = load_config(arguments.config, rest).to_dict()
    from imagewam_jax.data.datasets import config_data
    from imagewam_jax.text.fill import fill_text_table, read_instructions

    if arguments.prompts:
        instructions = read_instructions(arguments.prompts)
    else:
        instructions = config_data(config).instructions
    table = fill_text_table(config, instructions, arguments.output)
    print(
        f"{table.path}: {len(table.prompts)} prompts, {table.lengths.sum()} tokens of "
        f"{table.channels} channels"
    )
    return 0


def _convert(arguments: argparse.Namespace, rest: list[str]) -> int:
    if rest and not arguments.config:
        raise ConfigError(f"unknown arguments: {' '.join(rest)}")
    config = load_config(arguments.config, rest).to_dict() if arguments.config else None
    from imagewam_jax.weights.convert import convert
    from imagewam_jax.weights.overrides import parse_overrides

    convert(
        arguments.sources,
        arguments.to,
        overrides=parse_overrides(arguments.set),
        dtype=arguments.dtype,
        expert=arguments.expert_init,
        config=config,
    )
    return 0


def _export(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.weights.export import export

    export(
        arguments.checkpoint,
        arguments.format,
        arguments.to,
        dtype=arguments.dtype,
        weights=arguments.weights,
        max_shard_bytes=arguments.max_shard_bytes,
    )
    return 0


def _verify(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.parity.verify import verify, write_json

    if arguments.json and not arguments.json.absolute().parent.is_dir():
        raise ConfigError(f"--json {arguments.json}: no such folder to write it in")
    report = verify(
        arguments.checkpoint,
        arguments.references,
        dtype=arguments.compute_dtype,
        weights=arguments.weights,
    )
    if arguments.json:
        write_json(report, arguments.json)
    return 0 if report.passed else 1


def _record(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.parity.cases.base import Sizes
    from imagewam_jax.parity.record import record

    sizes = Sizes(
        arguments.batch, tuple(arguments.grid), arguments.text_tokens, arguments.gradients
    )
    record(
        arguments.checkpoint,
        arguments.to,
        seed=arguments.seed,
        sizes=sizes,
        dtype=arguments.compute_dtype,
        weights=arguments.weights,
    )
    return 0


def _evaluate(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.evaluation.evaluate import evaluate

    report = evaluate(
        arguments.checkpoint,
        arguments.output,
        autoencoder=arguments.autoencoder,
        text_table=arguments.text_table,
        dataset=arguments.dataset,
        data_directory=arguments.data,
        simulate=not arguments.no_simulator,
        episodes=arguments.episodes,
        workers=arguments.workers,
    )
    print(f"report: {report}")
    return 0
