"""Questions about images, and what each answer is worth; what every data set of questions is made of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmgraft.data.files import plural
from lmgraft.data.image.tables import ImageTable
from lmgraft.data.loader import Draw, Fault, Reported
from lmgraft.data.vision_language.answers import spelt, usual, vocabulary, worth, worth_as_written
from lmgraft.data.vision_language.image_text import ImageTextData, ImageTextSet
from lmgraft.data.vision_language.parts import Index, kind_numbers
from lmgraft.data.vision_language.question_table import Questions
from lmgraft.data.vision_language.rows import ENDINGS
from lmgraft.data.vision_language.sources import Source, loose
from lmgraft.errors import DataError

_ENOUGH = 4
"""People who give one answer for it to be worth 1 by VQAv2's rule, if nobody else is asked."""


class QuestionBatch(NamedTuple):
    """Questions about images, and what each answer is worth."""

    images: Tensor
    """(B, 3, H, W) float."""
    input_ids: Tensor
    """(B, L) int64, padded."""
    attention_mask: Tensor
    """(B, L) int64, 1 where there is a token."""
    targets: Tensor
    """(B, A) float, what each answer of the vocabulary is worth in training."""
    scores: Tensor
    """(B, A) float, what it is worth by the official rule."""
    kinds: Tensor
    """(B, K) int64, the question's part in each category."""
    index: Tensor  # type: ignore[assignment] # of tuples it is a method
    """(B,) int64, places in the source."""
    group: Tensor
    """(B,) int64, the image."""


@dataclass(frozen=True, eq=False)
class Key:
    """What answers are worth for each of N questions, sparsely: most are worth nothing."""

    start: Index
    """(N + 1,) where each question's entries begin."""
    labels: Index
    soft: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]

    @classmethod
    def of(cls, answers: Sequence[tuple[str, ...]], names: Sequence[str], as_written: bool = False) -> Key:
        """By VQAv2's rules; answers outside of the vocabulary are worth nothing.

        Args:
            answers: Of each question those of each person.
            names: The vocabulary.
            as_written: See `QuestionData.as_written`.
        """
        numbers = {name: number for number, name in enumerate(names)}
        rule = worth_as_written if as_written else worth
        seen = {given: rule(given, numbers) for given in set(answers)}
        rows = [seen[given] for given in answers]
        start = np.cumsum([0, *(len(row.labels) for row in rows)])
        parts = ([value for row in rows for value in row[column]] for column in range(3))
        labels, soft, scores = parts
        return cls(start, np.array(labels, np.int64), np.array(soft, np.float32), np.array(scores, np.float32))

    @property
    def is_taught(self) -> npt.NDArray[np.bool_]:
        """(N,) whether any answer of the vocabulary is worth something in training."""
        return self._most(self.soft) > 0

    @property
    def best(self) -> npt.NDArray[np.float32]:
        """(N,) the most that an answer of the vocabulary is worth by the official rule."""
        return self._most(self.scores)

    def _most(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        most = np.zeros(len(self.start) - 1, np.float32)
        np.maximum.at(most, np.repeat(np.arange(len(most)), np.diff(self.start)), values)
        return most

    def dense(self, samples: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
        """(B, count) worth in training, and by the official rule."""
        soft, scores = torch.zeros(2, len(samples), count)
        for row, sample in enumerate(samples):
            entries = slice(self.start[sample], self.start[sample + 1])
            labels = torch.from_numpy(self.labels[entries])
            soft[row, labels] = torch.from_numpy(self.soft[entries])
            scores[row, labels] = torch.from_numpy(self.scores[entries])
        return soft, scores

    def take(self, index: Index) -> Key:
        """Of these questions alone."""
        counts = np.diff(self.start)[index]
        entries = np.concatenate([np.arange(self.start[i], self.start[i + 1]) for i in index] or [index[:0]])
        return Key(np.cumsum([0, *counts]), self.labels[entries], self.soft[entries], self.scores[entries])


class QuestionSet(ImageTextSet):
    """Some questions.

    Args:
        table, image, ids, index, manner, tokenizer, source: See `ImageTextSet`.
        key: What answers are worth.
        num_answers: Size of the vocabulary.
        kinds: (N, K) the part of each question in each category.
    """

    what = "question"

    def __init__(self, *args: Any, key: Key, num_answers: int, kinds: Index) -> None:
        super().__init__(*args)
        self.key, self.num_answers, self.kinds = key, num_answers, torch.from_numpy(kinds)

    def __getitems__(self, draws: list[Draw]) -> Reported:
        faults: list[Fault] = []
        images, samples = self.pictures(draws, faults)
        worth = self.key.dense(samples.tolist(), self.num_answers)
        where = self.indices[samples], self.groups[samples]
        batch = QuestionBatch(images, *self.texts(samples), *worth, self.kinds[samples], *where)
        return Reported(batch, tuple(faults))


class QuestionData(ImageTextData):
    """Questions about images: class_path names the data set, a subclass of this.

    Args:
        min_answer_count: An answer that is the usual one of fewer training questions is none that the model can give
            (METER on VQAv2: 9).
        options: See `ImageTextData` and its `Settings`.
    """

    things: ClassVar[str] = "questions"
    endings: ClassVar[tuple[str, ...]] = ENDINGS
    question_set: ClassVar[type[QuestionSet]] = QuestionSet
    """What shows the questions of a split."""
    as_written: ClassVar[bool] = False
    """Whether answers count in training as people wrote them, as METER has it for VQAv2; else as `spelt` has them."""

    def __init__(self, *, min_answer_count: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.min_answer_count = min_answer_count
        self._answers: tuple[str, ...] | None = None

    @abstractmethod
    def find(self) -> dict[str, Questions]:
        """What there is of "train", "val" and "test"; train and test at least.

        Raises:
            DataError: If something is missing or does not agree.
        """

    @cached_property
    def questions(self) -> dict[str, Questions]:
        """The splits that the data set itself has; its files are read once."""
        found = self.find()
        for split, part in found.items():
            if not part.texts:
                raise DataError(f"{part.where} has no questions for {split}", "check data.root")
            lacking = sum(not given for given in part.answers)
            if lacking:
                raise DataError(
                    f"{part.where}: {plural(lacking, 'question')} of {split} without an answer",
                    "lmgraft predict answers questions of which none is known",
                )
        return found

    @property
    def parts(self) -> dict[str, Questions]:
        return self.questions

    @property
    def answer_names(self) -> tuple[str, ...]:
        """The vocabulary of answers, of the training questions."""
        if self._answers is None:
            train = self.questions["train"]
            used = self.chosen("train", train, np.arange(len(train.texts)))
            self._answers = vocabulary(
                (usual([spelt(answer) for answer in train.answers[i]]) for i in used), self.min_answer_count
            )
            if len(self._answers) < 2:
                raise DataError(
                    f"{self.questions['train'].where}: {len(self._answers)} answers come at least "
                    f"{self.min_answer_count} times", "make data.min_answer_count smaller",
                )  # fmt: skip
        return self._answers

    def model_arguments(self) -> dict[str, Any]:
        return super().model_arguments() | {"num_classes": len(self.answer_names)}

    def _make(self, split: str, part: Questions, table: ImageTable, still: bool = False) -> QuestionSet:
        """The questions of a split; training leaves out those of which no answer of the vocabulary is right."""
        index, names = self.index[split], self.answer_names
        key, training = Key.of([part.answers[i] for i in index], names, self.as_written), split == "train"
        self._remark_answers(f"{part.where}, {split}", [part.answers[i] for i in index], key, training)
        if training:
            index, key = index[key.is_taught], key.take(np.flatnonzero(key.is_taught))
        ids = self.tokens([part.texts[i] for i in index], f"{part.where}, {split}")
        return self.question_set(
            table, np.asarray(part.image)[index], ids, index,
            self.manner(training and not still, training), self.tokenizer, Source(part.texts),
            key=key, num_answers=len(names), kinds=kind_numbers(part, self.categories(), index),
        )  # fmt: skip

    def _remark_answers(self, where: str, answers: Sequence[tuple[str, ...]], key: Key, training: bool) -> None:
        """Say how many questions have no right answer in the vocabulary, and what the others allow at most."""
        is_right = key.is_taught if training else key.best > 0
        lost, what = int((~is_right).sum()), "left out" if training else "counted as wrong"
        if lost:
            self.remark(f"{where}: {plural(lost, 'question')} without a right answer in the vocabulary: {what}")
        few = sum(1 < len(given) < _ENOUGH for given in answers)
        if few and not training:
            self.remark(
                f"{where}: {plural(few, 'question')} with the answers of two or three people, whose answer is worth "
                f"33.3 or 66.7 % by VQAv2's rule where they agree: with the vocabulary {100 * key.best.mean():.1f} % "
                "is the most that can be reached"
            )

    def known(self) -> dict[str, Any]:
        return super().known() | {"answers": list(self.answer_names)}

    def recall(self, record: Mapping[str, Any]) -> None:
        super().recall(record)
        if "answers" in record.get("data", {}):
            self._answers = tuple(record["data"]["answers"])

    def open(self, sources: Sequence[str]) -> QuestionSet:
        """Questions in tables (see `QuestionFiles`), in the order of their rows; answers are not looked at."""
        table, image, source = loose(sources, "question", self.own_root)
        count, ids = len(image), self.tokens(source.texts, ", ".join(sources))
        return QuestionSet(
            table, image, ids, np.arange(count), self.manner(False, False), self.tokenizer, source,
            key=Key.of([()] * count, self.answer_names), num_answers=len(self.answer_names),
            kinds=np.zeros((count, len(self.categories())), np.int64),
        )  # fmt: skip

    def example(self, size: int, seed: int = 0) -> QuestionBatch:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(size, *self.settings.preprocess().shape, generator=generator)
        ids, mask = self.random_texts(size, min(12, self.settings.max_text_len), seed=seed)
        index, count = torch.arange(size), len(self.answer_names)
        right = torch.nn.functional.one_hot(index % count, count).float()
        kinds = torch.stack([index % len(parts) for parts in self.categories().values()] or [index[:0]], -1)
        return QuestionBatch(images, ids, mask, right, right, kinds.view(size, -1), index, index)
