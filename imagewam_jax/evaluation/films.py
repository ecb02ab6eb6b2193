"""Pictures of episodes on disk: film strips of the first ones, videos of success and failure.

Of every task and policy variant the first success and the first failure become a video, "first" in
the order in which the episodes are listed: however many simulators play, and however often the
evaluation is killed and resumed, the same episodes are shown. A frame is what the policy saw when
it planned, so filming draws nothing more. Until an episode ends, its frames wait in a file.
"""

import contextlib
import io
import itertools
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from imagewam_jax.evaluation.journal import Ended
from imagewam_jax.evaluation.simulators.base import Observation
from imagewam_jax.files import writing, written_whole
from imagewam_jax.html.page import image_png

STRIP_FRAMES = 10
_OUTCOMES = {True: "success", False: "failure"}
_NAME = re.compile(r"(\d+)-(success|failure|strip)\b.*")
_TASK_CHARACTERS = 100  # of a name of a task, in that of a file

Images = UInt8[np.ndarray, "cameras h w 3"]
Frame = UInt8[np.ndarray, "h all_widths 3"]


class Films:
    """Films the episodes of one policy variant (a `rollout.Observer`).

    folder: that of all variants. What is there of this variant and of no ended episode is removed,
        and what a kill has left half written.
    variant: the name of the policy variant.
    episodes: (task, seed) of each episode.
    frames_per_second: decisions of the policy in a second of simulated time.
    strips: how many of the first episodes become film strips.
    ended: episodes that were played before, and how they ended.
    The methods raise WriteError if a file cannot be written. Leaving the context drops the frames
    of episodes that have not ended.
    """

    every_step = False

    def __init__(
        self,
        folder: Path,
        variant: str,
        episodes: Sequence[tuple[str, int]],
        *,
        frames_per_second: float,
        strips: int = 0,
        ended: Mapping[int, Ended] | None = None,
    ):
        self._folder = _of_variant(folder, variant)
        self._episodes = episodes
        self._frames_per_second = frames_per_second
        self._strips = strips
        self._open: dict[int, _Frames] = {}
        self._first: dict[tuple[str, bool], int] = {}  # (task, success) -> episode
        for episode, (success, _) in sorted((ended or {}).items()):
            self._first.setdefault((episodes[episode][0], success), episode)
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            shown = [
                path
                for path, episode, kind in _files(self._folder)
                if episode in (ended or {}) and self._is_shown(episode, kind)
            ]
            for path in set(self._folder.iterdir()).difference(shown):
                path.unlink()

    def began(self, episode: int, start: tuple[str, int], observation: Observation) -> None:
        """Opens a film, if the episode may be shown."""
        task, _ = start
        is_first = any(
            self._first.get((task, outcome), episode) >= episode for outcome in _OUTCOMES
        )
        if is_first or episode < self._strips:
            with writing(self._folder):
                self._open[episode] = _Frames(self._folder, observation.images_nhwc)

    def acted(
        self, episode: int, actions: Float[np.ndarray, "k a"], seen: Sequence[Observation]
    ) -> None:
        """Adds what the policy sees next."""
        if episode in self._open:
            with writing(self._folder):
                self._open[episode].add(seen[-1].images_nhwc)

    def ended(self, episode: int, ended: Ended) -> None:
        """Writes what is to be shown of an episode, and drops its other frames."""
        frames = self._open.pop(episode, None)
        if frames is None:
            return
        task, _ = self._episodes[episode]
        before = self._first.get((task, ended.success))
        with contextlib.closing(frames), writing(self._folder):
            if episode < self._strips:
                with written_whole(self._folder / f"{episode:05d}-strip.png") as file:
                    file.write(film_strip(frames))
            if before is None or episode < before:
                name = re.sub(r"[^\w-]+", "_", task)[:_TASK_CHARACTERS]
                stem = self._folder / f"{episode:05d}-{_OUTCOMES[ended.success]}-{name}"
                write_video(stem, map(_side_by_side, frames), self._frames_per_second)
                self._first[task, ended.success] = episode
                for path, other, kind in _files(self._folder):
                    if other == before and kind == _OUTCOMES[ended.success]:
                        path.unlink()

    def __enter__(self) -> "Films":
        return self

    def __exit__(self, *exception) -> None:
        for frames in self._open.values():
            frames.close()
        self._open.clear()

    def _is_shown(self, episode: int, kind: str) -> bool:
        if kind == "strip":
            return episode < self._strips
        task, _ = self._episodes[episode]
        return self._first.get((task, kind == _OUTCOMES[True])) == episode


def film_strips(folder: Path, variant: str) -> dict[int, bytes]:
    """The film strips of a policy variant, as PNG files: episode -> file."""
    found = _files(_of_variant(folder, variant))
    return {episode: path.read_bytes() for path, episode, kind in found if kind == "strip"}


def videos(folder: Path, variant: str) -> dict[int, Path]:
    """The videos of a policy variant: episode -> file."""
    found = _files(_of_variant(folder, variant))
    return {episode: path for path, episode, kind in found if kind != "strip"}


def write_video(stem: Path, frames: Iterable[Frame], frames_per_second: float) -> Path:
    """Writes a video and returns its path: `stem` with the ending of its format.

    It is an MP4 (H.264) where PyAV is installed with that encoder, which holds a few frames at a
    time. Elsewhere it is an animated GIF, by Pillow, which holds them all in 256 colours.
    """
    rate = Fraction(frames_per_second).limit_denominator(1000)
    is_mp4 = _has_encoder()
    path = stem.with_name(stem.name + (".mp4" if is_mp4 else ".gif"))
    with written_whole(path) as file:
        (_write_mp4 if is_mp4 else _write_gif)(file, iter(frames), rate)
    return path


def _has_encoder() -> bool:
    if find_spec("av") is None:
        return False
    import av

    return "libx264" in av.codecs_available


def _write_mp4(file: BinaryIO, frames: Iterator[Frame], rate: Fraction) -> None:
    import av

    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20"})
        first = next(frames)
        odd = [size % 2 for size in first.shape[:2]]  # which this form of color cannot have
        stream.height, stream.width = np.add(first.shape[:2], odd).tolist()
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for frame in itertools.chain([first], frames):
            even = np.pad(frame, ((0, odd[0]), (0, odd[1]), (0, 0)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())


def _write_gif(file: BinaryIO, frames: Iterator[Frame], rate: Fraction) -> None:
    images = map(Image.fromarray, frames)
    next(images).save(
        file,
        "GIF",
        save_all=True,
        append_images=images,
        duration=max(20, round(1000 / rate)),  # ms; viewers slow down what is faster
        loop=0,
    )


class _Frames(Sequence[Images]):
    """The images of one episode, in a file without a name; iterating reads them one by one."""

    def __init__(self, folder: Path, first: Images):
        self._shape = first.shape
        self._count = 0
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by the context
        self.add(first)

    def add(self, images: Images) -> None:
        self._file.seek(0, io.SEEK_END)
        self._file.write(np.ascontiguousarray(images).data)
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Images:
        if number >= self._count:
            raise IndexError(number)
        size = int(np.prod(self._shape))
        self._file.seek(number * size)
        return np.frombuffer(self._file.read(size), np.uint8).reshape(self._shape)

    def close(self) -> None:
        self._file.close()


def film_strip(frames: Sequence[Images]) -> bytes:
    """Some frames of an episode from left to right, first and last included, as a PNG file. Its
    cameras are one above another."""
    numbers = np.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).astype(int)
    columns = [np.concatenate(list(frames[number])) for number in numbers.tolist()]
    return image_png(np.concatenate(columns, axis=1))


def _side_by_side(images: Images) -> Frame:
    return np.concatenate(list(images), axis=1)


def _of_variant(folder: Path, variant: str) -> Path:
    return folder / re.sub(r"\W+", "-", variant.lower()).strip("-")


def _files(folder: Path) -> list[tuple[Path, int, str]]:
    """What is in the folder of a variant: (path, episode, "success", "failure" or "strip")."""
    found = [(path, _NAME.fullmatch(path.name)) for path in sorted(folder.glob("*"))]
    return [(path, int(match[1]), match[2]) for path, match in found if match]
