"""One opened dataset: its index, its standardized episodes, and the samples of its splits."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.index.dataset_index import DatasetIndex
from imagewam_jax.data.loading.not_finite import touches_not_finite, without_not_finite
from imagewam_jax.data.loading.samples import SampleReader, SampleSpec
from imagewam_jax.data.loading.splits import Selection, select_episodes
from imagewam_jax.data.loading.start_frames import find_start_frames
from imagewam_jax.data.transforms.standardize import StandardizedDataset
from imagewam_jax.errors import DataError
from imagewam_jax.storage.objects import CONCURRENT_READS

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One opened dataset.

    number: its place in the mixture; its samples' `dataset_id`, and the row of its statistics.
    index_folder: the folder of its index, standardized episodes and statistics.
    instructions: the distinct instructions of all datasets of the mixture, sorted; a sample's
      `text_id` is a row of them.
    text_rows: the row in `instructions` of each of the dataset's own instructions, then of "".
    every, unlabelled: at which steps samples start, see `find_start_frames`.
    not_finite: what becomes of numbers that are not, see `without_not_finite`.
    split_fields: the splits that the config names, and the fields that name them.
    concurrent_reads: how many requests for objects are under way at a time.

    Methods take a split in the notation of TFDS, such as "train", "train[:95%]" or "train+val".
    """

    number: int
    index: DatasetIndex
    index_folder: Path
    spec: DatasetSpec
    standardized: StandardizedDataset
    sample: SampleSpec
    instructions: tuple[str, ...]
    text_rows: Int32[np.ndarray, " rows"]
    every: int
    unlabelled: str
    not_finite: str = "error"
    split_fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    concurrent_reads: int = CONCURRENT_READS
    _selections: dict[str, Selection] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _start_frames: dict[str, Int64[np.ndarray, " samples"]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def name(self) -> str:
        return self.spec.name

    def select(self, split: str) -> Selection:
        """The episodes of a split, without those that `not_finite` leaves out.

        DataError: there are none, or numbers of theirs are not finite and are refused.
        """
        if split not in self._selections:
            try:
                found = select_episodes(split, self.index, self.standardized)
            except DataError as error:
                raise DataError(self._of_field(split, str(error))) from error
            self._selections[split] = without_not_finite(found, self.spec, self.not_finite)
        return self._selections[split]

    def _of_field(self, split: str, message: str) -> str:
        """A message about a split, with the field of the config that names it."""
        field = self.split_fields.get(split)
        advice = ""
        if field == "data.eval_split":
            advice = (
                "; hold out some episodes, such as data.train_split='train[:95%]' and "
                "data.eval_split='train[95%:]', train without validation: train.validate_every=0, "
                "or evaluate on others with --split"
            )
        return f"{field} is {split!r}: {message}{advice}" if field else message

    def reader(self, split: str) -> SampleReader:
        """A reader of samples of the whole split, also where `split` names some of its episodes."""
        selected = self.select(split)
        return SampleReader(
            selected.split,
            selected.standardized,
            self.spec,
            self.sample,
            dataset_id=self.number,
            text_rows=self.text_rows,
            concurrent_reads=self.concurrent_reads,
        )

    def episodes(self, split: str) -> Int64[np.ndarray, " episodes"]:
        """The numbers of the episodes of a split, ascending, as `reader` counts them."""
        return self.select(split).episodes

    def start_frames(self, split: str) -> Int64[np.ndarray, " samples"]:
        """The frames at which samples start. DataError: there are none."""
        if split not in self._start_frames:
            self._start_frames[split] = self._find_start_frames(split)
        return self._start_frames[split]

    def _find_start_frames(self, split: str) -> Int64[np.ndarray, " samples"]:
        selected = self.select(split)
        frames = find_start_frames(
            selected.split,
            selected.standardized,
            every=self.every,
            episodes=selected.episodes,
            unlabelled=self.unlabelled,
        )
        bad = touches_not_finite(selected, frames, self.sample.horizon, self.sample.stride)
        if bad.any():
            _LOG.warning(
                "%s: %d of %d samples of %r touch numbers that are not finite and are left out",
                *(self.name, bad.sum(), len(frames), split),
            )
        frames = frames[~bad]
        if not len(frames):
            steps = int(selected.standardized.episode_steps[selected.episodes].sum())
            message = (
                f"{self.name}: no sample can start in its {len(selected.episodes)} episodes of "
                f"{steps} steps (filters {list(self.spec.filters)}, data.unlabelled="
                f"{self.unlabelled!r}, data.not_finite={self.not_finite!r})"
            )
            raise DataError(self._of_field(split, message))
        self._report_empty_images(selected, frames, split)
        return frames

    def _report_empty_images(
        self, selected: Selection, frames: Int64[np.ndarray, " samples"], split: str
    ) -> None:
        for role, camera in self.spec.cameras:
            if role not in self.sample.cameras:
                continue
            lengths = selected.split.images[camera.key].length
            if empty := int((lengths[frames] == 0).sum()):
                _LOG.warning(
                    "%s: camera %r has no image at %d of %d steps of %r; there it is black",
                    *(self.name, role, empty, len(frames), split),
                )

    def identity(self, split: str) -> dict[str, Any]:
        """What decides the samples of a split: the bytes, the spec, and the order of cameras.

        Its keys stay as they are: a resumed run compares them with those of its checkpoint.
        """
        cameras = dict(self.spec.cameras)
        used = [cameras.get(role) for role in self.sample.cameras]
        return {
            "dataset": f"{self.index.name}/{self.index.version}",
            "split": self.select(split).split.name,
            "standard": self.standardized.digest,
            "cameras": [None if c is None else list(dataclasses.astuple(c)) for c in used],
        }
