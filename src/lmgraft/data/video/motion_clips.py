"""Motion clips: short videos of a garment that moves, whose class is the action, made from Fashion-MNIST.

Actions come in pairs that are each other's reverse in time. Every film is written forwards, as an item of one class of
a pair, and backwards, as an item of the other, so that both classes have equal sets of frames, to the last bit: each
frame is compressed by itself. What tells them apart is the order of frames alone. "nothing" shows one frame of a film
again and again. Synthetic clips: real photographs, drawn motion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from lmgraft import records
from lmgraft.data.files import prepared_place
from lmgraft.data.image.fashion_mnist import FashionMNIST
from lmgraft.data.video.decoding import require_library
from lmgraft.data.video.filmed_clips import FilmedClips
from lmgraft.data.video.films import DONE, NOTHING, Film, Filming, Frames, Masks, write_film
from lmgraft.errors import DataError

PAIRS = (
    ("left", "right"), ("dropped", "lifted"), ("closer", "farther"), ("covered", "uncovered"),
    ("turned clockwise", "turned counter-clockwise"),
)  # fmt: skip
CLASSES = (*(name for pair in PAIRS for name in pair), NOTHING)
_ROUND = len(PAIRS) + 1
"""Films after which every class has one item more."""
_SOURCE = "Fashion-MNIST (Xiao, Rasul, Vollgraf; MIT licence), moved by lmgraft"
_FILM = r"(\d+)\.mp4$"
"""What the two items of one film share."""


class _Pose(NamedTuple):
    """Where the garment is, as shares of the picture's side, how large, and how far turned."""

    x: float
    y: float
    side: float
    degrees: float = 0.0


def film(picture: Frames, pair: int, size: int, frames: int, rng: np.random.Generator) -> Film:
    """A film of a garment (28, 28) whose action is the first of a pair; backwards it is the second.

    Args:
        pair: Which of `PAIRS`.
        size: Pixels a side.
    """
    steps = np.linspace(0, 1, frames)
    x, y, side = rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.5)
    way, swing = rng.uniform(0.3, 0.45), rng.uniform(60, 150)
    paths: tuple[Callable[[float], _Pose], ...] = (
        lambda t: _Pose(x + way * (0.5 - t), y, side),
        lambda t: _Pose(x, y + way * (t - 0.5), side),
        lambda t: _Pose(x, y, side * 2 ** (1.4 * (t - 0.5))),
        lambda t: _Pose(x, y, side, 0.0 * t),
        lambda t: _Pose(x, y, side, swing * (0.5 - t)),
    )
    background = _background(size, rng)
    drawn = [_draw(picture, paths[pair](float(t)), background) for t in steps]
    images, masks = (np.stack(part) for part in zip(*drawn, strict=True))
    if PAIRS[pair][0] == "covered":
        # A curtain of one grey, drawn over the garment from its left.
        stops = size * (x + side * (1.2 * steps - 0.6))
        curtain = np.arange(size)[None, None, :] < stops[:, None, None]
        images, masks = np.where(curtain, np.uint8(rng.integers(90, 200)), images), masks & ~curtain
    return Film(images, masks)


def _background(size: int, rng: np.random.Generator) -> Frames:
    """A smooth random field, dark, the same in all frames."""
    coarse = Image.fromarray(rng.integers(10, 90, (6, 6), np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).copy()


def _draw(picture: Frames, pose: _Pose, background: Frames) -> tuple[Frames, Masks]:
    size = len(background)
    side = max(2, round(pose.side * size))
    image = Image.fromarray(picture)
    mask = Image.fromarray(np.where(picture > 24, 255, 0).astype(np.uint8))
    place = (round(pose.x * size - side / 2), round(pose.y * size - side / 2))
    shown: list[npt.NDArray[Any]] = []
    for layer, how in ((image, Image.Resampling.BILINEAR), (mask, Image.Resampling.NEAREST)):
        layer = layer.resize((side, side), how).rotate(pose.degrees, how)
        canvas = Image.new("L", (size, size))
        canvas.paste(layer, place)
        shown.append(np.asarray(canvas))
    seen = shown[1] > 0
    return np.where(seen, shown[0], background), seen


def write_motion_clips(root: Path, filming: Filming | None = None, pictures: str | None = None) -> Path:
    """Write the clips as mp4 files below root/{train,val,test}/<action>, unless whole ones of these settings are there.

    Masks of the garment lie below root/truth, as (T, H, W) bits in NumPy's format.

    Args:
        root: A folder for them.
        filming: How many and how large.
        pictures: Folder of Fashion-MNIST's files; None finds or fetches them.

    Raises:
        DataError: If Fashion-MNIST cannot be had, or PyAV is missing.
    """
    filming = Filming() if filming is None else filming
    record = {"settings": asdict(filming), "source": _SOURCE, "classes": list(CLASSES)}
    if (root / DONE).exists() and records.read_json(root / DONE) == record:
        return root
    require_library()
    source = FashionMNIST(root=pictures)
    train, test = (source.load(train=half)[0][:, 0].numpy() for half in (True, False))
    counts = {"train": filming.train, "val": filming.val, "test": filming.test}
    halves = {"train": train, "val": train[::-1], "test": test}
    if filming.train + filming.val > len(train) or filming.test > len(test):
        raise DataError(
            f"{counts} films, and Fashion-MNIST has {len(train):,} and {len(test):,} pictures", "make fewer"
        )
    for number, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng([filming.seed, number])
        for index in range(count):
            for name, shown in _items(halves[split][index], index, filming, rng):
                write_film(root, f"{split}/{name}/{index:05}", shown)
    records.write_json(root / DONE, record)
    return root


def _items(picture: Frames, index: int, filming: Filming, rng: np.random.Generator) -> Iterator[tuple[str, Film]]:
    """A film forwards and backwards, or one frame of it again and again."""
    kind = index % _ROUND
    pair = kind if kind < len(PAIRS) else int(rng.integers(len(PAIRS)))
    whole = film(picture, pair, filming.size, filming.frames, rng)
    if kind < len(PAIRS):
        yield PAIRS[pair][0], whole
        yield PAIRS[pair][1], whole.backwards()
    else:
        yield NOTHING, whole.still(int(rng.integers(filming.frames)))


def _default_root(filming: Filming = Filming()) -> Path:  # noqa: B008  (frozen)
    """Other films than the usual ones lie elsewhere."""
    words = [] if filming == Filming() else [str(value) for value in asdict(filming).values()]
    return prepared_place("-".join(["motion-clips", *words]))


def prepare(out: Path | None) -> Path:
    """Write the motion clips, 5,060 of 8 frames at 64 pixels, into `out` or the cache."""
    return write_motion_clips(_default_root() if out is None else out)


class MotionClips(FilmedClips):
    """Motion clips, written when they are first used; see `write_motion_clips`.

    Args:
        root: Where they are or shall be; None is lmgraft's cache.
        pictures: Folder of Fashion-MNIST's files; None finds or fetches them.
        films: Films to write; by default those of `lmgraft prepare motion-clips`.
        options: See `Settings`. `order` shows that time is what matters.
    """

    name = "motion_clips"

    def __init__(
        self,
        root: str | None = None,
        pictures: str | None = None,
        films: Filming = Filming(),  # noqa: B008  (frozen)
        **options: Any,
    ) -> None:
        self.tree = _default_root(films) if root is None else Path(root).expanduser()
        self.pictures, self.films = pictures, films
        super().__init__(root=str(self.tree), group=_FILM, **options)

    def prepare_data(self) -> None:
        write_motion_clips(self.tree, self.films, self.pictures)
        super().prepare_data()
