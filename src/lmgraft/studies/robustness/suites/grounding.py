"""Does a model that answers questions use the image, and the question? Each is taken away in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmgraft.checkpoint.digest import json_digest
from lmgraft.contracts import Metric
from lmgraft.data.base import ItemSet
from lmgraft.data.draws import uniforms
from lmgraft.data.loader import Draw, Reported
from lmgraft.data.vision_language.questions import QuestionData, QuestionSet
from lmgraft.errors import DataError
from lmgraft.studies.robustness.cells import Cell
from lmgraft.studies.robustness.suite import Condition, Row, Suite

Change = Callable[[QuestionSet, list[Draw], Any, int], Any]
"""(items, draws, their batch, seed) -> the batch as the condition shows it."""


def question_only(items: QuestionSet, draws: list[Draw], batch: Any, seed: int) -> Any:
    """The mean colour in place of the image."""
    return batch._replace(images=torch.zeros_like(batch.images))


def image_only(items: QuestionSet, draws: list[Draw], batch: Any, seed: int) -> Any:
    """A question without a word."""
    ids = torch.full_like(batch.input_ids, items.tokenizer.pad_token_id)
    empty = torch.from_numpy(items.tokenizer.encode([""], ids.shape[1])).long()
    ids[:, : empty.shape[1]] = empty
    return batch._replace(input_ids=ids, attention_mask=(ids != items.tokenizer.pad_token_id).long())


def other_image(items: QuestionSet, draws: list[Draw], batch: Any, seed: int) -> Any:
    """The image of another question with an answer of the same type."""
    partners = _partners(items, seed)
    other: Any = items.__getitems__([draw._replace(sample=int(partners[draw.sample])) for draw in draws]).batch
    return batch._replace(images=other.images)


def shuffled_words(items: QuestionSet, draws: list[Draw], batch: Any, seed: int) -> Any:
    """The words of the question in a random order, between the tokens at its ends."""
    length = batch.input_ids.shape[1]
    keys = torch.from_numpy(uniforms(seed, [0] * len(draws), batch.index.numpy(), length))
    places = torch.arange(length).expand(len(draws), -1)
    last = batch.attention_mask.sum(1, keepdim=True) - 1
    within = (places > 0) & (places < last)
    # Tokens at the ends and padding keep their place, which no draw in [0, 1) reaches.
    order = torch.where(within, 1 + keys, torch.where(places == 0, 0.0, 2.0 + places)).argsort(1)
    return batch._replace(input_ids=batch.input_ids.gather(1, order))


CHANGES: dict[str, tuple[str, Change]] = {
    "question_only": ("without the image", question_only),
    "image_only": ("without the question", image_only),
    "other_image": ("another question's image", other_image),
    "shuffled_words": ("words in a random order", shuffled_words),
}
"""Condition -> its title, and what it does."""


def _partners(items: QuestionSet, seed: int) -> Tensor:
    """(N,) for each sample another of the same answer type and of another image; any other where there is none.

    Raises:
        DataError: If all questions are about one image.
    """
    count = len(items)
    kinds = items.kinds[:, 0] if items.kinds.shape[1] else torch.zeros(count, dtype=torch.int64)
    if len(set(items.groups.tolist())) < 2:
        raise DataError("all test questions are about one image", "suite grounding shows them another one")
    order = np.random.default_rng(seed).permutation(count)
    by_kind = [order[kinds[order].numpy() == kind] for kind in range(int(kinds.max()) + 1)]
    partners = torch.zeros(count, dtype=torch.int64)
    for of in by_kind:
        for place, sample in enumerate(of.tolist()):
            others = (int(of[(place + step) % len(of)]) for step in range(1, len(of)))
            partner = next((other for other in others if items.groups[other] != items.groups[sample]), None)
            if partner is None:
                partner = next(int(other) for other in order if items.groups[other] != items.groups[sample])
            partners[sample] = partner
    return partners


@dataclass(frozen=True, kw_only=True)
class Grounding(Suite):
    """Questions without their image, images without their question, another image, words out of order."""

    name = "grounding"
    data_type = QuestionData
    whole = "conditions"

    seed: int = 0
    """Of the other images and the order of words; the same for all models."""

    def conditions(self, data: QuestionData) -> list[Condition]:
        data.prepare_data()
        data.setup("test")
        known: dict[str, Any] = {"data": json_digest(data.fingerprint())}
        items = data.still("test")
        assert isinstance(items, QuestionSet)
        made = [Condition(key="clean", items=items, identity=known)]
        return made + [
            Condition(
                key=f"grounding/{name}",
                items=ChangedQuestions(items, change, self.seed),
                identity=known | {"seed": self.seed},
                title=title,
                part=name,
            )
            for name, (title, change) in CHANGES.items()
        ]

    def notes(self, data: QuestionData) -> list[str]:
        return ["a model that looks at the image and reads the question loses much in each of these conditions"]

    def summary(self, cells: Mapping[str, Cell], metric: Metric) -> list[Row]:
        """The value under each condition, how much it lies below the clean one, and the clean one."""
        values = {cell.part: cell.metrics[metric.name] for cell in cells.values() if cell.part in CHANGES}
        rows = [
            Row(kind="part", name=name, title=title, value=values[name], metric=metric)
            for name, (title, _) in CHANGES.items()
            if name in values
        ]
        if self.clean not in cells:
            return rows
        clean = cells[self.clean].metrics[metric.name]
        lost = replace(metric, unit=metric.difference_unit, low=None, high=None)
        for row in tuple(rows):
            loss = metric.direction * (clean - row.value)
            rows.append(Row(kind="whole", name=f"lost_{row.name}", title=f"lost: {row.title}", value=loss, metric=lost))
        title = f"clean {metric.title.removeprefix('test ')}"
        return [*rows, Row(kind="clean", name="clean", title=title, value=clean, metric=metric)]


class ChangedQuestions(ItemSet):
    """Test questions with something taken away.

    Args:
        items: As evaluation shows them.
        change: What is done to a batch.
        seed: Of what it draws.
    """

    def __init__(self, items: QuestionSet, change: Change, seed: int) -> None:
        self.items, self.change, self.seed = items, change, seed
        self.indices, self.groups = items.indices, items.groups

    def __getitems__(self, draws: list[Draw]) -> Reported:
        loaded = self.items.__getitems__(draws)
        return Reported(self.change(self.items, draws, loaded.batch, self.seed), loaded.faults)

    def place(self, index: int) -> str:
        return self.items.place(index)
