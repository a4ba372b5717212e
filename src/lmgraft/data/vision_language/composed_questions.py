"""Questions about composed scenes: counting, relations, attributes; with the objects that each question is about.

<set>/images/{train,val,test,unseen}/<number>.png    scenes of 2 to 5 emoji; unseen: in another art style
<set>/objects/...                                    the same names: each pixel the number of its object, 0 for none
<set>/{train,val,test,unseen}.jsonl                  image, question, answer, answer_type, question_type, objects
<set>/set.json                                       source, licence, procedure; written last
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lmgraft import records
from lmgraft.data.files import check_prepared, prepared_place
from lmgraft.data.image.composing import background, opaque, scaled
from lmgraft.data.image.emoji import NAMED, ORIGIN, UNSEEN, fetch_named
from lmgraft.data.image.masks import MaskTransform
from lmgraft.data.loader import Draw, Reported
from lmgraft.data.vision_language.question_files import QuestionFiles
from lmgraft.data.vision_language.question_table import Questions
from lmgraft.data.vision_language.questions import QuestionSet
from lmgraft.data.vision_language.rows import read_rows

SCENES = {"train": 4_000, "val": 500, "test": 1_000, "unseen": 1_000}
_SIDE, _CELLS = 72, 3  # pixels of a scene, and cells a side of it, each with one object at most
_SIZES = {"big": (20, 24), "small": (11, 13)}
_QUESTIONS = 6  # a scene
_RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (1, -1), "right of": (1, 1), "above": (0, -1), "below": (0, 1),
}  # fmt: skip
"""Words -> the axis of a cell (row, column), and the direction along it."""
PROCEDURE = (
    "2 to 5 objects of different names in different cells of 3 x 3 on a drawn background, each big or small, upright "
    "or upside down. Of every scene: is something there, how many there are of a kind, is one on that side of another, "
    "what is on that side of one, is it big or small, is it upside down; of questions answered by yes or no the answer "
    "is drawn first."
)
_ROUND = ("football", "pizza", "tomato", "die")
"""Objects that look much the same upside down, of which that is not asked."""


class Placed(NamedTuple):
    """An object in a scene."""

    name: str
    kind: str
    size: str
    upside_down: bool
    cell: tuple[int, int]
    """Row and column."""


class Asked(NamedTuple):
    """A question about a scene."""

    question: str
    answer: str
    answer_type: str
    question_type: str
    objects: tuple[int, ...]
    """Positions of the objects that it is about."""


def draw_objects(rng: np.random.Generator) -> list[Placed]:
    """Two to five objects of different names in different cells."""
    names = [(name, kind) for kind, of in NAMED.items() for name in of]
    count = int(rng.integers(2, 6))
    chosen = rng.permutation(len(names))[:count]
    cells = rng.permutation(_CELLS**2)[:count]
    return [
        Placed(name, kind, ("big", "small")[int(rng.integers(2))], bool(rng.integers(2)), divmod(cell, _CELLS))
        for (name, kind), cell in zip([names[n] for n in chosen.tolist()], cells.tolist(), strict=True)
    ]


def _exists(scene: Sequence[Placed], rng: np.random.Generator) -> Asked:
    there = {one.name: number for number, one in enumerate(scene)}
    missing = [name for of in NAMED.values() for name in of if name not in there]
    if rng.integers(2):
        name = list(there)[int(rng.integers(len(there)))]
        return Asked(f"is there a {name}?", "yes", "yes/no", "existence", (there[name],))
    return Asked(f"is there a {missing[int(rng.integers(len(missing)))]}?", "no", "yes/no", "existence", ())


def _counts(scene: Sequence[Placed], rng: np.random.Generator) -> Asked:
    kind = list(NAMED)[int(rng.integers(len(NAMED)))]
    objects = tuple(number for number, one in enumerate(scene) if one.kind == kind)
    return Asked(f"how many {kind} are there?", str(len(objects)), "number", "counting", objects)


def _relates(scene: Sequence[Placed], rng: np.random.Generator) -> Asked:
    """Of two objects in different rows or columns; the wanted answer decides their order."""
    words = list(_RELATIONS)[int(rng.integers(len(_RELATIONS)))]
    axis, sign = _RELATIONS[words]
    pairs = [
        (a, b)
        for a, one in enumerate(scene)
        for b, other in enumerate(scene)
        if sign * (one.cell[axis] - other.cell[axis]) > 0
    ]
    if not pairs:
        return _exists(scene, rng)
    a, b = pairs[int(rng.integers(len(pairs)))]
    answer = ("no", "yes")[int(rng.integers(2))]
    first, second = (a, b) if answer == "yes" else (b, a)
    question = f"is the {scene[first].name} {words} the {scene[second].name}?"
    return Asked(question, answer, "yes/no", "relation", (first, second))


def _names(scene: Sequence[Placed], rng: np.random.Generator) -> Asked:
    """What lies on one side of an object, where that is one thing alone."""
    words = list(_RELATIONS)[int(rng.integers(len(_RELATIONS)))]
    axis, sign = _RELATIONS[words]
    there = {
        b: [a for a, one in enumerate(scene) if sign * (one.cell[axis] - other.cell[axis]) > 0]
        for b, other in enumerate(scene)
    }
    single = [(b, of[0]) for b, of in there.items() if len(of) == 1]
    if not single:
        return _relates(scene, rng)
    b, a = single[int(rng.integers(len(single)))]
    return Asked(f"what is {words} the {scene[b].name}?", scene[a].name, "name", "relation", (a, b))


def _has_size(scene: Sequence[Placed], rng: np.random.Generator) -> Asked:
    number = int(rng.integers(len(scene)))
    question = f"is the {scene[number].name} big or small?"
    return Asked(question, scene[number].size, "size", "attribute", (number,))


def _is_turned(scene: Sequence[Placed], rng: np.random.Generator) -> Asked:
    turnable = [number for number, one in enumerate(scene) if one.name not in _ROUND]
    if not turnable:
        return _has_size(scene, rng)
    number = turnable[int(rng.integers(len(turnable)))]
    answer = "yes" if scene[number].upside_down else "no"
    return Asked(f"is the {scene[number].name} upside down?", answer, "yes/no", "attribute", (number,))


ASK: tuple[Callable[[Sequence[Placed], np.random.Generator], Asked], ...] = (
    _exists, _counts, _relates, _names, _has_size, _is_turned,
)  # fmt: skip
"""One of each is asked of every scene."""


def ask(scene: Sequence[Placed], rng: np.random.Generator) -> list[Asked]:
    """The questions about a scene, none twice."""
    asked = [one(scene, rng) for one in ASK]
    return list({one.question: one for one in asked}.values())


def paint(
    scene: Sequence[Placed], pictures: Mapping[str, Image.Image], rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """A scene, RGB, and the number of the object at each pixel from 1, L."""
    canvas, numbers = background(_SIDE, rng), Image.new("L", (_SIDE, _SIDE))
    cell = _SIDE // _CELLS
    for number, one in enumerate(scene, 1):
        picture = pictures[one.name]
        if one.upside_down:
            picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        low, high = _SIZES[one.size]
        shown = scaled(picture, int(rng.integers(low, high + 1)))
        free = [cell - length for length in shown.size]
        row, column = one.cell
        place = column * cell + int(rng.integers(free[0] + 1)), row * cell + int(rng.integers(free[1] + 1))
        canvas.paste(shown, place, shown)
        numbers.paste(number, place, opaque(shown))
    return canvas, numbers


@dataclass(frozen=True)
class _Split:
    number: int
    scenes: int
    styles: Sequence[Mapping[str, Image.Image]]
    """Of each art style: name -> picture."""


def write_questions(
    folder: Path, styles: Mapping[str, Mapping[str, Image.Image]], about: Mapping[str, Any], scenes: Mapping[str, int]
) -> Path:
    """The set in `folder`.

    Args:
        styles: Art style -> name -> picture; the one called "fluent" is kept for the split "unseen".
        about: Name, source and licence, for set.json.
        scenes: Split -> how many.
    """
    seen = [of for style, of in styles.items() if style != UNSEEN]
    counts = {}
    for number, (split, count) in enumerate(scenes.items()):
        part = _Split(number, count, [styles[UNSEEN]] if split == "unseen" else seen)
        lines = _write_split(folder, split, part)
        records.write_text(folder / f"{split}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        counts[split] = len(lines)
    record = {**about, "scenes": dict(scenes), "questions": counts, "procedure": PROCEDURE}
    records.write_json(folder / "set.json", record)
    return folder


def _write_split(folder: Path, split: str, part: _Split) -> list[dict[str, Any]]:
    for kind in ("images", "objects"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(part.scenes):
        rng = np.random.default_rng([0, part.number, index])
        scene = draw_objects(rng)
        canvas, numbers = paint(scene, part.styles[int(rng.integers(len(part.styles)))], rng)
        name = f"{split}/{index:05}.png"
        canvas.save(folder / "images" / name, compress_level=1)
        numbers.save(folder / "objects" / name)
        for one in ask(scene, rng):
            objects = [number + 1 for number in one.objects]
            lines.append({**one._asdict(), "image": f"images/{name}", "objects": objects})
    return lines


class QuestionsWithTruth(NamedTuple):
    """Questions about images, and where the objects are that they are about."""

    images: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    scores: Tensor
    kinds: Tensor
    index: Tensor  # type: ignore[assignment] # of tuples it is a method
    group: Tensor
    truth: Tensor
    """(B, H, W) bool, True on the objects that the question is about; nowhere where it is about none that is there."""


class SceneSet(QuestionSet):
    """Questions of a split of composed scenes; evaluation's batches know their objects.

    Attributes:
        objects: (N,) of each question of the split the numbers of its objects.
    """

    root: Path
    objects: Sequence[Sequence[int]]

    def __getitems__(self, draws: list[Draw]) -> Reported:
        loaded = super().__getitems__(draws)
        if self.manner.replace:
            return loaded
        truth = torch.stack([self._transform(self._mask(draw.sample)) == 1 for draw in draws])
        batch = QuestionsWithTruth(**loaded.batch._asdict(), truth=truth)  # type: ignore[attr-defined]
        return Reported(batch, loaded.faults)

    @cached_property
    def _transform(self) -> MaskTransform:
        return MaskTransform(self.manner.preprocess)

    def _mask(self, sample: int) -> Any:
        name = self.table.name(int(self.image[sample])).replace("images/", "objects/", 1)
        with Image.open(self.root / name) as numbers:
            return np.isin(np.asarray(numbers), self.objects[int(self.indices[sample])]).astype(np.uint8)


class ComposedQuestions(QuestionFiles):
    """Questions about composed scenes, after `lmgraft prepare composed-questions`; those of a scene are a group.

    Args:
        root: The set's folder; None is lmgraft's cache.
        style: Which scenes test: seen, in the art styles of training, or unseen, in another.
        options: See `QuestionData`.
    """

    name = "composed-questions"
    question_set = SceneSet

    def __init__(self, root: str | None = None, *, style: Literal["seen", "unseen"] = "seen", **options: Any) -> None:
        self.tree = prepared_place(self.name) if root is None else Path(root).expanduser()
        options = {"img_size": _SIDE, "max_text_len": 16, **options}
        of_test = {"seen": "test", "unseen": "unseen"}[style]
        train, val, test = (str(self.tree / f"{split}.jsonl") for split in ("train", "val", of_test))
        super().__init__(train=train, val=val, test=test, **options)

    def find(self) -> dict[str, Questions]:
        check_prepared(self.tree, self.name)
        return super().find()

    def _make(self, split: str, *arguments: Any, **options: Any) -> QuestionSet:
        items = super()._make(split, *arguments, **options)
        assert isinstance(items, SceneSet)
        rows = read_rows(Path(str(self.tables[split])), ("image", "question"))
        items.root, items.objects = self.tree, [tuple(row["objects"]) for _, row in rows]
        return items


def prepare(out: Path | None) -> Path:
    """Fetch the emoji and compose the set, unless it is there; a minute."""
    folder = prepared_place(ComposedQuestions.name) if out is None else out
    if (folder / "set.json").exists():
        return folder
    pictures = fetch_named(ComposedQuestions.name)
    about = {
        "name": ComposedQuestions.name,
        **ORIGIN,
        "changes": "24 emoji were cut to what is opaque, scaled, turned upside down or not, and laid on backgrounds",
    }
    return write_questions(folder, pictures, about, SCENES)
