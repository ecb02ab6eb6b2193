"""Fills a table of text features, batch by batch, so that a killed run loses one batch.

FILE          the table, once it is complete
FILE.parts/   until then, a table for each batch
"""

import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imagewam_jax.config.schema import named_config
from imagewam_jax.errors import DataError
from imagewam_jax.files import lock_beside, only_writer
from imagewam_jax.models.backbones import BACKBONES
from imagewam_jax.models.text_encoders.base import TextEncoder, Tokens
from imagewam_jax.storage.folders import file_to_write
from imagewam_jax.storage.objects import AnyPath
from imagewam_jax.text.encoders import (
    check_width,
    make_prompt,
    make_text_encoder,
    tokenize_prompts,
)
from imagewam_jax.text.tables import TextTableFile, open_text_table, write_text_table


def fill_text_table(
    config: Mapping[str, Any], instructions: Iterable[str], path: AnyPath
) -> TextTableFile:
    """Encodes those of some instructions that a table lacks; its other prompts stay in it.

    DataError: `path`, or what a killed run left beside it, is not a table of the config's encoder.
    ConfigError: the config's model cannot read the features of this encoder. InUseError: another
    process fills it.
    """
    section = config["text"]
    encoder = make_text_encoder(section)
    backbone = named_config(config["model"]["backbone"], BACKBONES, "model.backbone")
    check_width(backbone.text_dim, encoder.feature_dim)
    prompts = sorted({make_prompt(section["template"], each) for each in instructions})
    with (
        file_to_write(path) as file,
        only_writer(lock_beside(file), "imagewam encode-text"),
    ):
        parts = file.with_name(f"{file.name}.parts")
        left = sorted(parts.glob("*.safetensors"))  # by a run that was killed
        tables = [open_text_table(each) for each in (file, *left) if each.exists()]
        for table in tables:
            table.check_encoder(encoder.identity)
        known = {prompt for table in tables for prompt in table.prompts}
        missing = [prompt for prompt in prompts if prompt not in known]
        print(f"{len(prompts)} prompts, {len(prompts) - len(missing)} of them encoded before")
        if missing:
            tokens = tokenize_prompts(encoder, missing, section)
            first = int(left[-1].stem) + 1 if left else 0
            tables += _encode(encoder, missing, tokens, parts, first)
        if missing or left:
            _merge(tables, file)
        shutil.rmtree(parts, ignore_errors=True)
    return open_text_table(path)


def read_instructions(path: Path) -> list[str]:
    """The lines of a text file but empty ones. DataError: there are none."""
    try:
        # Not splitlines: an instruction may hold other characters at which that cuts.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no file of instructions: {error}") from error
    instructions = [line.strip() for line in lines if line.strip()]
    if not instructions:
        raise DataError(f"{path}: no instruction in it, expected one per line")
    return instructions


def _encode(
    encoder: TextEncoder, prompts: Sequence[str], tokens: Tokens, parts: Path, first: int
) -> list[TextTableFile]:
    """Writes a table for each batch, which is complete if it exists; numbers start at `first`."""
    return [
        write_text_table(
            parts / f"{number:06}.safetensors",
            [prompts[row] for row in batch.rows],
            tokens.length[batch.rows],
            batch.features,
            encoder.feature_dim,
            encoder.identity,
        )
        for number, batch in enumerate(encoder.encode(tokens), start=first)
    ]


def _merge(tables: Sequence[TextTableFile], path: Path) -> None:
    """Merges tables into one, a prompt at a time."""
    lengths: dict[str, int] = {}
    rows = []
    for table in tables:
        new = dict(zip(table.prompts, table.lengths, strict=True))
        new = {prompt: length for prompt, length in new.items() if prompt not in lengths}
        lengths |= new
        rows.append(table.rows(new))
    write_text_table(
        path,
        list(lengths),
        list(lengths.values()),
        itertools.chain.from_iterable(rows),
        tables[0].channels,
        tables[0].encoder,
    )
