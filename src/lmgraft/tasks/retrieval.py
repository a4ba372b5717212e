"""Finding the image of a caption among others, and the captions of an image, by a score of each pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lmgraft.contracts import Metric
from lmgraft.data.base import Data, SplitName, on_device
from lmgraft.data.vision_language.captions import NONE, CaptionBatch, CaptionData
from lmgraft.errors import RecipeError
from lmgraft.tasks.base import MakeOptimizer, MakeSchedule, Task
from lmgraft.tasks.items import Items

_UNIT = "images"


def _recall(name: str, what: str, most: int, items: str = "") -> Metric:
    return Metric(
        name=f"{name}{most}", title=f"test {what} R@{most}", higher_is_better=True, scale=100, unit="%",
        difference_unit="points", margin=0.01, low=0.0, high=1.0, largest_margin=0.1, items=items,
    )  # fmt: skip


DEPTHS = (1, 5, 10)
IR1, IR5, IR10 = (_recall("ir", "image retrieval", most) for most in DEPTHS)
TR1, TR5, TR10 = (_recall("tr", "text retrieval", most, _UNIT) for most in DEPTHS)

MATCH = Metric(
    name="match", title="test belief in own caption", higher_is_better=True, scale=100, unit="%",
    difference_unit="points", margin=0.01, low=0.0, high=1.0,
)  # fmt: skip
"""How sure the model is that an image matches its own caption: ranks depend on all other images, this does not."""

_METER = "set backbone.factory: meter and backbone.kwargs.head: matching"
_SHOWN = 3
_FITS, _DOES_NOT = (0.0, 0.35, 1.0), (1.0, 0.5, 0.0)  # told apart by the colour-blind too
_COLUMNS = 3  # of a pair: its score to rank by, the logits of no match and match


class Matched(NamedTuple):
    """What a model says of a batch of captions."""

    rank: Tensor
    """(B, C) of each image its own caption's score and those of others; in evaluation (B, G), of each caption the
    scores of all images of its gallery."""
    match: Tensor
    """(B, 2) logits of no match and match: of each image with its partner's caption; in evaluation with its own."""
    aligned: Tensor | None = None
    """(B, B) in training, where that is wanted: cosines of the mean tokens of images and captions before fusion."""


class Retrieval(Task):
    """A model that scores pairs of an image and a caption: a score to rank by, and logits of no match and match.

    IR@k: the share of captions of whose first k images one is fitted by the caption. TR@k: the share of images of whose
    first k captions one fits. All captions of a split are ranked with all images of its gallery; of equal scores the
    wrong one comes first.

    Args:
        model: (images, input_ids, attention_mask) -> (B, K, 3) of K captions for each image, or (B, 3) of one. It also
            takes images (B, T, V) and captions (B, L, V) as its `encode_image` and `encode_text` give them.
        data: The captions.
        optimizer: Makes the optimiser from the model.
        schedule: Makes the step-wise schedule from optimiser and number of steps.
        rank_weight: Of the cross-entropy of the own caption's score among those of others.
        match_weight: Of the cross-entropy of match and no match; 0: it is not computed.
        align_weight: Of a contrastive loss of the encoders' mean tokens before fusion (ALBEF, arXiv 2107.07651), which
            adds no parameters. METER, whose encoders are pretrained, has none.
        temperature: Of that loss.
        pairs: Scored at a time in evaluation; a matter of memory and speed alone.

    Raises:
        RecipeError: If a weight is negative or both are 0, or the model has no encoders.
    """

    data_type: ClassVar[type[Data]] = CaptionData  # type: ignore[type-abstract]
    packages: ClassVar[tuple[str, ...]] = ("transformers",)

    def __init__(
        self,
        model: Any,
        data: CaptionData,
        optimizer: MakeOptimizer,
        schedule: MakeSchedule,
        *,
        rank_weight: float = 1.0,
        match_weight: float = 1.0,
        align_weight: float = 0.0,
        temperature: float = 0.07,
        pairs: int = 256,
    ) -> None:
        super().__init__(model, data, optimizer, schedule)
        weights = {"rank_weight": rank_weight, "match_weight": match_weight, "align_weight": align_weight}
        if min(weights.values()) < 0 or not rank_weight + match_weight or pairs < 1 or temperature <= 0:
            given = weights | {"temperature": temperature, "pairs": pairs}
            raise RecipeError(
                ", ".join(f"task.{key}={value}" for key, value in given.items()),
                "weights are not negative, rank_weight or match_weight is positive, and pairs are at least 1",
            )
        if not hasattr(model, "encode_image"):
            raise RecipeError(
                f"task Retrieval scores pairs of encoded images and captions, which {type(model).__name__} cannot",
                _METER,
            )
        self.rank_weight, self.match_weight, self.pairs = rank_weight, match_weight, pairs
        self.align_weight, self.temperature = align_weight, temperature
        self._kinds = tuple(data.categories())
        self._data = data
        self._encoded: tuple[Any, Tensor] | None = None
        """What the images of a gallery were encoded from, and their tokens (G, T, V)."""

    @classmethod
    def metrics(cls, data: Data | None = None) -> tuple[Metric, ...]:
        return (IR1, IR5, IR10, TR1, TR5, TR10)

    def check(self, batch_size: int) -> None:
        if self.match_weight and batch_size < 2:
            raise RecipeError(
                "task.match_weight with data.batch_size=1: captions that do not match come from the other items",
                "make the batch larger, or set task.match_weight to 0",
            )

    @property
    def alone(self) -> Metric:
        return MATCH

    def score_alone(self, batch: CaptionBatch) -> dict[str, Tensor]:
        return {MATCH.column: _belief(self._scored(*self.inputs(batch))[:, 1:])}

    def inputs(self, batch: CaptionBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Each image with its own caption."""
        return batch.images, batch.input_ids[:, 0], batch.attention_mask[:, 0]

    def outputs(self, batch: CaptionBatch) -> Matched:
        """Of a batch without a gallery, such as one of training, the scores of its captions; else of all its images."""
        gallery = int(batch.gallery[0])
        if gallery != NONE:
            rank = self._ranked(batch, gallery)
            return Matched(rank, self._scored(*self.inputs(batch))[:, 1:])  # the last call: what analyses look at
        images, texts, mask = self.training_inputs(batch)
        model: Any = self.model
        aligned = None
        if self.training and self.align_weight:
            images = model.encode_image(images)
            texts = model.encode_text(texts.flatten(0, 1), mask.flatten(0, 1)).unflatten(0, mask.shape[:2])
            aligned = _aligned(images, texts[:, 0], mask[:, 0])
        out, count = self._scored(images, texts, mask), batch.input_ids.shape[1]
        return Matched(out[:, :count, 0], out[:, -1 if mask.shape[1] > count else 0, 1:], aligned)

    def training_inputs(self, batch: CaptionBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Each image with its own caption, those of others, and behind them its partner's, where matching is taught."""
        ids, mask = batch.input_ids, batch.attention_mask
        if self.match_weight and ids.shape[1] > 1:
            # In one call: each image with its partner's caption is as likely as each caption with its partner's image.
            ids, mask = (torch.cat([part, part[batch.partner, :1]], 1) for part in (ids, mask))
        return batch.images, ids, mask

    def _scored(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.model(*inputs)
        if out.shape[-1] != _COLUMNS:
            raise RecipeError(
                f"task Retrieval takes {_COLUMNS} columns of a pair, and the model gives {out.shape[-1]}", _METER
            )
        return out

    @torch.no_grad()
    def _ranked(self, batch: CaptionBatch, gallery: int) -> Tensor:
        """(B, G) scores of each caption with each image."""
        model: Any = self.model
        images, mask = self._images(gallery, batch.images.device), batch.attention_mask[:, 0]
        texts = model.encode_text(batch.input_ids[:, 0], mask)
        total, scores = len(texts) * len(images), []
        for first in range(0, total, self.pairs):
            pairs = torch.arange(first, min(first + self.pairs, total), device=mask.device)
            text, image = pairs // len(images), pairs % len(images)
            scores.append(model(images[image], texts[text], mask[text])[:, 0])
        return torch.cat(scores).view(len(texts), len(images))

    def _images(self, gallery: int, device: Any) -> Tensor:
        """(G, T, V) the encoded images of a gallery; once for the weights as they are."""
        model: Any = self.model
        state = [*self.model.parameters(), *self.model.buffers()]
        made_of = (gallery, [(value.data_ptr(), value._version) for value in state])
        if self._encoded is None or self._encoded[0] != made_of:
            self._encoded = None  # before others take its memory
            loader = self._data.gallery_loader(gallery)
            parts = [model.encode_image(on_device(batch, device).images) for batch in loader]
            self._encoded = made_of, torch.cat(parts)
        return self._encoded[1]

    def on_validation_epoch_end(self) -> None:
        self._encoded = None
        super().on_validation_epoch_end()

    def on_test_epoch_end(self) -> None:
        self._encoded = None
        super().on_test_epoch_end()

    def loss(self, out: Matched, batch: CaptionBatch) -> Tensor:
        """Cross-entropy of the own caption among all of the image, and of match and no match, weighted.

        With `align_weight` also of the own caption among those of the batch, and of the own image, by cosines; others
        that fit are left out.
        """
        own = torch.zeros(len(out.rank), dtype=torch.int64, device=out.rank.device)
        loss = self.rank_weight * F.cross_entropy(out.rank.float(), own)
        if self.match_weight:
            is_own = batch.partner == torch.arange(len(batch.partner), device=batch.partner.device)
            loss = loss + self.match_weight * F.cross_entropy(out.match.float(), is_own.long())
        if out.aligned is not None:
            fits = (batch.fitting[:, None, :] == batch.caption[None, :, None]).any(-1)
            place = torch.arange(len(fits), device=fits.device)
            logits = out.aligned.float() / self.temperature
            logits = logits.masked_fill(fits & (place[:, None] != place), -torch.inf)
            both = F.cross_entropy(logits, place) + F.cross_entropy(logits.mT, place)
            loss = loss + self.align_weight * both / 2
        return loss

    def columns(self, batch: CaptionBatch) -> Items:
        """Also the scores of all pairs, of which `finish` makes what images reach."""
        out = self.outputs(batch)
        kept = {"scores": out.rank, "gallery": batch.gallery, "caption": batch.caption}
        return self.checked({**self.score(out, batch), **kept}, batch)

    def score(self, out: Matched, batch: CaptionBatch) -> dict[str, Tensor]:
        """Whether the first 1, 5 and 10 images of a caption have one that it fits, and how sure it matches its own.

        Without a gallery: whether an image's own caption is among the first ones of those that it came with.
        """
        gallery = int(batch.gallery[0])
        if gallery == NONE:
            fits = torch.zeros_like(out.rank, dtype=torch.bool)
            fits[:, 0] = True
        else:
            fitting = self._data.gallery(gallery).fits_of_all.to(batch.caption.device)
            fits = (fitting == batch.caption[:, None, None]).any(-1)
        place = torch.from_numpy(places(out.rank.float().cpu().numpy(), fits.cpu().numpy()))
        columns = {f"ir{most}": _within(place, most) for most in DEPTHS}
        columns[MATCH.column] = _belief(out.match)
        return columns | {f"by_{name}": batch.kinds[:, n].int() for n, name in enumerate(self._kinds)}

    def finish(self, items: Items, split: SplitName) -> Items:
        scores, gallery, caption = (items[name] for name in ("scores", "gallery", "caption"))
        items = {name: column for name, column in items.items() if name not in ("scores", "gallery", "caption")}
        if int(gallery[0]) == NONE:  # each image with captions: what was scored is what images reach
            own = {f"tr{most}": items[f"ir{most}"] for most in DEPTHS}
            return items | {f"{_UNIT}/{name}": column for name, column in own.items()} | _units(items["index"])
        images = self._data.gallery(int(gallery[0]))
        fits = np.stack([np.isin(caption, row) for row in images.fits_of_all.numpy()])
        shown = fits.any(1)  # a limit may have left out all captions of an image
        place = torch.from_numpy(places(scores.T[shown], fits[shown]))
        items |= {f"{_UNIT}/tr{most}": _within(place, most).numpy() for most in DEPTHS}
        return items | _units(images.image.numpy()[shown], images.groups.numpy()[shown])

    def predict(self, out: Matched, batch: CaptionBatch) -> list[dict[str, Any]]:
        """The belief that a pair matches, with its score to rank by, or with the caption's first five images."""
        beliefs, gallery = _belief(out.match).tolist(), int(batch.gallery[0])
        if gallery == NONE:
            ranks = out.rank[:, 0].float().tolist()
            return [{"match": round(b, 6), "score": round(r, 6)} for b, r in zip(beliefs, ranks, strict=True)]
        images = self._data.gallery(gallery)
        scores, first = out.rank.float().topk(min(5, out.rank.shape[1]))
        return [
            {"match": round(belief, 6)} | {images.name(i): round(score, 6) for i, score in zip(row, of, strict=True)}
            for belief, row, of in zip(beliefs, first.tolist(), scores.tolist(), strict=True)
        ]

    def pictures(self, out: Matched, batch: CaptionBatch) -> list[dict[str, Tensor]]:
        """The first images of each caption's gallery, in a blue frame where the caption fits, else in an orange one."""
        gallery = int(batch.gallery[0])
        if gallery == NONE:
            return super().pictures(out, batch)
        items, rows = self._data.gallery(gallery), []
        for ranks, caption in zip(out.rank.float(), batch.caption, strict=True):
            first = ranks.topk(min(_SHOWN, len(ranks))).indices.tolist()
            fits = (items.fits_of_all[first] == caption.cpu()).any(-1).tolist()
            images = items.batch(first).images
            rows.append({f"found {n + 1}": _framed(images[n], fits[n]) for n in range(len(first))})
        return rows


def _aligned(image_tokens: Tensor, text_tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, B) cosines of mean tokens: of images (B, T, V), and of texts (B, L, V) with their mask."""
    words = mask[..., None].to(text_tokens.dtype)
    text = (text_tokens * words).sum(1) / words.sum(1).clamp_min(1)
    return F.normalize(image_tokens.mean(1), dim=-1) @ F.normalize(text, dim=-1).mT


def _belief(match: Tensor) -> Tensor:
    return match.float().softmax(1)[:, 1]


def _framed(image: Tensor, fits: bool) -> Tensor:
    """An image (3, H, W) in a blue frame, or an orange one, within its own least and largest value."""
    low, high, width = image.amin(), image.amax(), max(1, image.shape[-1] // 24)
    colour = low + (high - low) * image.new_tensor(_FITS if fits else _DOES_NOT)
    framed = F.pad(image, [width] * 4)
    framed[:, :width] = framed[:, -width:] = colour[:, None, None]
    framed[..., :width] = framed[..., -width:] = colour[:, None, None]
    return framed


def places(scores: NDArray[Any], fits: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N,) how many that do not fit come before the first that does, each row by itself; NaN with a score that is none.

    Args:
        scores: (N, M), higher is earlier; of equal ones that which does not fit comes first.
        fits: (N, M), one in each row at least.
    """
    best = np.where(fits, scores, -np.inf).max(1, keepdims=True)
    before = ((scores >= best) & ~fits).sum(1)
    return np.where(np.isfinite(scores).all(1), before.astype(np.float64), np.nan)


def _within(place: Tensor, most: int) -> Tensor:
    """Whether it is among the first ones, 1 or 0; NaN where there is no place."""
    return torch.where(place.isnan(), place, (place < most).double()).float()


def _units(index: NDArray[Any], group: Sequence[int] | NDArray[Any] | None = None) -> Items:
    return {f"{_UNIT}/index": index, f"{_UNIT}/group": index if group is None else np.asarray(group)}
