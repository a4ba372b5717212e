"""ScanNet's rooms: as ScanQA and SQA3D export them to npy files, or as ScanNet has them.

<root>/<scene>_aligned_vert.npy, _vert.npy   (n, 9) place, red, green, blue, normal; both have the same points in order
<root>/<scene>_ins_label.npy                 (n,) the object of each point, from 1; 0 for none
<root>/<scene>_aligned_bbox.npy, _bbox.npy   (k, 8) centre, size, number of NYU's 40 classes, object from 0

<root>/<scene>/<scene>_vh_clean_2.ply, .aggregation.json, _vh_clean_2.0.010000.segs.json, <scene>.txt (axisAlignment)
<root>/scannetv2-labels.combined.tsv         or above: raw_category, nyu40id
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lmgraft.data.files import identity_of
from lmgraft.data.points.meshes import DAMAGE, Array, UnreadableCloudError
from lmgraft.data.rooms.room import MEAN_COLOUR, Index, Numbers, Room, brought, recognise, rows_of, with_extent
from lmgraft.errors import DataError, LmgraftError
from lmgraft.versions import optional

CLASSES: dict[str, int | None] = {
    "cabinet": 3, "bed": 4, "chair": 5, "sofa": 6, "table": 7, "door": 8, "window": 9, "bookshelf": 10, "picture": 11,
    "counter": 12, "desk": 14, "curtain": 16, "refrigerator": 24, "shower curtain": 28, "toilet": 33, "sink": 34,
    "bathtub": 36, "others": None,
}  # fmt: skip
"""ScanRefer's 18 classes -> the number of each among NYU's 40; all other numbers are others'."""
_NO_OBJECTS = (1, 2, 22)  # wall, floor, ceiling
_MOST_POINTS = 50_000  # that exports keep of a scan
_TABLE = "scannetv2-labels.combined.tsv"
_PLY, _SEGMENTS, _GROUPS = "{}_vh_clean_2.ply", "{}_vh_clean_2.0.010000.segs.json", "{}.aggregation.json"


class _Scan(NamedTuple):
    """A scan before it is brought to metres and cleaned."""

    points: Array
    """(n, 6 or more) place, colour, whatever."""
    instances: Index
    """(n,) the object of each point from 0; -1 for none."""
    boxes: Array
    """(k, 6)"""
    classes: Index
    """(k,) numbers among NYU's 40."""
    ids: Index
    """(k,) objects from 0."""
    before: tuple[Array, Array] | None
    """(m, 3 or more) points before they were aligned, and the same ones aligned; None where these are not there."""
    is_aligned: bool
    notes: tuple[str, ...] = ()
    """What its files lack."""


@dataclass(frozen=True)
class ScanFolder:
    """Scans below a folder, by name."""

    root: Path

    def files(self, scene: str) -> list[Path]:
        """The files that the scene is read from; none where there is no such scene."""
        for vert, box in (("aligned_vert", "aligned_bbox"), ("vert", "bbox")):
            wanted = [self.root / f"{scene}_{part}.npy" for part in (vert, "ins_label", box)]
            if wanted[0].is_file():
                raw = self.root / f"{scene}_vert.npy"
                return [*wanted, *([raw] if raw.is_file() and raw not in wanted else [])]
        folder = self.root / scene
        wanted = [folder / name.format(scene) for name in (_PLY, _SEGMENTS, _GROUPS, "{}.txt")]
        return wanted if wanted[0].is_file() else []

    def identity(self, scenes: Sequence[str]) -> str:
        """A digest of names and sizes of the files of some scenes."""
        return identity_of([file for scene in scenes for file in self.files(scene)], self.root)

    def problem(self, scene: str) -> str | None:
        """Why a scene cannot be read, as far as one sees without reading its points; None where it can."""
        files = self.files(scene)
        if not files:
            return f"neither {scene}_aligned_vert.npy nor {scene}/{_PLY.format(scene)} is in {self.root}"
        lacking = [file.name for file in files if not file.is_file() and file.suffix != ".txt"]
        return f"{', '.join(lacking)} of it is not there" if lacking else None

    def load(self, scene: str) -> Room:
        """A scene as it is shown.

        Raises:
            UnreadableCloudError: If it is not there or damaged.
            VersionError: If a package is missing that reads such files.
        """
        reason = self.problem(scene)
        if reason is not None:
            raise UnreadableCloudError(reason)
        try:
            return _room(self._exported(scene) if self.files(scene)[0].suffix == ".npy" else self._raw(scene))
        except (UnreadableCloudError, LmgraftError):
            raise
        except DAMAGE as error:
            raise UnreadableCloudError(f"{type(error).__name__}: {error}") from None

    def _exported(self, scene: str) -> _Scan:
        vert, instance, box, *raw = self.files(scene)
        points, labels = _numbers(vert, (None, 6), slice(6)), _numbers(instance, (None,))
        boxes = _numbers(box, (None, 8), slice(6, 8))
        instances, ids = np.maximum(labels.astype(np.int64), 0) - 1, boxes[:, 7].astype(np.int64)
        there = ids[with_extent(boxes[:, :6])]  # rows of objects without points are left zero by the scripts
        if len(np.unique(there)) < len(there) or there.min(initial=0) < 0:
            raise UnreadableCloudError(f"{box.name}: the last column is no number from 0 for each object, but {there}")
        if len(points) != len(instances):
            raise UnreadableCloudError(f"{vert.name} has {len(points):,} points, {instance.name} {len(instances):,}")
        is_aligned = vert.name == f"{scene}_aligned_vert.npy"
        unaligned = _numbers(raw[0], (None, 3), slice(3)) if raw else None if is_aligned else points
        return _Scan(
            points, instances, boxes[:, :6].astype(np.float32), boxes[:, 6].astype(np.int64), ids,
            None if unaligned is None else (unaligned, points), is_aligned,
        )  # fmt: skip

    def _raw(self, scene: str) -> _Scan:
        ply, segments, groups, text = self.files(scene)
        trimesh = optional("trimesh", "points", "reading PLY")
        with _reading(ply):
            mesh = trimesh.load(ply, process=False)
            places = np.asarray(mesh.vertices, np.float32)
            colours = np.asarray(mesh.visual.vertex_colors if mesh.visual.kind == "vertex" else ())
        notes = []
        if len(colours) != len(places):
            colours = np.tile(np.array(MEAN_COLOUR), (len(places), 1))
            notes.append("without colours; its points have the mean colour of ScanNet's")
        matrix = _alignment(text)
        is_aligned = matrix is not None
        if matrix is None:
            notes.append("without axisAlignment in its text file; left as it was scanned")
            matrix = np.eye(4)
        aligned = places @ matrix[:3, :3].T.astype(np.float32) + matrix[:3, 3].astype(np.float32)
        with _reading(segments):
            of = np.array(_json(segments)["segIndices"], np.int64)
        with _reading(groups):
            objects = [(int(g["objectId"]), g["segments"], str(g["label"])) for g in _json(groups)["segGroups"]]
        if len(of) != len(places):
            raise UnreadableCloudError(f"{ply.name} has {len(places):,} vertices, {segments.name} {len(of):,}")
        instances = np.full(len(of), -1, np.int64)
        boxes, classes, ids = [np.empty((0, 6), np.float32)], [], []
        if not {label for _, _, label in objects} <= self._nyu40.keys():
            notes.append(f"with labels that {_TABLE} lacks, which count as others")
        for number, of_object, label in objects:
            inside = np.isin(of, of_object)
            instances[inside] = number
            kind = self._nyu40.get(label, 0)
            if inside.any() and kind not in _NO_OBJECTS:
                low, high = aligned[inside].min(0), aligned[inside].max(0)
                boxes.append(np.concatenate([(low + high) / 2, high - low])[None])
                classes.append(kind)
                ids.append(number)
        kept = np.sort(np.random.Generator(np.random.Philox(0)).permutation(len(aligned))[:_MOST_POINTS])
        points = np.concatenate([aligned, colours[:, :3]], 1)[kept]
        return _Scan(
            points, instances[kept], np.concatenate(boxes), np.array(classes, int), np.array(ids, int),
            (places, aligned), is_aligned, tuple(notes),
        )  # fmt: skip

    @cached_property
    def _nyu40(self) -> Mapping[str, int]:
        """Raw category -> number among NYU's 40.

        Raises:
            DataError: If there is no such table.
        """
        file = next((f for f in (folder / _TABLE for folder in (self.root, *self.root.parents)) if f.is_file()), None)
        if file is None:
            raise DataError(f"{_TABLE} is neither in {self.root} nor above", "it comes with ScanNet's meshes")
        with open(file, encoding="utf-8", newline="") as lines:
            try:
                return {row["raw_category"]: int(row["nyu40id"]) for row in csv.DictReader(lines, delimiter="\t")}
            except (KeyError, ValueError, TypeError) as error:
                raise DataError(
                    f"{file} is no table of labels ({type(error).__name__}: {error})",
                    "it has the columns raw_category and nyu40id, separated by tabs",
                ) from None


def class_numbers(nyu40: Index) -> Index:
    """Classes (k,) of numbers among NYU's 40."""
    numbers = {number: place for place, number in enumerate(CLASSES.values()) if number is not None}
    return np.array([numbers.get(number, len(CLASSES) - 1) for number in nyu40.tolist()], np.int64)


def _room(scan: _Scan) -> Room:
    points = scan.points[:, :3].astype(np.float32)
    by = recognise(points, scan.is_aligned)
    whole = with_extent(scan.boxes)
    wanted = whole & ~np.isin(scan.classes, _NO_OBJECTS)
    places, boxes = brought(points, scan.boxes[wanted], by)
    colours, of_colours = _colours(scan.points[:, 3:6])
    ids = scan.ids[wanted]
    frame = None
    if scan.before is not None:  # annotations are in metres with z upwards, whatever these files are in
        raw, aligned = (one[:, :3].astype(np.float32) for one in scan.before)
        of_raw = recognise(raw, scan.is_aligned)
        frame = _frame(*(brought(one, scan.boxes[:0], how)[0] for one, how in ((raw, of_raw), (aligned, by))))
    return Room(
        points=places,
        colours=colours,
        boxes=boxes.astype(np.float32),
        classes=class_numbers(scan.classes[wanted]),
        ids=ids,
        point_box=rows_of(scan.instances, ids),
        frame=frame,
        notes=tuple(filter(None, (by.note, of_colours, *scan.notes))),
        flat=int((~whole).sum()),
    )


def _colours(values: Array) -> tuple[npt.NDArray[np.uint8], str]:
    """Colours (n, 3) from 0 to 255, and a note where they were from 0 to 1."""
    share = values.dtype.kind == "f" and bool(values.max(initial=0) <= 1 and (values % 1).any())
    colours = np.rint(values * (255 if share else 1)).clip(0, 255).astype(np.uint8)
    return colours, "colours from 0 to 1 are taken as shares of 255" if share else ""


def _frame(raw: Array, points: Array) -> Numbers | None:
    """(3, 4) from SQA3D's places, which are relative to the middle of the scan as it is, to these points.

    Args:
        raw: (n, 3) the points of the scan as it is.
        points: (n, 3) the same points, aligned.
    """
    if len(raw) != len(points):
        return None
    places = raw[:, :3].astype(np.float64)
    middle = (places.min(0) + places.max(0)) / 2
    some = slice(None, None, max(1, len(places) // 1000))
    known = np.concatenate([places - middle, np.ones((len(places), 1))], 1)
    moved, *_ = np.linalg.lstsq(known[some], points[some].astype(np.float64), rcond=None)
    frame: Numbers = moved.T
    return frame


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Names the file of what fails meanwhile."""
    try:
        yield
    except DAMAGE as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        if "pickle" in reason:  # numpy advises to unpickle whatever is no array
            reason = "no array of numbers"
        raise UnreadableCloudError(f"{file.name}: {type(error).__name__}: {reason}") from None


def _numbers(file: Path, shape: tuple[int | None, ...], finite: slice = slice(None)) -> npt.NDArray[Any]:
    """The array of an npy file, which is not unpickled.

    Args:
        file: Its name ends in npy.
        shape: None is any number; of the last axis there may be more.
        finite: Columns that are looked at for numbers that are none.
    """
    with _reading(file):
        values: npt.NDArray[Any] = np.load(file, allow_pickle=False)
    if values.dtype.kind not in "fiu" or values.ndim != len(shape) or values.shape[-1] < (shape[-1] or 0):
        wanted = ", ".join("n" if size is None else f"{size} or more" for size in shape)
        raise UnreadableCloudError(f"{file.name} holds {values.dtype} {values.shape}, and numbers ({wanted}) are read")
    if not np.isfinite(values[..., finite]).all():
        raise UnreadableCloudError(f"{file.name} has numbers that are not finite")
    return values


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _alignment(text: Path) -> Numbers | None:
    """(4, 4) of a scene's text file; None where it has none."""
    if not text.is_file():
        return None
    with _reading(text):
        found = re.search(r"^\s*axisAlignment\s*=\s*(.+)$", text.read_text(), re.MULTILINE)
        return None if found is None else np.array(found[1].split(), float).reshape(4, 4)
