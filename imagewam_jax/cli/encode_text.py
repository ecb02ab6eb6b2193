"""`imagewam encode-text`: encode instructions once, into a table of text features."""

import argparse
from pathlib import Path

from imagewam_jax.paths import path_or_address


def add_encode_text_verb(verbs: argparse._SubParsersAction) -> None:
    """Add the verb `encode-text`."""
    encode = verbs.add_parser(
        "encode-text",
        help="encode a dataset's instructions once",
        description="Writes a table of text features for --config.text.table, or adds what it "
        "lacks to one; a run that was killed goes on where it was. Fields of the config can be "
        "changed as for train.",
    )
    encode.add_argument("--config", required=True, help="a config file")
    encode.add_argument("--output", required=True, type=path_or_address, help="a .safetensors file")
    encode.add_argument(
        "--prompts", type=Path, help="a text file, an instruction a line, in place of the dataset"
    )
    encode.set_defaults(run=_encode_text)


def _encode_text(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.config.loading import load_config
    from imagewam_jax.data.datasets import config_data
    from imagewam_jax.storage.objects import as_path
    from imagewam_jax.text.fill import fill_text_table, read_instructions

    config = load_config(arguments.config, rest).to_dict()
    if arguments.prompts:
        instructions = read_instructions(arguments.prompts)
    else:
        instructions = config_data(config).instructions
    table = fill_text_table(config, instructions, as_path(arguments.output))
    print(
        f"{table.path}: {len(table.prompts)} prompts, {table.lengths.sum()} tokens of "
        f"{table.channels} channels"
    )
    return 0
