"""What a look at each room of a part finds before training: damage, oddities, sizes of boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmgraft.data.files import SlowLines, listed, plural
from lmgraft.data.points.meshes import Array, UnreadableCloudError
from lmgraft.data.rooms.part import RoomPart
from lmgraft.data.rooms.room import Index


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What is kept of one room."""

    points: int
    """How many it has."""
    boxes: Array
    """(k, 6)"""
    classes: Index
    """(k,)"""
    is_placed: bool
    """Whether places of annotations are known in it."""
    notes: tuple[str, ...]
    flat: int
    """Boxes without an extent, which were left out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """The rooms of a part by name."""

    seen: Mapping[str, Seen]
    faults: Mapping[str, str]
    """Rooms that cannot be read -> why."""

    def placed(self, part: RoomPart) -> tuple[int, int]:
        """Of how many questions about rooms that are seen it is known where the asker stands; of how many at all."""
        seen = np.array([name in self.seen for name in part.names])
        placed = np.array([name in self.seen and self.seen[name].is_placed for name in part.names])
        of = np.asarray(part.image, np.int64)
        return int((placed[of] & np.isfinite(part.poses).all(1)).sum()), int(seen[of].sum())

    def notes(self, split: str, names: Sequence[str], points: int) -> list[str]:
        """What is odd with these rooms of a split, that can be read, where so many points of each are shown."""
        kinds = {
            "without any object": [name for name in names if not len(self.seen[name].boxes)],
            f"of fewer than data.points={points} points; some come again": [
                name for name in names if self.seen[name].points < points
            ],
        }
        return [f"{split}: {plural(len(of), 'room')} {what} ({listed(of)})" for what, of in kinds.items() if of]

    def mean_sizes(self, count: int) -> list[list[float]]:
        """(count, 3) of each class's boxes, metres; of a class without any, of all boxes.

        Args:
            count: Classes.
        """
        rooms = [self.seen[name] for name in sorted(self.seen)]
        boxes = np.concatenate([np.empty((0, 3)), *(one.boxes[:, 3:] for one in rooms)])
        classes = np.concatenate([np.empty(0, np.int64), *(one.classes for one in rooms)])
        whole = boxes.mean(0) if len(boxes) else np.ones(3)
        of = [boxes[classes == number] for number in range(count)]
        return [[round(float(x), 4) for x in (some.mean(0) if len(some) else whole)] for some in of]


def survey(part: RoomPart, names: Sequence[str]) -> Survey:
    """Read these rooms of a part."""
    seen: dict[str, Seen] = {}
    faults: dict[str, str] = {}
    lines = SlowLines()
    for number, name in enumerate(names, 1):
        try:
            room = part.load(name)
        except UnreadableCloudError as error:
            faults[name] = str(error)
        else:
            seen[name] = Seen(
                points=len(room.points), boxes=room.boxes, classes=room.classes, is_placed=room.frame is not None,
                notes=room.notes, flat=room.flat,
            )  # fmt: skip
        lines(f"[rooms] {number:,} of {len(names):,} rooms read")
    return Survey(seen=seen, faults=faults)
