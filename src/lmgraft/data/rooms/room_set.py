"""The questions of one split, as training or as evaluation shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmgraft.data.draws import permutation, seeds, uniforms
from lmgraft.data.items import ItemSet
from lmgraft.data.loader import Draw
from lmgraft.data.points.meshes import Array, UnreadableCloudError
from lmgraft.data.rooms.batch import RoomQuestions, RoomQuestionsWithTruth
from lmgraft.data.rooms.part import RoomPart, Worths
from lmgraft.data.rooms.room import (
    Change,
    Hidden,
    Index,
    Numbers,
    Room,
    RoomView,
    changed_boxes,
    changed_pose,
    floor_of,
    framed_pose,
)
from lmgraft.data.vision_language.text import Ids
from lmgraft.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What is known of all questions of a part, as numbers."""

    situations: Ids
    """(N, L) word numbers, 0 is padding."""
    questions: Ids
    """(N, M)"""
    worths: Worths
    num_answers: int
    kinds: Index
    """(N,)"""


_STILL = 0  # the draw of points that evaluation shows
_KEPT = 2**27  # bytes of points that are kept in memory


class _Sample(NamedTuple):
    """The points of a room that are shown, before any change."""

    places: Array
    features: Array
    point_box: Index
    boxes: Array
    classes: Index
    ids: Index
    frame: Numbers | None


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """One item."""

    points: Array
    boxes: Array
    classes: Index
    point_box: Index
    pose: Numbers
    truth: npt.NDArray[np.bool_] | None
    """(N,); None in training, which does not look at it."""


class _Epoch(NamedTuple):
    """What an epoch of training shows."""

    order: Index
    """(N,) samples."""
    first: Index
    """(N,) of each sample the one that begins its row: its points and changes are drawn for all of the row."""


def in_rows(groups: Index, together: int, draw: Callable[[int], Index]) -> _Epoch:
    """Samples in a drawn order, up to `together` of a group in a row.

    Args:
        groups: (N,) of each sample.
        together: One is a plain permutation.
        draw: Gives a permutation of so many.
    """
    drawn = draw(len(groups))
    if together == 1:
        return _Epoch(drawn, np.arange(len(groups)))
    ordered = drawn[np.argsort(groups[drawn], kind="stable")]  # group by group
    counts = np.unique(groups, return_counts=True)[1]
    number = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)  # of each in its group
    row = np.cumsum(number % together == 0) - 1
    first = np.empty_like(ordered)
    first[ordered] = ordered[np.arange(len(groups)) - number % together]
    return _Epoch(ordered[np.argsort(draw(int(row[-1]) + 1)[row], kind="stable")], first)


class RoomSet(ItemSet):
    """Some questions of a part.

    Args:
        part: All questions of the source.
        asked: The same as numbers.
        index: Which of them, in order.
        view: How rooms are shown.
        training: Whether they are changed at random.
        seed: Of the changes.
    """

    def __init__(
        self, part: RoomPart, asked: Asked, index: Index, view: RoomView, *, training: bool = False, seed: int = 0
    ) -> None:
        self.part, self.asked, self.view, self.training, self.seed = part, asked, view, training, seed
        self.indices = torch.from_numpy(np.asarray(index, np.int64))
        self._rooms = np.asarray(part.image, np.int64)
        self.groups = torch.from_numpy(self._rooms[index])
        self._kept: dict[int, _Sample] = {}
        self._drawn: tuple[tuple[int, int], _Epoch] | None = None

    def place(self, index: int) -> str:
        return f"{self._room(index)}: {self.part.situations[index]} {self.part.texts[index]}".strip()

    def about(self, index: int) -> dict[str, Any]:
        """The room, the asker's situation, and the question."""
        part = self.part
        return {"file": self._room(index), "situation": part.situations[index], "question": part.texts[index]}

    def _room(self, index: int) -> str:
        name: str = self.part.names[self._rooms[index]]
        return name

    def still(self) -> RoomSet:
        """The same items as evaluation shows them."""
        return RoomSet(self.part, self.asked, self.indices.numpy(), self.view)

    def order(self, seed: int, epoch: int) -> Index:
        return self._epoch(seed, epoch).order

    def _epoch(self, seed: int, epoch: int) -> _Epoch:
        if self._drawn is None or self._drawn[0] != (seed, epoch):
            rows = in_rows(self.groups.numpy(), self.view.together, partial(permutation, seed, epoch))
            self._drawn = (seed, epoch), rows
        return self._drawn[1]

    def __getitems__(self, draws: list[Draw]) -> RoomQuestions | RoomQuestionsWithTruth:
        index = self.indices[[draw.sample for draw in draws]].numpy()
        epochs, repeats = [draw.epoch for draw in draws], [draw.repeat for draw in draws]
        words: Sequence[int] = [_STILL] * len(draws)
        changes: Sequence[Change | None] = [None] * len(draws)
        if self.training:
            by = self.indices[[self._epoch(self.seed, draw.epoch).first[draw.sample] for draw in draws]].numpy()
            if self.view.redraw:
                words = seeds(self.seed, epochs, by, repeats, 1)[:, 0].tolist()
            if self.view.changes:
                changes = list(map(self.view.change, uniforms(self.seed, epochs, by, 8)))
        which, load = zip(index.tolist(), changes, words, strict=True), cache(self._load)  # once for a batch
        return self._collate([self._show(question, load, change, word) for question, change, word in which], index)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}, "_drawn": None}  # loader processes begin with none

    def _sampled(self, number: int, load: Callable[[int], Room], word: int) -> _Sample:
        """So many points of a room as are shown; those that come again and again are kept while there is space."""
        if word == _STILL and number in self._kept:
            return self._kept[number]
        room = load(number)
        draw = np.random.Generator(np.random.Philox(word))
        chosen = draw.permutation(len(room.points))[: self.view.points]
        if len(chosen) < self.view.points:
            chosen = np.concatenate([chosen, draw.integers(len(room.points), size=self.view.points - len(chosen))])
        places = room.points[chosen]
        features = self.view.features(places, room.colours[chosen], floor_of(room.points))
        sample = _Sample(places, features, room.point_box[chosen], room.boxes, room.classes, room.ids, room.frame)
        if word == _STILL and (len(self._kept) + 1) * (places.nbytes + features.nbytes) <= _KEPT:
            self._kept[number] = sample
        return sample

    def _load(self, number: int) -> Room:
        name = self.part.names[number]
        try:
            return self.part.load(name)
        except UnreadableCloudError as error:
            raise DataError(f"{name} could be read before, and now cannot ({error})", "mend it, then resume") from None

    def _show(self, question: int, load: Callable[[int], Room], change: Change | None, word: int) -> _Shown:
        places, features, of, boxes, classes, ids, frame = self._sampled(int(self._rooms[question]), load, word)
        pose = framed_pose(self.part.poses[question], frame)
        if change is not None:
            places = (places @ change.matrix.T + change.shift).astype(np.float32)
            boxes, pose = changed_boxes(boxes, change), changed_pose(pose, change)
        if "room" in self.view.hidden:
            places, features, boxes, classes = places * 0, features * 0, boxes[:0], classes[:0]
            of = np.full(len(of), -1)
        if {"situation", "pose"} & set(self.view.hidden):
            pose = np.full(7, np.nan)
        truth = None
        if self.part.objects is not None and not self.training:
            truth = np.isin(of, np.flatnonzero(np.isin(ids, self.part.objects[question])))
        parts = [places, features]
        if self.view.given_objects:
            kinds = np.append(classes, -1)[of]  # the last one is for no object
            parts.append(np.column_stack([of, kinds]).astype(np.float32))
        return _Shown(
            points=np.concatenate(parts, 1), boxes=boxes, classes=classes, point_box=of, pose=pose,
            truth=truth,
        )  # fmt: skip

    def _text(self, ids: Ids, *names: Hidden) -> Tensor:
        """(B, L) word numbers, 0 throughout where the text is hidden by one of these names."""
        return torch.from_numpy(ids).long() * (not set(names) & set(self.view.hidden))

    def _collate(self, shown: Sequence[_Shown], index: Index) -> RoomQuestions | RoomQuestionsWithTruth:
        most = max(1, *(len(one.boxes) for one in shown))
        boxes, classes = torch.zeros(len(shown), most, 6), torch.full((len(shown), most), -1)
        for row, one in enumerate(shown):
            boxes[row, : len(one.boxes)] = torch.from_numpy(one.boxes)
            classes[row, : len(one.boxes)] = torch.from_numpy(one.classes)
        asked, which = self.asked, index.tolist()
        batch = RoomQuestions(
            points=_stack([one.points for one in shown]),
            situation=self._text(asked.situations[index], "situation", "situation_text"),
            question=self._text(asked.questions[index], "question"),
            targets=asked.worths.dense(which, asked.num_answers),
            boxes=boxes,
            box_classes=classes,
            point_box=_stack([one.point_box for one in shown]),
            kind=torch.from_numpy(asked.kinds[index]),
            pose=_stack([one.pose for one in shown]).float(),
            index=torch.from_numpy(index),
            group=torch.from_numpy(self._rooms[index]),
        )
        truths = [one.truth for one in shown if one.truth is not None]
        return RoomQuestionsWithTruth(**batch._asdict(), truth=_stack(truths)) if truths else batch


def _stack(rows: Sequence[npt.NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.stack(rows))
