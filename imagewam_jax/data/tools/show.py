"""Writes a page to look at a dataset or a mixture with."""

import collections
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imagewam_jax.data.datasets import Data, Dataset
from imagewam_jax.data.loading.loader import Source
from imagewam_jax.data.loading.splits import selected_steps
from imagewam_jax.data.statistics.exact import dataset_statistics, statistics_by_dataset
from imagewam_jax.data.statistics.oddities import Oddity, find_oddities
from imagewam_jax.data.tools import show_pictures
from imagewam_jax.data.transforms.standardize import NO_TEXT
from imagewam_jax.html.page import Section, picture, write_page
from imagewam_jax.preprocess.normalization import Normalizer, make_normalizer

SHOWN_INSTRUCTIONS = 50
HISTOGRAM_STEPS = 200_000  # more are thinned out evenly


def write_data_page(
    data: Data, split: str, output: Path, *, episodes: int, normalization: str, pooled: bool = False
) -> Path:
    """Writes one self-contained HTML file about a split of each dataset; returns its path.

    split: the name of one, or some of its episodes, such as "train[:95%]".
    episodes: how many of each dataset are shown, spread over the split.
    normalization: a mode of `normalization.make_normalizer`.
    pooled: normalize by the statistics of all datasets together, rather than of each.

    Frames that cannot be read are grey, and listed.
    """
    sources = data.sources(split)
    statistics = statistics_by_dataset(data, split, pooled=pooled)
    sections = [_mixture(sources)] if len(sources) > 1 else []
    for dataset, source in zip(data.datasets, tqdm(sources, desc="datasets"), strict=True):
        normalizers = {
            field: make_normalizer(statistics[dataset.name][field], normalization)
            for field in ("action", "state")
        }
        oddities = find_oddities(dataset, split, statistics[dataset.name], normalization)
        sections += _dataset(dataset, source, split, episodes, normalizers, oddities)
        source.reader.close()
    names = ", ".join(dataset.name for dataset in data.datasets)
    write_page(output, names, f"{split} of each, normalised by {normalization}", sections)
    return output


def _mixture(sources: list[Source]) -> Section:
    total = sum(len(source.start_frames) for source in sources)
    there = {s.reader.dataset.name: len(s.start_frames) / total for s in sources}
    drawn = {s.reader.dataset.name: s.share for s in sources}
    rows = [("dataset", "samples", "share of all", "share drawn")]
    rows += [
        (
            s.reader.dataset.name,
            f"{len(s.start_frames):,}",
            f"{there[s.reader.dataset.name]:.2%}",
            f"{s.share:.2%}",
        )
        for s in sources
    ]
    chart = show_pictures.shares({name: (drawn[name], there[name]) for name in drawn})
    return Section("Mixture", "", rows, [picture(chart)])


def _dataset(
    dataset: Dataset,
    source: Source,
    split: str,
    episodes: int,
    normalizers: Mapping[str, Normalizer],
    oddities: Sequence[Oddity],
) -> Iterator[Section]:
    yield _description(dataset, source, split)
    if oddities:
        rows = [("", ""), *(str(oddity).split(": ", 1) for oddity in oddities)]
        yield Section(f"{dataset.name}: oddities of the numbers", "", rows)
    yield _sheets(dataset, source, split, episodes)
    yield _instructions(dataset, source)
    yield from _numbers(dataset, source, split, episodes, normalizers)


def _description(dataset: Dataset, source: Source, split: str) -> Section:
    spec, indexed = dataset.spec, source.reader.split
    selected = dataset.select(split)
    steps = selected.standardized.episode_steps[selected.episodes]
    sizes = {
        role: np.unique(indexed.images[camera.key].size_ehw, axis=0).tolist()
        for role, camera in spec.cameras
        if camera.key in indexed.images
    }
    rows = [
        ("", ""),
        ("folder", str(indexed.shards[0].parent)),
        ("version", f"{dataset.index.name} {dataset.index.version}"),
        ("index", dataset.index.checksum),
        ("episodes", f"{len(steps):,}"),
        ("steps", f"{steps.sum():,}"),
        ("samples", f"{len(source.start_frames):,}"),
        ("control rate", f"{spec.control_hz:g} Hz"),
        ("transform", ", ".join([spec.transform, *spec.filters, *spec.drop_filters])),
        ("instructions at", ", ".join(spec.language) or "none"),
    ]
    rows += [
        (
            f"camera {role}",
            f"{camera.key}, {sizes.get(role, 'not indexed')}"
            + (", BGR" if camera.bgr else "")
            + (", upside down" if camera.upside_down else ""),
        )
        for role, camera in spec.cameras
    ]
    for field in ("action", "state"):
        encoding = getattr(spec, field)
        dims = [
            dim + (" (relative)" if relative else "")
            for dim, relative in zip(encoding.dims, encoding.relative, strict=True)
        ]
        rows.append((f"{field}: {encoding.name}", ", ".join(dims) or "none"))
    return Section(dataset.name, "", rows, [picture(show_pictures.lengths(np.asarray(steps)))])


def _chosen(dataset: Dataset, split: str, count: int) -> list[tuple[int, int, int]]:
    """Chooses episodes spread over a split, without empty ones: (number, first frame, steps)."""
    indexed, standardized, numbers = dataset.select(split)
    start = indexed.episode_start
    numbers = numbers[standardized.episode_steps[numbers] > 0]
    spread = np.unique(np.linspace(0, len(numbers) - 1, min(count, len(numbers))).astype(int))
    return [(int(n), int(start[n]), int(standardized.episode_steps[n])) for n in numbers[spread]]


def _sheets(dataset: Dataset, source: Source, split: str, episodes: int) -> Section:
    reader, pictures, problems = source.reader, [], []
    for number, start, steps in _chosen(dataset, split, episodes):
        sheet = show_pictures.contact_sheet(reader, start, steps)
        row = reader.standardized.text_ids[start, 0]
        text = "no instruction" if row == NO_TEXT else dataset.standardized.instructions[row]
        pictures.append(picture(sheet.jpeg, f"episode {number}, {steps} steps: {text}"))
        problems += sheet.problems
    cameras = ", ".join(reader.sample.cameras)
    text = (
        f"Cameras, above each other: {cameras}; of each the current image and the target "
        f"{reader.sample.horizon * reader.sample.stride} steps on. Orange: behind the end."
    )
    if problems:
        text += f" Unreadable: {'; '.join(problems)}"
    return Section(f"{dataset.name}: episodes", text, (), pictures)


def _instructions(dataset: Dataset, source: Source) -> Section:
    ids = source.reader.standardized.text_ids[source.start_frames]
    counts = collections.Counter(ids[ids != NO_TEXT].tolist())
    most = counts.most_common(SHOWN_INSTRUCTIONS)
    rows = [("instruction", "samples")]
    rows += [(dataset.standardized.instructions[row], f"{count:,}") for row, count in most]
    without = int((ids[:, 0] == NO_TEXT).sum())
    text = f"{len(counts)} instructions, {without} samples without one."
    if len(counts) > len(most):
        text += f" The {len(most)} most frequent ones:"
    return Section(f"{dataset.name}: instructions", text, rows)


def _numbers(
    dataset: Dataset,
    source: Source,
    split: str,
    episodes: int,
    normalizers: Mapping[str, Normalizer],
) -> Iterator[Section]:
    """Sections of actions and states: curves of episodes, and histograms before and after
    normalization."""
    standardized = source.reader.standardized
    statistics = dataset_statistics([dataset], split)
    chosen, frames = _chosen(dataset, split, episodes), selected_steps(dataset.select(split))
    frames = frames[:: -(-len(frames) // HISTOGRAM_STEPS)]
    can_start = [standardized.can_start[start : start + steps] for _, start, steps in chosen]
    for field, values in (("action", standardized.actions), ("state", standardized.states)):
        dims = getattr(dataset.spec, field).dims
        if not dims:
            continue
        sample = values[frames]
        normalized = normalizers[field].normalize(sample)
        found = statistics[field]
        rows = [("", "min", "q01", "mean", "q99", "max", "std", "beyond [-1, 1]")]
        for number, dim in enumerate(dims):
            numbers = (found[name][number] for name in ("min", "q01", "mean", "q99", "max", "std"))
            constant = " (constant)" if found["max"][number] == found["min"][number] else ""
            beyond = (np.abs(normalized[:, number]) > 1 + 1e-6).mean()
            rows.append((dim + constant, *(f"{x:.4g}" for x in numbers), f"{beyond:.1%}"))
        curves = [values[start : start + steps] for _, start, steps in chosen]
        text = f"Of {len(frames):,} steps; a line is an episode, grey where no sample starts."
        yield Section(
            f"{dataset.name}: {field}",
            text,
            rows,
            [
                picture(show_pictures.curves(curves, can_start, list(dims))),
                picture(
                    show_pictures.histograms(sample, normalized, dims),
                    "in their own units, and below normalised, with [-1, 1] shaded; log counts",
                ),
            ],
        )
