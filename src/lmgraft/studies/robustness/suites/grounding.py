"""Does a model of images and texts use the image, and the text? Each is taken away in turn."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lmgraft.data.draws import uniforms
from lmgraft.data.items import ItemSet, whole_batch
from lmgraft.data.loader import Draw
from lmgraft.data.vision_language.captions import CaptionData, CaptionSet
from lmgraft.data.vision_language.image_text import ImageTextData, ImageTextSet
from lmgraft.data.vision_language.parts import Index
from lmgraft.data.vision_language.questions import QuestionData, QuestionSet
from lmgraft.errors import DataError
from lmgraft.studies.robustness.suites.changed import Change, TakenAway


def question_only(items: QuestionSet, draws: list[Draw], batch: Any, seed: int) -> Any:
    """The mean colour in place of the image."""
    return batch._replace(images=torch.zeros_like(batch.images))


def image_only(items: QuestionSet, draws: list[Draw], batch: Any, seed: int) -> Any:
    """A question without a word."""
    ids = torch.full_like(batch.input_ids, items.tokenizer.pad_token_id)
    empty = torch.from_numpy(items.tokenizer.encode([""], ids.shape[1]).ids).long()
    ids[:, : empty.shape[1]] = empty
    return batch._replace(input_ids=ids, attention_mask=(ids != items.tokenizer.pad_token_id).long())


def other_image(items: QuestionSet, draws: list[Draw], batch: Any, seed: int) -> Any:
    """The image of another question with an answer of the same type."""
    kinds = items.kinds[:, 0] if items.kinds.shape[1] else torch.zeros(len(items), dtype=torch.int64)
    return batch._replace(images=of_partners(items, draws, kinds.numpy(), seed).images)


def other_caption(items: CaptionSet, draws: list[Draw], batch: Any, seed: int) -> Any:
    """The caption of another image."""
    other = of_partners(items, draws, np.zeros(len(items), np.int64), seed)
    return batch._replace(input_ids=other.input_ids, attention_mask=other.attention_mask)


def shuffled_words(items: ImageTextSet, draws: list[Draw], batch: Any, seed: int) -> Any:
    """The words of each text in a random order, between the tokens at its ends."""
    ids, mask = batch.input_ids, batch.attention_mask
    length = ids.shape[-1]
    keys = torch.from_numpy(uniforms(seed, [0] * len(draws), batch.index.numpy(), length))
    keys = keys.view(len(draws), *[1] * (ids.dim() - 2), length).expand_as(ids)
    places = torch.arange(length).expand_as(ids)
    within = (places > 0) & (places < mask.sum(-1, keepdim=True) - 1)
    # Tokens at the ends and padding keep their place, which no draw in [0, 1) reaches.
    order = torch.where(within, 1 + keys, torch.where(places == 0, 0.0, 2.0 + places)).argsort(-1)
    return batch._replace(input_ids=ids.gather(-1, order))


def of_partners(items: ItemSet, draws: list[Draw], kinds: Index, seed: int) -> Any:
    """The batch of each item's partner: another of the same kind and of another group; any other where there is none.

    Args:
        items: All of them.
        draws: Of those whose partners are asked for.
        kinds: (N,) of all items.
        seed: Of which partner it is.

    Raises:
        DataError: If all items are of one group.
    """
    groups = items.groups.numpy()
    if (groups == groups[0]).all():
        raise DataError("all test items are about one thing", "this suite shows them another one")
    circle = _circle(len(items), seed)
    chosen = [draw._replace(sample=_partner(draw.sample, groups, kinds, *circle)) for draw in draws]
    return whole_batch(items.__getitems__(chosen))[0]


@lru_cache(maxsize=2)
def _circle(count: int, seed: int) -> tuple[Index, Index]:
    """All items in a random order, and the place of each in it."""
    order = np.random.default_rng(seed).permutation(count)
    return order, np.argsort(order)


def _partner(sample: int, groups: Index, kinds: Index, order: Index, place: Index) -> int:
    """The first behind an item, round the circle, that is a partner of it."""
    any_other = None
    for step in range(1, len(order)):
        other = int(order[(place[sample] + step) % len(order)])
        if groups[other] != groups[sample]:
            if kinds[other] == kinds[sample]:
                return other
            any_other = other if any_other is None else any_other
    assert any_other is not None  # there are several groups
    return any_other


class _OfImagesAndTexts(TakenAway):
    """Test items as they are, and without their image or their text."""

    def notes(self, data: ImageTextData) -> list[str]:
        return ["a model that looks at the image and reads the text loses much in each of these conditions"]


@dataclass(frozen=True, kw_only=True)
class Grounding(_OfImagesAndTexts):
    """Questions without their image, images without their question, another image, words out of order."""

    name = "grounding"
    data_type = QuestionData
    changes: ClassVar[Mapping[str, tuple[str, Change]]] = {
        "question_only": ("without the image", question_only),
        "image_only": ("without the question", image_only),
        "other_image": ("another question's image", other_image),
        "shuffled_words": ("words in a random order", shuffled_words),
    }


@dataclass(frozen=True, kw_only=True)
class CaptionGrounding(_OfImagesAndTexts):
    """Captions of other images, the mean colour in place of every image, words out of order."""

    name = "caption-grounding"
    data_type = CaptionData
    changes: ClassVar[Mapping[str, tuple[str, Change]]] = {
        "other_caption": ("another image's caption", other_caption),
        "shuffled_words": ("words in a random order", shuffled_words),
    }

    def all_changes(self, data: CaptionData) -> Mapping[str, tuple[str, Change]]:
        """With a gallery of blank images, among which nothing can be found."""
        items: Any = data.still("test")
        images = copy(data.gallery(items.gallery))
        images.manner = replace(images.manner, transform=MeanColour())  # type: ignore[arg-type]
        number = data.add_gallery(images)

        def blank(items: CaptionSet, draws: list[Draw], batch: Any, seed: int) -> Any:
            return batch._replace(
                images=torch.zeros_like(batch.images), gallery=torch.full_like(batch.gallery, number)
            )  # fmt: skip

        return {**self.changes, "mean_image": ("without images", blank)}


class MeanColour:
    """In place of a transform: every image is the mean colour."""

    def into(self, image: Any, out: Tensor) -> None:
        """Write it to `out`, (C, H, W) float."""
        out.zero_()
