"""Flickr30k and COCO with the splits of Karpathy and Fei-Fei (arXiv 1412.2306), from their JSON files.

<root>/dataset_flickr30k.json    <root>/flickr30k-images/<name>.jpg
<root>/dataset_coco.json         <root>/{train2014,val2014}/COCO_...jpg
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar, Literal

from lmgraft.data.vision_language.caption_table import Captions
from lmgraft.data.vision_language.captions import CaptionData
from lmgraft.data.vision_language.rows import refuse
from lmgraft.errors import DataError

_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
"""As the file calls them; restval is what COCO's val2014 leaves of val and test, and is trained on."""


class KarpathyCaptions(CaptionData):
    """Photographs with five captions each; a caption fits its own image alone, as it has always been counted.

    Args:
        root: Folder of the JSON file and of the images.
        train_on: train: Karpathy's val chooses the epoch. train+val, as METER: with `val_size` 0 the test images choose
            it, as METER has it too, else held-out training images.
        test_split: Which of Karpathy's splits is the test. Of val, held-out training images choose the epoch.
        options: See `CaptionData`.

    Raises:
        DataError: If val would be trained on and tested.
    """

    file: ClassVar[str]
    folder: ClassVar[str] = ""
    """Of the images, below root."""

    def __init__(
        self,
        root: str,
        *,
        train_on: Literal["train", "train+val"] = "train",
        test_split: Literal["test", "val"] = "test",
        equal_texts: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(equal_texts=equal_texts, **options)
        if train_on == "train+val" and test_split == "val":
            raise DataError("data.train_on=train+val with data.test_split=val trains on what it tests", "change one")
        self.root, self.train_on, self.test_split = Path(root).expanduser(), train_on, test_split

    def find(self) -> dict[str, Captions]:
        rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in _read(self.root / self.file):
            rows[_SPLITS[row["split"]]].append(row)
        if self.train_on == "train+val":
            rows["train"] += rows.pop("val", [])
        if self.test_split == "val":
            rows["test"] = rows.pop("val", [])
        return {split: self._part(split, part) for split, part in rows.items()}

    def _part(self, split: str, rows: list[dict[str, Any]]) -> Captions:
        return Captions(
            where=f"{self.root / self.file} ({split})",
            root=self.root / self.folder,
            names=[str(Path(row.get("filepath", ""), row["filename"])) for row in rows],
            image=[number for number, row in enumerate(rows) for _ in row["sentences"]],
            texts=[sentence["raw"].strip() for row in rows for sentence in row["sentences"]],
        )

    def split_names(self) -> dict[str, str]:
        train = "Karpathy's train and val" if self.train_on == "train+val" else "Karpathy's train"
        names = {"train": train, "test": f"Karpathy's {self.test_split}"}
        if self.train_on == "train" and self.test_split == "test":
            return names | {"val": "Karpathy's val"}
        return names | ({"val": f"held out of {train}"} if self.val_size else {})

    def known(self) -> dict[str, Any]:
        return super().known() | {"train_on": self.train_on, "test_split": self.test_split}


class Flickr30k(KarpathyCaptions):
    """Flickr30k (Young et al.): 29,000 images for training, 1,014 and 1,000 for val and test.

    Args:
        root: Folder with dataset_flickr30k.json and flickr30k-images.
        options: See `KarpathyCaptions`.
    """

    name = "flickr30k"
    file = "dataset_flickr30k.json"
    folder = "flickr30k-images"

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(root, **options)


class CocoCaptions(KarpathyCaptions):
    """COCO captions: 113,287 images for training with Karpathy's restval, 5,000 each for val and test.

    Args:
        root: Folder with dataset_coco.json, train2014 and val2014.
        options: See `KarpathyCaptions`.
    """

    name = "coco-captions"
    file = "dataset_coco.json"

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(root, **options)


def _read(file: Path) -> list[dict[str, Any]]:
    """The file's images, each with a known split, a name, and sentences.

    Raises:
        DataError: If it cannot be read, or one lacks something; it names the first and counts them.
    """
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["images"]
        problems = [
            f"{file}: image {row.get('filename') or number} {problem}"
            for number, row in enumerate(rows)
            if (problem := _problem(row))
        ]
    except OSError as error:
        remedy = "Karpathy's files: cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
        raise DataError(f"{file} cannot be read: {error.strerror}", remedy) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is not Karpathy's: {error!r}", "a copy was cut off: fetch it again") from None
    refuse(problems, len(rows), "fetch the file again")
    return rows


def _problem(row: dict[str, Any]) -> str:
    if row.get("split") not in _SPLITS:
        return f"is of split {row.get('split')!r}, not of {', '.join(_SPLITS)}"
    if not isinstance(row.get("filename"), str) or not row["filename"].strip():
        return "has no filename"
    if not isinstance(row.get("filepath", ""), str):
        return "has a filepath that is no text"
    sentences = row.get("sentences")
    if not sentences or not all(isinstance(one.get("raw"), str) and one["raw"].strip() for one in sentences):
        return "has no sentences" if not sentences else "has a sentence without text"
    return ""
