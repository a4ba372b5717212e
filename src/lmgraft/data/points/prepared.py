"""Sets that `lmgraft prepare` makes of open 3D models: written once, with their licence and a fixed split.

<set>/clouds.npz   points (N, 2048, 3) int16 of the unit sphere, labels, groups and splits (N,), names (N,)
<set>/set.json     source, licence, classes, how the split was made and how near shapes come across it; written last
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmgraft import records
from lmgraft.data.files import SlowLines, prepared_place
from lmgraft.data.points.files import checked
from lmgraft.data.points.meshes import Array, Faces, UnreadableCloudError, sample_surface
from lmgraft.data.points.near import Index, between, near_groups, noise, signatures, split_groups
from lmgraft.data.points.point_data import PointData, Source
from lmgraft.data.points.scenes import scene_of
from lmgraft.errors import DataError

_POINTS, _FULL = 2048, 32767
_SHARES = {"test": 0.2, "val": 0.1}


@dataclass(frozen=True)
class Shapes:
    """Shapes sampled twice, independently: `once` is kept, `again` shows what sampling alone changes.

    Attributes:
        once, again: (N, 2048, 3), in the unit sphere.
        names, classes: Of each shape.
        unreadable: Name -> why a shape is left out.
    """

    once: Array
    again: Array
    names: list[str]
    classes: list[str]
    unreadable: dict[str, str]


def sample_shapes(
    names: Sequence[str], classes: Sequence[str], read: Callable[[int], tuple[Array, Faces]]
) -> Shapes:  # fmt: skip
    """Points on the surfaces of meshes.

    Args:
        read: Gives vertices and triangles of a shape; raises UnreadableCloudError.
    """
    clouds: list[tuple[Array, Array]] = []
    kept: list[int] = []
    unreadable: dict[str, str] = {}
    progress = SlowLines()
    for i, name in enumerate(names):
        try:
            mesh = read(i)
            clouds.append(
                (checked(sample_surface(*mesh, _POINTS), True), checked(sample_surface(*mesh, _POINTS, 1), True))
            )
            kept.append(i)
        except UnreadableCloudError as error:
            unreadable[name] = str(error)
        progress(f"[prepare] {i + 1:,} of {len(names):,} shapes")
    return Shapes(
        np.stack([cloud[0] for cloud in clouds]),
        np.stack([cloud[1] for cloud in clouds]),
        [names[i] for i in kept],
        [classes[i] for i in kept],
        unreadable,
    )


def write_set(folder: Path, shapes: Shapes, about: Mapping[str, Any], least: int) -> Path:
    """Find nearly equal shapes, split, measure, and write the set.

    Args:
        about: Source, licence and such, as plain data, for set.json.
        least: Groups of nearly equal shapes that a class must have; smaller classes are left out.
    """
    once = signatures(shapes.once)
    limit = noise(once, signatures(shapes.again))
    groups = near_groups(once, limit)
    owner = [shapes.classes[group] for group in groups]  # one class a group, so that no twin has another label
    many = Counter(shapes.classes[group] for group in set(groups.tolist()))
    class_names = sorted(name for name, count in many.items() if count >= least)
    kept = np.array([i for i, name in enumerate(owner) if name == shapes.classes[i] and name in class_names])
    if not len(kept):
        raise DataError(f"no class has {least} groups of shapes that differ", "there must be more shapes")
    labels = np.array([class_names.index(shapes.classes[i]) for i in kept], np.int64)
    names = [shapes.names[i] for i in kept]
    firsts = {int(group): int(np.flatnonzero(groups[kept] == group)[0]) for group in set(groups[kept].tolist())}
    group = np.array([firsts[int(g)] for g in groups[kept]], np.int64)
    split = split_groups(group, labels, names, _SHARES)
    chosen = once[kept]
    near = {
        f"{one} from {other}": asdict(between(chosen[split == one], chosen[split == other]))
        for one, other in (("test", "train"), ("val", "train"), ("test", "val"))
        if (split == one).any() and (split == other).any()
    }
    quantised = np.rint(shapes.once[kept] * _FULL).astype(np.int16)
    with records.atomic_path(folder / "clouds.npz") as temporary, open(temporary, "wb") as out:
        np.savez_compressed(out, points=quantised, labels=labels, groups=group, splits=split, names=np.array(names))
    record = {
        **about,
        "classes": class_names,
        "sizes": {part: int((split == part).sum()) for part in ("train", "val", "test")},
        "groups": {part: len(set(group[split == part].tolist())) for part in ("train", "val", "test")},
        "nearness": {
            "how": "root mean square difference of distances from 256 fixed points (data/points/near.py); shapes are "
            "near where they differ by no more than all but 1 % of pairs of samplings of one shape do; groups of near "
            "shapes are never split",
            "limit": limit,
            "across": near,
        },
        "left_out": {
            "unreadable": shapes.unreadable,
            "of small classes or twins of another class": len(shapes.names) - len(kept),
        },
    }
    records.write_json(folder / "set.json", record)
    return folder


class PreparedClouds(PointData):
    """A set that `lmgraft prepare` made, with its own split into training, validation and test.

    Args:
        root: Its folder; None is lmgraft's cache.
        per_group: Show at most so many of each group of nearly equal shapes in training; None: all.
        scenes: Show each object on a floor among clutter, with a truth for each point.
        options: See `PointData`.
    """

    def __init__(
        self, root: str | None = None, *, per_group: int | None = None, scenes: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root = prepared_place(self.name) if root is None else Path(root).expanduser()
        self.per_group, self.scenes = per_group, scenes

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """As set.json has them."""
        try:
            return tuple(records.read_json(self.root / "set.json")["classes"])
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{self.root} holds no prepared set", f"lmgraft prepare {self.name}") from None

    def find(self) -> dict[str, Source]:
        _ = self.class_names
        file = self.root / "clouds.npz"
        try:
            with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                content = {name: arrays[name] for name in ("points", "labels", "groups", "splits", "names")}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{file} cannot be read ({error})", f"lmgraft prepare {self.name}") from None
        digest = hashlib.sha256(content["points"].tobytes() + content["labels"].tobytes()).hexdigest()
        sources = {}
        for split in ("train", "val", "test"):
            index = np.flatnonzero(content["splits"] == split)
            if split == "train" and self.per_group is not None:
                index = first_of_each(index, content["groups"], self.per_group)
            sources[split] = self._source(content, index, f"{digest}/{split}")
        return sources

    def _source(self, content: Mapping[str, npt.NDArray[Any]], index: Index, digest: str) -> Source:
        points, names = content["points"][index], [str(name) for name in content["names"][index]]

        def load(i: int) -> Array:
            cloud = points[i].astype(np.float32) / _FULL
            return scene_of(cloud, names[i]) if self.scenes else cloud

        return Source(
            labels=content["labels"][index],
            load=load,
            names=names,
            identity={"name": self.name, "sha256": digest, "per_group": self.per_group, "scenes": self.scenes},
            groups=content["groups"][index],
        )


def first_of_each(index: Index, groups: Index, most: int) -> Index:
    """Of these shapes the first `most` of each group."""
    seen: Counter[int] = Counter()
    kept = []
    for i in index.tolist():
        seen[int(groups[i])] += 1
        if seen[int(groups[i])] <= most:
            kept.append(i)
    return np.array(kept, np.int64)
