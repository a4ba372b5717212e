"""KiCad's component models: VRML shapes of electronic parts, out of Debian's kicad-packages3d (CC-BY-SA-4.0).

A class is a family of parts, the first word of the folder's name: Capacitor, Connector, Package.
"""

from __future__ import annotations

from pathlib import Path

from lmgraft.data.debian import Pinned, prepare_out_of
from lmgraft.data.points.meshes import Array, Faces, read_mesh
from lmgraft.data.points.prepared import PreparedClouds, sample_shapes, write_set

_PACKAGE = Pinned(
    "kicad-packages3d", "6.0.10-1", "e4ee3179c3935885a262e41543a675208ad5b3077d348728cac46f534d01109a", 379_092_288
)
_LEAST = 15  # groups of a class
ABOUT = {
    "name": "kicad-models",
    "source": f"{_PACKAGE}; https://kicad.github.io/packages3d/",
    "licence": "CC-BY-SA-4.0 with KiCad's exception (a few files GPL-3+, see the package's copyright file)",
    "attribution": "KiCad Community, 2017 to 2022",
    "changes": "2,048 points were drawn evenly on each surface, centred and scaled into the unit sphere",
}


class KicadModels(PreparedClouds):
    """KiCad's component models, after `lmgraft prepare kicad-models`.

    Args:
        options: See `PreparedClouds`.
    """

    name = "kicad-models"


def prepare(out: Path | None) -> Path:
    """Fetch the models and make the set, unless it is there; minutes."""
    return prepare_out_of(_PACKAGE, ".wrl", ABOUT, make_set, out)


def make_set(files: Path, folder: Path) -> Path:
    """The set in `folder` from the VRML files below `files`."""
    paths = sorted(files.rglob("*.wrl"), key=lambda path: (path.parent.name, path.name))
    names = [f"{path.parent.name}/{path.name}" for path in paths]

    def read(i: int) -> tuple[Array, Faces]:
        return read_mesh(paths[i])

    shapes = sample_shapes(names, [name.split(".")[0].split("_")[0] for name in names], read)
    return write_set(folder, shapes, ABOUT, _LEAST)
