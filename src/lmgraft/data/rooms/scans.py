"""SQA3D and ScanQA: questions about ScanNet's rooms, from the files that they distribute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lmgraft.data.base import SPLITS
from lmgraft.data.rooms.part import RoomPart, Rooms, count_answers
from lmgraft.data.rooms.question_files import first_of, part_of, read_file, read_rows, read_sqa3d, repeated_ids
from lmgraft.data.rooms.room_data import RoomData
from lmgraft.data.rooms.scannet import CLASSES, ScanFolder
from lmgraft.data.vision_language.answers import plain
from lmgraft.errors import DataError


class ScanData(RoomData):
    """Questions about ScanNet's rooms in files; each set of them is a subclass.

    Args:
        root: The folder of the questions.
        scans: The folder of the rooms: npy files as ScanQA's scripts export them, or ScanNet's own folders; None is
            `scans` in the root.
        points: See `RoomView`; 40,000 is SQA3D's.
        flip: See `RoomView`. On as in SQA3D's code, whose figures are with it, though questions about left and right
            are then often answered wrongly in training.
        options: See `RoomData`.
    """

    packages: ClassVar[tuple[str, ...]] = ("trimesh",)

    def __init__(
        self, root: str = ".", *, scans: str | None = None, points: int = 40_000, flip: bool = True, **options: Any
    ) -> None:
        super().__init__(points=points, flip=flip, **options)
        self.root = Path(root).expanduser()
        self.scans = ScanFolder(self.root / "scans" if scans is None else Path(scans).expanduser())

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(CLASSES)

    @property
    def rooms(self) -> Rooms:
        if not self.scans.root.is_dir():
            raise DataError(f"{self.scans.root}: there is no such folder", "data.scans is the folder of the rooms")
        return Rooms(self.scans.root, self.scans.load, self.scans.identity)


class Sqa3d(ScanData):
    """SQA3D (arXiv 2210.07474): situated questions about ScanNet's rooms.

    Answers are those of answer_dict.json where that is there, else those of training. What an answer is worth follows
    from how often it is given in all splits, as in SQA3D's code.

    Args:
        root: The folder sqa_task, with balanced and answer_dict.json, or one above.
        options: See `ScanData`.
    """

    name = "sqa3d"

    @property
    def _folders(self) -> list[Path]:
        return [self.root / part for part in ("balanced", "sqa_task/balanced", ".", "sqa_task")]

    def find(self) -> dict[str, RoomPart]:
        parts: dict[str, RoomPart] = {}
        for split in SPLITS:
            names = [f"v1_balanced_{kind}_{split}_scannetv2.json" for kind in ("questions", "sqa_annotations")]
            questions, annotations = (first_of(self._folders, [name]) for name in names)
            if questions is not None and annotations is not None:
                parts[split] = part_of(read_sqa3d(questions, annotations), str(questions), self.rooms)
            elif split != "val" or questions or annotations:
                lacking = names[0] if questions is None else names[1]
                raise DataError(f"{lacking} is not in {self.root}", "data.root is the folder sqa_task of SQA3D")
        return parts

    def candidates(self, parts: Mapping[str, RoomPart]) -> tuple[Sequence[str], Counter[str]]:
        file = first_of(self._folders, ["answer_dict.json"])
        if file is None:
            return super().candidates(parts)
        content = read_file(file)
        if not (isinstance(content, list) and len(content) == 2 and all(isinstance(one, dict) for one in content)):
            raise DataError(f"{file} is not a list of two objects", "the first is answer -> number, in SQA3D")
        return list(content[0]), count_answers(parts.values())


class ScanQa(ScanData):
    """Questions in ScanQA's format (arXiv 2112.10482), with or without situations.

    Answers, and how often each is given, are those of answer_counter.json where that is there, as SQA3D's code has it;
    else those of training, as ScanQA's has it.

    Args:
        root: The folder of the lists of questions.
        options: See `ScanData`.
    """

    name = "scanqa"
    _names: ClassVar[tuple[str, ...]] = (
        "SQA_{}.json", "SQA_balanced_{}.json", "ScanQA_v1.0_{}.json", "ScanQA_v1.0_{}_w_obj.json",
    )  # fmt: skip

    def find(self) -> dict[str, RoomPart]:
        folders = [self.root, self.root / "qa"]
        parts: dict[str, RoomPart] = {}
        for split in SPLITS:
            file = first_of(folders, [name.format(split) for name in self._names])
            if file is not None:
                rows = read_rows(file)
                if twice := repeated_ids(file, [row for row in rows if "question_id" in row]):
                    self.remark(twice)
                parts[split] = part_of(rows, str(file), self.rooms)
        if "test" in parts and not any(parts["test"].answers):  # as ScanQA keeps those of its tests to itself
            self.remark(f"{parts.pop('test').where} has no answers for the test: the validation questions are tested")
        if "test" not in parts and "val" in parts:
            parts["test"] = parts.pop("val")
        if not {"train", "test"} <= parts.keys():
            raise DataError(
                f"{self.root} has not {' or '.join(name.format('train') for name in self._names)}, or none for test",
                "data.root is the folder of ScanQA's lists of questions",
            )
        return parts

    def candidates(self, parts: Mapping[str, RoomPart]) -> tuple[Sequence[str], Counter[str]]:
        file = first_of([self.root, self.root / "qa"], ["answer_counter.json"])
        if file is None:
            counts = count_answers([parts["train"]])
            return list(counts), counts
        answers = read_file(file)
        if not (isinstance(answers, list) and all(isinstance(answer, str) for answer in answers)):
            raise DataError(
                f"{file} is not a list of texts", "it holds the answers of all splits, each as often as given"
            )
        return answers, Counter(map(plain, answers))
