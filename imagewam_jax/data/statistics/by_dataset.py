"""The statistics of datasets: computed once, never changed."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from imagewam_jax.data.datasets import Data, Dataset
from imagewam_jax.data.loading.start_frames import parse_part
from imagewam_jax.data.statistics.exact import exact_statistics
from imagewam_jax.errors import DataError
from imagewam_jax.preprocess.statistics import read_statistics, write_statistics


def statistics_by_dataset(data: Data, part: str, *, pooled: bool) -> dict[str, dict]:
    """Those of each dataset by its name, or for all of them those of all together."""
    if pooled:
        of_all = dataset_statistics(data.datasets, part)
        return {d.name: of_all for d in data.datasets}
    return {d.name: dataset_statistics([d], part) for d in data.datasets}


def dataset_statistics(datasets: Sequence[Dataset], part: str) -> dict:
    """{"source": what was measured, "action": ..., "state": ...} of some episodes of datasets, in
    standard form; use those of training only.

    Every step counts once, also those that filters leave out, but not those that are cut. They are
    kept beside the first one's index, under a digest of "source": the indexed bytes, the rows with
    their transforms, the episodes. DataError: there are no episodes, or actions or states are not
    of one encoding.
    """
    for field in ("action", "state"):
        encodings = {d.name: getattr(d.spec, field) for d in datasets}
        if len(set(encodings.values())) > 1:
            kinds = {name: encoding.name for name, encoding in encodings.items()}
            raise DataError(
                f"{field}s of different encodings have no statistics in common: {kinds}"
            )
    parts = {dataset.name: _source(dataset, part) for dataset in datasets}
    totals = {
        name: sum(source[name] for source in parts.values()) for name in ("episodes", "frames")
    }
    source = {"parts": parts, **totals}
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]
    path = datasets[0].index_folder / "statistics" / f"{datasets[0].name}-{digest}.json"
    if path.exists():
        return read_statistics(path)
    rows = [_steps(dataset, part) for dataset in datasets]
    found = {
        "source": source,
        "action": exact_statistics(np.concatenate([actions for actions, _ in rows])),
        "state": exact_statistics(np.concatenate([states for _, states in rows])),
    }
    write_statistics(path, found)
    return found


def _source(dataset: Dataset, part: str) -> dict[str, Any]:
    split = parse_part(part).split
    first, last = dataset.episodes(part)
    if first == last:
        raise DataError(f"{dataset.name}: {part!r} has no episodes")
    return {
        "dataset": f"{dataset.index.name}/{dataset.index.version}",
        "index": dataset.index.checksum,
        "standard": dataset.standard.digest,
        "split": split,
        "first_episode": first,
        "episodes": last - first,
        "frames": int(dataset.standard.splits[split].episode_steps[first:last].sum()),
    }


def _steps(
    dataset: Dataset, part: str
) -> tuple[Float32[np.ndarray, "n a"], Float32[np.ndarray, "n p"]]:
    """Actions and states of all steps of a part."""
    split = parse_part(part).split
    index, standard = dataset.index.split(split), dataset.standard.splits[split]
    first, last = dataset.episodes(part)
    frames = np.arange(index.episode_start[first], index.episode_start[last])
    episode = index.frame_episode[frames]
    there = frames[frames - index.episode_start[episode] < standard.episode_steps[episode]]
    return standard.actions[there], standard.states[there]
