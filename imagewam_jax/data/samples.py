"""Samples of one dataset split: a current and a target image, an action chunk, the state, the text.

An anchor is a frame t of an episode of T steps; s is the stride, H the horizon. The actions are
those of steps t + s*i for i < H, the target image is that of step t + s*H (spec imagewam_flux2
7.1). Beyond the last step the target is the last frame, relative action dimensions are 0 and
absolute ones repeat. All is in the dataset's own units: normalisation happens on the accelerator.
"""

import dataclasses

import numpy as np
from jaxtyping import Int64, UInt32

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.frames import ShardFiles, decode_frame
from imagewam_jax.data.index import DatasetIndex, SplitIndex
from imagewam_jax.data.registry import DatasetSpec

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class SampleSpec:
    """The shapes of a sample.

    cameras: roles, in the order of the image's camera axis.
    image_size: (height, width) of the stored images.
    horizon: H, actions per chunk. stride: s, steps between two of them.
    action_dim, state_dim: widths A and P of the arrays; wider than a dataset's own in mixtures.
    """

    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    horizon: int
    action_dim: int
    state_dim: int
    stride: int = 1


class SampleReader:
    """Reads batches of samples of one split, given their anchors. Safe to use from threads."""

    def __init__(
        self,
        index: DatasetIndex,
        split: str,
        dataset: DatasetSpec,
        sample: SampleSpec,
        *,
        dataset_id: int = 0,
        norm_id: int = 0,
    ):
        self.index = index
        self.split = index.split(split)
        self.dataset = dataset
        self.sample = sample
        self._ids = {"dataset_id": dataset_id, "norm_id": norm_id}
        self._camera_keys = _camera_keys(self.split, dataset, sample)
        self._actions_na = self.split.features[dataset.action_key]
        self._states_np = self.split.features[dataset.state_key]
        for what, array, key, width in (
            ("action_dim", self._actions_na, dataset.action_key, sample.action_dim),
            ("state_dim", self._states_np, dataset.state_key, sample.state_dim),
        ):
            if array.shape[1] > width:
                raise DataError(
                    f"{index.name}: {key!r} has {array.shape[1]} dimensions, more than the "
                    f"configured {what} {width}"
                )
        if len(dataset.relative_action_mask) != self._actions_na.shape[1]:
            raise DataError(
                f"{index.name}: {dataset.action_key!r} has {self._actions_na.shape[1]} dimensions, "
                f"{dataset.name!r} a relative_action_mask of {len(dataset.relative_action_mask)}"
            )
        self._files = ShardFiles(self.split.shards)

    def read(self, anchors: Int64[np.ndarray, " b"]) -> Batch:
        """The batch of the given anchors (frame numbers of the split).

        images uint8 [b, camera, 2, h, w, 3] (current, target), camera_mask bool [b, camera],
        target_is_pad bool [b], actions float32 [b, H, A], action_is_pad bool [b, H],
        action_dim_mask bool [b, A], proprio float32 [b, P], proprio_mask bool [b, P]; and int32 [b]
        text_id (row of the index's instructions), dataset_id, episode, step, norm_id.
        True in a dim or camera mask means present; in `*_is_pad` it means beyond the episode.
        """
        episode = self.split.frame_episode[anchors]
        first = self.split.episode_start[episode]
        last = self.split.episode_start[episode + 1] - 1
        target = anchors + self.sample.horizon * self.sample.stride
        batch = {
            **self._actions(anchors, last),
            **self._proprio(anchors),
            "images": self._images(anchors, np.minimum(target, last)),
            "camera_mask": np.ones((len(anchors), len(self._camera_keys)), bool),
            "target_is_pad": target > last,
            "text_id": self.split.text_id[anchors],
            "episode": episode,
            "step": (anchors - first).astype(np.int32),
        }
        return batch | {key: np.full(len(anchors), n, np.int32) for key, n in self._ids.items()}

    def close(self) -> None:
        self._files.close()

    def _actions(self, anchors: Int64[np.ndarray, " b"], last: Int64[np.ndarray, " b"]) -> Batch:
        sample, width = self.sample, self._actions_na.shape[1]
        frames_bh = anchors[:, None] + sample.stride * np.arange(sample.horizon)
        is_pad_bh = frames_bh > last[:, None]
        actions_bha = np.zeros((*frames_bh.shape, sample.action_dim), np.float32)
        actions_bha[..., :width] = self._actions_na[np.minimum(frames_bh, last[:, None])]
        stand_still = is_pad_bh[..., None] & np.array(self.dataset.relative_action_mask)
        actions_bha[..., :width][stand_still] = 0.0
        return {
            "actions": actions_bha,
            "action_is_pad": is_pad_bh,
            "action_dim_mask": _present(len(anchors), width, sample.action_dim),
        }

    def _proprio(self, anchors: Int64[np.ndarray, " b"]) -> Batch:
        width = self._states_np.shape[1]
        proprio_bp = np.zeros((len(anchors), self.sample.state_dim), np.float32)
        proprio_bp[:, :width] = self._states_np[anchors]
        mask_bp = _present(len(anchors), width, self.sample.state_dim)
        return {"proprio": proprio_bp, "proprio_mask": mask_bp}

    def _images(
        self, current: Int64[np.ndarray, " b"], target: Int64[np.ndarray, " b"]
    ) -> np.ndarray:
        height, width = self.sample.image_size
        images = np.empty((len(current), len(self._camera_keys), 2, height, width, 3), np.uint8)
        for row, pair in enumerate(zip(current.tolist(), target.tolist(), strict=True)):
            for camera, key in enumerate(self._camera_keys):
                for moment, frame in enumerate(pair):
                    decode_frame(self.split, self._files, key, frame, images[row, camera, moment])
        return images


def _camera_keys(split: SplitIndex, dataset: DatasetSpec, sample: SampleSpec) -> tuple[str, ...]:
    keys = dict(dataset.image_keys)
    for role in sample.cameras:
        if role not in keys:
            raise DataError(f"{dataset.name!r} has no camera {role!r}, it has {sorted(keys)}")
        shape = split.images[keys[role]].shape
        if shape[:2] != sample.image_size:
            raise DataError(
                f"{dataset.name!r}: camera {role!r} ({keys[role]}) has images of {shape[:2]}, the "
                f"configured image_size is {sample.image_size}"
            )
    return tuple(keys[role] for role in sample.cameras)


def _present(rows: int, width: int, padded_width: int) -> np.ndarray:
    """bool [rows, padded_width], True for the first `width` dimensions."""
    return np.broadcast_to(np.arange(padded_width) < width, (rows, padded_width)).copy()


def augmentation_seeds(seed: int, index: Int64[np.ndarray, " b"]) -> UInt32[np.ndarray, " b"]:
    """One seed per sample from the run's seed and the sample's index: SplitMix64 of their mix."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + index.astype(np.uint64)
        z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))).astype(np.uint32)
