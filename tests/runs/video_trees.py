"""Tiny videos, written by PyAV, whose frames say which they are. Not a test file itself."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from lmgraft.data.image.fashion_mnist import FashionMNIST

STEP = 9
"""Grey levels between two frames: more than compression changes."""


def frame(number: int, height: int = 48, width: int = 64) -> np.ndarray[Any, Any]:
    """A grey frame whose level says its number, with a white corner, the upper left."""
    pixels = np.full((height, width, 3), 20 + STEP * number, np.uint8)
    pixels[: height // 4, : width // 4] = 255
    return pixels


def number_of(image: Image.Image) -> int:
    """Which of `frame`'s frames this is."""
    width, height = image.size
    return round((np.asarray(image)[height // 2 :, width // 2 :].mean() - 20) / STEP)


def write_video(
    file: Path,
    frames: Sequence[np.ndarray[Any, Any]],
    *,
    codec: str = "libx264",
    stamps: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Frames of a 25 a second video, or at these stamps in hundredths of a second."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {"crf": "10"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for number, pixels in enumerate(frames):
            shown = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            shown.pts, shown.time_base = 4 * number if stamps is None else stamps[number], Fraction(1, 100)
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))
    return file


def numbered(file: Path, count: int, **options: Any) -> Path:
    return write_video(file, [frame(n) for n in range(count)], **options)


def turn(file: Path, degrees: int) -> Path:
    """Write into an mp4 file that players are to turn it counter-clockwise, as phones do."""
    content = bytearray(file.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # behind version, times, track, duration, layer, volume
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    content[matrix : matrix + 36] = struct.pack(">9i", cos * one, -sin * one, 0, sin * one, cos * one, 0, 0, 0, 1 << 30)
    file.write_bytes(content)
    return file


def write_tree(root: Path, classes: Sequence[str] = ("up", "down"), train: int = 4, test: int = 2) -> Path:
    """root/{train,val}/<class>/N.mp4, 10 frames each."""
    for split, count in (("train", train), ("val", test)):
        for label, name in enumerate(classes):
            for number in range(count):
                frames = [frame(n if label else 9 - n) + np.uint8(number) for n in range(10)]
                write_video(root / split / name / f"{number}.mp4", frames)
    return root


def _pictures(folder: Path) -> Path:
    """Files as Fashion-MNIST's, of few bright shapes that are the same in no direction."""
    rng = np.random.default_rng(0)
    for half, count in (("train", 60), ("t10k", 20)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 4:24, 6:14] = rng.integers(120, 255, (count, 20, 8))
        images[:, 4:10, 14:24] = rng.integers(60, 255, (count, 6, 10))
        for kind, content, shape in (
            ("images-idx3", images, (count, 28, 28)),
            ("labels-idx1", images[:, 0, 0], (count,)),
        ):
            head = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
            body = content.tobytes() if kind == "images-idx3" else bytes(count)
            with gzip.open(folder / f"{half}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + body)
    return folder


def pictures_of(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let motion clips be made of a few pictures in the place of Fashion-MNIST's."""
    root = str(_pictures(folder))
    patch.setattr("lmgraft.data.video.motion_clips.FashionMNIST", lambda **_: FashionMNIST(root=root, verify=False))
