"""Films that lmgraft makes: frames and the masks of what moves, in mp4 files whose frames do not know each other.

<set>/{train,val,test}/<action>/<film>.mp4         the class is the action
<set>/truth/{train,val,test}/<action>/<film>.npy   (T, H, W) bits in NumPy's format
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lmgraft import records
from lmgraft.versions import optional

TRUTH = "truth"
RATE = 12
DONE = "complete.json"
"""Written last, with what was to be made."""
NOTHING = "nothing"

Frames = npt.NDArray[np.uint8]
Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Filming:
    """What is filmed."""

    train: int = 1800
    """Films of training; a film of a pair makes two items, one of "nothing" one."""
    val: int = 240
    test: int = 720
    size: int = 64
    """Pixels a side."""
    frames: int = 8
    """Frames of a film. Clips of as many show all of them, so that both actions of a pair show equal sets."""
    seed: int = 0


class Film(NamedTuple):
    """The frames of a film, forwards, and where the object is to be seen in each."""

    frames: Frames
    """(T, H, W) grey or (T, H, W, 3) in colour."""
    masks: Masks
    """(T, H, W)."""

    def backwards(self) -> Film:
        return Film(self.frames[::-1], self.masks[::-1])

    def still(self, frame: int) -> Film:
        """One frame of it, as often as it has frames."""
        at = np.full(len(self.frames), frame)
        return Film(self.frames[at], self.masks[at])


def write_film(root: Path, name: str, shown: Film) -> None:
    """Write a film as root/<name>.mp4 and its masks below root/truth."""
    with records.atomic_path(root / TRUTH / f"{name}.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.packbits(shown.masks, axis=-1))
    with records.atomic_path(root / f"{name}.mp4") as temporary:
        encode(temporary, shown.frames)


def encode(file: Path, frames: Frames) -> None:
    """Write frames as H.264 in mp4, each compressed by itself at one quality: none shows its neighbours.

    Where PyAV was built without x264, MPEG-4 is written.

    Args:
        frames: (T, H, W) grey or (T, H, W, 3) in colour.
    """
    av: Any = optional("av", "video", "writing videos")
    codec, options = "libx264", {"qp": "12", "g": "1", "bf": "0", "preset": "fast"}
    if codec not in av.codecs_available:
        codec, options = "mpeg4", {"qmin": "2", "qmax": "2", "g": "1", "bf": "0"}
    with av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.thread_count = 1
        for number, pixels in enumerate(frames):
            layout = "gray" if pixels.ndim == 2 else "rgb24"
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=layout)
            shown.pts, shown.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))
