"""Frames of a video by their presentation time: exact, forwards, one pass over a file.

Which stored frame is frame i of an episode is decided from the times that the file lists for its
frames, before anything is decoded: the frame shown nearest to start + i / fps. That holds for
files of many episodes, whose start times carry rounding errors, since a quarter of a frame is
accepted and nothing more: a shift by a whole frame cannot pass. The decoder must then
produce exactly the listed times, in order.
"""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from imagewam_jax.errors import DataError

# In frames. Half a frame would be ambiguous.
TOLERANCE = 0.25
# Frames that are decoded and dropped rather than sought over.
_WORTH_SEEKING = 64


class VideoFrames:
    """The frames of one file. `threads` is what the decoder may use, 0 for all cores."""

    def __init__(self, file: Path, threads: int = 1):
        """Lists the frames without decoding. DataError if the file is missing or not a video."""
        if not file.is_file():
            raise DataError(f"{file}: missing")
        self.file = file
        self._threads = threads
        self._container: av.container.InputContainer | None = None
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._position: int | None = None  # of the frame that comes next, None when not known
        try:
            with av.open(str(file)) as container:
                stream = _video_stream(container, file)
                packets = [
                    (packet.pts, packet.is_keyframe)
                    for packet in container.demux(stream)
                    if packet.pts is not None and packet.size and not packet.is_discard
                ]
                self._time_base = float(stream.time_base)
        except av.FFmpegError as error:
            raise DataError(f"{file}: not a readable video: {error}") from error
        self._pts = np.array(sorted(pts for pts, _ in packets), np.int64)
        self._keyframes = np.array(sorted(pts for pts, key in packets if key), np.int64)
        if len(np.unique(self._pts)) != len(self._pts):
            raise DataError(f"{file}: two frames are shown at the same time")

    def __len__(self) -> int:
        return len(self._pts)

    def find(self, start: float, length: int, fps: float, episode: int) -> int:
        """Number in the file of an episode's first frame; the rest follow it one by one.

        Raises DataError naming the first frame that is missing or is not where it should be.
        """
        if not len(self._pts):
            raise DataError(f"{self.file}: no frames, expected {length} of episode {episode}")
        times = self._pts * self._time_base
        wanted = start + np.arange(length) / fps
        right = np.clip(np.searchsorted(times, wanted), 1, max(len(times) - 1, 1))
        left = right - 1
        right = np.minimum(right, len(times) - 1)
        nearest = np.where(wanted - times[left] <= times[right] - wanted, left, right)
        held = f"it has {len(times)} frames from {times[0]:.4f} to {times[-1]:.4f} s"
        off = np.abs(times[nearest] - wanted) * fps > TOLERANCE
        if off.any():
            i = int(np.argmax(off))
            if wanted[i] > times[-1]:
                raise DataError(
                    f"{self.file}: shorter than episode {episode}: no frame {i} of {length}, "
                    f"expected at {wanted[i]:.4f} s; {held}"
                )
            raise DataError(
                f"{self.file}: frame {i} of episode {episode} is expected at {wanted[i]:.4f} s, "
                f"the nearest is at {times[nearest[i]]:.4f} s; {held}, info.json says {fps:g} per "
                "second"
            )
        # Within the tolerance two frames never are the same one, but some may lie between.
        apart = np.diff(nearest)
        if (apart != 1).any():
            i = int(np.argmax(apart != 1))
            raise DataError(
                f"{self.file}: frames {i} and {i + 1} of episode {episode} are {apart[i]} frames "
                f"apart in the file, expected 1: is it recorded at {fps:g} per second? {held}"
            )
        return int(nearest[0])

    def frames(self, first: int, count: int) -> Iterator[av.VideoFrame]:
        """Frames first to first + count, decoded. Cheap where a previous call left off."""
        try:
            self._go_to(first)
            for number in range(first, first + count):
                yield self._next(number)
        except av.FFmpegError as error:
            raise DataError(
                f"{self.file}: decoding failed between frames {first} and {first + count}: {error}"
            ) from error

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container, self._frames, self._position = None, iter(()), None

    def _next(self, number: int) -> av.VideoFrame:
        """Decodes the next frame, which must be this one of the file."""
        frame = next(self._frames, None)
        if frame is None:
            raise DataError(
                f"{self.file}: the decoder ends before frame {number}, of {len(self)} listed"
            )
        if frame.pts != self._pts[number] or frame.is_corrupt:
            state = "damaged" if frame.is_corrupt else f"shown at {frame.pts}"
            raise DataError(
                f"{self.file}: frame {number} is {state}, expected it at {self._pts[number]} "
                f"(in units of {self._time_base:.3g} s)"
            )
        self._position = number + 1
        return frame

    def _go_to(self, number: int) -> None:
        """Makes `number` the next frame: by decoding up to it, or from the keyframe before it."""
        before = self._keyframes[self._keyframes < self._pts[number]] if number else ()
        keyframe = int(np.searchsorted(self._pts, before[-1])) if len(before) else 0
        position = -1 if self._position is None else self._position
        if position > number or keyframe - position >= _WORTH_SEEKING or position < 0:
            self._open()
            self._position = 0
            if keyframe >= _WORTH_SEEKING:
                self._seek(keyframe, number)
        while self._position < number:
            self._next(self._position)

    def _seek(self, keyframe: int, number: int) -> None:
        """Moves to some frame not after `number`: the start, if the file does not seek well."""
        self._container.seek(int(self._pts[keyframe]), stream=self._container.streams.video[0])
        for frame in self._frames:
            # Before the keyframe come frames that lean on what was not decoded.
            if frame.pts is not None and frame.pts >= self._pts[keyframe]:
                reached = int(np.searchsorted(self._pts, frame.pts))
                if reached < number and frame.pts == self._pts[reached]:
                    self._position = reached + 1
                    return
                break
        self._open()
        self._position = 0

    def _open(self) -> None:
        self.close()
        self._container = av.open(str(self.file))
        stream = _video_stream(self._container, self.file)
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = self._threads
        self._frames = self._container.decode(stream)


def _video_stream(container: av.container.InputContainer, file: Path) -> av.VideoStream:
    if not container.streams.video:
        raise DataError(f"{file}: no video in it")
    return container.streams.video[0]
