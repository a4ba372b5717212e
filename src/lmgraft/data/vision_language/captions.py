"""Images with captions: what each is ranked against, in training some captions, in evaluation all images.

What every data set of captions is made of.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmgraft.data.base import at_least_one
from lmgraft.data.draws import uniforms
from lmgraft.data.image.tables import ImageTable
from lmgraft.data.items import spread_over
from lmgraft.data.loader import Draw, EpochLoader, EpochSampler, Fault, Reported
from lmgraft.data.vision_language.caption_table import Captions, Fits
from lmgraft.data.vision_language.image_text import ImageTextData, ImageTextSet
from lmgraft.data.vision_language.parts import Index, kind_numbers
from lmgraft.data.vision_language.rows import ENDINGS
from lmgraft.data.vision_language.sources import Source, loose
from lmgraft.errors import DataError

NONE, VAL, TEST = -1, 0, 1
"""Galleries: none, where an image is ranked against captions; the images of val, and of test."""


class CaptionBatch(NamedTuple):
    """Captions, each with its image."""

    images: Tensor
    """(B, 3, H, W) float, of each caption."""
    input_ids: Tensor
    """(B, C, L) int64, padded: the caption first; in training captions of other images behind it."""
    attention_mask: Tensor
    """(B, C, L) int64, 1 where there is a token."""
    partner: Tensor
    """(B,) int64, the item of the batch whose caption the image is matched with: itself, or one that does not fit."""
    gallery: Tensor
    """(B,) int64, the images that the caption is ranked against: `NONE`, `VAL`, `TEST`, or one that was added."""
    caption: Tensor
    """(B,) int64, the number of the caption, the same of all with the same words."""
    fitting: Tensor
    """(B, M) int64, the numbers of the captions that fit the image, -1 behind the last."""
    kinds: Tensor
    """(B, K) int64, the caption's part in each category."""
    index: Tensor  # type: ignore[assignment] # of tuples it is a method
    """(B,) int64, places in the source."""
    group: Tensor
    """(B,) int64, what the image shows: its concept."""


class CaptionSet(ImageTextSet):
    """Some captions.

    Args:
        table, image, ids, index, manner, tokenizer, source: See `ImageTextSet`.
        concept: (N,) what the image of each shows.
        fits: Which captions fit which concepts.
        kinds: (N, K) the part of each caption in each category.
        gallery: What they are ranked against.
        negatives: Captions of other images that each image is shown with.
        fitting_negatives: Whether those may fit the image too.

    Raises:
        DataError: If negatives are wanted, and all captions fit one image.
    """

    what = "caption"

    def __init__(
        self, *args: Any, concept: Index, fits: Fits, kinds: Index, gallery: int = NONE, negatives: int = 0,
        fitting_negatives: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(*args)
        self.concept, self.kinds, self.fits = torch.from_numpy(concept), torch.from_numpy(kinds), fits
        self.caption, self.fitting = torch.from_numpy(fits.caption), torch.from_numpy(fits.of_concept)
        self.gallery, self.negatives, self.fitting_negatives = gallery, negatives, fitting_negatives
        self._by_caption = np.argsort(fits.caption, kind="stable")
        self._begins = np.searchsorted(
            fits.caption[self._by_caption], np.arange(int(fits.of_concept.max(initial=-1)) + 2)
        )
        if negatives and len(self) in {len(self._unwanted(sample)) for sample in self._one_of_each().tolist()}:
            raise DataError(f"all captions of {self.table.where} fit one image", "negatives are captions of others")

    @property
    def groups(self) -> Tensor:  # type: ignore[override]
        """Captions of one concept belong together."""
        return self.concept

    @property
    def fits_of_all(self) -> Tensor:
        """(N, M) the numbers of the captions that fit each image, -1 behind the last."""
        return self.fitting[self.concept]

    def name(self, sample: int) -> str:
        """Of a sample's image."""
        return self.table.name(int(self.image[sample]))

    def take(self, samples: Sequence[int] | Tensor) -> CaptionSet:
        """These captions alone."""
        at = torch.as_tensor(samples)
        image, ids, index, concept, kinds, caption = (
            values[at].numpy()
            for values in (self.image, self.ids, self.indices, self.concept, self.kinds, self.caption)
        )
        return CaptionSet(
            self.table, image, ids, index, self.manner, self.tokenizer, self.source, concept=concept,
            fits=self.fits._replace(caption=caption), kinds=kinds, gallery=self.gallery,
        )  # fmt: skip

    def pictures_once(self) -> CaptionSet:
        """Each image once, with one of its captions: a gallery."""
        return self.take(torch.from_numpy(np.unique(self.image.numpy(), return_index=True)[1]))

    def _one_of_each(self) -> Index:
        """A sample of each concept."""
        return np.unique(self.concept.numpy(), return_index=True)[1]

    def __getitems__(self, draws: list[Draw]) -> Reported:
        faults: list[Fault] = []
        images, samples = self.pictures(draws, faults)
        numbers = self._draw(draws, samples)
        concept, caption = self.concept[samples], self.caption[samples]
        fitting = self.fitting[concept]
        shown = torch.cat([samples[:, None], self._others(samples, numbers[:, 2:])], 1)
        partner = self._partners(caption, fitting, numbers[:, :2]) if self.negatives else torch.arange(len(samples))
        batch = CaptionBatch(
            images, *self.texts(shown), partner, torch.full_like(samples, self.gallery), caption, fitting,
            self.kinds[samples], self.indices[samples], concept,
        )  # fmt: skip
        return Reported(batch, tuple(faults))

    def _draw(self, draws: Sequence[Draw], samples: Tensor) -> Any:
        """(B, 2 + negatives) in [0, 1): functions of seed, epoch, repeat and index alone."""
        epochs = [(draw.epoch << 8) + draw.repeat for draw in draws]
        return uniforms(self.manner.seed, epochs, self.indices[samples].numpy(), 2 + self.negatives)

    def _unwanted(self, sample: int) -> Index:
        """Captions that are no negatives of a sample's image, in order."""
        if self.fitting_negatives:
            return np.array([sample])
        fitting = self.fits.of_concept[int(self.concept[sample])]
        parts = [self._by_caption[self._begins[number] : self._begins[number + 1]] for number in fitting[fitting >= 0]]
        return np.sort(np.concatenate(parts))

    def _others(self, samples: Tensor, numbers: Any) -> Tensor:
        """(B, negatives) captions, each drawn evenly from all that are wanted."""
        out = np.empty(numbers.shape, np.int64)
        for row, (sample, of_sample) in enumerate(zip(samples.tolist(), numbers, strict=True)):
            unwanted = self._unwanted(sample)
            place = (of_sample * (len(self) - len(unwanted))).astype(np.int64)
            # The place among the wanted ones -> the sample: as many unwanted ones lie before it.
            out[row] = place + np.searchsorted(unwanted - np.arange(len(unwanted)), place, side="right")
        return torch.from_numpy(out)

    def _partners(self, caption: Tensor, fitting: Tensor, numbers: Any) -> Tensor:
        """(B,) itself, or for half of the items one whose caption does not fit the image, where there is one."""
        strange = (fitting[:, None] != caption[:, None]).all(-1)
        counts = strange.sum(1)
        swapped, which = torch.from_numpy(numbers).unbind(1)
        wanted = (which * counts).long()[:, None]
        chosen = (strange & (strange.cumsum(1) == wanted + 1)).int().argmax(1)
        return torch.where((swapped < 0.5) & (counts > 0), chosen, torch.arange(len(caption)))


class CaptionData(ImageTextData):
    """Images with captions: class_path names the data set, a subclass of this.

    Args:
        negatives: Captions of other images that an image is shown with in training, behind its own (METER: 15).
        fitting_negatives: Whether captions that fit the image may be among them, as in METER.
        equal_texts: Whether a caption fits also what another caption of the same words is about.
        max_gallery: Images of val that are ranked, evenly spread; captions of the others are left out. Each epoch ranks
            them all against all their captions. None: all.
        max_gallery_test: The same of test.
        options: See `ImageTextData` and its `Settings`.
    """

    things: ClassVar[str] = "captions"
    endings: ClassVar[tuple[str, ...]] = ENDINGS

    def __init__(
        self,
        *,
        negatives: int = 15,
        fitting_negatives: bool = False,
        equal_texts: bool = True,
        max_gallery: int | None = None,
        max_gallery_test: int | None = None,
        eval_batch_size: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(eval_batch_size=eval_batch_size, **options)
        limits = {"max_gallery": max_gallery, "max_gallery_test": max_gallery_test}
        at_least_one(negatives=negatives, **{key: limit for key, limit in limits.items() if limit is not None})
        self.negatives, self.fitting_negatives, self.equal_texts = negatives, fitting_negatives, equal_texts
        self._most = {"val": max_gallery, "test": max_gallery_test}
        self._galleries: list[CaptionSet] = []

    @abstractmethod
    def find(self) -> dict[str, Captions]:
        """What there is of "train", "val" and "test"; train and test at least.

        Raises:
            DataError: If something is missing or does not agree.
        """

    @cached_property
    def captions(self) -> dict[str, Captions]:
        """The splits that the data set itself has; its files are read once."""
        found = self.find()
        for split in dict.fromkeys(("train", "test", *found)):
            if split not in found or not found[split].texts:
                raise DataError(f"{self.name} has no captions for {split}", "check data.root")
        return found

    @property
    def parts(self) -> dict[str, Captions]:
        return self.captions

    def chosen(self, split: str, part: Captions, index: Index) -> Index:
        index = super().chosen(split, part, index)
        image, most = np.asarray(part.image)[index], self._most.get(split)
        images = np.unique(image)
        return index if most is None else index[np.isin(image, images[spread_over(len(images), most)])]

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if not self._galleries:
            self._galleries = [self._captions(split).pictures_once() for split in ("val", "test")]

    def _captions(self, split: str) -> CaptionSet:
        items = self._sets[split]
        assert isinstance(items, CaptionSet)
        return items

    def gallery(self, number: int) -> CaptionSet:
        """The images of a gallery, each once; its groups are what they show."""
        return self._galleries[number]

    def add_gallery(self, images: CaptionSet) -> int:
        """Let captions be ranked against other images; the number of this gallery."""
        self._galleries.append(images)
        return len(self._galleries) - 1

    def gallery_loader(self, number: int) -> EpochLoader:
        """All images of a gallery in order, of which every process reads all."""
        images = self.gallery(number)
        sampler = EpochSampler(len(images), self.eval_batch_size, seed=self.seed)
        # What cannot be read is reported with the captions, which bring their images along.
        return EpochLoader(images, sampler, num_workers=self.num_workers, persistent=False)

    def _make(self, split: str, part: Captions, table: ImageTable, still: bool = False) -> CaptionSet:
        index, training = self.index[split], split == "train"
        concept = part.concept_numbers()[np.asarray(part.image)]
        fits = Fits.of(part.texts, concept, self.equal_texts)
        ids = self.tokens([part.texts[i] for i in index], f"{part.where}, {split}")
        gallery = NONE if training else VAL if split == "val" else TEST
        return CaptionSet(
            table, np.asarray(part.image)[index], ids, index,
            self.manner(training and not still, training), self.tokenizer, Source(part.texts), concept=concept[index],
            fits=fits._replace(caption=fits.caption[index]),
            kinds=kind_numbers(part, self.categories(), index), gallery=gallery,
            negatives=self.negatives if training else 0, fitting_negatives=self.fitting_negatives,
        )  # fmt: skip

    def known(self) -> dict[str, Any]:
        galleries = {"val": len(self.gallery(VAL)), "test": len(self.gallery(TEST))}
        return super().known() | {"galleries": galleries, "equal_texts": self.equal_texts}

    def open(self, sources: Sequence[str]) -> CaptionSet:
        """Pairs of an image and a caption in tables (see `CaptionFiles`), in the order of their rows, each scored by
        itself."""
        table, image, source = loose(sources, "caption", self.own_root)
        every, ids = np.arange(len(image)), self.tokens(source.texts, ", ".join(sources))
        return CaptionSet(
            table, image, ids, every, self.manner(False, False), self.tokenizer, source, concept=every,
            fits=Fits(every, every[:, None]), kinds=np.zeros((len(image), len(self.categories())), np.int64),
        )  # fmt: skip

    def example(self, size: int, seed: int = 0) -> CaptionBatch:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(size, *self.settings.preprocess().shape, generator=generator)
        ids, mask = self.random_texts(size, 1 + self.negatives, min(12, self.settings.max_text_len), seed=seed)
        index = torch.arange(size)
        kinds = torch.stack([index % len(parts) for parts in self.categories().values()] or [index[:0]], -1)
        partner = torch.where(index % 2 == 0, index, index - 1)
        none = torch.full_like(index, NONE)
        return CaptionBatch(images, ids, mask, partner, none, index, index[:, None], kinds.view(size, -1), index, index)
