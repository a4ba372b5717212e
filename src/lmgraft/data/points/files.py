"""One cloud from one file: point files as they are, meshes by points on their surface."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lmgraft.data.points.meshes import (
    DAMAGE,
    EXTENSIONS,
    Array,
    UnreadableCloudError,
    read_mesh,
    sample_surface,
)
from lmgraft.data.points.pcd import read_pcd
from lmgraft.versions import optional


def _text(path: Path) -> Array:
    """Numbers separated by spaces, commas, semicolons or tabs; the first three of each line are the place."""
    lines = [re.split(r"[\s,;]+", line.strip()) for line in path.read_text().splitlines()]
    rows = [line[:3] for line in lines if line[0] and line[0][0] not in "#/"]
    if rows and len(rows[0]) < 3:
        rows = rows[1:]  # PTS begins with the number of points
    if any(len(row) < 3 for row in rows):
        raise UnreadableCloudError("a line has fewer than three numbers")
    return np.array(rows, np.float32).reshape(-1, 3)


def _npy(path: Path) -> Array:
    values = np.load(path, allow_pickle=False)
    if values.ndim != 2 or values.shape[1] < 3 or values.dtype.kind not in "fiu":
        raise UnreadableCloudError(f"holds {values.dtype} {values.shape}, not numbers (N, 3)")
    return np.asarray(values[:, :3], np.float32)


def _las(path: Path) -> Array:
    laspy = optional("laspy", "points", "reading LAS")
    try:
        places = laspy.read(path).xyz
    except laspy.errors.LaspyException as error:
        raise UnreadableCloudError(str(error)) from None
    return np.asarray(places - places.mean(0), np.float32)  # metres of a map do not fit into 32 bits


def _ply(path: Path) -> Array | None:
    """The vertices of a PLY without faces; None of a mesh."""
    content = optional("trimesh", "points", "reading PLY").load(path, process=False)
    return None if len(getattr(content, "faces", ())) else np.asarray(content.vertices, np.float32)


READERS: dict[str, Callable[[Path], Array | None]] = {
    ".npy": _npy, ".xyz": _text, ".pts": _text, ".txt": _text, ".csv": _text, ".pcd": read_pcd, ".ply": _ply,
    ".las": _las, ".laz": _las,
}  # fmt: skip
"""Ending -> what reads points (n, 3) from such a file, or gives None where it is a mesh after all."""

ENDINGS = (*READERS, *(ending for ending in EXTENSIONS if ending not in READERS))
"""All kinds of files that give a cloud."""


def read_cloud(path: Path, sampled: int) -> Array:
    """Points (n, 3) of a file: those it holds, or `sampled` on the surface of its mesh.

    Raises:
        UnreadableCloudError: If it is damaged or not what its name says.
        VersionError: If a package is missing that reads such files.
    """
    reader = READERS.get(path.suffix.lower())
    try:
        points = None if reader is None else reader(path)
        return sample_surface(*read_mesh(path), sampled) if points is None else points
    except UnreadableCloudError:
        raise
    except DAMAGE as error:
        if hasattr(error, "remedy"):
            raise  # a package is missing
        why = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UnreadableCloudError(f"not to be read as {path.suffix.lower()[1:]}: {why}") from None


def checked(points: Array, normalise: bool) -> Array:
    """A cloud (n, 3 or more) that can be shown, centred and scaled into the unit sphere if asked for.

    Raises:
        UnreadableCloudError: If it is empty, not finite, or all its points are one.
    """
    places = points[:, :3]
    if not len(points):
        raise UnreadableCloudError("it has no points")
    bad = int((~np.isfinite(places).all(1)).sum())
    if bad:
        raise UnreadableCloudError(f"{bad:,} of {len(points):,} points are not finite")
    wide = places.astype(np.float64)
    if not (np.ptp(wide, axis=0) > 0).any():
        raise UnreadableCloudError(f"its {len(points):,} points are one and the same")
    if not normalise:
        return points.astype(np.float32)
    wide -= wide.mean(0)
    wide /= np.linalg.norm(wide, axis=1).max()
    return np.concatenate([wide, points[:, 3:]], 1).astype(np.float32)
