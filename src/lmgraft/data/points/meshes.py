"""Meshes from files, and points on their surfaces."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmgraft.errors import first_line
from lmgraft.versions import optional

Array = npt.NDArray[np.float32]
Faces = npt.NDArray[np.int64]
EXTENSIONS = (".obj", ".off", ".stl", ".ply", ".glb", ".gltf", ".wrl")


class UnreadableCloudError(ValueError):
    """A file that gives no cloud; the text says why, in few words."""


DAMAGE: tuple[type[Exception], ...] = (
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, EOFError, RuntimeError,
    NotImplementedError, MemoryError, OverflowError, ImportError, struct.error,
)  # fmt: skip
"""What readers raise for files that are damaged or not what their names say."""


def read_mesh(path: Path) -> tuple[Array, Faces]:
    """Vertices (V, 3) and triangles (F, 3) of a mesh file; of a scene all its parts together.

    Raises:
        UnreadableCloudError: If the file is damaged, or holds no triangles.
        VersionError: If trimesh is not installed.
    """
    if path.suffix.lower() == ".wrl":
        vertices, faces = read_vrml(path.read_bytes())
    else:
        trimesh = optional("trimesh", "points", "reading meshes")
        try:
            mesh = trimesh.load_mesh(path, process=False, skip_materials=True)
            if hasattr(mesh, "to_mesh"):
                mesh = mesh.to_mesh()
            vertices, faces = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int64)
        except DAMAGE as error:
            raise UnreadableCloudError(f"not a mesh ({first_line(error)[:120]})") from None
    if not len(faces):
        raise UnreadableCloudError("it has no triangles")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise UnreadableCloudError("triangles name vertices that are not there")
    return vertices, faces


_POINTS, _INDEX = re.compile(rb"\bpoint\s*\[([^\]]*)\]"), re.compile(rb"\bcoordIndex\s*\[([^\]]*)\]")
_MOVED = re.compile(rb"\b(?:translation|rotation|scale)\s+([-+.\deE \t]+)")


def read_vrml(content: bytes) -> tuple[Array, Faces]:
    """The faces of all IndexedFaceSets of a VRML 2.0 file, as CAD programs write them.

    Raises:
        UnreadableCloudError: If it is no VRML, holds other shapes, or moves its shapes by transforms.
    """
    if not content.startswith(b"#VRML V2.0"):
        raise UnreadableCloudError("not VRML 2.0")
    content = re.sub(rb"#[^\n]*", b"", content)
    for number in _MOVED.findall(content):
        values = [float(word) for word in number.split()]
        if values not in ([0, 0, 0], [1, 1, 1]) and not (len(values) == 4 and values[3] == 0):
            raise UnreadableCloudError("its shapes are moved by transforms, which are not followed")
    vertices, faces, first = [np.empty((0, 3), np.float32)], [np.empty((0, 3), np.int64)], 0
    for part in content.split(b"IndexedFaceSet")[1:]:
        points, index = _POINTS.search(part), _INDEX.search(part)
        if points is None or index is None:
            raise UnreadableCloudError("an IndexedFaceSet without points or indices of its own")
        try:
            xyz = np.array(points[1].replace(b",", b" ").split(), np.float32).reshape(-1, 3)
            corners = np.array(index[1].replace(b",", b" ").split(), np.int64)
        except ValueError:
            raise UnreadableCloudError("its numbers cannot be read") from None
        faces.append(_triangles(corners) + first)
        vertices.append(xyz)
        first += len(xyz)
    return np.concatenate(vertices), np.concatenate(faces)


def _triangles(corners: Faces) -> Faces:
    """Triangles (F, 3) of polygons that are closed by -1, as fans."""
    if len(corners) % 4 == 0 and (corners[3::4] == -1).all() and (corners.reshape(-1, 4)[:, :3] >= 0).all():
        return corners.reshape(-1, 4)[:, :3]
    polygons = np.split(corners, np.flatnonzero(corners == -1) + 1)
    fans = [(p[0], p[i], p[i + 1]) for p in (p[p >= 0] for p in polygons) for i in range(1, len(p) - 1)]
    return np.array(fans, np.int64).reshape(-1, 3)


def sample_surface(vertices: Array, faces: Faces, count: int, seed: int = 0) -> Array:
    """`count` points (count, 3), uniform by area, the same for the same mesh and seed.

    Raises:
        UnreadableCloudError: If vertices are not finite, or the surface has no area.
    """
    return surface_points(vertices, faces, count, seed)[0]


def surface_points(vertices: Array, faces: Faces, count: int, seed: int = 0) -> tuple[Array, Faces, float]:
    """As `sample_surface`; also the triangle of each point (count,), and the whole area."""
    corners = vertices[faces].astype(np.float64)
    if not np.isfinite(corners).all():
        raise UnreadableCloudError("vertices are not finite")
    edges = corners[:, 1:] - corners[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    if not area.sum() > 0:
        raise UnreadableCloudError("its surface has no area")
    draw = np.random.Generator(np.random.Philox(seed))
    chosen = np.searchsorted(np.cumsum(area) / area.sum(), draw.random(count), side="right").clip(max=len(area) - 1)
    uv = draw.random((count, 2))
    uv = np.where(uv.sum(1, keepdims=True) > 1, 1 - uv, uv)
    points: Array = (corners[chosen, 0] + (edges[chosen] * uv[..., None]).sum(1)).astype(np.float32)
    return points, chosen, float(area.sum())
