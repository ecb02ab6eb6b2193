"""LeRobot episodes as RLDS episodes: {"steps": [step], "episode_metadata": {...}}."""

from pathlib import Path
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

from imagewam_jax.data.tools.lerobot.folder import Episode, LeRobotFolder
from imagewam_jax.data.tools.lerobot.images import (
    ImageForm,
    jpeg_of_frame,
    jpeg_of_pixels,
    jpeg_of_stored,
)
from imagewam_jax.data.tools.lerobot.layout import Layout, is_one_number
from imagewam_jax.data.tools.lerobot.rows import ParquetRows
from imagewam_jax.data.tools.lerobot.video import VideoFrames
from imagewam_jax.errors import DataError

# What a policy learns from: NaN and infinities must not pass unnoticed here.
_MUST_BE_FINITE = ("action", "observation/state")


class EpisodeReader:
    """Reads episodes. In the order of their index, every file is read once, from front to back.

    One parquet file and one video file per camera are open at a time.

    threads: of each video decoder.
    unused_frames: whether a video may hold frames that no episode claims.
    """

    def __init__(
        self,
        folder: LeRobotFolder,
        layout: Layout,
        *,
        quality: int = 95,
        threads: int = 1,
        unused_frames: bool = False,
    ):
        self._folder = folder
        self._layout = layout
        self._quality = quality
        self._threads = threads
        self._unused_frames = unused_frames
        self._rows: ParquetRows | None = None
        self._videos: dict[str, VideoFrames] = {}
        self._converter = VideoReformatter()

    def read(self, episode: Episode) -> dict[str, Any]:
        """The RLDS episode, its images as JPEG bytes. DataError names the file and what is wrong.

        NaN and infinities are not looked for here: see `check_numbers`.
        """
        columns = self._parquet(episode, images=True).episode(episode)
        streams = {
            target: self._jpegs(key, columns, episode)
            for key, target in self._layout.cameras.items()
        }
        streams |= {target: columns[key] for key, target in self._layout.copied.items()}
        streams |= made_features(columns, self._layout, episode)
        streams["language_instruction"] = instructions(columns, self._folder, episode)
        source = episode.data_file.relative_to(self._folder.path)
        return {
            "steps": [
                _nested({key: values[t] for key, values in streams.items()})
                for t in range(episode.length)
            ],
            "episode_metadata": {
                "episode_index": episode.index,
                "source": f"{self._folder.path.resolve().name}/{source}",
            },
        }

    def check_numbers(self, episode: Episode) -> dict[str, int]:
        """Checks all but the images of an episode; counts NaN and infinities by RLDS key."""
        columns = self._parquet(episode, images=False).episode(episode)
        instructions(columns, self._folder, episode)
        made_features(columns, self._layout, episode)
        return {
            target: int(np.count_nonzero(~np.isfinite(columns[key])))
            for key, target in self._layout.copied.items()
            if target in _MUST_BE_FINITE and self._layout.features[key].dtype != "string"
        }

    def close(self) -> None:
        for video in self._videos.values():
            video.close()
        self._videos.clear()

    def _parquet(self, episode: Episode, *, images: bool) -> ParquetRows:
        if self._rows is None or self._rows.file != episode.data_file:
            self._rows = ParquetRows(episode.data_file, self._layout, images=images)
        return self._rows

    def _jpegs(self, key: str, columns: dict[str, Any], episode: Episode) -> list[bytes]:
        height, width, _ = self._layout.features[key].shape
        form = ImageForm((height, width), self._layout.size, self._quality)
        if key in columns:
            place = f"{episode.data_file}: episode {episode.index}: {key!r}: step"
            values = columns.pop(key)
            if self._layout.features[key].array_shape:
                return [jpeg_of_pixels(pixels, form) for pixels in values]
            return [
                jpeg_of_stored(value, self._folder.path, form, f"{place} {t}")
                for t, value in enumerate(values)
            ]
        span = episode.videos[key]
        video = self._video(key, span.file)
        first = video.find(span.start, episode.length, self._folder.fps, episode.index)
        place = f"{span.file}: frame"
        return [
            jpeg_of_frame(frame, form, f"{place} {number}", self._converter)
            for number, frame in enumerate(video.frames(first, episode.length), first)
        ]

    def _video(self, key: str, file: Path) -> VideoFrames:
        video = self._videos.get(key)
        if video is None or video.file != file:
            if video is not None:
                video.close()
            video = self._videos[key] = VideoFrames(file, self._threads)
            claimed = self._folder.video_frames[file]
            # Fewer frames than claimed: `find` says which episode is short of which frame.
            if len(video) > claimed and not self._unused_frames:
                raise DataError(
                    f"{file}: {len(video)} frames, expected {claimed}, the steps of all episodes "
                    "in it; with allow_unused_frames the rest is left out"
                )
        return video


def made_features(
    columns: dict[str, Any], layout: Layout, episode: Episode
) -> dict[str, np.ndarray]:
    """The features that RLDS defines for every step; layout.py says where the values come from."""

    def stored(*keys: str) -> np.ndarray | None:
        for key in keys:
            if key in columns and is_one_number(layout.features[key]):
                return columns[key].reshape(-1)
        return None

    last = np.arange(episode.length) == episode.length - 1
    ends = stored("is_terminal", "next.done")
    reward = stored("reward", "next.reward")
    discount = stored("discount")
    zeros = np.zeros(episode.length, np.float32)
    return {
        "is_first": np.arange(episode.length) == 0,
        "is_last": last,
        "is_terminal": last & (True if ends is None else ends.astype(bool)),
        "reward": zeros if reward is None else reward.astype(np.float32),
        "discount": zeros + 1 if discount is None else discount.astype(np.float32),
    }


def instructions(columns: dict[str, Any], folder: LeRobotFolder, episode: Episode) -> list[str]:
    """The task of every step. DataError: meta/tasks lacks a task_index."""
    ids = columns["task_index"].reshape(-1).tolist()
    for t, number in enumerate(ids):
        if number not in folder.tasks:
            raise DataError(
                f"{episode.data_file}: episode {episode.index}: task_index {number} at step {t} is "
                f"not in meta/tasks, which has {sorted(folder.tasks)[:20]}"
            )
    return [folder.tasks[number] for number in ids]


def _nested(step: dict[str, Any]) -> dict[str, Any]:
    """Turns {"observation/image": x} into {"observation": {"image": x}}."""
    nested: dict[str, Any] = {"observation": {}}
    for key, value in step.items():
        prefix, _, name = key.rpartition("/")
        (nested[prefix] if prefix else nested)[name] = value
    return nested
