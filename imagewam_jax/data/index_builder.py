"""Builds the sidecar index of an RLDS dataset: one pass over its shards, in parallel."""

import concurrent.futures.process
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
import simplejpeg
from tqdm import tqdm

from imagewam_jax.data import index as index_format
from imagewam_jax.data.errors import DataError
from imagewam_jax.data.index import DatasetIndex, open_index
from imagewam_jax.data.registry import DatasetSpec
from imagewam_jax.data.tf_example import ExampleFeature, parse_example
from imagewam_jax.data.tfds_folder import Split, StepFeature, TfdsFolder, read_tfds_folder
from imagewam_jax.data.tfrecord import framing_checksum, walk_records

# Indexed beside the specification's keys when the dataset has them.
_STANDARD_KEYS = ("is_first", "is_last", "is_terminal", "reward", "discount")
_IMAGE_ENCODINGS = ("jpeg", "unstated")
# Starting a process takes as long as indexing about this much.
_BYTES_PER_WORKER = 2**30


class IndexLayout(NamedTuple):
    """Which step features an index holds: images and low-dimensional ones by key, and language."""

    images: dict[str, StepFeature]
    features: dict[str, StepFeature]
    language_key: str


class ShardIndex(NamedTuple):
    """The columns of one shard; texts are its own distinct instructions, in order of appearance."""

    columns: dict[str, np.ndarray]
    texts: list[str]


def build_index(
    dataset_dir: Path | str,
    spec: DatasetSpec,
    index_dir: Path | str | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> DatasetIndex:
    """Indexes a TFDS version folder, replaces an index that is there, and opens the new one.

    Every checksum of every record is verified on the way. The index appears under its name only
    when it is complete. `workers` processes are used; by default one per GiB, at most one per core.
    Raises DataError when the folder is not RLDS, lacks a key of the specification, or holds a
    record that is corrupt or disagrees with features.json.
    """
    folder = read_tfds_folder(Path(dataset_dir))
    layout = index_layout(folder, spec)
    index_dir = Path(index_dir) if index_dir else index_format.default_index_dir(folder.path, spec)
    shards = [path for split in folder.splits.values() for path in split.shards]
    by_path = dict(zip(shards, _index_shards(shards, layout, workers, progress), strict=True))
    instructions = sorted({text for shard in by_path.values() for text in shard.texts})
    meta = {
        "format": index_format.FORMAT_VERSION,
        "name": folder.name,
        "version": folder.version,
        "keys": index_format.indexed_keys(spec),
        "instructions": instructions,
        "splits": {},
    }
    partial = index_dir.with_name(f".{index_dir.name}.partial-{os.getpid()}")
    try:
        for name, split in folder.splits.items():
            pieces = [by_path[path] for path in split.shards]
            _check_record_counts(split, pieces)
            _write_split(partial / name, pieces, instructions)
            meta["splits"][name] = {
                "shards": [_pin_shard(p, by_path[p].columns) for p in split.shards],
                "features": sorted(layout.features),
                "images": {key: _image_shape(key, pieces) for key in layout.images},
            }
        meta["checksum"] = index_format.meta_checksum(meta)
        (partial / index_format.META_FILE).write_text(json.dumps(meta, indent=1))
        _replace_folder(partial, index_dir)
    except OSError as error:
        raise DataError(f"could not write the index {index_dir}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_index(folder.path, spec, index_dir)


def index_layout(folder: TfdsFolder, spec: DatasetSpec) -> IndexLayout:
    """Finds the keys of a specification; DataError names a missing one and those that are there."""
    images = {}
    for role, key in spec.image_keys:
        image = _require(folder, key, "image", f"camera {role!r} of {spec.name!r}")
        if image.encoding not in _IMAGE_ENCODINGS:
            raise DataError(f"{folder.path}: {key!r} is stored as {image.encoding}, not as JPEG")
        if len(image.shape) != 3 or image.shape[2] != 3:
            raise DataError(
                f"{folder.path}: {key!r} has the shape {image.shape}, expected (height, width, 3)"
            )
        images[key] = image
    features = {
        key: _require(folder, key, "tensor", f"{what} of {spec.name!r}")
        for what, key in (("state", spec.state_key), ("action", spec.action_key))
    }
    for key, feature in features.items():
        if len(feature.shape) != 1:
            raise DataError(f"{folder.path}: {key!r} has the shape {feature.shape}, expected (n,)")
    action_dim = features[spec.action_key].shape[0]
    if action_dim != len(spec.relative_action_mask):
        raise DataError(
            f"{folder.path}: {spec.action_key!r} has {action_dim} dimensions, the specification "
            f"{spec.name!r} has a relative_action_mask of {len(spec.relative_action_mask)}"
        )
    standard = {k: folder.step_features[k] for k in _STANDARD_KEYS if k in folder.step_features}
    features |= {key: feature for key, feature in standard.items() if feature.kind == "tensor"}
    for key, feature in features.items():
        if feature.encoding != "none" or (feature.shape and min(feature.shape) < 1):
            raise DataError(
                f"{folder.path}: {key!r} has the shape {feature.shape} and encoding "
                f"{feature.encoding!r}, expected a fixed shape and 'none'"
            )
    _require(folder, spec.language_key, "text", f"language of {spec.name!r}")
    return IndexLayout(images, features, spec.language_key)


def _require(folder: TfdsFolder, key: str, kind: str, role: str) -> StepFeature:
    feature = folder.step_features.get(key)
    if feature is None or feature.kind != kind:
        found = sorted(k for k, f in folder.step_features.items() if f.kind == kind)
        state = "no step feature" if feature is None else f"a {feature.kind} feature at"
        raise DataError(f"{folder.path}: {role}: {state} {key!r}; the {kind} features are {found}")
    return feature


def _index_shards(
    shards: list[Path], layout: IndexLayout, workers: int | None, progress: bool
) -> Iterator[ShardIndex]:
    """Indexes shards, yields them in their order, and shows bytes done."""
    total = sum(path.stat().st_size for path in shards)
    if workers is None:
        workers = max(1, min(len(shards), os.cpu_count() or 1, total // _BYTES_PER_WORKER))
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="indexing", disable=not progress)
    with bar:
        if workers == 1:
            for path in shards:
                yield index_shard(path, layout)
                bar.update(path.stat().st_size)
            return
        # Not forked: a forked copy of a process that runs JAX's threads can deadlock.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = [pool.submit(index_shard, path, layout) for path in shards]
            try:
                for path, future in zip(shards, futures, strict=True):
                    yield future.result()
                    bar.update(path.stat().st_size)
            except concurrent.futures.process.BrokenProcessPool as error:
                raise DataError(
                    "an indexing process died: out of memory, or the calling program cannot be "
                    "imported again (a notebook, a script without a __main__ guard); use workers=1"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


def index_shard(path: Path, layout: IndexLayout) -> ShardIndex:
    """The columns of one shard. Needs no other shard, so it is the unit of parallel work."""
    episodes: list[dict[str, np.ndarray]] = []
    texts: dict[str, int] = {}
    for number, record in enumerate(walk_records(path)):
        try:
            columns = _index_episode(record.data, layout, texts)
        except DataError as error:
            raise DataError(f"{path}: record {number} at byte {record.offset}: {error}") from error
        for key in layout.images:
            columns[f"{key}.offset"] += record.offset
        columns["record_offset"] = np.array([record.offset], np.int64)
        columns["record_length"] = np.array([len(record.data)], np.int64)
        episodes.append(columns)
    if not episodes:
        raise DataError(f"{path}: holds no records")
    columns = {key: np.concatenate([e[key] for e in episodes]) for key in episodes[0]}
    return ShardIndex(columns, list(texts))


def _index_episode(
    record: bytes, layout: IndexLayout, texts: dict[str, int]
) -> dict[str, np.ndarray]:
    """The columns of one episode; image offsets are inside the record. Extends `texts`."""
    example = parse_example(record)
    words = _values(example, layout.language_key, "bytes")
    steps = len(words)
    if steps == 0:
        raise DataError("an episode without steps")
    ids = [texts.setdefault(_text(record, s, n), len(texts)) for s, n in words.tolist()]
    columns = {
        "episode_length": np.array([steps], np.int64),
        "text_id": np.array(ids, np.int32),
    }
    for key, image in layout.images.items():
        ranges = _values(example, key, "bytes")
        if len(ranges) != steps:
            raise DataError(f"{len(ranges)} images in {key!r}, expected one for {steps} steps")
        columns[f"{key}.size"] = _image_size(record, key, *ranges[0].tolist(), image)
        crcs = [google_crc32c.value(record[start : start + n]) for start, n in ranges.tolist()]
        columns[f"{key}.offset"] = ranges[:, 0].copy()
        columns[f"{key}.length"] = ranges[:, 1].astype(np.int32)
        columns[f"{key}.crc32c"] = np.array(crcs, np.uint32)
    for key, feature in layout.features.items():
        dtype = np.dtype(feature.dtype)
        values = _values(example, key, "float" if dtype.kind == "f" else "int64")
        width = int(np.prod(feature.shape))
        if len(values) != steps * width:
            raise DataError(
                f"{len(values)} numbers in {key!r}, expected {steps} steps of {feature.shape}"
            )
        columns[f"{key}.values"] = values.astype(dtype).reshape(steps, *feature.shape)
    return columns


def _image_size(
    record: bytes, key: str, start: int, length: int, declared: StepFeature
) -> np.ndarray:
    """int32 [1, 2], the (height, width) in an image's JPEG header; features.json may leave it open.

    One image of each episode is looked at here, every one when it is decoded.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(record[start : start + length])
    except ValueError as error:
        raise DataError(f"the first image in {key!r} is not a JPEG: {error}") from error
    for found, expected in zip((height, width), declared.shape, strict=False):
        if expected not in (-1, found):
            raise DataError(
                f"the first image in {key!r} is {height}x{width}, features.json says "
                f"{declared.shape}"
            )
    return np.array([[height, width]], np.int32)


def _image_shape(key: str, pieces: list[ShardIndex]) -> list[int]:
    sizes = np.unique(np.concatenate([p.columns[f"{key}.size"] for p in pieces]), axis=0)
    if len(sizes) > 1:
        raise DataError(f"{key!r} has images of several sizes: {sizes.tolist()}")
    return [*sizes[0].tolist(), 3]


def _values(example: dict[str, ExampleFeature], key: str, kind: str) -> np.ndarray:
    feature = example.get(f"steps/{key}")
    if feature is None or feature.kind != kind:
        found = "absent" if feature is None else f"of kind {feature.kind}"
        raise DataError(f"'steps/{key}' is {found}, expected kind {kind}; it has {sorted(example)}")
    return feature.values


def _text(record: bytes, start: int, length: int) -> str:
    try:
        return record[start : start + length].decode()
    except UnicodeDecodeError as error:
        raise DataError(f"an instruction is not UTF-8: {error}") from error


def _check_record_counts(split: Split, pieces: list[ShardIndex]) -> None:
    for path, listed, piece in zip(split.shards, split.shard_records, pieces, strict=True):
        found = len(piece.columns["episode_length"])
        if found != listed:
            raise DataError(f"{path}: {found} records, dataset_info.json lists {listed}")


def _write_split(folder: Path, pieces: list[ShardIndex], instructions: list[str]) -> None:
    folder.mkdir(parents=True)
    lengths = [piece.columns["episode_length"] for piece in pieces]
    episode_length = np.concatenate(lengths)
    columns = {
        key: np.concatenate([piece.columns[key] for piece in pieces])
        for key in pieces[0].columns
        if key not in ("episode_length", "text_id") and not key.endswith(".size")
    }
    row = {text: number for number, text in enumerate(instructions)}
    columns["text_id"] = np.concatenate(
        [np.array([row[t] for t in p.texts], np.int32)[p.columns["text_id"]] for p in pieces]
    )
    columns["episode_start"] = np.concatenate([[0], np.cumsum(episode_length)])
    columns["episode_shard"] = np.repeat(
        np.arange(len(pieces), dtype=np.int32), [len(n) for n in lengths]
    )
    columns["frame_episode"] = np.repeat(
        np.arange(len(episode_length), dtype=np.int32), episode_length
    )
    for key, column in columns.items():
        np.save(folder / f"{key.replace('/', '.')}.npy", column)


def _pin_shard(path: Path, columns: dict[str, np.ndarray]) -> dict[str, str | int]:
    checksum = framing_checksum(path, columns["record_offset"], columns["record_length"])
    return {"file": path.name, "size": path.stat().st_size, "framing_crc32c": checksum}


def _replace_folder(new: Path, target: Path) -> None:
    """Puts `new` in the place of `target`, which may be there already."""
    if not target.exists():
        os.replace(new, target)
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old)
