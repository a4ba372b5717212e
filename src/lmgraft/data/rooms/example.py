"""A batch of drawn questions about drawn rooms, to try a model on without any file."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from lmgraft.data.rooms.batch import RoomQuestions
from lmgraft.data.rooms.room import RoomView

_BOXES, _WORDS = 3, 12  # of a room, of a text


class Counts(NamedTuple):
    """How many there are."""

    words: int
    """With the two numbers that are no words."""
    answers: int
    classes: int
    types: int


def drawn_questions(size: int, view: RoomView, counts: Counts, seed: int = 0) -> RoomQuestions:
    """Random points around random boxes; every second room has one box only.

    Args:
        size: B.
        view: How many points, with what.
        counts: Of what is numbered.
        seed: Of the draws.
    """
    draw, index = torch.Generator().manual_seed(seed), torch.arange(size)
    centres, sizes = torch.rand(2, size, _BOXES, 3, generator=draw)
    boxes = torch.cat([4 * centres, 0.5 + sizes], -1)
    classes = torch.randint(counts.classes, (size, _BOXES), generator=draw)
    classes[1::2, 1:] = -1
    boxes = boxes * (classes >= 0)[..., None]
    of = torch.randint(-1, _BOXES, (size, view.points), generator=draw)
    of = torch.where((classes >= 0).gather(1, of.clamp_min(0)) & (of >= 0), of, -1)
    around = boxes.gather(1, of.clamp_min(0)[..., None].expand(-1, -1, 6))
    spread = torch.where((of >= 0)[..., None], around[..., 3:], 5.0)
    places = around[..., :3] * (of >= 0)[..., None] + spread * (torch.rand(*of.shape, 3, generator=draw) - 0.5)
    features = torch.randn(*of.shape, view.num_features, generator=draw)
    texts = torch.randint(1, counts.words, (2, size, min(_WORDS, view.max_text_len)), generator=draw)
    return RoomQuestions(
        points=torch.cat([places, features], -1), situation=texts[0], question=texts[1],
        targets=F.one_hot(index % counts.answers, counts.answers).float(), boxes=boxes, box_classes=classes,
        point_box=of, kind=index % counts.types, pose=torch.randn(size, 7, generator=draw), index=index, group=index,
    )  # fmt: skip
