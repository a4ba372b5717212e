"""VQAv2 (Goyal et al., arXiv 1612.00837) from its own files.

<root>/v2_OpenEnded_mscoco_{train2014,val2014}_questions.json
<root>/v2_mscoco_{train2014,val2014}_annotations.json
<root>/{train2014,val2014}/COCO_{train2014,val2014}_<12 digits>.jpg
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmgraft.data.vision_language.answers import usual, vocabulary
from lmgraft.data.vision_language.question_table import KINDS, Questions
from lmgraft.data.vision_language.questions import QuestionData
from lmgraft.errors import DataError

_HELD_OUT = 1_000
"""Images of val whose questions ViLT and METER keep apart (their rest_val)."""


class VQAv2(QuestionData):
    """VQAv2's questions with ten people's answers each.

    The answers of test-dev are not public: tests are on val2014, or on what `train_on` leaves of it.

    Args:
        root: Folder of the files.
        train_on: train: train2014, of which `val_size` chooses the epoch, and all of val2014 is the test. train+val:
            train2014 and val2014 without its last 1,000 images, whose questions are the test, as ViLT's rest_val.
        min_answer_count: As in METER 9, counted over train2014 and val2014 together, which gives 3,129 answers.
        options: See `ImageTextData` and its `Settings`.
    """

    name = "vqav2"

    def __init__(
        self,
        root: str,
        *,
        train_on: Literal["train", "train+val"] = "train",
        min_answer_count: int = 9,
        max_text_len: int = 50,
        **options: Any,
    ) -> None:
        super().__init__(min_answer_count=min_answer_count, max_text_len=max_text_len, **options)
        self.root, self.train_on = Path(root).expanduser(), train_on

    def find(self) -> dict[str, Questions]:
        train, val = (_questions(self.root, f"{split}2014") for split in ("train", "val"))
        usual_answers = [usual(given) for part in (train, val) for given in part.answers]
        if self._answers is None:
            self._answers = vocabulary(usual_answers, self.min_answer_count)
        if self.train_on == "train":
            return {"train": train, "test": val}
        last = np.argsort(np.array(val.names))[-_HELD_OUT:]
        is_held_out = np.isin(np.asarray(val.image), last)
        return {"train": joined(train, _part(val, ~is_held_out)), "test": _part(val, is_held_out)}

    def split_names(self) -> dict[str, str]:
        if self.train_on == "train":
            return {"train": "train2014", "test": "val2014"}
        return {"train": "train2014 and most of val2014", "test": f"{_HELD_OUT:,} images of val2014"}


def _questions(root: Path, split: str) -> Questions:
    rows = _read(root / f"v2_OpenEnded_mscoco_{split}_questions.json", "questions")
    notes = {row["question_id"]: row for row in _read(root / f"v2_mscoco_{split}_annotations.json", "annotations")}
    lacking = [row["question_id"] for row in rows if row["question_id"] not in notes]
    if lacking:
        raise DataError(
            f"{root}: {len(lacking):,} questions of {split} have no annotation, such as {lacking[0]}",
            "the two files are of different versions: fetch both again",
        )
    numbers: dict[int, int] = {}
    image = [numbers.setdefault(row["image_id"], len(numbers)) for row in rows]
    matching = [notes[row["question_id"]] for row in rows]
    return Questions(
        where=f"{root} ({split})",
        root=root,
        names=[f"{split}/COCO_{split}_{number:012d}.jpg" for number in numbers],
        image=image,
        texts=[row["question"] for row in rows],
        answers=[tuple(answer["answer"] for answer in note["answers"]) for note in matching],
        kinds={name: [note[name] for note in matching] for name in KINDS},
    )


def _read(file: Path, key: str) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))[key]
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}", "VQAv2's files: visualqa.org/download.html"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not VQAv2's: {error!r}", "a copy was cut off: fetch it again") from None
    return rows


def _part(whole: Questions, chosen: Any) -> Questions:
    """Some of the questions."""
    index = np.flatnonzero(chosen).tolist()
    return Questions(
        where=whole.where,
        root=whole.root,
        names=whole.names,
        image=[whole.image[i] for i in index],
        texts=[whole.texts[i] for i in index],
        answers=[whole.answers[i] for i in index],
        kinds={name: [kinds[i] for i in index] for name, kinds in whole.kinds.items()},
    )


def joined(first: Questions, second: Questions) -> Questions:
    """The questions of both, one behind the other; images are below one root."""
    start = len(first.names)
    return Questions(
        where=f"{first.where} and {second.where}",
        root=first.root,
        names=[*first.names, *second.names],
        image=[*first.image, *(start + image for image in second.image)],
        texts=[*first.texts, *second.texts],
        answers=[*first.answers, *second.answers],
        kinds={name: [*kinds, *second.kinds[name]] for name, kinds in first.kinds.items()},
    )
