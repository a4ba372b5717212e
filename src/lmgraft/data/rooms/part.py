"""The questions of one split as plain data, and what their answers are worth."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmgraft.data.rooms.room import Index, Numbers, Room
from lmgraft.data.vision_language.answers import SOFT, plain
from lmgraft.data.vision_language.parts import Part
from lmgraft.errors import DataError

QUESTION_TYPES = ("can", "how", "is", "others", "what", "which")


@dataclass(frozen=True, kw_only=True, eq=False)
class RoomPart(Part):
    """The questions of one split: `names` are rooms, `image` is each question's room, `texts` are the questions."""

    thing: ClassVar[str] = "room"
    situations: Sequence[str]
    """(N,)"""
    answers: Sequence[tuple[str, ...]]
    """(N,) all right answers; none where they are not known."""
    poses: Numbers
    """(N, 7) as annotated: place and quaternion x, y, z, w; NaN where it is not known."""
    objects: Sequence[tuple[int, ...]] | None = None
    """(N,) the objects that each question is about, as annotations call them; None where that is not known."""
    identity: str
    """What identifies the contents of the rooms."""
    load: Callable[[str], Room]
    """Gives a room; raises UnreadableCloudError."""

    def more(self) -> tuple[Sequence[object], ...]:
        poses = [tuple(pose) for pose in self.poses.round(6).tolist()]
        objects = () if self.objects is None else (self.objects,)
        return (self.situations, self.answers, [str(pose) for pose in poses], *objects)


class Rooms(NamedTuple):
    """The rooms of a set by name."""

    root: Path
    """Where they lie."""
    load: Callable[[str], Room]
    """Gives a room; raises UnreadableCloudError."""
    identity: Callable[[Sequence[str]], str]
    """What identifies the contents of some of them."""


def question_type(question: str) -> str:
    """A row of `QUESTION_TYPES`: SQA3D's rule, by the first word."""
    words = re.sub(r"[,.?]", "", question.lower().replace("'s", " 's")).split()
    return words[0] if words and words[0] in QUESTION_TYPES else "others"


def answer_names(candidates: Iterable[str]) -> tuple[str, ...]:
    """A vocabulary of answers, in alphabetical order."""
    return tuple(sorted({plain(answer) for answer in candidates}))


@dataclass(frozen=True, eq=False)
class Worths:
    """What answers are worth for each of N questions, sparsely."""

    start: Index
    """(N + 1,) where each question's entries begin."""
    labels: Index
    worth: npt.NDArray[np.float32]

    @classmethod
    def of(cls, answers: Sequence[tuple[str, ...]], names: Sequence[str], counts: Mapping[str, int]) -> Worths:
        """By how often an answer is given in the whole data set: 0.3, 0.6, 0.9, and 1 of four times or more.

        Args:
            answers: Of each question.
            names: The vocabulary; other answers are worth nothing.
            counts: Answer -> how often it is given.
        """
        numbers = {name: number for number, name in enumerate(names)}
        rows = [[a for a in dict.fromkeys(map(plain, given)) if a in numbers] for given in answers]
        start = np.cumsum([0, *map(len, rows)])
        flat = [answer for row in rows for answer in row]
        worth = [SOFT[min(max(counts.get(answer, 0), 1), len(SOFT) - 1)] for answer in flat]
        return cls(start, np.array([numbers[answer] for answer in flat], np.int64), np.array(worth, np.float32))

    @property
    def is_known(self) -> npt.NDArray[np.bool_]:
        """(N,) whether any answer of the vocabulary is right."""
        return np.diff(self.start) > 0

    def dense(self, samples: Sequence[int], count: int) -> Tensor:
        """(B, count)."""
        out = torch.zeros(len(samples), count)
        for row, sample in enumerate(samples):
            entries = slice(self.start[sample], self.start[sample + 1])
            out[row, torch.from_numpy(self.labels[entries])] = torch.from_numpy(self.worth[entries])
        return out


def count_answers(parts: Iterable[RoomPart]) -> Counter[str]:
    """How often each answer is given in these splits."""
    return Counter(plain(answer) for part in parts for given in part.answers for answer in given)


def best_in_hindsight(keys: Sequence[object], answers: Sequence[str]) -> float:
    """The share of answers that are right where each key has the one that is its most frequent."""
    seen: dict[object, Counter[str]] = {}
    for key, answer in zip(keys, answers, strict=True):
        seen.setdefault(key, Counter())[answer] += 1
    return sum(max(of.values()) for of in seen.values()) / len(answers)


def best_of_training(
    keys: Sequence[Sequence[object]], answers: Sequence[str],
    test_keys: Sequence[Sequence[object]], right: Sequence[str],
) -> float:  # fmt: skip
    """The share of test answers that are the most frequent one of the training questions with the same key.

    Args:
        keys: Of each training question, several, from the finest to the coarsest: the first that training has counts.
        answers: Of each training question.
        test_keys: Of each test question, likewise.
        right: Of each test question.

    Raises:
        DataError: If there is no question.
    """
    if not answers or not right:
        raise DataError("there are no questions to measure", "check the set")
    seen: dict[object, Counter[str]] = {None: Counter(answers)}
    for of, answer in zip(keys, answers, strict=True):
        for level, key in enumerate(of):
            seen.setdefault((level, key), Counter())[answer] += 1
    given = [
        next((seen[level, key] for level, key in enumerate(of) if (level, key) in seen), seen[None])
        for of in test_keys
    ]  # fmt: skip
    guesses = [max(sorted(counts), key=counts.__getitem__) for counts in given]
    return sum(guess == answer for guess, answer in zip(guesses, right, strict=True)) / len(right)
