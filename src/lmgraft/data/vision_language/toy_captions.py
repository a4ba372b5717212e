"""Toy captions of drawn squares and discs, written when first used. For debug recipes; they say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.checkpoint.cache import lock
from lmgraft.data.files import prepared_place
from lmgraft.data.vision_language.caption_files import CaptionFiles
from lmgraft.data.vision_language.toy_questions import SIDE, draw_toys


class ToyCaptions(CaptionFiles):
    """Two captions of each drawn image: of the shape with its colour, and of where it lies. Shape, colour and side make
    a concept.

    Args:
        root: Where the set is or shall be; None is lmgraft's cache.
        options: See `CaptionData`.
    """

    name = "toy-captions"

    def __init__(self, root: str | None = None, **options: Any) -> None:
        self.tree = prepared_place(self.name) if root is None else Path(root).expanduser()
        options = {"img_size": SIDE, "max_text_len": 12, "negatives": 3, **options}
        super().__init__(train=str(self.tree / "captions.jsonl"), val=None, test=None, root=None, **options)

    def find(self) -> Any:
        with lock(str(self.tree)):
            if not (self.tree / "captions.jsonl").is_file():
                write_toy(self.tree)
        return super().find()


def write_toy(folder: Path, images: int = 48) -> None:
    """Draw images and write their captions: two thirds for training, the rest halved into val and test."""
    lines = []
    for toy in draw_toys(folder, images):
        side = "left" if toy.left < SIDE // 4 else "right"
        common = {"image": toy.image, "split": toy.split, "concept": f"{side}-{toy.colour}-{toy.shape}"}
        lines.append({**common, "wording": "name", "caption": f"a {toy.colour} {toy.shape}"})
        lines.append({**common, "wording": "place", "caption": f"{toy.colour} {toy.shape} on the {side}"})
    records.write_text(folder / "captions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
