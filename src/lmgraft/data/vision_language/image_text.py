"""What questions and captions share: a text for each item, an image for several items, and how both are shown."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import timm
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from lmgraft import records
from lmgraft.data.base import Data, SplitName, at_least_one
from lmgraft.data.draws import seeds
from lmgraft.data.files import plural
from lmgraft.data.image.checks import check_sizes
from lmgraft.data.image.file_set import reason
from lmgraft.data.image.pipeline import Pipeline, batch_memory
from lmgraft.data.image.tables import UNREADABLE, ImageTable, decode
from lmgraft.data.image.transforms import (
    Preprocess,
    allow_zero_bits,
    evaluation_transform,
    kept_generators,
    seed_generators,
)
from lmgraft.data.items import ItemSet
from lmgraft.data.loader import Draw, Fault, in_turn
from lmgraft.data.vision_language.parts import Index, categories_of, held_out_images, images_in_both
from lmgraft.data.vision_language.sources import Source, image_table
from lmgraft.data.vision_language.text import WORDS, Ids, Tokenizer, WordTokenizer, make_tokenizer
from lmgraft.errors import DataError

_MOST_WORKERS = 8
_SHORTEST = 3  # tokens: one word between those at the ends


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keys of all data of images and texts, beside batch sizes and workers."""

    tokenizer: str = WORDS
    """words: those of the training texts; or the name on the Hub, the folder, or the short name (minilm-l6) of a
    pretrained text encoder, whose tokenizer is taken."""
    max_text_len: int = 40
    """Tokens of a text, with those at its ends, behind which it is cut."""
    img_size: int | tuple[int, int] = 224
    """Height and width of the model's input."""
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    """How images are resized."""
    crop_pct: float = 1.0
    """Share of the resized image that the central crop keeps, in training too: a text may speak of any place."""
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    """Of the channels in [0, 1]; ImageNet's by default."""
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    """Of the channels in [0, 1]; ImageNet's by default."""
    auto_augment: str | None = None
    """Random changes of training images, by timm's RandAugment in its spelling (METER's clip_randaug: rand-m9-n2). They
    may move an image or change its colours: none where texts speak of places or colours."""
    max_corrupt: int = 10
    """Unreadable training and validation images above which a run stops."""
    max_corrupt_test: int = 0
    """Unreadable test images above which a run stops; a blank image stands for each."""

    def __post_init__(self) -> None:
        if self.max_text_len < _SHORTEST:
            raise DataError(
                f"data.max_text_len must be at least {_SHORTEST}, got {self.max_text_len}",
                "a text has a token at each end",
            )
        at_least_one(img_size=min(self.preprocess().img_size))

    def preprocess(self) -> Preprocess:
        """What happens to every image."""
        size = (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size
        return Preprocess(
            img_size=size, in_chans=3, interpolation=self.interpolation, crop_pct=self.crop_pct, mean=tuple(self.mean),
            std=tuple(self.std), reading="viewer", depth=8,
        )  # fmt: skip

    def transform(self, augmented: bool) -> Pipeline:
        """What happens to an image in training, or in evaluation.

        Raises:
            DataError: If timm does not understand `auto_augment`.
        """
        transform = evaluation_transform(self.preprocess())
        if not augmented or self.auto_augment is None:
            return transform
        mean = tuple(round(255 * value) for value in self.mean)
        try:
            change = rand_augment_transform(self.auto_augment, {"img_mean": mean})
        except (AssertionError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"data.auto_augment={self.auto_augment!r}: timm cannot read it ({error})", "write rand-m9-n2"
            ) from None
        allow_zero_bits(_Steps([change]))
        transform.before.insert(0, change)
        return transform


@dataclass(frozen=True)
class _Steps:
    transforms: list[Any]


@dataclass(frozen=True)
class Manner:
    """How images become input."""

    transform: Pipeline
    preprocess: Preprocess
    draws: bool = False
    """Whether the transform draws random numbers."""
    replace: bool = False
    """Whether the next readable item stands for one whose image cannot be read, as in training; else a blank image."""
    tries: int = 10
    """Unreadable images in a row after which a blank one is given with `replace` too."""
    seed: int = 0


class ImageTextSet(ItemSet):
    """Some texts, each with an image.

    Args:
        table: All images of the source.
        image: (N,) the image of each item.
        ids: (N, L) the text of each item.
        index: (N,) each item's place in its source.
        manner: How images are shown.
        tokenizer: Of the texts.
        source: All texts of the source.
    """

    what: ClassVar[str] = "text"
    """What predictions call the text."""

    def __init__(
        self, table: ImageTable, image: Index, ids: Ids, index: Index, manner: Manner, tokenizer: Tokenizer,
        source: Source,
    ) -> None:  # fmt: skip
        self.table, self.manner, self.tokenizer, self.source = table, manner, tokenizer, source
        self.image, self.ids = torch.from_numpy(image), torch.from_numpy(ids)
        self.indices = torch.from_numpy(index)

    @property
    def groups(self) -> Tensor:  # type: ignore[override]
        """Texts of one image belong together."""
        return self.image

    def place(self, index: int) -> str:
        return f"{self._file(index)}: {self.source.texts[index]!r}"

    def about(self, index: int) -> dict[str, Any]:
        """The image, the table and the row in it where there is one, and the text as it was given."""
        source = self.source
        row = {"source": source.tables[index], "row": source.rows[index]} if source.rows else {}
        return {"file": self._file(index), **row, self.what: source.texts[index]}

    def _file(self, index: int) -> str:
        """The image of the item with this index."""
        sample = int((self.indices == index).nonzero()[0, 0])
        return self.table.place(int(self.image[sample]))

    def text(self, sample: int) -> str:
        """The text of a sample, as it was given."""
        return self.source.texts[int(self.indices[sample])]

    def texts(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Token numbers (B, L), int64, and which of them are no padding, 1 or 0."""
        ids = self.ids[samples].long()
        return ids, (ids != self.tokenizer.pad_token_id).long()

    def pictures(self, draws: Sequence[Draw], faults: list[Fault]) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W), and the samples (B,) that are shown; what could not be read is added to `faults`."""
        manner = self.manner
        out = batch_memory(len(draws), manner.preprocess.shape)
        shown = torch.tensor([draw.sample for draw in draws], dtype=torch.int64)
        epochs, repeats = [draw.epoch for draw in draws], [draw.repeat for draw in draws]
        words = seeds(manner.seed, epochs, self.indices[shown].numpy(), repeats, 3)
        with kept_generators() if manner.draws else nullcontext():
            for place, draw in enumerate(draws):
                shown[place], image = self._readable(draw.sample, faults)
                if manner.draws:
                    seed_generators(words[place])
                if image is None:
                    out[place].zero_()  # the mean colour
                else:
                    manner.transform.into(image, out[place])
        return out, shown

    def _readable(self, sample: int, faults: list[Fault]) -> tuple[int, Image.Image | Tensor | None]:
        manner = self.manner
        for candidate in in_turn(sample, len(self), manner.tries if manner.replace else 1):
            image = int(self.image[candidate])
            try:
                return candidate, decode(self.table.files, image, manner.preprocess.reader)
            except UNREADABLE as error:
                faults.append(Fault(self.table.place(image), reason(error)))
        return sample, None


class ImageTextData(Data):
    """Images and texts: what a data set of questions or of captions is made of.

    Args:
        batch_size: Training items a step (and a process).
        eval_batch_size: Items a step in validation and test.
        num_workers: Loader processes; by default as many as there are CPUs, at most 8.
        val_size: Training images whose items are held out to choose the epoch by, a share (below 1) or a count, where
            the data set has none of its own; of captions with concepts so many concepts, with all their images.
        only: Category -> its parts that are used, such as {answer_type: [colour, shape]}; None: all texts are.
        options: See `Settings`.
    """

    packages: ClassVar[tuple[str, ...]] = ("torchvision", "timm", "pillow", "transformers", "tokenizers")

    def __init__(
        self,
        *,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        num_workers: int | None = None,
        val_size: int | float = 0.1,
        only: dict[str, list[str]] | None = None,
        **options: Any,
    ) -> None:
        workers = min(_MOST_WORKERS, records.usable_cpus()) if num_workers is None else num_workers
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=workers)
        check_sizes(val_size=val_size)
        self.settings, self.val_size, self.only = Settings(**options), val_size, only or {}
        self.max_corrupt, self.max_corrupt_test = self.settings.max_corrupt, self.settings.max_corrupt_test
        self._tokenizer: Tokenizer | None = None
        self._kinds: dict[str, tuple[str, ...]] | None = None
        self.index: dict[str, Index] = {}
        """Split -> the texts of its part that are used, after `setup`."""

    def tokens(self, texts: Sequence[str], where: str) -> Ids:
        """Token numbers (N, L) of texts, padded to the longest; what is lost of them is said.

        Args:
            where: Whose texts these are, for the note.
        """
        encoded = self.tokenizer.encode(texts, self.settings.max_text_len)
        lost = {
            f"{plural(encoded.cut, 'text')} cut behind data.max_text_len={self.settings.max_text_len}": encoded.cut,
            f"{plural(encoded.unknown, 'word')} not in the vocabulary": encoded.unknown,
        }
        if any(lost.values()):
            remark = f"{where}, {len(texts):,} texts: " + "; ".join(words for words, count in lost.items() if count)
            self.remark(remark)
        return encoded.ids

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the training texts, or a pretrained one."""
        if self._tokenizer is None:
            name = self.settings.tokenizer
            self._tokenizer = make_tokenizer(name, self.parts["train"].texts if name == WORDS else ())
        return self._tokenizer

    @property
    def own_root(self) -> Path | None:
        """Folder that images in tables of one's own are relative to; None: that of their table."""
        return None

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, Any]:
        """The splits that the data set itself has, each a `Part`; its files are read once."""

    @abstractmethod
    def _make(self, split: str, part: Any, table: ImageTable, still: bool = False) -> ImageTextSet:
        """The items of a split: those of `index`, which are known by then.

        Args:
            split: "train", "val" or "test".
            part: Where its texts are.
            table: Of the part's images.
            still: As evaluation shows them.
        """

    def known(self) -> dict[str, Any]:
        """What identifies the data beside texts and images, as plain data."""
        return {"only": self.only} if self.only else {}

    def chosen(self, split: str, part: Any, index: Index) -> Index:
        """Those texts of a split that are used.

        Args:
            index: Places in the part.

        Raises:
            DataError: If `only` names a category or a part that there is not.
        """
        for category, wanted in self.only.items():
            kinds = part.kinds.get(category)
            if kinds is None or not set(wanted) <= set(kinds):
                there = part.kinds if kinds is None else dict.fromkeys(kinds)
                raise DataError(
                    f"data.only.{category}={list(wanted)}: {part.where} has no such texts in {split}",
                    f"there are {', '.join(there) or 'no categories'}",
                )
            index = index[np.isin(np.asarray(kinds)[index], list(wanted))]
        return index

    def categories(self) -> dict[str, tuple[str, ...]]:
        if self._kinds is None:
            self._kinds = categories_of(self.parts.values())
        return self._kinds

    def setup(self, stage: str | None = None) -> None:
        if self._sets:
            return
        found = dict(self.parts)
        index = {split: np.arange(len(part.texts)) for split, part in found.items()}
        if "val" not in found and self.val_size:
            index |= held_out_images(found["train"], self.val_size)
            found["val"] = found["train"]
        self.selection: Literal["val", "test", "last"] = "val" if "val" in found else "test"
        self.index = {split: self.chosen(split, found[split], places) for split, places in index.items()}
        for sentence in images_in_both({split: (part, self.index[split]) for split, part in found.items()}):
            self.remark(sentence)
        tables = {id(part): image_table(part.where, part.root, part.names) for part in found.values()}
        for split, part in found.items():
            self._sets[split] = self._make(split, part, tables[id(part)])
        self._sets.setdefault("val", self._sets["test"])
        self.fill_a_batch(len(self._sets["train"]))

    def still(self, name: SplitName) -> ImageTextSet:
        of = "train" if name == "val" and "val" not in self.parts and self.val_size else name
        part = self.parts.get(of, self.parts["test"])
        return self._make(name if name in self.index else "test", part, self._table(name), still=True)

    def _table(self, name: str) -> ImageTable:
        items = self._sets[name]
        assert isinstance(items, ImageTextSet)
        return items.table

    def fingerprint(self) -> dict[str, Any]:
        """Digests of all texts, and of names and sizes of the images, wherever they lie; images are not read."""
        self.setup()
        return {
            "name": self.name,
            "sha256": {split: part.digest() for split, part in self.parts.items()},
            "images": {split: self._table(split).digest() for split in self.parts},
            "sizes": {split: len(items) for split, items in self._sets.items()},
            **self.known(),
            "selection": self.selection,
            **self.words_record(),
        }

    def recall(self, record: Mapping[str, Any]) -> None:
        if "words" in record.get("data", {}):
            self._tokenizer = WordTokenizer(tuple(record["data"]["words"]))
        self._kinds = {name: tuple(parts) for name, parts in record.get("categories", {}).items()}

    def words_record(self) -> dict[str, Any]:
        """What identifies the tokenizer; of one made of the training texts all its words, for predictions."""
        tokenizer = self.tokenizer
        words = {"words": list(tokenizer.words)} if isinstance(tokenizer, WordTokenizer) else {}
        return {"tokenizer": tokenizer.record(), **words}

    def manner(self, augmented: bool, replaced: bool) -> Manner:
        """How images are shown."""
        settings = self.settings
        return Manner(
            settings.transform(augmented), settings.preprocess(), augmented and settings.auto_augment is not None,
            replaced, self.max_corrupt + 1, self.seed,
        )  # fmt: skip

    def model_arguments(self) -> dict[str, Any]:
        tokenizer = self.tokenizer
        return {
            "img_size": self.settings.preprocess().img_size,
            "max_text_len": self.settings.max_text_len,
            "text_vocab": {
                "vocab_size": tokenizer.vocab_size,
                "pad_token_id": tokenizer.pad_token_id,
                "tokenizer": self.settings.tokenizer,
            },
        }

    def transform_record(self) -> dict[str, Any]:
        settings = self.settings
        preprocess = settings.preprocess().record() | {"max_text_len": settings.max_text_len}
        return {"preprocess": preprocess, "auto_augment": settings.auto_augment, "timm": timm.__version__}

    def random_texts(self, *shape: int, seed: int) -> tuple[Tensor, Tensor]:
        """Token numbers of a shape, and their mask; every text has another length."""
        generator = torch.Generator().manual_seed(seed)
        pad, size = self.tokenizer.pad_token_id, self.tokenizer.vocab_size
        ids = torch.randint(0, size, shape, generator=generator)
        ids = torch.where(ids == pad, (pad + 1) % size, ids)
        lengths = 2 + torch.arange(int(np.prod(shape[:-1]))).view(shape[:-1]) % max(1, shape[-1] - 1)
        mask = torch.arange(shape[-1]) < lengths[..., None]
        return torch.where(mask, ids, pad), mask.long()
