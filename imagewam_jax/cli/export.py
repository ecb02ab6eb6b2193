"""`imagewam export`: write a checkpoint in foreign layouts."""

import argparse
from pathlib import Path

from imagewam_jax.paths import path_or_address

EXPORT = """\
Writes what a checkpoint holds in the layouts of others. PATH is a folder that is not there yet:

  official    model.pt, as the official code loads it, train_config.yaml and, where statistics are
              known, dataset_stats.json; needs PyTorch
  flux2       transformer.safetensors and ae.safetensors, in the original FLUX.2 layout; PATH can
              be a .safetensors file where the checkpoint has one of the two
  ovis_u1     transformer.safetensors and vae.safetensors, named as in Ovis-U1-3B below
              visual_generator.backbone and visual_generator.vae; PATH can be a file, likewise
  diffusers   transformer/ and vae/, for from_pretrained

All but official take the transformer of a policy alone: its action expert is not part of these
layouts. Text encoders are not written: nothing here changes them.
"""


def add_export_verb(verbs: argparse._SubParsersAction) -> None:
    """Add the verb `export`."""
    export = verbs.add_parser(
        "export",
        help="write a checkpoint in foreign layouts",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=EXPORT,
    )
    export.add_argument(
        "checkpoint",
        type=path_or_address,
        help="a run's folder, or one step's in it; also at gs://",
    )
    export.add_argument(
        "--format", required=True, choices=["official", "flux2", "ovis_u1", "diffusers"]
    )
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
