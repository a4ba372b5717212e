"""Furnished rooms: drawn rooms with Sweet Home 3D's furniture, and situated questions about them.

<set>/{train,val,test}/points.npy     (R, 4096, 3) int16 millimetres, in random order
<set>/{train,val,test}/colours.npy    (R, 4096, 3) uint8
<set>/{train,val,test}/objects.npy    (R, 4096) int8, the object of each point, -1 for none
<set>/{train,val,test}/rooms.json     of each room its objects: label, box, paint, model
<set>/{train,val,test}/questions.json
<set>/set.json                        format, source, licence, procedure, counts, baselines; written last
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from lmgraft import records
from lmgraft.checkpoint.digest import json_digest
from lmgraft.data.base import SPLITS, at_least_one
from lmgraft.data.check import Findings, ShowProgress
from lmgraft.data.files import check_prepared, prepared_place
from lmgraft.data.points.meshes import UnreadableCloudError
from lmgraft.data.rooms.asking import KINDS
from lmgraft.data.rooms.batch import QUESTION_TYPE
from lmgraft.data.rooms.part import RoomPart, Rooms
from lmgraft.data.rooms.pieces import LABELS
from lmgraft.data.rooms.room import Room, pose_of, rows_of, with_extent
from lmgraft.data.rooms.room_data import RoomData
from lmgraft.errors import DataError, RunError

FORMAT = 3
_ARRAYS = ("points", "colours", "objects")


class FurnishedRooms(RoomData):
    """Situated questions about drawn rooms, after `lmgraft prepare rooms`; those of a room are a group.

    No room of validation or test is in training; about a quarter of the shapes that the test shows are in it alone.
    Each question is asked of a room twice or more, from situations with different answers; where the room's middle lies
    from the asker says nothing of the answer.

    Args:
        root: The set's folder; None is lmgraft's cache.
        per_room: Questions of each training room that are shown, an even number; None: all.
        options: See `RoomData`.
    """

    name = "rooms"
    types: ClassVar[tuple[str, ...]] = KINDS

    def __init__(self, root: str | None = None, *, per_room: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.root = prepared_place(self.name) if root is None else Path(root).expanduser()
        if per_room is not None:
            at_least_one(per_room=per_room)
        self.per_room = per_room

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(LABELS)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What set.json says.

        Raises:
            DataError: If the set is not there, or of another version.
        """
        check_prepared(self.root, self.name)
        about: dict[str, Any] = records.read_json(self.root / "set.json")
        if about.get("format") != FORMAT:
            raise DataError(
                f"{self.root} has format {about.get('format')}, and this version of lmgraft reads {FORMAT}",
                f"remove the folder, then lmgraft prepare {self.name}",
            )
        return about

    @property
    def rooms(self) -> Rooms:
        of = {split: self._rooms(split) for split in SPLITS if self.about["counts"][split]["rooms"]}

        def load(name: str) -> Room:
            split = name.partition("/")[0]
            if split not in of:
                raise UnreadableCloudError(f"rooms are called {' or '.join(f'{known}/00000' for known in of)}")
            return of[split].load(name)

        return Rooms(self.root, load, lambda _: json_digest(self.about["digests"]))

    def find(self) -> dict[str, RoomPart]:
        return {split: self._part(split) for split in SPLITS if self.about["counts"][split]["rooms"]}

    def _part(self, split: str) -> RoomPart:
        folder, rooms = self.root / split, self._rooms(split)
        rows: list[dict[str, Any]] = self._list(split, "questions")
        if split == "train" and self.per_room is not None:
            rows = first_of_each(rows, self.per_room)
        names = [f"{split}/{number:05}" for number in range(len(rooms.objects))]
        return RoomPart(
            where=str(folder),
            root=folder,
            names=names,
            image=[row["room"] for row in rows],
            texts=[row["question"] for row in rows],
            kinds={QUESTION_TYPE: [row["kind"] for row in rows]},
            situations=[row["situation"] for row in rows],
            answers=[(row["answer"],) for row in rows],
            poses=np.stack([pose_of(row["place"], row["heading"]) for row in rows]),
            objects=[tuple(row["objects"]) for row in rows],
            identity=self.about["digests"][split],
            load=rooms.load,
        )

    def _rooms(self, split: str) -> _Rooms:
        return _Rooms(self.root / split, self._list(split, "rooms"))

    def _list(self, split: str, name: str) -> list[Any]:
        """A list of the set's by the name of its file."""
        try:
            rows: list[Any] = records.read_json(self.root / split / f"{name}.json")
        except RunError as error:
            raise DataError(
                f"{error.message}: the set in {self.root} is not whole", f"remove it, then lmgraft prepare {self.name}"
            ) from None
        return rows

    def check(self, workers: int, progress: ShowProgress, near: bool = False) -> Findings:
        findings = super().check(workers, progress, near)
        findings.details["baselines"] = self.about["baselines"]
        findings.remarks.append(f"without a model: {baseline_words(self.about['baselines'])}")
        return findings


def first_of_each(rows: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """The first questions of each room, so many at most."""
    seen: Counter[int] = Counter()
    kept = []
    for row in rows:
        seen[row["room"]] += 1
        if seen[row["room"]] <= most:
            kept.append(row)
    return kept


@dataclass(frozen=True, eq=False)
class _Rooms:
    """The rooms of a split by name; arrays are mapped into memory and read as far as they are asked for."""

    folder: Path
    objects: Sequence[Sequence[Mapping[str, Any]]]
    """Of each room."""

    def __reduce__(self) -> tuple[type[_Rooms], tuple[Any, ...]]:
        return _Rooms, (self.folder, self.objects)  # loader processes map the files themselves

    @cached_property
    def _arrays(self) -> list[npt.NDArray[Any]]:
        try:
            arrays = [np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS]
        except (OSError, ValueError) as error:
            raise UnreadableCloudError(f"{self.folder}: {error}") from None
        if any(len(array) != len(self.objects) for array in arrays):
            raise UnreadableCloudError(f"{self.folder} has not {len(self.objects):,} rooms")
        return arrays

    def load(self, name: str) -> Room:
        """A room.

        Raises:
            UnreadableCloudError: If files are damaged or do not agree.
        """
        split, _, digits = name.rpartition("/")
        is_number = digits.isascii() and digits.isdecimal()
        if split != self.folder.name or not is_number or int(digits) >= len(self.objects):
            raise UnreadableCloudError(f"there are rooms 0 to {len(self.objects) - 1} of {self.folder.name}")
        number = int(digits)
        points, colours, of = (np.asarray(array[number]) for array in self._arrays)
        objects = self.objects[number]
        if int(of.max()) >= len(objects):
            raise UnreadableCloudError(f"points belong to object {int(of.max())} of {len(objects)}")
        return room_of(points, colours, of, [(one["label"], one["box"]) for one in objects])


def room_of(
    points: npt.NDArray[Any],
    colours: npt.NDArray[np.uint8],
    of: npt.NDArray[Any],
    objects: Sequence[tuple[str, Sequence[float]]],
) -> Room:
    """A drawn room.

    Args:
        points: (n, 3) millimetres.
        colours: (n, 3).
        of: (n,) the object that each point belongs to, -1 for none.
        objects: Label and box (6,) of each, metres.
    """
    boxes = np.array([box for _, box in objects], np.float32).reshape(-1, 6)
    whole = with_extent(boxes)
    ids = np.flatnonzero(whole)
    return Room(
        points=points.astype(np.float32) / np.float32(1000),
        colours=colours,
        boxes=boxes[whole],
        classes=np.array([list(LABELS).index(label) for label, _ in objects], np.int64)[whole],
        ids=ids,
        point_box=rows_of(of.astype(np.int64), ids),
        frame=np.eye(3, 4),
        flat=int((~whole).sum()),
    )


def write_split(
    folder: Path, arrays: Mapping[str, npt.NDArray[Any]], rooms: Sequence[Any], rows: Sequence[Mapping[str, Any]]
) -> str:  # fmt: skip
    """Write a split, and give a digest of its rooms and questions.

    Args:
        folder: Of the split.
        arrays: points, colours and objects, as the files have them.
        rooms: Of each room its objects.
        rows: The questions.
    """
    for name in _ARRAYS:
        with records.atomic_path(folder / f"{name}.npy") as temporary, open(temporary, "wb") as out:
            np.save(out, arrays[name], allow_pickle=False)
    for name, content in (("rooms", rooms), ("questions", rows)):
        lines = ",\n".join(json.dumps(row) for row in content)
        records.write_text(folder / f"{name}.json", f"[\n{lines}\n]\n")
    return json_digest({"rooms": rooms, "questions": rows})


def baseline_words(baselines: Mapping[str, float]) -> str:
    """The baselines in one line."""
    return "; ".join(f"{name} {100 * share:.1f} %" for name, share in baselines.items())


def say_baselines(baselines: Mapping[str, float]) -> None:
    """Write the baselines to the terminal."""
    sys.stderr.write(f"[rooms] right without a model: {baseline_words(baselines)}\n")
