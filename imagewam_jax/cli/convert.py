"""`imagewam convert`: make a checkpoint of foreign weights."""

import argparse
import contextlib
from pathlib import Path

from imagewam_jax.errors import ConfigError
from imagewam_jax.paths import path_or_address
from imagewam_jax.weights.overrides import OVERRIDES, parse_overrides

CONVERT = """\
Makes a checkpoint of weights in the layouts of others. A SOURCE is a file of safetensors or of
PyTorch (.pt, .bin), the index of such files, or a folder that has them; one at a gs:// or s3://
address is first copied to $TMPDIR. What it is, is told from its tensors, whose names can have
prefixes of trainers:

  FLUX.2 [klein] transformer    original or diffusers layout
  FLUX.2 autoencoder            original or diffusers layout
  OmniGen2 transformer          diffusers layout
  Ovis-U1 transformer           released layout, alone or in Ovis-U1-3B
  AutoencoderKL                 diffusers layout, as OmniGen2's, or in Ovis-U1-3B
  Qwen3                         Hugging Face layout, with its tokenizer
  ImageWAM checkpoint           official, on FLUX.2, OmniGen2 or Ovis-U1: plain, LoRA merged or
                                not, or trained tensors only (the transformer that these were
                                trained from is another SOURCE)

Several sources become one checkpoint. What tensors do not tell is read from config.json,
train_config.yaml or config.yaml beside a source, statistics from dataset_stats.json (or give
--statistics); or give it with --set:

"""


def add_convert_verb(verbs: argparse._SubParsersAction) -> None:
    """Add the verb `convert`."""
    convert = verbs.add_parser(
        "convert",
        help="make a checkpoint of foreign weights",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=CONVERT + "\n".join(f"  {k:24}{v.help}" for k, v in OVERRIDES.items()),
    )
    convert.add_argument("sources", nargs="+", type=path_or_address, metavar="SOURCE")
    convert.add_argument(
        "--to",
        required=True,
        type=path_or_address,
        help="the folder of the new checkpoint, or its address at gs://",
    )
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
    convert.add_argument(
        "--statistics",
        type=Path,
        metavar="FILE",
        help="a policy's dataset_stats.json, if it does not lie beside the weights",
    )
    convert.add_argument("--config", help="a policy's data, text and evaluation sections")
    convert.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.config.loading import load_config
    from imagewam_jax.data.datasets import resolve_widths
    from imagewam_jax.storage.folders import fetched
    from imagewam_jax.storage.objects import as_path
    from imagewam_jax.weights.convert import convert

    if rest and not arguments.config:
        raise ConfigError(f"unknown arguments: {' '.join(rest)}")
    config = load_config(arguments.config, rest).to_dict() if arguments.config else None
    config = config and resolve_widths(config)
    with contextlib.ExitStack() as stack:
        convert(
            [stack.enter_context(fetched(as_path(source))) for source in arguments.sources],
            as_path(arguments.to),
            overrides=parse_overrides(arguments.set),
            dtype=arguments.dtype,
            expert=arguments.expert_init,
            config=config,
            statistics=arguments.statistics,
        )
    return 0
