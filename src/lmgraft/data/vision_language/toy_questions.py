"""Toy questions about drawn squares and discs, written when first used. For debug recipes; they say nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from lmgraft import records
from lmgraft.checkpoint.cache import lock
from lmgraft.data.files import prepared_place
from lmgraft.data.vision_language.question_files import QuestionFiles

SIDE = 32
"""Pixels of a drawn image."""
_COLOURS = {"red": (200, 30, 30), "green": (30, 160, 30), "blue": (40, 40, 220)}
_SHAPES = ("square", "disc")


class ToyQuestions(QuestionFiles):
    """Two questions about each drawn image: which shape it has, and whether it is of a colour.

    Args:
        root: Where the set is or shall be; None is lmgraft's cache.
        options: See `QuestionData`.
    """

    name = "toy-questions"

    def __init__(self, root: str | None = None, **options: Any) -> None:
        self.tree = prepared_place(self.name) if root is None else Path(root).expanduser()
        options = {"img_size": SIDE, "max_text_len": 12, **options}
        super().__init__(train=str(self.tree / "questions.jsonl"), val=None, test=None, root=None, **options)

    def find(self) -> Any:
        with lock(str(self.tree)):
            if not (self.tree / "questions.jsonl").is_file():
                write_toy(self.tree)
        return super().find()


class Toy(NamedTuple):
    """What a drawn image shows."""

    image: str
    """Its file below the folder."""
    split: str
    shape: str
    colour: str
    left: int
    """Pixels beside the shape."""
    other: str
    """A colour drawn at random."""


def draw_toys(folder: Path, images: int) -> Iterator[Toy]:
    """Draw images of one shape each: two thirds for training, the rest halved into val and test."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(images):
        shape, colour = _SHAPES[number % 2], list(_COLOURS)[number % 3]
        image = Image.new("RGB", (SIDE, SIDE), (230, 230, 230))
        left, top = rng.integers(2, SIDE // 2, 2).tolist()
        box = (left, top, left + 12, top + 12)
        draw = ImageDraw.Draw(image)
        (draw.rectangle if shape == "square" else draw.ellipse)(box, fill=_COLOURS[colour])
        name = f"images/{number}.png"
        image.save(folder / name)
        split = ("train", "train", "train", "train", "val", "test")[number // 3 % 6]
        yield Toy(name, split, shape, colour, left, list(_COLOURS)[int(rng.integers(3))])


def write_toy(folder: Path, images: int = 48) -> None:
    """Draw images and write their questions."""
    lines = []
    for toy in draw_toys(folder, images):
        common = {"image": toy.image, "split": toy.split}
        lines.append({**common, "question": "which shape is it?", "answer": toy.shape, "answer_type": "shape"})
        answer = "yes" if toy.other == toy.colour else "no"
        lines.append({**common, "question": f"is it {toy.other}?", "answer": answer, "answer_type": "yes/no"})
    records.write_text(folder / "questions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
