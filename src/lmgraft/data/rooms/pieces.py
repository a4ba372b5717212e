"""Pieces of furniture for rooms: size in metres, points on their surfaces with colours, and which split shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmgraft.checkpoint.cache import scratch_dir
from lmgraft.data.files import SlowLines
from lmgraft.data.points.furniture import catalogue, extract, upright
from lmgraft.data.points.meshes import DAMAGE, Array, Faces, UnreadableCloudError, surface_points
from lmgraft.data.points.near import near_groups, noise, signatures, split_groups
from lmgraft.versions import optional

Colours = npt.NDArray[np.uint8]

LABELS: dict[str, tuple[str, ...]] = {
    "armchair": ("armchair", "winchester armchair", "modern armchair", "rattan armchair"),
    "bed": ("bed", "child bed", "captain's bed", "day bed", "hospital bed", "iron bed"),
    "bookcase": ("bookcase", "full bookcase", "shelves", "vertical shelves"),
    "cabinet": (
        "wardrobe", "cupboard", "chest", "dresser with drawers", "filing cabinet", "high cabinet", "drawers cabinet",
        "lower cabinet",
    ),
    "chair": (
        "chair", "oak chair", "cafe chair", "chair with cushion", "folding chair", "osaka chair", "plastic chair",
        "teck chair",
    ),
    "lamp": ("lamp", "little lamp", "desk lamp", "pedestal vase lamp"),
    "plant": ("plant", "decorative plant", "indoor plant", "ficus", "yucca", "christmas tree", "tulips", "flowers"),
    "sofa": (
        "sofa", "couch", "burlap sofa", "clear sofa", "futon couch", "rattan sofa", "sofa 2 seats", "sofa 3 seats",
        "winchester sofa",
    ),
    "table": (
        "table", "bar table", "black table", "cafe table", "coffee table", "desk", "desk table", "glass table",
        "oak table", "rattan table", "round table", "table on trestles", "table with tablecloth",
        "wooden alder table", "wooden desk", "wooden table", "wooden teak table",
    ),
    "toilet": ("toilets unit",),
}  # fmt: skip
"""What a piece is called in questions -> names in the catalogues."""

_SMALLEST, _LARGEST = (0.2, 0.2, 0.35), (2.4, 2.4, 2.2)
_POINTS = 2048
_FEWEST = 6  # groups of equal shapes of a label, so that some are kept for the test
_UNSEEN = 0.25


@dataclass(frozen=True, eq=False)
class Piece:
    """A model of furniture as it stands in a room."""

    name: str
    label: str
    """A key of `LABELS`."""
    points: Array
    """(2048, 3) metres, z upwards from the floor, x and y around the middle."""
    colours: Colours
    """(2048, 3) red, green, blue."""
    area: float
    """Of its surface, square metres."""
    test: bool = False
    """Whether only rooms of the test show it; of labels of few shapes none is kept for these."""


def label_of(name: str) -> str | None:
    """What a piece of this name is called in questions; None of what is in no room."""
    return next((label for label, names in LABELS.items() if name.lower() in names), None)


def read_pieces(files: Path) -> tuple[list[Piece], dict[str, str]]:
    """All pieces that stand in rooms, from the catalogues, *.sh3f, below a folder.

    Returns:
        The pieces in order, with `test` decided; and why others are left out.
    """
    pieces: list[tuple[Piece, Array]] = []
    left_out: dict[str, str] = {}
    progress = SlowLines()
    for archive in sorted(files.rglob("*.sh3f")):
        for row in catalogue(archive):
            label = label_of(row.get("name", ""))
            if label is None:
                continue
            name = f"{archive.stem}{row['model']}"
            try:
                with scratch_dir("model") as scratch:
                    vertices, faces, colours = coloured_mesh(extract(archive, row["model"], scratch))
                pieces.append(_piece(name, label, _standing(vertices, row), faces, colours))
            except UnreadableCloudError as error:
                left_out[name] = str(error)
            progress(f"[rooms] {len(pieces):,} pieces of furniture")
    return _split([piece for piece, _ in pieces], [again for _, again in pieces]), left_out


def coloured_mesh(path: Path) -> tuple[Array, Faces, Colours]:
    """Vertices (V, 3), triangles (F, 3) and the colour (F, 3) of each, of an OBJ with its materials beside it.

    A triangle has its material's colour, or its texture's at the triangle's middle; grey where there is neither.

    Raises:
        UnreadableCloudError: If the file is damaged, or holds no triangles.
        VersionError: If trimesh is not installed.
    """
    trimesh = optional("trimesh", "points", "reading furniture")
    try:
        scene = trimesh.load(path, process=False, force="scene")
        parts = [part for part in scene.geometry.values() if len(getattr(part, "faces", ()))]
        vertices = [np.asarray(part.vertices, np.float32) for part in parts]
        starts = np.cumsum([0, *map(len, vertices)])
        faces = [np.asarray(part.faces, np.int64) + start for part, start in zip(parts, starts, strict=False)]
        colours = [_face_colours(part) for part in parts]
    except DAMAGE as error:
        raise UnreadableCloudError(f"not a mesh ({type(error).__name__}: {error})") from None
    if not faces:
        raise UnreadableCloudError("it has no triangles")
    return np.concatenate(vertices), np.concatenate(faces), np.concatenate(colours)


def _face_colours(part: Any) -> Colours:
    """(F, 3) of a mesh as trimesh gives it."""
    material = getattr(part.visual, "material", None)
    plain = np.full(3, 128) if material is None else np.asarray(material.main_color)[:3]
    image, uv = getattr(material, "image", None), getattr(part.visual, "uv", None)
    if image is None or uv is None:
        return np.tile(plain.astype(np.uint8), (len(part.faces), 1))
    pixels = np.asarray(image.convert("RGB").resize((64, 64)))
    middle = np.asarray(uv)[np.asarray(part.faces)].mean(1)
    column, row = (np.floor(np.nan_to_num(middle * [1, -1]) % 1 * 64).astype(int).clip(0, 63)).T
    colours: Colours = pixels[row, column]
    return colours


def _standing(vertices: Array, row: dict[str, str]) -> Array:
    """Vertices in metres as the catalogue has the piece: turned, of its size, on the floor around the middle.

    Raises:
        UnreadableCloudError: If it hangs, or is too small or too large for a room.
    """
    if float(row.get("elevation", 0)) > 0:
        raise UnreadableCloudError("it does not stand on the floor")
    if "modelRotation" in row:
        turn = np.array(row["modelRotation"].split(), np.float32).reshape(3, 3)
        vertices = vertices @ turn.T
    placed = upright(vertices)
    low, high = placed.min(0), placed.max(0)
    size = np.array([float(row[key]) / 100 for key in ("width", "depth", "height")], np.float32)
    if not (np.isfinite(size).all() and (size >= _SMALLEST).all() and (size <= _LARGEST).all()):
        raise UnreadableCloudError(f"its size is {' x '.join(f'{length:.2f}' for length in size)} m")
    if not (high - low > 0).all():
        raise UnreadableCloudError("it is flat")
    middle = (low + high) / 2
    middle[2] = low[2]
    standing: Array = ((placed - middle) * size / (high - low)).astype(np.float32)
    return standing


def _piece(name: str, label: str, vertices: Array, faces: Faces, colours: Colours) -> tuple[Piece, Array]:
    """A piece, and other points (2048, 3) of it."""
    points, chosen, area = surface_points(vertices, faces, _POINTS)
    again, *_ = surface_points(vertices, faces, _POINTS, 1)
    return Piece(name, label, points, colours[chosen], area), again


def _split(pieces: Sequence[Piece], again: Sequence[Array]) -> list[Piece]:
    """The pieces with `test` decided: nearly equal ones are on one side."""

    def unit(points: Array) -> Array:
        centred = points - points.mean(0)
        scaled: Array = centred / np.linalg.norm(centred, axis=1).max()
        return scaled

    once = signatures(np.stack([unit(piece.points) for piece in pieces]))
    groups = near_groups(once, noise(once, signatures(np.stack([unit(points) for points in again]))))
    labels = np.array([list(LABELS).index(piece.label) for piece in pieces])
    side = split_groups(groups, labels, [piece.name for piece in pieces], {"test": _UNSEEN})
    few = [label for label in np.unique(labels) if len(set(groups[labels == label].tolist())) < _FEWEST]
    return [
        Piece(p.name, p.label, p.points, p.colours, p.area, s == "test" and n not in few)
        for p, s, n in zip(pieces, side, labels, strict=True)
    ]


def pieces_of(pieces: Sequence[Piece], split: str) -> dict[str, list[Piece]]:
    """Label -> the pieces that rooms of a split show: the test's those of training too, and those kept for it."""
    shown = [piece for piece in pieces if split == "test" or not piece.test]
    return {label: of for label in LABELS if (of := [piece for piece in shown if piece.label == label])}
