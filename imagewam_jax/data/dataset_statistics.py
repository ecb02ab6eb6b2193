"""The statistics of a dataset: computed once, never changed."""

import hashlib
import json

import numpy as np

from imagewam_jax.data.anchors import parse_part
from imagewam_jax.data.dataset import Dataset
from imagewam_jax.data.errors import DataError
from imagewam_jax.data.statistics import exact_statistics, read_statistics, write_statistics


def dataset_statistics(dataset: Dataset, part: str) -> dict:
    """{"source": what was measured, "action": ..., "state": ...} of some episodes of a dataset, in
    standard form; use those of training only.

    Every step counts, also those that filters leave out. They are computed once and kept beside the
    index, under a digest of "source": the indexed bytes, the row with its transform, the episodes.
    """
    split = parse_part(part).split
    first, last = dataset.episodes(part)
    standard, start = dataset.standard.splits[split], dataset.index.split(split).episode_start
    if first == last:
        raise DataError(f"{dataset.name}: {part!r} has no episodes")
    source = {
        "dataset": f"{dataset.index.name}/{dataset.index.version}",
        "index": dataset.index.checksum,
        "row": dataset.name,
        "standard": dataset.standard.digest,
        "split": split,
        "first_episode": first,
        "episodes": last - first,
        "frames": int(standard.episode_steps[first:last].sum()),
    }
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]
    path = dataset.index_folder / "statistics" / f"{dataset.name}-{digest}.json"
    if path.exists():
        return read_statistics(path)
    steps = np.arange(start[first], start[last])
    episode = dataset.index.split(split).frame_episode[steps]
    there = steps - start[episode] < standard.episode_steps[episode]
    found = {
        "source": source,
        "action": exact_statistics(standard.actions[steps[there]]),
        "state": exact_statistics(standard.states[steps[there]]),
    }
    write_statistics(path, found)
    return found
