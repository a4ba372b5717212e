"""Pictures of one object each on a drawn background, with a mask: the procedure, whatever the objects are.

For each picture, from numbers that its split and its place in it decide:

1. A background of two random colours, mixed by white, pink or brown noise, a gradient, or stripes.
2. Up to `pieces` pieces of other objects: a square of half the side, cut out at random and laid anywhere.
3. One object of the picture's class: turned by up to `turn` degrees, scaled so that the square around it covers a share
   of the picture drawn evenly from `area`, and laid anywhere inside. The mask is where it is at least half opaque.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from lmgraft import records


class Thing(NamedTuple):
    """An object that pictures can show."""

    name: str
    """What it shares with others that show the same; of letters, digits and hyphens."""
    picture: Image.Image
    """RGBA, cut to what is opaque."""


Objects = Mapping[str, Sequence[Thing]]
"""Class -> its objects."""
Field = npt.NDArray[np.float64]

_OPAQUE = 128
_NOISE = {"white noise": 0.0, "pink noise": 1.0, "brown noise": 2.0}
"""Kind -> how much weaker noise is at half the grain, in powers of two."""
BACKGROUNDS = (*_NOISE, "gradient", "stripes")
PROCEDURE = " ".join((__doc__ or "").split())


@dataclass(frozen=True, kw_only=True)
class Composing:
    """How pictures are composed."""

    size: int = 64
    """Pixels a side."""
    area: tuple[float, float] = (0.1, 0.4)
    """Share of the picture that the square around the object covers."""
    pieces: int = 4
    """Most pieces of other objects."""
    turn: float = 20.0
    """Most degrees by which an object is turned, either way."""
    seed: int = 0


class Picture(NamedTuple):
    """A picture and where its object is."""

    image: Image.Image
    """RGB."""
    mask: Image.Image
    """L, 255 on the object."""
    name: str
    """Of the object."""


def compose(objects: Objects, kind: str, how: Composing, rng: np.random.Generator) -> Picture:
    """One picture of an object of a class."""
    canvas = background(how.size, rng)
    names = list(objects)
    for _ in range(int(rng.integers(how.pieces + 1))):
        piece = _piece(_any(objects[names[int(rng.integers(len(names)))]], rng).picture, how.size, rng)
        left, top = (int(v) for v in rng.integers(-piece.width // 2, how.size - piece.width // 2, 2))
        canvas.paste(piece, (left, top), piece)
    thing = _any(objects[kind], rng)
    turned = thing.picture.rotate(rng.uniform(-how.turn, how.turn), Image.Resampling.BICUBIC, expand=True)
    shown = scaled(tight(turned), round(how.size * math.sqrt(rng.uniform(*how.area))))
    place = int(rng.integers(how.size - shown.width + 1)), int(rng.integers(how.size - shown.height + 1))
    canvas.paste(shown, place, shown)
    mask = Image.new("L", canvas.size)
    mask.paste(opaque(shown), place)
    return Picture(canvas, mask, thing.name)


def background(size: int, rng: np.random.Generator) -> Image.Image:
    """Two random colours, mixed."""
    kind = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    mixed = _noise(size, _NOISE[kind], rng) if kind in _NOISE else _slope(size, kind == "stripes", rng)
    one, other = rng.integers(0, 256, (2, 3)).astype(np.float64)
    return Image.fromarray(np.rint(one + (other - one) * mixed[..., None]).astype(np.uint8))


def _noise(size: int, power: float, rng: np.random.Generator) -> Field:
    """(size, size) in [0, 1]: 2, 4, 8, ... grains a side, each weaker by 2 ** power than the one before."""
    total, weights = np.zeros((size, size)), 0.0
    grains = [size] if power == 0 else [2**n for n in range(1, size.bit_length()) if 2**n <= size]
    for n, grain in enumerate(grains):
        coarse = Image.fromarray(rng.integers(0, 256, (grain, grain), np.uint8))
        weight = 2.0 ** (-power * n)
        total += weight * np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) / 255
        weights += weight
    total /= weights
    return total


def _slope(size: int, stripes: bool, rng: np.random.Generator) -> Field:
    """(size, size) in [0, 1]: rising in one direction, once or again and again."""
    down, right = (int(v) for v in rng.integers(-4, 5, 2))
    down = down or 1
    rows, columns = np.mgrid[:size, :size]
    height: Field = (rows * down + columns * right).astype(np.float64)
    height -= height.min()
    if stripes:
        height %= (abs(down) + abs(right)) * int(rng.integers(4, 17))
    height /= height.max()
    return height


def _piece(picture: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    side = max(1, min(picture.size) // 2)
    left, top = (int(rng.integers(length - side + 1)) for length in picture.size)
    return scaled(picture.crop((left, top, left + side, top + side)), int(rng.integers(size // 8, size // 3)))


def _any(things: Sequence[Thing], rng: np.random.Generator) -> Thing:
    return things[int(rng.integers(len(things)))]


def scaled(picture: Image.Image, side: int) -> Image.Image:
    """A picture whose longer side has so many pixels."""
    factor = side / max(picture.size)
    width, height = (max(1, round(length * factor)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def opaque(picture: Image.Image) -> Image.Image:
    """255 where a picture is more than half opaque, else 0."""
    return picture.getchannel("A").point([0] * _OPAQUE + [255] * (256 - _OPAQUE))


def tight(picture: Image.Image) -> Image.Image:
    """A picture cut to what is more than half opaque; as it is where nothing is."""
    return picture.crop(opaque(picture).getbbox() or (0, 0, *picture.size))


def write_composed(
    root: Path, splits: Mapping[str, tuple[Objects, int]], how: Composing, about: Mapping[str, Any]
) -> Path:
    """Write pictures below root/images/<split>/<class>/<number>_<object>.png, masks below root/masks, set.json last.

    Args:
        splits: Name -> the objects of a split and how many pictures to make of them, each class in turn.
        about: Name, source and licence, as plain data, for set.json.
    """
    digest, shares = hashlib.sha256(), []
    for number, (split, (objects, count)) in enumerate(splits.items()):
        names = list(objects)
        for name in names:
            for part in ("images", "masks"):
                (root / part / split / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            name = names[index % len(names)]
            picture = compose(objects, name, how, np.random.default_rng([how.seed, number, index]))
            digest.update(picture.image.tobytes() + picture.mask.tobytes())
            shares.append(picture.mask.histogram()[255] / how.size**2)
            for part, image in zip(("images", "masks"), picture[:2], strict=True):
                image.save(root / part / split / name / f"{index:05}_{picture.name}.png", compress_level=1)
    record = {
        **about,
        "classes": list(next(iter(splits.values()))[0]),
        "sizes": {split: count for split, (_, count) in splits.items()},
        "objects": {split: {name: len(of) for name, of in objects.items()} for split, (objects, _) in splits.items()},
        "composing": asdict(how),
        "procedure": PROCEDURE,
        "share_of_object": {"mean": float(np.mean(shares)), "smallest": min(shares), "largest": max(shares)},
        "pixels_sha256": digest.hexdigest(),
    }
    records.write_json(root / "set.json", record)
    return root
