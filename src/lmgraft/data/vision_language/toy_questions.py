"""Toy questions about drawn squares and discs, written when first used. For debug recipes; they say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lmgraft import records
from lmgraft.checkpoint.cache import lock
from lmgraft.data.files import prepared_place
from lmgraft.data.vision_language.question_files import QuestionFiles

_SIDE = 32
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
        options = {"img_size": _SIDE, "max_text_len": 12, **options}
        super().__init__(train=str(self.tree / "questions.jsonl"), val=None, test=None, root=None, **options)

    def find(self) -> Any:
        with lock(str(self.tree)):
            if not (self.tree / "questions.jsonl").is_file():
                write_toy(self.tree)
        return super().find()


def write_toy(folder: Path, images: int = 48) -> None:
    """Draw images and write their questions: two thirds for training, the rest halved into val and test."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(images):
        shape, colour = _SHAPES[number % 2], list(_COLOURS)[number % 3]
        image = Image.new("RGB", (_SIDE, _SIDE), (230, 230, 230))
        left, top = rng.integers(2, _SIDE // 2, 2).tolist()
        box = (left, top, left + 12, top + 12)
        draw = ImageDraw.Draw(image)
        (draw.rectangle if shape == "square" else draw.ellipse)(box, fill=_COLOURS[colour])
        name = f"images/{number}.png"
        image.save(folder / name)
        asked = list(_COLOURS)[int(rng.integers(3))]
        common = {"image": name, "split": ("train", "train", "train", "train", "val", "test")[number // 3 % 6]}
        lines.append({**common, "question": "which shape is it?", "answer": shape, "answer_type": "shape"})
        answer = "yes" if asked == colour else "no"
        lines.append({**common, "question": f"is it {asked}?", "answer": answer, "answer_type": "yes/no"})
    records.write_text(folder / "questions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
