"""Samples of one dataset split: a current and a target image, an action chunk, the state, the text.

A sample starts at step t of an episode of T steps; s is the stride, H the horizon. Its actions are
those of steps t + s*i for i < H, its target image is that of step t + s*H
(docs/spec/imagewam_flux2.md, 7.1). Beyond the last step the target is the last frame, relative
action dimensions are 0 and absolute ones repeat. Numbers are in the units of the standardized
episodes, and images lie as they are stored in the top left of their buffer: the accelerator
normalizes and resizes.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32, Int64, UInt8, UInt32

from imagewam_jax.data.dataset_spec import Camera, DatasetSpec
from imagewam_jax.data.index.dataset_index import SplitIndex
from imagewam_jax.data.loading.decode import Shards, bad_frame, decode_frame, request_frames
from imagewam_jax.data.transforms.standardize import StandardizedSplit
from imagewam_jax.errors import BadFrameError, DataError
from imagewam_jax.storage.objects import CONCURRENT_READS

Batch = dict[str, np.ndarray]
NO_IMAGE = "it has no bytes, and no other camera has an image there"
UNREADABLE = 128  # the value of every pixel of an image that cannot be read


@dataclasses.dataclass(frozen=True)
class SampleSpec:
    """The shapes of a sample.

    cameras: roles, in the order of the image's camera axis.
    buffer_size: (height, width) that holds the largest stored image.
    horizon: H, actions per chunk. stride: s, steps between two actions of a chunk.
    action_dim, state_dim: widths A and P of the arrays; in mixtures wider than some datasets' own.
    """

    cameras: tuple[str, ...]
    buffer_size: tuple[int, int]
    horizon: int
    action_dim: int
    state_dim: int
    stride: int = 1


class BadImage(NamedTuple):
    """An image of a batch that could not be read: images[row, camera, moment]."""

    row: int
    camera: int
    moment: int
    error: BadFrameError


class SampleReader:
    """Reads samples of one split, given their start frames. Safe to use from threads.

    text_rows: the row of each of the dataset's instructions in the table of all datasets, then the
      row of the empty instruction.
    """

    def __init__(
        self,
        split: SplitIndex,
        standardized: StandardizedSplit,
        dataset: DatasetSpec,
        sample: SampleSpec,
        *,
        dataset_id: int = 0,
        text_rows: Int[np.ndarray, " instructions"] | None = None,
        concurrent_reads: int = CONCURRENT_READS,
    ):
        """DataError: the dataset is wider than the sample."""
        self.split, self.standardized, self.dataset, self.sample = (
            split,
            standardized,
            dataset,
            sample,
        )
        self._dataset_id, self._text_rows = dataset_id, text_rows
        cameras = dict(dataset.cameras)
        self._cameras: list[Camera | None] = [cameras.get(role) for role in sample.cameras]
        for what, encoding, width in (
            ("action_dim", dataset.action, sample.action_dim),
            ("state_dim", dataset.state, sample.state_dim),
        ):
            if len(encoding.dims) > width:
                raise DataError(
                    f"{dataset.name!r} has {len(encoding.dims)} dimensions ({encoding.name}), more "
                    f"than the configured {what} {width}"
                )
        self._relative = np.array(dataset.action.relative, bool)
        self._shards = Shards(split.shards, split.generations, concurrent_reads)

    def read(
        self,
        start_frames: Int64[np.ndarray, " b"],
        seeds: UInt32[np.ndarray, " b"] | None = None,
    ) -> Batch:
        """The batch of samples that start at these frames, in the form of `empty_batch`.

        start_frames: rows of the standardized split.
        seeds: choose among alternative instructions; by default the first is taken.
        Raises BadFrameError for the first image that cannot be read.
        """
        batch = empty_batch(len(start_frames), self.sample)
        if bad := self.fill(batch, np.arange(len(start_frames)), start_frames, seeds):
            raise bad[0].error
        return batch

    def fill(
        self,
        batch: Batch,
        rows: Int[np.ndarray, " n"],
        start_frames: Int64[np.ndarray, " n"],
        seeds: UInt32[np.ndarray, " n"] | None = None,
    ) -> list[BadImage]:
        """Reads samples into some rows of a batch, whose images may hold anything before.

        Returns the images that could not be read, which become grey, and where no camera has one.
        """
        episode = self.split.frame_episode[start_frames]
        first = self.split.episode_start[episode]
        last = first + self.standardized.episode_steps[episode] - 1
        target = start_frames + self.sample.horizon * self.sample.stride
        batch["target_is_pad"][rows] = target > last
        batch["text_id"][rows] = self._texts(start_frames, seeds)
        batch["episode"][rows] = episode
        batch["step"][rows] = self.standardized.frames[start_frames] - first
        batch["dataset_id"][rows] = self._dataset_id
        self._fill_actions(batch, rows, start_frames, last)
        width = len(self.dataset.state.dims)
        batch["proprio"][rows, :width] = self.standardized.states[start_frames]
        frames = self.standardized.frames
        return self._fill_images(
            batch, rows, frames[start_frames], frames[np.minimum(target, last)]
        )

    def identity(self) -> dict[str, Any]:
        """What decides the samples besides the indexed bytes and the dataset spec."""
        return {k: _jsonable(v) for k, v in dataclasses.asdict(self.sample).items()}

    def close(self) -> None:
        self._shards.close()

    def _texts(
        self, start_frames: Int64[np.ndarray, " n"], seeds: UInt32[np.ndarray, " n"] | None
    ) -> Int32[np.ndarray, " n"]:
        ids = self.standardized.text_ids[start_frames]
        count = np.maximum((ids >= 0).sum(1), 1)
        chosen = np.zeros(len(ids), np.int64) if seeds is None else seeds % count
        ids = ids[np.arange(len(ids)), chosen]
        # A step without an instruction, -1, takes the last row, the row of "".
        return ids if self._text_rows is None else self._text_rows[ids]

    def _fill_actions(
        self,
        batch: Batch,
        rows: Int[np.ndarray, " n"],
        start_frames: Int64[np.ndarray, " n"],
        last: Int64[np.ndarray, " n"],
    ) -> None:
        sample, width = self.sample, len(self._relative)
        frames_nh = start_frames[:, None] + sample.stride * np.arange(sample.horizon)
        is_pad_nh = frames_nh > last[:, None]
        actions_nha = self.standardized.actions[np.minimum(frames_nh, last[:, None])]
        actions_nha[is_pad_nh[..., None] & self._relative] = 0.0  # stand still
        batch["actions"][rows, :, :width] = actions_nha
        batch["action_is_pad"][rows] = is_pad_nh
        batch["action_dim_mask"][rows] = np.arange(sample.action_dim) < width

    def _fill_images(
        self,
        batch: Batch,
        rows: Int[np.ndarray, " n"],
        current: Int64[np.ndarray, " n"],
        target: Int64[np.ndarray, " n"],
    ) -> list[BadImage]:
        bad = self._without_images(rows, current, target)
        places, wanted = [], []
        for row, *pair in zip(rows.tolist(), current.tolist(), target.tolist(), strict=True):
            for number, camera in enumerate(self._cameras):
                if camera is None:
                    batch["images"][row, number] = 0
                    continue
                places += [(row, number, moment) for moment in range(2)]
                wanted += [(camera, frame) for frame in pair]
        stored = request_frames(self.split, self._shards, wanted)
        for (row, number, moment), frame in zip(places, stored, strict=True):
            image = batch["images"][row, number, moment]
            try:
                batch["image_size"][row, number] = decode_frame(self.split, frame, image)
            except BadFrameError as error:
                image[:] = UNREADABLE
                bad.append(BadImage(row, number, moment, error))
        return bad

    def _without_images(
        self,
        rows: Int[np.ndarray, " n"],
        current: Int64[np.ndarray, " n"],
        target: Int64[np.ndarray, " n"],
    ) -> list[BadImage]:
        """The moments of samples at which no camera has an image: they show nothing."""
        there = [(n, camera) for n, camera in enumerate(self._cameras) if camera is not None]
        bad = []
        for moment, frames in enumerate((current, target)) if there else ():
            lengths = [self.split.images[camera.key].length[frames] for _, camera in there]
            for n in np.flatnonzero(~np.any(lengths, axis=0)):
                number, camera = there[0]
                error = bad_frame(self.split, camera.key, int(frames[n]), NO_IMAGE)
                bad.append(BadImage(int(rows[n]), number, moment, error))
        return bad


def empty_batch(
    size: int, sample: SampleSpec, images: UInt8[np.ndarray, "b c 2 h w 3"] | None = None
) -> Batch:
    """A batch to be filled; `images` is memory for its images, by default new memory.

    images uint8 [b, camera, 2, h, w, 3] (current, target), image_size int32 [b, camera, 2] (rows
    and columns of the stored images), target_is_pad bool [b], actions float32 [b, H, A],
    action_is_pad bool [b, H], action_dim_mask bool [b, A], proprio float32 [b, P]; and int32 [b]
    text_id, dataset_id, episode, step. True in `action_dim_mask` means that the dataset has the
    dimension; in `*_is_pad` it means beyond the episode.
    """
    cameras = len(sample.cameras)
    shapes = {
        "image_size": (np.int32, cameras, 2),
        "target_is_pad": (bool,),
        "actions": (np.float32, sample.horizon, sample.action_dim),
        "action_is_pad": (bool, sample.horizon),
        "action_dim_mask": (bool, sample.action_dim),
        "proprio": (np.float32, sample.state_dim),
    }
    shapes |= dict.fromkeys(("text_id", "dataset_id", "episode", "step"), (np.int32,))
    batch = {key: np.zeros((size, *shape), dtype) for key, (dtype, *shape) in shapes.items()}
    batch["images"] = np.empty(images_shape(size, sample), np.uint8) if images is None else images
    # A missing camera is a black image that fills the buffer.
    batch["image_size"][:] = sample.buffer_size
    return batch


def images_shape(size: int, sample: SampleSpec) -> tuple[int, int, int, int, int, int]:
    """The shape of the images of a batch."""
    return (size, len(sample.cameras), 2, *sample.buffer_size, 3)


def augmentation_seeds(seed: int, index: Int64[np.ndarray, " b"]) -> UInt32[np.ndarray, " b"]:
    """One seed per sample from the run's seed and the sample's index: SplitMix64 of their mix."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed % 2**64) * np.uint64(0xD1342543DE82EF95) + index.astype(np.uint64)
        z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))).astype(np.uint32)


def _jsonable(value: object) -> object:
    """The value with a list for a tuple: a state that went through JSON must compare equal."""
    return list(value) if isinstance(value, tuple) else value
