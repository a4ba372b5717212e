"""Toy rooms: furnished rooms whose furniture is boxes, drawn when asked for. For debug recipes; they say nothing."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lmgraft.data.base import SPLITS
from lmgraft.data.rooms.asking import KINDS, Balance
from lmgraft.data.rooms.batch import QUESTION_TYPE
from lmgraft.data.rooms.furnished import room_of
from lmgraft.data.rooms.part import RoomPart
from lmgraft.data.rooms.pieces import LABELS, Piece
from lmgraft.data.rooms.prepare import Drawn, draw_room
from lmgraft.data.rooms.room import Room, pose_of
from lmgraft.data.rooms.room_data import RoomData

_POINTS = 512


class ToyRooms(RoomData):
    """Drawn rooms, each with two pairs of questions.

    Args:
        train_size: Training rooms; questions are four times as many.
        test_size: Test rooms, and as many that choose the epoch.
        points: See `RoomView`.
        options: See `RoomData`.
    """

    name = "toy_rooms"
    types: ClassVar[tuple[str, ...]] = KINDS

    def __init__(self, train_size: int = 12, test_size: int = 4, *, points: int = 256, **options: Any) -> None:
        super().__init__(points=points, **options)
        self.sizes = {"train": train_size, "val": test_size, "test": test_size}

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(LABELS)

    def find(self) -> dict[str, RoomPart]:
        return {split: _part(number, self.sizes[split]) for number, split in enumerate(SPLITS)}


@lru_cache(maxsize=8)
def _part(number: int, size: int) -> RoomPart:
    drawn = {f"{number}/{index}": draw_room(_pieces(), 2, (number, index), Balance(), _POINTS) for index in range(size)}
    asked = [(index, one) for index, room in enumerate(drawn.values()) for one in room.questions]
    return RoomPart(
        where="toy rooms",
        root=Path(),
        names=list(drawn),
        image=[index for index, _ in asked],
        texts=[one.question for _, one in asked],
        kinds={QUESTION_TYPE: [one.kind for _, one in asked]},
        situations=[one.situation.text for _, one in asked],
        answers=[(one.answer,) for _, one in asked],
        poses=np.stack([pose_of(one.situation.place, one.situation.heading) for _, one in asked]),
        objects=[one.objects for _, one in asked],
        identity=f"toy {number}",
        load=partial(_room, drawn),
    )


@lru_cache(maxsize=1)
def _pieces() -> dict[str, list[Piece]]:
    """A box of its own size and colour for each label."""
    pieces = {}
    for number, label in enumerate(LABELS):
        draw = np.random.default_rng(number)
        points = draw.uniform([-0.5, -0.5, 0], [0.5, 0.5, 1], (2048, 3)) * draw.uniform(0.3, 0.9, 3)
        colours = np.broadcast_to(draw.integers(256, size=3), points.shape).astype(np.uint8)
        pieces[label] = [Piece(label, label, points.astype(np.float32), colours, 1.0)]
    return pieces


def _room(drawn: dict[str, Drawn], name: str) -> Room:
    room = drawn[name]
    objects = [(one.label, one.box.tolist()) for one in room.layout.objects]
    return room_of(room.points, room.colours, room.of, objects)
