"""Does a model of questions about rooms use the room, the situation and the question? Each is taken away in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lmgraft.data.loader import Draw
from lmgraft.data.rooms.room_data import RoomData
from lmgraft.data.rooms.room_set import RoomSet
from lmgraft.studies.robustness.suites.changed import Change, TakenAway
from lmgraft.studies.robustness.suites.grounding import of_partners

_OF_ROOM = ("points", "boxes", "box_classes", "point_box")


def without_situation(items: RoomSet, draws: list[Draw], batch: Any, seed: int) -> Any:
    """No word of where the asker stands, and no pose."""
    return without_pose(items, draws, without_situation_text(items, draws, batch, seed), seed)


def without_situation_text(items: RoomSet, draws: list[Draw], batch: Any, seed: int) -> Any:
    """No word of where the asker stands."""
    return batch._replace(situation=torch.zeros_like(batch.situation))


def without_pose(items: RoomSet, draws: list[Draw], batch: Any, seed: int) -> Any:
    """Nothing but words says where the asker stands."""
    return batch._replace(pose=torch.full_like(batch.pose, torch.nan))


def without_question(items: RoomSet, draws: list[Draw], batch: Any, seed: int) -> Any:
    """No word of the question."""
    return batch._replace(question=torch.zeros_like(batch.question))


def other_room(items: RoomSet, draws: list[Draw], batch: Any, seed: int) -> Any:
    """The room of another question of the same type; its objects are those that are to be detected."""
    kinds = items.asked.kinds[items.indices.numpy()]
    other = of_partners(items, draws, kinds, seed)
    return batch._replace(**{name: getattr(other, name) for name in _OF_ROOM})


@dataclass(frozen=True, kw_only=True)
class RoomGrounding(TakenAway):
    """Questions without their situation, or half of it, without a word of the question, and about another room."""

    name = "room-grounding"
    data_type = RoomData
    changes: ClassVar[Mapping[str, tuple[str, Change]]] = {
        "no_situation": ("without the situation", without_situation),
        "no_situation_text": ("without the situation's words", without_situation_text),
        "no_pose": ("without the asker's pose", without_pose),
        "no_question": ("without the question", without_question),
        "other_room": ("another question's room", other_room),
    }

    def notes(self, data: RoomData) -> list[str]:
        return [
            "a model that looks at the room and answers as the asker sees it loses much without situation, question or "
            "room; of the situation, words and pose say nearly the same, and a model that is told places from the "
            "asker (backbone.kwargs.object_inputs: asker) may do without the words"
        ]
