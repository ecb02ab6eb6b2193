"""Frames of a video by their presentation time: exactly, and in one pass over a file.

Before anything is decoded, the times that the file lists for its frames decide which of them is
frame i of an episode: the one that is shown nearest to start + i / fps. It may be off by a quarter
of a frame, since start times within files of many episodes carry rounding errors, but not by more,
so a shift by a whole frame cannot pass. The decoder must then produce exactly the listed times, in
order.
"""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from imagewam_jax.errors import DataError

# In frames; half a frame would be ambiguous.
TOLERANCE = 0.25
# Up to so many frames, decoding and dropping them is cheaper than seeking.
_WORTH_SEEKING = 64


class VideoFrames:
    """The frames of one file. The decoder uses `threads` threads; 0: one per core."""

    def __init__(self, file: Path, threads: int = 1):
        """Lists the frames without decoding. DataError if the file is missing or not a video."""
        if not file.is_file():
            raise DataError(f"{file}: missing")
        self.file = file
        self._threads = threads
        self._container: av.container.InputContainer | None = None
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._position: int | None = None  # number of the next frame; None: not known
        try:
            with av.open(str(file)) as container:
                stream = _video_stream(container, file)
                if stream.codec_context is None:
                    raise DataError(
                        f"{file}: a video of a codec that this FFmpeg cannot decode; encode it "
                        "again (ffmpeg -i FILE -c:v libx264 -crf 18 NEW), or install an FFmpeg "
                        "that can"
                    )
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
        """The number in the file of an episode's first frame; the others follow it one by one.

        DataError names the first frame that is missing or is not where it should be.
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
        # Within the tolerance two frames are never the same one, but others may lie between them.
        apart = np.diff(nearest)
        if (apart != 1).any():
            i = int(np.argmax(apart != 1))
            raise DataError(
                f"{self.file}: frames {i} and {i + 1} of episode {episode} are {apart[i]} frames "
                f"apart in the file, expected 1: is it recorded at {fps:g} per second? {held}"
            )
        return int(nearest[0])

    def frames(self, first: int, count: int) -> Iterator[av.VideoFrame]:
        """Decodes frames first to first + count. Going on where a previous call ended is cheap."""
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
        """Decodes the next frame, which must be the one of this number."""
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
        """Makes `number` the next frame, by decoding up to it from here or from a keyframe."""
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
        """Seeks to a frame not after `number`; to the start of the file if seeking fails."""
        self._container.seek(int(self._pts[keyframe]), stream=self._container.streams.video[0])
        for frame in self._frames:
            # Frames before the keyframe depend on frames that were not decoded.
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
