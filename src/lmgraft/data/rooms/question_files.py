"""Questions about scans as SQA3D and ScanQA distribute them.

SQA3D   balanced/v1_balanced_questions_{split}_scannetv2.json, v1_balanced_sqa_annotations_{split}_scannetv2.json,
        answer_dict.json
ScanQA  SQA_{split}.json, ScanQA_v1.0_{split}.json: a list of questions with their answers; answer_counter.json
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmgraft.data.files import listed, plural
from lmgraft.data.rooms.batch import QUESTION_TYPE
from lmgraft.data.rooms.part import RoomPart, Rooms, question_type
from lmgraft.data.rooms.room import Numbers, pose_of
from lmgraft.errors import DataError

_PLACE, _TURN = ("x", "y", "z"), ("_x", "_y", "_z", "_w")


def first_of(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first of these files that is there."""
    return next((file for folder in folders for name in names if (file := folder / name).is_file()), None)


def read_rows(file: Path, key: str | None = None) -> list[dict[str, Any]]:
    """The rows of a JSON file: a list, or what lies under a key.

    Raises:
        DataError: If it cannot be read or is no such list.
    """
    content = read_file(file)
    rows = content if key is None else content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        what = "a list of objects" if key is None else f'an object with a list of objects under "{key}"'
        form = '[{"scene_id": ..., "question": ...}, ...]' if key is None else f'{{"{key}": [...]}}, as SQA3D has it'
        raise DataError(f"{file} is not {what}", f"it holds {form}")
    return rows


def read_file(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file} cannot be read ({type(error).__name__}: {error})",
            "it is one value in JSON; mend or fetch it",
        ) from None


def repeated_ids(file: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Which question_ids of a file's rows come more than once, in words; empty where none does.

    Raises:
        DataError: If one is neither a number nor a text.
    """
    counts: Counter[int | str] = Counter()
    for number, row in enumerate(rows, 1):
        name = row.get("question_id")
        if not isinstance(name, int | str):
            raise DataError(f"{file}, question {number}: question_id is {name!r}", "it is a number or a text")
        counts[name] += 1
    twice = [f"{name}" for name, count in counts.items() if count > 1]
    return f"{file} has {plural(len(twice), 'question_id')} more than once: {listed(twice)}" if twice else ""


def read_sqa3d(questions: Path, annotations: Path) -> list[dict[str, Any]]:
    """Questions with their answers and poses, in the order of the questions' file.

    Raises:
        DataError: If a file is not what its name says, an id comes twice, or questions have no annotation.
    """
    about, rows = read_rows(annotations, "annotations"), read_rows(questions, "questions")
    for file, of in ((annotations, about), (questions, rows)):
        if twice := repeated_ids(file, of):
            raise DataError(twice, "each question has an id of its own, by which its answer is found")
    by_id = {row["question_id"]: row for row in about}
    alone = [str(row["question_id"]) for row in rows if row["question_id"] not in by_id]
    if alone:
        raise DataError(
            f"{annotations} has nothing about {plural(len(alone), 'question')} of {questions.name}: {listed(alone)}",
            "the two files are of one version",
        )
    return [_joined(row, by_id[row["question_id"]], annotations) for row in rows]


def _joined(question: Mapping[str, Any], annotation: Mapping[str, Any], where: Path) -> dict[str, Any]:
    one, other = question.get("scene_id"), annotation.get("scene_id", question.get("scene_id"))
    if one != other:
        raise DataError(
            f"{where}: question {question['question_id']} is about {other}, and in the questions' file about {one}",
            "the two files are of one version",
        )
    try:
        answers = [answer["answer"] for answer in annotation["answers"]]
        pose = [float(annotation["position"][key]) for key in _PLACE]
        pose += [float(annotation["rotation"][key]) for key in _TURN]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: answers, position or rotation of question {question['question_id']} are not as SQA3D's "
            f"annotations have them ({type(error).__name__}: {error})",
            "answers: [{answer: a text}], position: {x, y, z}, rotation: {_x, _y, _z, _w}",
        ) from None
    return {**question, "answers": answers, "position": pose}


def part_of(rows: Sequence[Mapping[str, Any]], where: str, rooms: Rooms) -> RoomPart:
    """A split of rows: scene_id, question, and as far as there are any situation, answers, position, object_ids.

    A position is x, y, z in metres and a quaternion x, y, z, w that turns -x to where the asker looks; or x, y, with
    `heading` beside it, degrees from +x towards +y.

    Args:
        rows: As files have them.
        where: What messages call them.
        rooms: What the questions are about.

    Raises:
        DataError: If a row is not so.
    """
    for number, row in enumerate(rows, 1):
        texts = {"scene_id": row.get("scene_id"), "question": row.get("question"), "situation": _situation(row)}
        for key, text in texts.items():
            if not isinstance(text, str):
                raise DataError(f"{where}, question {number}: {key} is {text!r}", "it is a text")
        answers = row.get("answers") or []  # null where they are kept secret
        if not isinstance(answers, list) or not all(isinstance(text, str) for text in answers):
            raise DataError(f"{where}, question {number}: answers are {answers!r}", "they are a list of texts")
        objects = row.get("object_ids") or []
        if not isinstance(objects, list) or not all(type(number) is int for number in objects):
            raise DataError(
                f"{where}, question {number}: object_ids is {objects!r}",
                "it is a list of numbers of objects, or absent",
            )
    names = sorted({row["scene_id"] for row in rows})
    numbers = {name: number for number, name in enumerate(names)}
    questions = [row["question"] for row in rows]
    poses = [_pose(row, f"{where}, question {number}") for number, row in enumerate(rows, 1)]
    of_objects = [tuple(row.get("object_ids") or ()) for row in rows]
    return RoomPart(
        where=where,
        root=rooms.root,
        names=names,
        image=[numbers[row["scene_id"]] for row in rows],
        texts=questions,
        kinds={QUESTION_TYPE: [question_type(question) for question in questions]},
        situations=[_situation(row) for row in rows],
        answers=[tuple(row.get("answers") or ()) for row in rows],
        poses=np.array(poses, np.float64).reshape(-1, 7),
        objects=of_objects if any(of_objects) else None,
        identity=rooms.identity(names),
        load=rooms.load,
    )


def _situation(row: Mapping[str, Any]) -> Any:
    """What a row says of it; an empty text where it says nothing."""
    situation = row.get("situation")
    return "" if situation is None else situation


def _pose(row: Mapping[str, Any], where: str) -> Numbers:
    """(7,); NaN where a row has none, or its quaternion is none.

    Raises:
        DataError: If it is given in another way.
    """
    position, heading = row.get("position"), row.get("heading")
    if position is None:
        return np.full(7, np.nan)
    try:
        pose = np.array(position, np.float64)
        if pose.shape == (2,):
            pose = pose_of((pose[0], pose[1]), float(heading))  # type: ignore[arg-type] # TypeError without one
    except (TypeError, ValueError, OverflowError):
        pose = np.empty(0)
    if pose.shape != (7,) or not np.isfinite(pose).all():
        raise DataError(
            f"{where}: position is {position!r} with heading {heading!r}",
            "give [x, y, z, and a quaternion x, y, z, w], or [x, y] and a heading in degrees from +x towards +y",
        )
    length = np.linalg.norm(pose[3:])
    return np.concatenate([pose[:3], pose[3:] / length]) if length > 0 else np.full(7, np.nan)
