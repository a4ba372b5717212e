"""Sweet Home 3D's furniture: OBJ models of five catalogues, out of Debian's sweethome3d-furniture (CC0, CC-BY-3.0).

A class is what the catalogue's English name says: chair, table, lamp.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np

from lmgraft.checkpoint.cache import scratch_dir
from lmgraft.data.debian import Pinned, prepare_out_of
from lmgraft.data.points.meshes import Array, Faces, UnreadableCloudError, read_mesh
from lmgraft.data.points.prepared import PreparedClouds, sample_shapes, write_set

PACKAGE = Pinned(
    "sweethome3d-furniture", "1.8-1", "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668", 119_782_356
)
_LEAST = 10  # groups of a class
ORIGIN = {
    "source": f"{PACKAGE}; https://www.sweethome3d.com",
    "licence": "BlendSwap-CC-0: CC0; BlendSwap-CC-BY, KatorLegaz, Reallusion, Scopia: CC-BY-3.0",
    "attribution": "the BlendSwap contributors; Andrew Kator and Jennifer Legaz; Reallusion; Scopia; eTeks",
}
"""Whose furniture it is, for the record of a set."""
ABOUT = {
    "name": "furniture",
    **ORIGIN,
    "changes": "2,048 points were drawn evenly on each surface, centred and scaled into the unit sphere, z upwards",
}

WORDS = {
    "chair": ("chair", "armchair", "stool", "rocking"), "sofa": ("sofa", "couch", "settee", "bench"),
    "table": ("table", "desk"), "lamp": ("lamp", "light", "lights", "spotlight", "chandelier"),
    "bed": ("bed", "bunk", "crib", "cradle"), "door": ("door", "gate"), "window": ("window",),
    "storage": (
        "cabinet", "wardrobe", "bookcase", "shelf", "shelves", "shelving", "cupboard", "drawers", "dresser", "chest",
    ),
    "bathroom": ("washbasin", "sink", "toilet", "toilets", "bath", "bathtub", "shower", "urinal", "bidet", "lavabo"),
    "person": ("male", "female", "man", "woman", "boy", "girl", "child"),
    "vehicle": ("truck", "car", "scooter", "bicycle", "bike", "motorcycle", "van", "jeep", "boat", "bus"),
    "plant": ("plant", "tree", "flower", "flowers", "tulips", "palm", "cactus", "bush"),
    "screen": ("tv", "screen", "monitor", "computer", "laptop"),
    "vessel": ("vase", "glass", "bottle", "cup", "mug", "bowl", "pot", "pan", "jug"),
}  # fmt: skip
"""Class -> words of a name that make a model one of it; the last word of the name that is in a row decides."""


class Furniture(PreparedClouds):
    """Sweet Home 3D's furniture, after `lmgraft prepare furniture`.

    Args:
        options: See `PreparedClouds`.
    """

    name = "furniture"


def class_of(name: str) -> str | None:
    """The class that the words of a model's name say; None where they say none."""
    for word in reversed(re.findall(r"[a-z]+", name.lower())):
        for kind, words in WORDS.items():
            if word in words:
                return kind
    return None


def prepare(out: Path | None) -> Path:
    """Fetch the models and make the set, unless it is there; a minute or two."""
    return prepare_out_of(PACKAGE, ".sh3f", ABOUT, make_set, out)


def make_set(files: Path, folder: Path) -> Path:
    """The set in `folder` from the catalogues, *.sh3f, below `files`."""
    rows = [
        (archive, model, kind)
        for archive in sorted(files.rglob("*.sh3f"))
        for name, model in _catalogue(archive)
        if (kind := class_of(name)) is not None
    ]

    def read(i: int) -> tuple[Array, Faces]:
        archive, model, _ = rows[i]
        with scratch_dir("model") as scratch:
            return _mesh(archive, model, scratch)

    names = [f"{archive.stem}{model}" for archive, model, _ in rows]
    return write_set(folder, sample_shapes(names, [kind for *_, kind in rows], read), ABOUT, _LEAST)


def _catalogue(archive: Path) -> list[tuple[str, str]]:
    """English name and model of each piece."""
    return [(piece.get("name", ""), piece["model"]) for piece in catalogue(archive)]


def catalogue(archive: Path) -> list[dict[str, str]]:
    """What a catalogue says of each piece that has a model: name, model, width, depth and height in centimetres ..."""
    with zipfile.ZipFile(archive) as content:
        text = content.read("PluginFurnitureCatalog.properties").decode("latin-1")
    pieces: dict[int, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*?)\s*$", text, re.MULTILINE):
        pieces.setdefault(int(number), {})[key] = value
    return [pieces[number] for number in sorted(pieces) if "model" in pieces[number]]


def _mesh(archive: Path, model: str, scratch: Path) -> tuple[Array, Faces]:
    """Vertices, z upwards, and triangles of a model, which may lie in an archive of its own."""
    vertices, faces = read_mesh(extract(archive, model, scratch))
    return upright(vertices), faces


def upright(vertices: Array) -> Array:
    """Vertices with z upwards of those with y upwards, the front still to the viewer."""
    return vertices[:, [0, 2, 1]] * np.array([1, -1, 1], np.float32)


def extract(archive: Path, model: str, scratch: Path) -> Path:
    """Write a model, which may lie in an archive of its own, and what lies beside it, such as its materials.

    Returns:
        Its OBJ file.

    Raises:
        UnreadableCloudError: If it is not in the archive.
    """
    with zipfile.ZipFile(archive) as outer:
        try:
            if model.endswith(".zip"):
                with zipfile.ZipFile(io.BytesIO(outer.read(model.lstrip("/")))) as inner:
                    (name, *_) = [name for name in inner.namelist() if name.lower().endswith(".obj")]
                    return _written(inner, name, scratch)
            return _written(outer, model.lstrip("/"), scratch)
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UnreadableCloudError(str(error)) from None


def _written(archive: zipfile.ZipFile, model: str, scratch: Path) -> Path:
    """Only the last part of a name inside the archive is used."""
    folder, _, name = model.rpartition("/")
    for other in archive.namelist():
        if other == model or (other.rpartition("/")[0] == folder and not other.endswith("/")):
            (scratch / Path(other).name).write_bytes(archive.read(other))
    if not (scratch / name).is_file():
        raise KeyError(f"{model} is not in the archive")
    return scratch / name
