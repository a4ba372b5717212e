"""Chosen frames of a video, exactly those: by PyAV, or from a folder of images. Knows nothing of clips or classes.

Frames are counted from 0 in the order in which they are shown. They are found by their time stamps, and decoding
starts at the key frame before each stretch that is wanted, so that no frame is guessed from a rate.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from timm.utils.misc import natural_key

from lmgraft.data.files import as_names
from lmgraft.data.image.opening import is_image
from lmgraft.data.image.reading import Reading
from lmgraft.data.image.tables import UNREADABLE as IMAGE_ERRORS
from lmgraft.data.image.tables import FolderFiles, decode
from lmgraft.versions import optional

VIDEO_EXTENSIONS = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts")
"""File names that are taken as videos."""
UNREADABLE = (*IMAGE_ERRORS, RuntimeError)
"""What is raised for a file that is no whole video."""

Times = npt.NDArray[np.float64]
Choose = Callable[[Times], Sequence[int]]
"""From the times of all frames, in seconds from the first one, to the frames that are wanted, in any order."""
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
_FRAME_RATE = 25.0
"""Of folders of frames, which do not say theirs."""


@dataclass(frozen=True)
class Footage:
    """What a video holds, from decoding all of it."""

    times: Times
    """(N,) seconds from the first frame."""
    width: int
    """As it is shown, turned."""
    height: int
    rotation: int
    """Degrees counter-clockwise by which a player turns it; phones film so."""

    @property
    def is_variable(self) -> bool:
        """Whether the time between two frames varies by more than half of the shortest; the last is often a guess."""
        gaps = np.diff(self.times)[:-1]
        return len(gaps) > 1 and bool(gaps.max() > 1.5 * gaps.min())


def is_video(name: str) -> bool:
    """Whether a file is taken as a video, by its name; those that macOS lays beside a file, ._NAME, are not."""
    return name.lower().endswith(VIDEO_EXTENSIONS) and not name.startswith("._")


def frame_files(folder: str) -> list[str]:
    """The images in a folder of frames, in their natural order (frame2 before frame10)."""
    return sorted(filter(is_image, os.listdir(folder)), key=lambda name: (natural_key(name), name))


def read_frames(path: str, choose: Choose) -> list[Image.Image]:
    """The chosen frames of a video or a folder of frames, RGB, upright, in the order asked for.

    Raises:
        UNREADABLE: One of these, if it is no whole video, holds no frame, or one that is wanted cannot be decoded.
    """
    if os.path.isdir(path):
        names = frame_files(path)
        _at_least_one(len(names))
        files, reading = FolderFiles(path, as_names(names)), Reading(3, eight_bits=True)
        chosen = choose(np.arange(len(names)) / _FRAME_RATE)
        shown = {index: decode(files, index, reading) for index in set(chosen)}
        return [image for index in chosen if isinstance(image := shown[index], Image.Image)]
    with _Video(path) as video:
        wanted = [int(index) for index in choose(video.times)]
        frames = dict(video.decode(set(wanted)))
        absent = [index for index in wanted if index not in frames]
        if absent:
            raise ValueError(f"frame {absent[0]} of {len(video.times)} cannot be decoded")
        images = {index: _upright(frame, video.converter) for index, frame in frames.items()}
        return [images[index] for index in wanted]


def look_through(path: str) -> Footage:
    """Decode every frame of a video or a folder of frames.

    Raises:
        UNREADABLE: One of these, as `read_frames`.
    """
    if os.path.isdir(path):
        images = read_frames(path, lambda times: range(len(times)))
        return Footage(np.arange(len(images)) / _FRAME_RATE, *images[0].size, 0)
    with _Video(path) as video:
        first, count = None, 0
        for _, frame in video.decode(set(range(len(video.times)))):
            first, count = first or frame, count + 1
        if first is None or count < len(video.times):
            raise ValueError(f"{count} of its {len(video.times)} frames can be decoded")
        turn = _rotation(first)
        width, height = (first.height, first.width) if turn in (90, 270) else (first.width, first.height)
        return Footage(video.times, width, height, turn)


class _Video:
    """An open video: its compressed packets, and when each frame is shown.

    Packets are held in memory while it is open, so that nothing is sought for, which not all formats do exactly.
    """

    def __init__(self, path: str) -> None:
        if not os.path.exists(path):
            raise FileNotFoundError(2, "there is no such file")
        self._av = require_library()
        try:
            self._container = self._av.open(path)
        except self._av.FFmpegError as error:
            raise ValueError(f"not a video ({_words(error)})") from None
        try:
            self._begin()
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> _Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _begin(self) -> None:
        if not self._container.streams.video:
            raise ValueError("it holds no pictures, only other streams")
        stream = self._container.streams.video[0]
        stream.codec_context.thread_count = 1  # loaders run several processes
        self._codec = stream.codec_context
        self.converter = self._av.video.reformatter.VideoReformatter()  # one for all frames: it is dear to set up
        try:
            self._packets = [packet for packet in self._container.demux(stream) if packet.size]
        except self._av.FFmpegError as error:
            raise ValueError(f"damaged ({_words(error)})") from None
        if "mp4" in self._container.format.name and len(self._packets) < stream.frames:
            raise EOFError(f"cut short: {len(self._packets)} of {stream.frames} frames are there")
        shown = [packet.pts for packet in self._packets if not packet.is_discard]
        self._stamps: list[int] | None = None  # sorted
        if None in shown or len(set(shown)) < len(shown) or self._codec.name == "vp8":
            # No stamps (AVI with B-frames), or packets that show nothing: frames are counted as they are decoded.
            clock = [frame.pts for frame in self._decoded(self._packets)]
            rate = float(stream.average_rate or _FRAME_RATE)
            known = self._codec.name == "vp8" and clock == sorted(set(clock))
            times = [float(pts * stream.time_base) for pts in clock] if known else [n / rate for n in range(len(clock))]
        else:
            self._stamps = sorted(shown)
            times = [float(pts * stream.time_base) for pts in self._stamps]
        _at_least_one(len(times))
        self.times = np.array(times) - times[0]

    def decode(self, wanted: set[int]) -> Iterator[tuple[int, Any]]:
        """The wanted frames as they come, each with its number."""
        if self._stamps is None:
            yield from ((n, frame) for n, frame in enumerate(self._decoded(self._packets)) if n in wanted)
            return
        numbers = {stamp: number for number, stamp in enumerate(self._stamps)}
        missing = {number for number in wanted if number < len(self._stamps)}
        for first, stop in self._stretches(sorted(missing)):
            for frame in self._decoded(self._packets[first:]):
                number = numbers.get(frame.pts)
                if number in missing:
                    missing.discard(number)
                    yield number, frame
                if frame.pts >= stop:
                    break

    def _stretches(self, wanted: list[int]) -> list[tuple[int, int]]:
        """Where decoding has to start (a packet) and up to which stamp, so that all wanted frames come, in order."""
        assert self._stamps is not None
        keys = sorted((packet.pts, place) for place, packet in enumerate(self._packets) if packet.is_keyframe)
        stretches: list[tuple[int, int]] = []
        for number in wanted:
            stamp = self._stamps[number]
            key = bisect_right(keys, (stamp, len(self._packets))) - 1
            first = keys[key][1] if key >= 0 else 0
            if stretches and stretches[-1][0] == first:
                stretches[-1] = (first, stamp)
            else:
                stretches.append((first, stamp))
        return stretches

    def _decoded(self, packets: Sequence[Any]) -> Iterator[Any]:
        self._codec.flush_buffers()
        try:
            for packet in packets:
                yield from self._codec.decode(packet)
            yield from self._codec.decode(None)
        except self._av.FFmpegError as error:
            raise ValueError(f"damaged ({_words(error)})") from None


def require_library() -> Any:
    """PyAV.

    Raises:
        VersionError: If it is not installed.
    """
    return optional("av", "video", "reading videos")


def _words(error: Exception) -> str:
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)).partition(":")[0].strip()


def _at_least_one(count: int) -> None:
    if not count:
        raise ValueError("it holds no frame")


def _rotation(frame: Any) -> int:
    return round(float(frame.rotation) / 90) * 90 % 360


def _upright(frame: Any, converter: Any) -> Image.Image:
    image = Image.fromarray(converter.reformat(frame, format="rgb24", threads=1).to_ndarray())
    turn = _rotation(frame)
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image
