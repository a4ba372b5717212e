"""What all data of questions about rooms share: parts become splits; words and answers are those of training."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import numpy as np

from lmgraft.data.base import SPLITS, Data, SplitName, UnreadableItemWarning
from lmgraft.data.check import Findings, Grid, ShowProgress
from lmgraft.data.files import files_below, find_loose, listed, plural
from lmgraft.data.loader import Fault
from lmgraft.data.rooms.batch import QUESTION_TYPE, RoomQuestions
from lmgraft.data.rooms.example import Counts, drawn_questions
from lmgraft.data.rooms.part import QUESTION_TYPES, RoomPart, Rooms, Worths, answer_names, count_answers
from lmgraft.data.rooms.question_files import part_of, read_rows
from lmgraft.data.rooms.room import Index, RoomView
from lmgraft.data.rooms.room_set import Asked, RoomSet
from lmgraft.data.rooms.survey import Survey, survey
from lmgraft.data.vision_language.parts import held_out_images, images_in_both, kind_numbers
from lmgraft.data.vision_language.text import Ids, WordTokenizer
from lmgraft.errors import DataError


class RoomData(Data):
    """Questions about rooms: class_path names the data set, a subclass of this.

    Args:
        batch_size: Training questions a step (and a process).
        eval_batch_size: Questions a step in validation and test.
        val_size: Training rooms whose questions are held out to choose the epoch by, a share (below 1) or a count,
            where the set has none of its own. 0: the test questions choose it.
        max_corrupt: Rooms of training and validation that cannot be read, above which a run stops.
        max_corrupt_test: The same of test.
        vocabulary: Whose words are known: those of the "training" texts, or of "all", for word vectors that are not
            learnt and know more words than training has.
        lower_case: Whether capital letters are taken for small ones. SQA3D's code leaves them, so that GloVe's vectors,
            which are of small letters, know neither its "I" nor its "What".
        num_workers: Loader processes.
        options: See `RoomView`.
    """

    things: ClassVar[str] = "room questions"
    leaves_out: ClassVar[bool] = True
    many_sizes: ClassVar[bool] = True
    endings: ClassVar[tuple[str, ...]] = (".json",)
    types: ClassVar[tuple[str, ...]] = QUESTION_TYPES
    """What `kind` numbers."""

    def __init__(
        self,
        *,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        val_size: int | float = 0.1,
        max_corrupt: int = 0,
        max_corrupt_test: int = 0,
        vocabulary: Literal["training", "all"] = "training",
        lower_case: bool = True,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers)
        if val_size < 0:
            raise DataError(f"data.val_size={val_size} must not be negative")
        if vocabulary not in ("training", "all"):
            raise DataError(f"data.vocabulary={vocabulary!r} is neither 'training' nor 'all'")
        self.vocabulary, self.lower_case = vocabulary, lower_case
        self.view, self.val_size = RoomView(**options), val_size
        self.max_corrupt, self.max_corrupt_test = max_corrupt, max_corrupt_test
        self._known: dict[str, Any] = {}
        """Words, answers and sizes of boxes as a run remembers them."""
        self._surveys: WeakKeyDictionary[RoomPart, Survey] = WeakKeyDictionary()

    @abstractmethod
    def find(self) -> dict[str, RoomPart]:
        """What there is of "train", "val" and "test"; train and test at least.

        Raises:
            DataError: If something is missing or does not agree.
        """

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Of the boxes."""

    @property
    def rooms(self) -> Rooms:
        """What lists of questions of one's own can be about.

        Raises:
            DataError: If the set has no rooms by name.
        """
        raise DataError(f"{type(self).__name__} has no rooms that questions of one's own could be about")

    def candidates(self, parts: Mapping[str, RoomPart]) -> tuple[Sequence[str], Counter[str]]:
        """All answers that a model can give, and how often each is given in the whole data set."""
        train = [answer for given in parts["train"].answers for answer in given]
        return train, count_answers(parts.values())

    @cached_property
    def parts(self) -> dict[str, RoomPart]:
        """The splits that the data set itself has; its files are read once."""
        found = self.find()
        for split, part in found.items():
            if not part.texts:
                raise DataError(f"{part.where} has no questions for {split}", "check data.root")
        return found

    @cached_property
    def _counted(self) -> tuple[tuple[str, ...], Counter[str]]:
        candidates, counts = self.candidates(self.parts)
        return answer_names(candidates), counts

    @property
    def answer_names(self) -> tuple[str, ...]:
        """The vocabulary of answers, in alphabetical order."""
        names: tuple[str, ...] = tuple(self._known["answers"]) if "answers" in self._known else self._counted[0]
        if len(names) < 2:
            raise DataError(f"{self.name} has {plural(len(names), 'answer')} to choose from", "there must be two")
        return names

    @cached_property
    def tokenizer(self) -> WordTokenizer:
        """Of the training texts, or all: 0 is padding, 1 an unknown word."""
        if "words" in self._known:
            return WordTokenizer(tuple(self._known["words"]), ends=False, lower_case=self.lower_case)
        parts = [part for split, part in self.parts.items() if split == "train" or self.vocabulary == "all"]
        texts = [text for part in parts for text in (*part.situations, *part.texts)]
        return WordTokenizer.of(texts, ends=False, lower_case=self.lower_case)

    @property
    def words(self) -> tuple[str, ...]:
        """What each word number stands for."""
        return self.tokenizer.names

    @cached_property
    def mean_sizes(self) -> list[list[float]]:
        """(C, 3) of each class's boxes in training, metres; of a class without any, of all boxes."""
        if "mean_sizes" in self._known:
            sizes: list[list[float]] = self._known["mean_sizes"]
            return sizes
        return self._survey(self.parts["train"]).mean_sizes(len(self.class_names))

    def _survey(self, part: RoomPart, rooms: Sequence[int] | None = None) -> Survey:
        """What is seen of the rooms of a part, or at least of these; each is read once."""
        known = self._surveys.get(part, Survey(seen={}, faults={}))
        names = part.names if rooms is None else [part.names[room] for room in rooms]
        others = [name for name in names if name not in known.seen and name not in known.faults]
        if others:
            found = survey(part, others)
            known = Survey(seen={**known.seen, **found.seen}, faults={**known.faults, **found.faults})
            self._surveys[part] = known
        return known

    def model_arguments(self) -> dict[str, Any]:
        return {
            "num_words": len(self.words), "num_answers": len(self.answer_names), "num_features": self.view.num_features,
            "mean_sizes": self.mean_sizes, "words": list(self.words),
            **({"given_objects": True} if self.view.given_objects else {}),
        }  # fmt: skip

    def categories(self) -> dict[str, tuple[str, ...]]:
        return {QUESTION_TYPE: self.types}

    def setup(self, stage: str | None = None) -> None:
        if self._sets:
            return
        found = dict(self.parts)
        if "test" not in found:
            raise DataError(f"{self.name} has no test questions", "check data.root")
        index = {split: np.arange(len(part.texts)) for split, part in found.items()}
        if "val" not in found and self.val_size:
            index |= held_out_images(found["train"], self.val_size)
            found["val"] = found["train"]
        self.selection: Literal["val", "test", "last"] = "val" if "val" in found else "test"
        asked = {id(part): self._asked(part, self._kinds(part), self._counted[1]) for part in found.values()}
        for sentence in images_in_both({split: (part, index[split]) for split, part in found.items()}):
            self.remark(sentence)
        for split in SPLITS:
            if split in found:
                part, kept = found[split], index[split]
                if any(part.situations) and (split == "test" or (split == "train" and not self._known)):
                    self._say_poses(part)
                if not (self._known and split == "train"):  # nothing of it is shown, and reading it takes minutes
                    kept = self._readable(split, part, kept)
                kept = self._answerable(split, part, asked[id(part)].worths, kept)
                training = split == "train"
                self._sets[split] = RoomSet(
                    part, asked[id(part)], kept, self.view, training=training, seed=self.seed
                )  # fmt: skip
                if not len(kept) and not (self._known and split != "test"):
                    first = next(iter(self._survey(part, ()).faults.items()), None)
                    why = "" if first is None else f"; of {first[0]}: {first[1]}"
                    none_held_out = f"data.val_size={self.val_size} holds out no room: make it larger, or 0"
                    raise DataError(
                        f"{part.where}: no question of {split} can be shown{why}",
                        "see the notes above" if len(index[split]) else none_held_out,
                    )
        self._sets.setdefault("val", self._sets["test"])
        if not self._known:  # a run is evaluated whose training rooms need not be here
            self.fill_a_batch(len(self._sets["train"]))

    def _readable(self, split: SplitName, part: RoomPart, index: Index) -> Index:
        """Those questions whose room can be read; other rooms are reported, and what is odd with these is remarked."""
        of = np.asarray(part.image, np.int64)
        counts = Counter(of[index].tolist())
        looked = self._survey(part, sorted(counts))
        odd: dict[str, list[str]] = {}
        flat: dict[str, int] = {}
        for name in (part.names[room] for room in sorted(counts) if part.names[room] in looked.seen):
            for note in looked.seen[name].notes:
                odd.setdefault(note, []).append(name)
            if looked.seen[name].flat:
                flat[name] = looked.seen[name].flat
        for note, names in odd.items():
            self.remark(f"{split}: {note} ({listed(names)})")
        if total := sum(flat.values()):
            boxes = "1 box" if total == 1 else f"{total:,} boxes"
            self.remark(f"{split}: {boxes} without an extent left out ({listed(list(flat))})")
        lost = {room: looked.faults[part.names[room]] for room in sorted(counts) if part.names[room] in looked.faults}
        asked = {room: plural(counts[room], "question") for room in lost}
        faults = [Fault(part.names[room], f"{why}; {asked[room]} about it") for room, why in lost.items()]
        if self._known and split != "test":
            if faults:
                self.remark(f"{plural(len(faults), 'room')} of {split} cannot be read, and an evaluation needs none")
        else:
            self.report(split, faults)
        kept: Index = index[~np.isin(of[index], list(lost))]
        return kept

    def _say_poses(self, part: RoomPart) -> None:
        """Remark of how many questions it is known where the asker stands, where that is not all."""
        known, questions = self._survey(part).placed(part)
        if known < questions:
            self.remark(
                f"{part.where}: where the asker stands is known for {known:,} of "
                f"{plural(questions, 'question')}; object_inputs: asker and situation_head of backbone.kwargs "
                "have nothing to go by in the others"
            )

    def _answerable(self, split: SplitName, part: RoomPart, worths: Worths, index: Index) -> Index:
        """What training shows: questions with a right answer in the vocabulary; others count as wrong in evaluation."""
        lost = index[~worths.is_known[index]]
        if not len(lost):
            return index
        what_then = "left out" if split == "train" else "counted as wrong"
        outside = listed(sorted({repr(answer) for i in lost.tolist() for answer in part.answers[i]}))
        self.remark(
            f"{part.where}, {split}: {plural(len(lost), 'question')} without a right answer in the vocabulary, "
            + what_then
            + (f" ({outside})" if outside else "")
        )
        kept: Index = np.setdiff1d(index, lost) if split == "train" else index
        return kept

    def _kinds(self, part: RoomPart) -> Index:
        """(N,) the type of each question."""
        return kind_numbers(part, self.categories(), np.arange(len(part.texts)))[:, 0]

    def _asked(self, part: RoomPart, kinds: Index, counts: Mapping[str, int]) -> Asked:
        names = self.answer_names
        return Asked(
            situations=self._tokens(part.situations, f"{part.where}, situations"),
            questions=self._tokens(part.texts, f"{part.where}, questions"),
            worths=Worths.of(part.answers, names, counts),
            num_answers=len(names),
            kinds=kinds,
        )

    def _tokens(self, texts: Sequence[str], where: str) -> Ids:
        encoded = self.tokenizer.encode(texts, self.view.max_text_len)
        if encoded.cut:
            most = f"data.max_text_len={self.view.max_text_len}"
            self.remark(f"{where}: {encoded.cut:,} of {len(texts):,} cut behind {most}")
        if encoded.unknown:
            self.remark(f"{where}: {plural(encoded.unknown, 'word')} not among training's")
        return encoded.ids

    def open(self, sources: Sequence[str]) -> RoomSet:
        """Questions in lists as ScanQA has them (JSON), about rooms of the set, in order; answers are not looked at.

        Each has `scene_id`, `question` and perhaps `situation` and `position` (`part_of` says how that is given).
        """
        files = find_loose(sources, lambda folder: files_below(folder, self.endings), "lists of questions (.json)")
        rows = [{**row, "answers": []} for file in files for row in read_rows(file)]
        if not rows:
            raise DataError(f"{', '.join(sources)} holds no question", "give a list of objects")
        part = part_of(rows, ", ".join(sources), self.rooms)
        if faults := self._survey(part).faults:
            name, why = next(iter(faults.items()))
            raise DataError(
                f"{part.where}: {listed(list(faults))} cannot be read ({name}: {why})",
                f"scene_id names a room of those in {part.root}",
            )
        self._say_poses(part)
        asked = self._asked(part, np.zeros(len(part.texts), np.int64), {})  # of no type that the set knows
        return RoomSet(part, asked, np.arange(len(part.texts)), self.view)

    def still(self, name: SplitName) -> RoomSet:
        items = self._sets[name]
        assert isinstance(items, RoomSet)
        return items.still()

    def fingerprint(self) -> dict[str, Any]:
        """Digests of all questions, how many there are, and what identifies rooms, words, answers and boxes."""
        self.setup()
        sizes = {split: len(items) for split, items in self._sets.items()}
        if "train" in self._known.get("sizes", {}):  # an evaluation does not look which training rooms can be read
            sizes["train"] = self._known["sizes"]["train"]
        return {
            "name": self.name,
            "sha256": {split: part.digest() for split, part in self.parts.items()},
            "rooms": {split: part.identity for split, part in self.parts.items()},
            "sizes": sizes,
            "selection": self.selection,
            "words": list(self.tokenizer.words),
            "answers": list(self.answer_names),
            "classes": list(self.class_names),
            "mean_sizes": self.mean_sizes,
        }

    def as_trained(self, record: Mapping[str, Any]) -> None:
        self.recall(record)

    def recall(self, record: Mapping[str, Any]) -> None:
        keys = ("words", "answers", "mean_sizes", "sizes")
        self._known = {key: record["data"][key] for key in keys if key in record["data"]}

    def transform_record(self) -> dict[str, Any]:
        view = dict(vars(self.view))
        training = {key: view.pop(key) for key in ("redraw", "flip", "turn", "shift", "together")}
        return {"preprocess": view, **training}

    def check(self, workers: int, progress: ShowProgress, near: bool = False) -> Findings:
        """Every room read, with lines of its own; what cannot be, what is odd, and the questions of each type."""
        self.batch_size = 1
        self.max_corrupt = self.max_corrupt_test = len(self.parts) * max(
            len(part.names) for part in self.parts.values()
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreadableItemWarning)
            self.setup()
        findings = Findings(self.things, remarks=list(self.remarks))
        rows, kinds = [], {}
        for split in (name for name in SPLITS if not (name == "val" and self._is_test_again(name))):
            items = self.still(split)
            part, looked = items.part, self._survey(items.part)
            names = sorted({part.names[n] for n in items.groups.tolist()})
            absent = [Fault(*fault) for fault in self._unreadable["test" if split == "test" else "train"].items()]
            faults = [fault for fault in absent if fault.file in looked.faults]
            findings.faults[split] = faults
            findings.remarks += looked.notes(split, names, self.view.points)
            kinds[split] = Counter(items.asked.kinds[items.indices.numpy()].tolist())
            rows.append((split, f"{len(items):,}", f"{len(names):,}", f"{len(faults):,}"))
        findings.grids.append(Grid(("split", self.things, "rooms", "unreadable"), rows))
        by_type = [(name, *(f"{kinds[split][n]:,}" for split in kinds)) for n, name in enumerate(self.types)]
        findings.grids.append(Grid(("question", *kinds), by_type))
        findings.details["splits"] = {
            split: {self.things: sum(of.values()), "unreadable": [f._asdict() for f in findings.faults[split]]}
            for split, of in kinds.items()
        }
        return findings

    def example(self, size: int, seed: int = 0) -> RoomQuestions:
        """Random points around random boxes; every second room has one box only."""
        counts = Counts(
            words=len(self.words), answers=len(self.answer_names), classes=len(self.class_names), types=len(self.types)
        )
        return drawn_questions(size, self.view, counts, seed)
