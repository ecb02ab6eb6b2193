"""`imagewam data <verb>`: index, check, describe, list, show and import datasets; statistics."""

import argparse
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagewam_jax.errors import DataError
from imagewam_jax.paths import path_or_address

FOLDER = "with features.json; or its gs:// or s3:// address"
WHICH = (
    "What is shown is the dataset or the mixture of a config; fields of it can be changed as for "
    "train, such as --config.data.directory=DIR."
)


def add_data_verbs(verbs: argparse._SubParsersAction) -> None:
    """Add the verb `data` with its own verbs."""
    data = verbs.add_parser("data", help="index, check, look at and import datasets")
    verbs = data.add_subparsers(dest="data_verb", required=True, metavar="verb")

    index = verbs.add_parser(
        "index",
        help="make RLDS datasets random-access",
        description="Writes the sidecar index of TFDS dataset versions, checking every record. A "
        "build that was stopped goes on where it was. Training makes it too where there is none.",
    )
    index.add_argument("directories", nargs="+", metavar="DIR", help=FOLDER)
    index.add_argument(
        "--output", type=path_or_address, help="of one index; default: imagewam_index in DIR"
    )
    index.add_argument("--workers", type=int, help="processes; default: as many as help")
    index.add_argument(
        "--available-shards",
        action="store_true",
        help="leave out shards that are not there; the index then names them",
    )
    index.add_argument(
        "--beam",
        action="store_true",
        help="as an Apache Beam pipeline; what follows are its options, such as --runner=...",
    )
    index.set_defaults(run=_index, passes_on=True)

    check = verbs.add_parser(
        "check",
        help="read every byte of RLDS datasets and report what is wrong",
        description="Verifies every checksum, decodes every image, and reports what is bad: frames "
        "that cannot be read, black images, numbers that are not finite, empty instructions, "
        "episodes of an odd length; an index is compared where there is one. The exit code is 1 "
        "when something cannot be read.",
    )
    check.add_argument("directories", nargs="+", metavar="DIR", help=FOLDER)
    check.add_argument(
        "--index", type=path_or_address, help="of one DIR; default: imagewam_index in it"
    )
    check.add_argument("--workers", type=int, help="processes; default: one per core")
    check.set_defaults(run=_check)

    describe = verbs.add_parser(
        "describe",
        help="say what is in an RLDS dataset, and suggest the config that trains on it",
        description="Prints episodes, steps, keys with shape, dtype and an example, cameras and "
        "instructions of a dataset that the registry need not know, and a row for `data.rows` with "
        "a reason for each guess, ready to paste. A dataset without an index is indexed first, "
        "which is one pass over its bytes and what training needs, too.",
    )
    describe.add_argument(
        "directory",
        metavar="DIR",
        help="a version folder, or one of a dataset above it; or its gs:// or s3:// address",
    )
    describe.add_argument(
        "--index-directory",
        type=path_or_address,
        metavar="DIR",
        help="data.index_directory; default: in DIR",
    )
    describe.add_argument(
        "--workers", type=int, help="processes that index; default: as many as help"
    )
    describe.set_defaults(run=_describe)

    known = verbs.add_parser(
        "list",
        help="print the registry",
        description="Prints the datasets that are known, how they are read, and the mixtures.",
    )
    known.set_defaults(run=_list)

    show = verbs.add_parser(
        "show",
        help="make a page to look at a dataset or a mixture",
        description="Writes a page with pictures of episodes, plots of actions and states, "
        "instructions, and numbers before and after normalisation, with the warnings of stats. "
        + WHICH
        + " Without a config "
        "it is the dataset of DIR, with all cameras of its row in the registry.",
    )
    show.add_argument("directory", nargs="?", metavar="DIR", help=FOLDER)
    show.add_argument("--row", metavar="NAME", help="in the registry; default: DIR's own name")
    show.add_argument("--config", help="a config file, instead of DIR")
    show.add_argument("--output", type=Path, default=Path("data.html"), help="default: data.html")
    show.add_argument("--part", help="of each dataset; default: the config's data.train_split")
    show.add_argument("--episodes", type=int, default=4, help="of each dataset; default: 4")
    show.set_defaults(run=_show)

    stats = verbs.add_parser(
        "stats",
        help="compute statistics of actions and states",
        description="Prints the statistics that normalise actions and states; training computes "
        "the same. Warns of outliers, of dimensions that hardly vary, and of actions that lag or "
        "lead the state. " + WHICH,
    )
    stats.add_argument("--config", required=True, help="a config file")
    stats.add_argument("--part", help="of each dataset; default: the config's data.train_split")
    stats.add_argument(
        "--official",
        type=Path,
        metavar="FILE",
        help="also write the dataset_stats.json of the official code, which computes otherwise",
    )
    stats.set_defaults(run=_stats)

    lerobot = verbs.add_parser(
        "import-lerobot",
        help="convert a LeRobot dataset to RLDS",
        description="Writes a LeRobot dataset (v2.1 or v3.0, parquet and video) as RLDS.",
    )
    lerobot.add_argument("source", type=Path, metavar="SOURCE", help="with meta/info.json")
    lerobot.add_argument("--output", type=Path, required=True, help="folder of all RLDS datasets")
    lerobot.add_argument("--name", help="of the new dataset; default: that of the folder")
    lerobot.add_argument("--version", default="1.0.0", help="default: 1.0.0")
    lerobot.add_argument("--episodes", help="some of them, such as 0:50; default: all")
    lerobot.add_argument("--workers", type=int, help="processes; default: one per core")
    lerobot.add_argument("--jpeg-quality", type=int, default=95, help="default: 95")
    lerobot.add_argument(
        "--size", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="default: as recorded"
    )
    lerobot.add_argument(
        "--skip", action="append", default=[], metavar="KEY", help="a feature to leave out"
    )
    lerobot.add_argument(
        "--allow-not-finite", action="store_true", help="keep actions and states that hold NaNs"
    )
    lerobot.add_argument(
        "--allow-unused-frames", action="store_true", help="of videos longer than their episodes"
    )
    lerobot.set_defaults(run=_import_lerobot)


def _index(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.data.index.build import build_index
    from imagewam_jax.data.index.kept_index import index_here
    from imagewam_jax.storage.objects import as_path, is_remote

    if arguments.output and len(arguments.directories) > 1:
        raise DataError("--output is the index of one DIR, several are given")
    if rest and not arguments.beam:
        raise DataError(f"unknown arguments: {' '.join(rest)}")
    which = {"available_shards": arguments.available_shards}
    for directory in arguments.directories:
        output = arguments.output and as_path(arguments.output)
        if arguments.beam:
            from imagewam_jax.data.index.beam import build_index_with_beam

            if output and is_remote(output):
                raise DataError(f"--beam: its workers share a folder, which {output} is not")
            index = build_index_with_beam(directory, output, options=rest, **which)
        else:
            with contextlib.ExitStack() as stack:
                here = output and stack.enter_context(index_here(output))
                index = build_index(directory, here, workers=arguments.workers, **which)
        for name, split in index.splits.items():
            print(f"{index.name}/{name}: {split.num_episodes} episodes, {split.num_frames} steps")
        for name, shards in index.left_out.items():
            print(f"{index.name}/{name}: {len(shards)} shards left out: {', '.join(shards)}")
        for key, why in index.skipped.items():
            print(f"{index.name}: {key} is not indexed: {why}")
    return 0


def _check(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.data.index.kept_index import index_here
    from imagewam_jax.data.tools.check import check_dataset
    from imagewam_jax.storage.objects import as_path

    if arguments.index and len(arguments.directories) > 1:
        raise DataError("--index is that of one DIR, several are given")
    bad = False
    for directory in arguments.directories:
        # Decoding takes far longer than a process takes to start.
        workers = arguments.workers or os.cpu_count()
        with contextlib.ExitStack() as stack:
            index = arguments.index and stack.enter_context(index_here(as_path(arguments.index)))
            report = check_dataset(directory, index, workers=workers)
        print(report.text())
        bad |= report.bad
    return int(bad)


def _describe(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.config.defaults import defaults
    from imagewam_jax.data.tools.describe.report import describe
    from imagewam_jax.storage.objects import as_path
    from imagewam_jax.text.encoders import make_prompt, make_text_encoder

    section = defaults().text.to_dict()
    encoder = make_text_encoder(section)

    def count_tokens(instructions: Sequence[str]) -> int:
        prompts = [make_prompt(section["template"], text) for text in instructions]
        most = max(len(prompt.encode()) for prompt in prompts) + 8  # and what frames a prompt
        return int(encoder.tokenize(prompts, most).length.max())

    print(
        describe(
            arguments.directory,
            count_tokens,
            index_directory=arguments.index_directory and as_path(arguments.index_directory),
            workers=arguments.workers,
        )
    )
    return 0


def _list(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.data.registry import REGISTRY
    from imagewam_jax.data.registry.mixtures import MIXTURES
    from imagewam_jax.data.tools.listing import dataset_table

    print(dataset_table(REGISTRY.values(), MIXTURES))
    return 0


def _show(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.config.loading import load_config
    from imagewam_jax.data.datasets import config_data, dataset_config
    from imagewam_jax.data.statistics.exact import statistics_by_dataset
    from imagewam_jax.data.tools.show import write_data_page

    if bool(arguments.config) == bool(arguments.directory):
        raise DataError("give either DIR, of one dataset, or --config")
    if arguments.config:
        config = load_config(arguments.config, rest).to_dict()
    else:
        if rest:
            raise DataError(f"unknown arguments: {' '.join(rest)}; fields are those of --config")
        config = dataset_config(arguments.directory, arguments.row)
    part, data = arguments.part or config["data"]["train_split"], config_data(config)
    pooled = config["data"]["pool_statistics"]
    page = write_data_page(
        data,
        part,
        arguments.output,
        episodes=arguments.episodes,
        normalization=config["data"]["normalization"],
        pooled=pooled,
    )
    statistics = statistics_by_dataset(data, part, pooled=pooled)
    for dataset in data.datasets:
        _print_oddities(dataset, part, statistics[dataset.name], config)
    print(f"open {page}")
    return 0


def _stats(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.config.loading import load_config
    from imagewam_jax.data.datasets import config_data
    from imagewam_jax.data.statistics.exact import statistics_by_dataset

    config = load_config(arguments.config, rest).to_dict()
    part, data = arguments.part or config["data"]["train_split"], config_data(config)
    pooled = config["data"]["pool_statistics"]
    by_name = statistics_by_dataset(data, part, pooled=pooled)
    for dataset in data.datasets:
        found = by_name[dataset.name]
        print(
            f"{dataset.name}: {found['source']['episodes']} episodes, "
            f"{found['source']['frames']} steps"
        )
        for field, encoding in (("action", dataset.spec.action), ("state", dataset.spec.state)):
            print(_table(field, encoding.dims, found[field]))
        _print_oddities(dataset, part, found, config)
    if arguments.official:
        _write_official(arguments.official, data, part, config)
    return 0


def _print_oddities(dataset: Any, part: str, statistics: Mapping, config: Mapping) -> None:
    from imagewam_jax.data.statistics.oddities import find_oddities

    for oddity in find_oddities(dataset, part, statistics, config["data"]["normalization"]):
        print(oddity)


def _table(field: str, dims: tuple[str, ...], statistics: Mapping[str, Any]) -> str:
    width = max(len(field), *map(len, dims), 0)
    lines = [f"{field:{width}} " + "".join(f"{name:>12}" for name in statistics)]
    for number, dim in enumerate(dims):
        numbers = "".join(f"{values[number]:12.5g}" for values in statistics.values())
        lines.append(f"{dim:{width}} {numbers}")
    return "\n".join(lines)


def _write_official(path: Path, data: Any, part: str, config: Mapping[str, Any]) -> None:
    from imagewam_jax.data.statistics.official import official_statistics, standardized_episodes
    from imagewam_jax.preprocess.statistics import write_statistics

    episodes = (
        episode
        for selected in (dataset.select(part) for dataset in data.datasets)
        for episode in standardized_episodes(
            selected.split, selected.standardized, selected.episodes.tolist()
        )
    )
    write_statistics(path, official_statistics(episodes, config["model"]["horizon"]))
    print(f"wrote {path}")


def _import_lerobot(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.data.tools.lerobot import import_lerobot

    folder = import_lerobot(
        arguments.source,
        arguments.output,
        name=arguments.name,
        version=arguments.version,
        episodes=arguments.episodes,
        workers=arguments.workers,
        jpeg_quality=arguments.jpeg_quality,
        size=arguments.size and tuple(arguments.size),
        skip=tuple(arguments.skip),
        allow_not_finite=arguments.allow_not_finite,
        allow_unused_frames=arguments.allow_unused_frames,
    )
    print(f"wrote {folder}")
    return 0
