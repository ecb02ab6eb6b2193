"""`imagewam verify` and `imagewam record`: compare a checkpoint with recordings, and make them."""

import argparse
from pathlib import Path

from imagewam_jax.errors import ConfigError
from imagewam_jax.paths import path_or_address

VERIFY = """\
Repeats recorded runs and prints the error of every tensor beside what it may be; the exit code is
1 when one is beyond its limit. REFERENCE_DIR is a folder of .safetensors files and a config.json,
or of such folders; a folder without .safetensors can have .npz or .pt files instead. What was
recorded is told from the tensors:

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


def add_parity_verbs(verbs: argparse._SubParsersAction) -> None:
    """Add the verbs `verify` and `record`."""
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
        runs.add_argument(
            "checkpoint", type=path_or_address, help="a run's folder, or one step's; also at gs://"
        )
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


def _verify(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.parity.verify import verify, write_json

    if arguments.json and not arguments.json.absolute().parent.is_dir():
        raise ConfigError(f"--json {arguments.json}: no such folder to write it in")
    if arguments.json and arguments.json.is_dir():
        raise ConfigError(f"--json {arguments.json} is a folder, expected a file's name")
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
