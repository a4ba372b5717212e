"""VQAv2 (Goyal et al., arXiv 1612.00837) from its own files.

<root>/v2_OpenEnded_mscoco_{train2014,val2014}_questions.json
<root>/v2_mscoco_{train2014,val2014}_annotations.json
<root>/{train2014,val2014}/COCO_{train2014,val2014}_<12 digits>.jpg
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmgraft.data.vision_language.answers import normalised, usual, vocabulary
from lmgraft.data.vision_language.question_table import KINDS, Questions
from lmgraft.data.vision_language.questions import QuestionData
from lmgraft.data.vision_language.rows import refuse
from lmgraft.errors import DataError

_HELD_OUT = 1_000
"""Images of val whose questions are kept apart: as many as in ViLT's and METER's rest_val, drawn at random."""
_AGREED = "multiple_choice_answer"
_STALE = "fetch it again from visualqa.org/download.html"


class VQAv2(QuestionData):
    """VQAv2's questions with ten people's answers each.

    The answers of test-dev are not public: tests are on val2014, or on what `train_on` leaves of it.

    Args:
        root: Folder of the files.
        train_on: train: train2014, of which `val_size` chooses the epoch, and all of val2014 is the test. train+val:
            train2014 and val2014 without its last 1,000 images by name, whose questions are the test. ViLT and METER
            keep 1,000 too, drawn at random without a seed.
        min_answer_count: As in METER 9, counted over train2014 and val2014 together, which gives 3,129 answers.
        options: See `ImageTextData` and its `Settings`.
    """

    name = "vqav2"
    as_written = True

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
        (train, of_train), (val, of_val) = (_questions(self.root, f"{split}2014") for split in ("train", "val"))
        if self._answers is None:
            self._answers = vocabulary([*of_train, *of_val], self.min_answer_count, normalised)
        if self.train_on == "train":
            return {"train": train, "test": val}
        last = np.argsort(np.array(val.names))[-_HELD_OUT:]
        is_held_out = np.isin(np.asarray(val.image), last)
        return {"train": joined(train, _part(val, ~is_held_out)), "test": _part(val, is_held_out)}

    def split_names(self) -> dict[str, str]:
        if self.train_on == "train":
            return {"train": "train2014", "test": "val2014"}
        return {"train": "train2014 and most of val2014", "test": f"{_HELD_OUT:,} images of val2014"}


def _questions(root: Path, split: str) -> tuple[Questions, list[str]]:
    """The questions of a split, and the answer to each that its people are noted to have agreed on."""
    rows = _read(root / f"v2_OpenEnded_mscoco_{split}_questions.json", "questions", _problem_of_question)
    noted = _read(root / f"v2_mscoco_{split}_annotations.json", "annotations", _problem_of_annotation)
    notes = {note["question_id"]: note for note in noted}
    lacking = [row["question_id"] for row in rows if row["question_id"] not in notes]
    if lacking:
        raise DataError(
            f"{root}: {len(lacking):,} questions of {split} have no annotation, such as {lacking[0]}",
            "the two files are of different versions: fetch both again",
        )
    numbers: dict[int, int] = {}
    image = [numbers.setdefault(row["image_id"], len(numbers)) for row in rows]
    matching = [notes[row["question_id"]] for row in rows]
    answers = [tuple(answer["answer"] for answer in note["answers"]) for note in matching]
    questions = Questions(
        where=f"{root} ({split})",
        root=root,
        names=[f"{split}/COCO_{split}_{number:012d}.jpg" for number in numbers],
        image=image,
        texts=[row["question"] for row in rows],
        answers=answers,
        kinds={name: [note[name] for note in matching] for name in KINDS},
    )
    agreed = [note.get(_AGREED) or usual(given) for note, given in zip(matching, answers, strict=True)]
    return questions, agreed


def _read(file: Path, key: str, problem: Callable[[dict[str, Any]], str]) -> list[dict[str, Any]]:
    """The rows of a file.

    Args:
        problem: What a row lacks; nothing of a whole one.

    Raises:
        DataError: If the file cannot be read, or a row lacks something.
    """
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))[key]
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}", "VQAv2's files: visualqa.org/download.html"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not VQAv2's: {error!r}", "a copy was cut off: fetch it again") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file} is not VQAv2's: {key} is no list of objects", _STALE)
    problems = [
        f"{file}: question {row.get('question_id', f'number {number}')} has {lacking}"
        for number, row in enumerate(rows, 1)
        if (lacking := problem(row))
    ]
    refuse(problems, len(rows), _STALE)
    return rows


def _problem_of_question(row: dict[str, Any]) -> str:
    if not _is_text(row.get("question")):
        return "no text under question"
    return next((f"no number under {key}" for key in ("question_id", "image_id") if type(row.get(key)) is not int), "")


def _problem_of_annotation(row: dict[str, Any]) -> str:
    if type(row.get("question_id")) is not int:
        return "no number under question_id"
    answers = row.get("answers")
    if not isinstance(answers, list) or not answers:
        return "no answers"
    if not all(isinstance(answer, dict) and isinstance(answer.get("answer"), str) for answer in answers):
        return "an answer without text"
    if not isinstance(row.get(_AGREED, ""), str):
        return f"no text under {_AGREED}"
    return next((f"no text under {key}" for key in KINDS if not _is_text(row.get(key))), "")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


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
