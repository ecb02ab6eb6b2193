"""Looks for everything that is wrong with a dataset: every checksum, every image, every number.

A check needs no index, since a damaged dataset cannot be indexed. If there is one, images are
compared with the checksums in it, which names the bad frames of a damaged record. Damage does not
stop a check: it is reported, and what lies behind it is read as far as it can be found.
"""

import dataclasses
import io
import math
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
import simplejpeg
from PIL import Image

from imagewam_jax.data.index.build import run_over_shards
from imagewam_jax.data.index.dataset_index import META_FILE, default_index_dir, open_index
from imagewam_jax.data.index.features import Feature, Features
from imagewam_jax.data.index.raw_images import decode_pixels
from imagewam_jax.data.index.records import scan_records
from imagewam_jax.data.index.shard_columns import (
    count_steps,
    counting_order,
    image_size,
    pixel_lists,
    read_feature,
)
from imagewam_jax.data.index.tf_example import parse_example
from imagewam_jax.data.index.tfds_folder import read_tfds_folder, why_absent
from imagewam_jax.errors import DataError
from imagewam_jax.files import damaged_files
from imagewam_jax.storage.objects import AnyPath, as_path, is_remote

# Problems that make a dataset bad, and oddities that public datasets have.
BAD = {
    "missing": "shards that are not there",
    "unreadable": "records that cannot be read",
    "bad frame": "images that cannot be used",
    "not finite": "steps with NaN or infinite numbers",
    "index": "differences from the index",
}
ODD = {
    "left out": "shards that are not there, and that the index leaves out",
    "all-zero image": "images that are all zero",
    "no image": "steps at which a camera has no image",
    "empty instruction": "steps with an empty instruction",
    "not UTF-8": "steps with an instruction that is not UTF-8",
    "length": "episodes of an unusual length",
    "one step": "episodes of one step",
    "no steps": "episodes without steps",
}
PLACES = 100
# An episode's length is unusual when its logarithm lies this many robust standard deviations
# (1.4826 times the median absolute deviation, and never less than 0.1) from the split's median.
OUTLIER_DEVIATIONS = 5.0
SMALLEST_DEVIATION = 0.1


class Place(NamedTuple):
    """Where a problem is. `episode` counts in the split (-1: not known), `record` in the shard."""

    split: str
    shard: str
    record: int
    episode: int
    step: int | None
    why: str

    def __str__(self) -> str:
        parts = [self.split] if self.split else []
        if self.episode >= 0:
            parts.append(f"episode {self.episode}")
        elif self.record >= 0:
            parts.append(f"record {self.record}")
        if self.step is not None:
            parts.append(f"step {self.step}")
        where = ", ".join(parts) + (f" ({self.shard})" if self.shard else "")
        return f"{where}: {self.why}" if where else self.why


@dataclasses.dataclass(frozen=True)
class Finding:
    """One problem in one feature: how often it occurs, and the first `PLACES` places of it."""

    problem: str
    key: str
    count: int
    places: tuple[Place, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a check has read and found."""

    name: str
    version: str
    shards: int
    episodes: int
    frames: int
    images: int
    findings: tuple[Finding, ...]

    @property
    def bad(self) -> bool:
        """Whether a problem of `BAD` was found."""
        return any(finding.problem in BAD for finding in self.findings)

    def text(self, places: int = 10) -> str:
        """The report as text, with up to so many places of each finding."""
        lines = [
            f"{self.name} {self.version}: {self.shards} shards, {self.episodes} episodes, "
            f"{self.frames} frames, {self.images} images"
        ]
        for finding in self.findings:
            mark = "BAD" if finding.problem in BAD else "odd"
            key = f" in {finding.key!r}" if finding.key else ""
            lines.append(f"{mark}: {finding.count} {(BAD | ODD)[finding.problem]}{key}")
            lines += [f"    {place}" for place in finding.places[:places]]
            if finding.count > min(places, len(finding.places)):
                lines.append(f"    and {finding.count - min(places, len(finding.places))} more")
        verdict = "something is bad" if self.bad else "nothing is bad"
        return "\n".join([*lines, verdict])


def check_dataset(
    dataset_dir: AnyPath | str,
    index_dir: Path | str | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Reads every byte of a TFDS version folder, decodes every image, and reports what it finds.

    An index is used if there is one. DataError: the folder is not an RLDS dataset at all.
    """
    folder = read_tfds_folder(as_path(dataset_dir))
    found = _Found()
    pinned, left_out = _from_index(folder.path, index_dir, found)
    jobs, sizes = [], []
    for split in folder.splits.values():
        absent = why_absent(split.shards)
        for path, why, size in zip(split.shards, absent, split.shard_bytes(), strict=True):
            if why:
                problem = "left out" if path.name in left_out else "missing"
                found.add(problem, "", Place(split.name, path.name, -1, -1, None, why))
            else:
                jobs.append((path, folder.features, pinned.get(path)))
                sizes.append(size)
    shards = [job[0] for job in jobs]
    results = run_over_shards(_check_shard, jobs, sizes, workers, progress, "checking")
    done = {shards[number]: result for number, result in results}
    episodes = images = frames = 0
    for split in folder.splits.values():
        # The counts in dataset_info.json number episodes, however many could be read.
        first = 0
        lengths = []
        for path, listed in zip(split.shards, split.shard_records, strict=True):
            name, result = path.name, done.get(path)
            if result is None:
                first += listed
                continue
            found.merge(result.found, split.name, first)
            if result.records != listed:
                why = f"{result.records} records, dataset_info.json lists {listed}"
                found.add("unreadable", "", Place(split.name, name, result.records, -1, None, why))
            lengths += [(name, r, first + r, steps) for r, steps in result.lengths]
            first += listed
            images += result.images
        episodes += len(lengths)
        frames += sum(steps for *_, steps in lengths)
        _judge_lengths(split.name, lengths, found)
    return Report(
        folder.name, folder.version, len(shards), episodes, frames, images, found.findings()
    )


class _Found:
    """Findings by problem and feature: counts, and the first `PLACES` places of each."""

    def __init__(self):
        self._counts: dict[tuple[str, str], int] = {}
        self._places: dict[tuple[str, str], list[Place]] = {}

    def add(self, problem: str, key: str, place: Place) -> None:
        self._counts[problem, key] = self._counts.get((problem, key), 0) + 1
        places = self._places.setdefault((problem, key), [])
        if len(places) < PLACES:
            places.append(place)

    def merge(self, other: "_Found", split: str, first: int) -> None:
        """Adds what was found in a shard of a split, whose records are episodes from `first` on."""
        for item, count in other._counts.items():
            self._counts[item] = self._counts.get(item, 0) + count
            places = self._places.setdefault(item, [])
            for place in other._places[item][: PLACES - len(places)]:
                episode = first + place.record if place.record >= 0 else -1
                places.append(place._replace(split=split, episode=episode))

    def findings(self) -> tuple[Finding, ...]:
        order = [*BAD, *ODD]
        keys = sorted(self._counts, key=lambda item: (order.index(item[0]), item[1]))
        return tuple(Finding(*key, self._counts[key], tuple(self._places[key])) for key in keys)


def _from_index(dataset_dir: AnyPath, index_dir, found: _Found) -> tuple[dict, set[str]]:
    """What the index knows of each shard: where its episodes start, and where its images are; and
    the shards that it leaves out.

    An index that does not fit its shards is a finding, and so is a file of it, or of the
    standardized episodes in it, that is not what was written.
    """
    if not index_dir and is_remote(dataset_dir):
        return {}, set()
    index_dir = Path(index_dir) if index_dir else default_index_dir(dataset_dir)
    if not (index_dir / META_FILE).is_file():
        return {}, set()
    for folder, remedy in (
        (index_dir, "index again"),
        *((path, "remove its folder") for path in sorted(index_dir.glob("standardized/*"))),
    ):
        for path in damaged_files(folder):
            why = f"{path}: not what was written; {remedy}"
            found.add("index", "", Place("", "", -1, -1, None, why))
    try:
        index = open_index(dataset_dir, index_dir)
    except DataError as error:
        found.add("index", "", Place("", "", -1, -1, None, str(error)))
        return {}, set()
    pinned = {}
    for split in index.splits.values():
        bounds = np.searchsorted(split.episode_shard, np.arange(len(split.shards) + 1))
        for number, path in enumerate(split.shards):
            frames = split.episode_start[bounds[number] : bounds[number + 1] + 1]
            rows = slice(int(frames[0]), int(frames[-1]))
            pinned[path] = {
                "episode_start": frames - frames[0],
                "images": {
                    key: tuple(np.array(a[rows]) for a in (c.offset, c.length, c.crc32c))
                    for key, c in split.images.items()
                },
            }
    return pinned, {name for names in index.left_out.values() for name in names}


class _ShardResult(NamedTuple):
    """What was read of a shard, and found in it. lengths: (record, steps)."""

    records: int
    images: int
    lengths: list[tuple[int, int]]
    found: _Found


def _check_shard(path: AnyPath, features: Features, pinned: dict | None) -> _ShardResult:
    checker = _ShardChecker(path, features, pinned)
    try:
        checker.check()
    except (OSError, DataError) as error:
        checker.note("unreadable", "", -1, None, f"{error}")
    except MemoryError:
        checker.note("unreadable", "", checker.records, None, "a record does not fit into memory")
    return _ShardResult(checker.records, checker.images, checker.lengths, checker.found)


class _ShardChecker:
    def __init__(self, path: AnyPath, features: Features, pinned: dict | None):
        self._path, self._features, self._pinned = path, features, pinned
        self._counting, self._packed = counting_order(features), pixel_lists(features)
        self.found = _Found()
        self.records = self.images = 0
        self.lengths: list[tuple[int, int]] = []

    def note(self, problem: str, key: str, record: int, step: int | None, why: str) -> None:
        self.found.add(problem, key, Place("", self._path.name, record, -1, step, why))

    def check(self) -> None:
        for number, record in enumerate(scan_records(self._path)):
            if record.data is None:
                self.note("unreadable", "", number, None, f"unreadable from here: {record.damage}")
                return
            self.records += 1
            if record.damage:
                self.note("unreadable", "", number, None, record.damage)
                self._find_damaged_frames(number, record)
                continue
            try:
                example = parse_example(record.data, self._packed)
                steps = count_steps(example, self._counting)
            except DataError as error:
                self.note("unreadable", "", number, None, str(error))
                continue
            self.lengths.append((number, steps))
            self._compare_with_index(number, record)
            for feature in self._features.steps:
                self._check_feature(number, record.data, example, feature, steps, "steps")
            for feature in self._features.episodes:
                self._check_feature(number, record.data, example, feature, steps, "episodes")

    def _check_feature(self, number, data, example, feature: Feature, steps, scope) -> None:
        scope = "images" if feature.kind == "image" else scope
        try:
            value = read_feature(data, example, feature, scope, steps)
        except DataError as error:
            self.note("unreadable", feature.key, number, None, str(error))
            return
        if value is None:
            return
        if scope == "images":
            self._check_images(number, data, feature, value)
            return
        values = value[0] if feature.ragged else value
        if feature.kind == "number" and values.dtype.kind == "f":
            self._check_finite(number, feature, value, scope)
        elif feature.kind == "text" and not feature.ragged and is_instruction(feature.key):
            for step, text in enumerate(values):
                texts = np.ravel(np.asarray(text, object))
                self._check_text(number, feature, step if scope == "steps" else None, texts)

    def _check_finite(self, number, feature: Feature, value, scope) -> None:
        if feature.ragged:
            items, counts = value
            finite = _finite_rows(items)
            rows = np.unique(np.repeat(np.arange(len(counts)), counts)[~finite])
        elif feature.optional and scope == "episodes":
            return
        else:
            rows = np.flatnonzero(~_finite_rows(value))
        for row in rows.tolist():
            why = "NaN or infinite"
            self.note("not finite", feature.key, number, row if scope == "steps" else None, why)

    def _check_text(self, number, feature: Feature, step, texts) -> None:
        for text in texts:
            if not text.strip():
                self.note("empty instruction", feature.key, number, step, "empty")
            try:
                text.decode()
            except UnicodeDecodeError as error:
                self.note("not UTF-8", feature.key, number, step, str(error))

    def _check_images(self, number, data: bytes, feature: Feature, ranges) -> None:
        # All images of an episode must have the declared size, or else that of the first one.
        first = None
        for step, (start, length) in enumerate(ranges.tolist()):
            if not length:
                self.note("no image", feature.key, number, step, "no bytes")
                continue
            encoded = data[start : start + length]
            self.images += 1
            size = feature.shape[:2] if feature.raw else image_size(encoded)
            try:
                image = (
                    decode_pixels(encoded, feature.encoding, feature.shape)
                    if feature.raw
                    else decode_image(encoded)
                )
            except DataError as error:
                self.note("bad frame", feature.key, number, step, str(error))
                continue
            first = first or size
            declared = feature.shape[:2] or (-1, -1)
            expected = tuple(f if d == -1 else d for d, f in zip(declared, first, strict=True))
            if size != expected:
                why = f"{size[0]}x{size[1]}, expected {expected[0]}x{expected[1]}"
                self.note("bad frame", feature.key, number, step, why)
            elif not image.any():
                self.note("all-zero image", feature.key, number, step, "all zero")

    def _pinned_frames(self, number: int):
        """Yields (key, step, offset, length, crc32c) of every indexed frame of a record."""
        if self._pinned is None or number + 1 >= len(self._pinned["episode_start"]):
            return
        start, end = self._pinned["episode_start"][number : number + 2].tolist()
        for key, columns in self._pinned["images"].items():
            for step, row in enumerate(range(start, end)):
                yield key, step, *(int(column[row]) for column in columns)

    def _find_damaged_frames(self, number: int, record) -> None:
        for key, step, offset, length, crc in self._pinned_frames(number):
            start = offset - record.base
            if google_crc32c.value(record.data[start : start + length]) != crc:
                self.note("bad frame", key, number, step, "its bytes differ from their checksum")

    def _compare_with_index(self, number: int, record) -> None:
        for key, step, offset, length, crc in self._pinned_frames(number):
            start = offset - record.base
            if start < 0 or google_crc32c.value(record.data[start : start + length]) != crc:
                self.note("index", key, number, step, "the image is not the one that was indexed")


def _finite_rows(values: np.ndarray) -> np.ndarray:
    """Whether all numbers of a row are finite, also where there are no rows."""
    return np.isfinite(values).all(axis=tuple(range(1, values.ndim)))


def decode_image(encoded: bytes) -> np.ndarray:
    """The pixels of a JPEG or PNG. DataError says why there are none."""
    if image_size(encoded) is None:
        raise DataError(f"{len(encoded)} bytes that are neither a JPEG nor a PNG")
    try:
        if encoded[:2] == b"\xff\xd8":
            return simplejpeg.decode_jpeg(encoded, colorspace="RGB")
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image)
    # Pillow raises many kinds of errors for a broken file.
    except Exception as error:
        raise DataError(f"does not decode: {error}") from error


def is_instruction(key: str) -> bool:
    """Whether the name of a text feature says that it is an instruction."""
    name = key.rsplit("/", 1)[-1]
    return "instruction" in name or "language" in name


def _judge_lengths(split: str, lengths: list[tuple[str, int, int, int]], found: _Found) -> None:
    """Reports episodes of one step, of none, and of a length unusual by `OUTLIER_DEVIATIONS`."""
    logs = np.log([max(steps, 1) for *_, steps in lengths])
    middle = float(np.median(logs)) if len(logs) else 0.0
    spread = float(np.median(np.abs(logs - middle))) * 1.4826 if len(logs) else 0.0
    limit = OUTLIER_DEVIATIONS * max(spread, SMALLEST_DEVIATION)
    for (shard, record, episode, steps), log in zip(lengths, logs, strict=True):
        if steps <= 1:
            place = Place(split, shard, record, episode, None, f"{steps} steps")
            found.add("one step" if steps else "no steps", "", place)
        elif abs(log - middle) > limit:
            why = f"{steps} steps, the median is {math.exp(middle):.0f}"
            found.add("length", "", Place(split, shard, record, episode, None, why))
