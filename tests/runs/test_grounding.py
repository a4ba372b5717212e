"""Composed scenes and their questions, and the suite that takes the image or the question away."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lmgraft.data.image.emoji import NAMED
from lmgraft.data.loader import Draw
from lmgraft.data.vision_language.composed_questions import (
    _RELATIONS,
    ComposedQuestions,
    Placed,
    ask,
    draw_objects,
    write_questions,
)
from lmgraft.errors import DataError
from lmgraft.report.robustness.table import markdown, write_report
from lmgraft.studies.robustness.cells import Cell
from lmgraft.studies.robustness.run import Robustness
from lmgraft.studies.robustness.suites.grounding import Grounding
from lmgraft.tasks.question_answering import VQA

NAMES = {name: kind for kind, of in NAMED.items() for name in of}


def answer(scene: list[Placed], question: str) -> str:
    """The answer by looking at the scene, in words of its own."""
    words = question.removesuffix("?")
    there = {one.name: one for one in scene}
    if words.startswith("how many "):
        return str(sum(one.kind == words.split()[2] for one in scene))
    if words.startswith("is there a "):
        return "yes" if words.removeprefix("is there a ") in there else "no"
    if words.endswith("big or small"):
        return there[words.split()[2]].size
    if words.endswith("upside down"):
        return "yes" if there[words.split()[2]].upside_down else "no"
    for relation in _RELATIONS:
        if f" {relation} the " not in words:
            continue
        left, right = words.split(f" {relation} the ")
        lies = {
            "left of": lambda a, b: a.cell[1] < b.cell[1], "right of": lambda a, b: a.cell[1] > b.cell[1],
            "above": lambda a, b: a.cell[0] < b.cell[0], "below": lambda a, b: a.cell[0] > b.cell[0],
        }[relation]  # fmt: skip
        if left == "what is":
            (name,) = [one.name for one in scene if lies(one, there[right])]
            return name
        return "yes" if lies(there[left.removeprefix("is the ")], there[right]) else "no"
    raise AssertionError(question)


def test_answers_are_true_and_yes_and_no_are_balanced() -> None:
    counts: dict[tuple[str, str], int] = {}
    for seed in range(400):
        rng = np.random.default_rng(seed)
        scene = draw_objects(rng)
        assert len({one.cell for one in scene}) == len({one.name for one in scene}) == len(scene)
        for one in ask(scene, rng):
            assert answer(scene, one.question) == one.answer, (scene, one)
            if one.question_type in ("existence", "attribute"):
                assert all(scene[n].name in one.question for n in one.objects)
            counts[one.question_type, one.answer] = counts.get((one.question_type, one.answer), 0) + 1
    for kind in ("existence", "relation", "attribute"):
        yes, no = counts[kind, "yes"], counts[kind, "no"]
        assert 0.75 < yes / no < 1.33, (kind, yes, no)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def picture(seed: int) -> Image.Image:
        shown = Image.new("RGBA", (24, 20))
        ImageDraw.Draw(shown).rectangle((0, 0, 23, 19), fill=(*np.random.default_rng(seed).integers(0, 255, 3), 255))
        return shown

    styles = {style: {name: picture(n) for n, name in enumerate(NAMES)} for style in ("google", "fluent")}
    folder = tmp_path_factory.mktemp("scenes")
    return write_questions(folder, styles, {"name": "test"}, {"train": 6, "val": 3, "test": 6, "unseen": 3})


def data_of(scenes: Path, **options: Any) -> ComposedQuestions:
    data = ComposedQuestions(str(scenes), batch_size=4, num_workers=0, **options)
    data.setup()
    return data


def test_truth_lies_on_the_objects_that_are_asked_about(scenes: Path) -> None:
    data = data_of(scenes)
    items = data.split("test")
    batch = items.batch(range(len(items)))
    counting = data.categories()["question_type"].index("counting")
    for truth, objects, kinds in zip(batch.truth, items.objects, batch.kinds, strict=True):
        assert bool(truth.any()) == bool(objects)
        if objects and kinds[1] != counting:
            assert 0.015 * len(objects) < truth.float().mean() < 0.13 * len(objects)
    numbers = np.asarray(Image.open(scenes / "objects/test/00000.png"))
    first = next(n for n, objects in enumerate(items.objects) if len(objects) == 1)
    np.testing.assert_array_equal(batch.truth[first].numpy(), numbers == items.objects[first][0])
    assert not hasattr(data.split("train").__getitems__([Draw(0, 0)]).batch, "truth")
    assert len(data_of(scenes, style="unseen").split("test").table) == 3


def test_half_the_size_keeps_the_object(scenes: Path) -> None:
    whole, half = (data_of(scenes, img_size=size).split("test").batch([0]) for size in (72, 36))
    small = torch.nn.functional.max_pool2d(whole.truth[:1].float(), 2)[0] > 0
    assert (half.truth[0] & ~small).sum() == 0


class TestSuite:
    def shown(self, scenes: Path) -> dict[str, Any]:
        data = data_of(scenes)
        conditions = {one.part or one.key: one for one in Grounding().conditions(data)}
        draws = [Draw(0, sample) for sample in range(len(data.split("test")))]
        return {name: one.items.__getitems__(draws).batch for name, one in conditions.items()}

    def test_what_each_condition_takes_away(self, scenes: Path) -> None:
        shown = self.shown(scenes)
        clean = shown["clean"]
        assert set(shown) == {"clean", *Grounding.changes}
        assert not shown["question_only"].images.any()
        torch.testing.assert_close(shown["question_only"].input_ids, clean.input_ids)
        assert len(set(map(tuple, shown["image_only"].input_ids.tolist()))) == 1
        assert shown["image_only"].attention_mask.sum(1).tolist() == [2] * len(clean.index)
        torch.testing.assert_close(shown["image_only"].images, clean.images)
        moved = shown["shuffled_words"].input_ids
        assert not torch.equal(moved, clean.input_ids)
        torch.testing.assert_close(moved.sort(1).values, clean.input_ids.sort(1).values)
        torch.testing.assert_close(moved[:, 0], clean.input_ids[:, 0])
        last = clean.attention_mask.sum(1, keepdim=True) - 1
        torch.testing.assert_close(moved.gather(1, last), clean.input_ids.gather(1, last))
        other = shown["other_image"]
        assert all(not torch.equal(a, b) for a, b in zip(other.images, clean.images, strict=True))
        torch.testing.assert_close(other.targets, clean.targets)
        kinds = {image.numpy().tobytes(): set() for image in clean.images}
        for image, kind in zip(clean.images, clean.kinds[:, 0].tolist(), strict=True):
            kinds[image.numpy().tobytes()].add(kind)
        hits = [
            kind in kinds[image.numpy().tobytes()]
            for image, kind in zip(other.images, clean.kinds[:, 0].tolist(), strict=True)
        ]
        assert all(hits)

    def test_conditions_do_not_depend_on_the_batch(self, scenes: Path) -> None:
        data = data_of(scenes)
        for condition in Grounding(seed=3).conditions(data):
            whole = condition.items.__getitems__([Draw(0, n) for n in range(5)]).batch
            alone = condition.items.__getitems__([Draw(0, 4)]).batch
            torch.testing.assert_close(whole.images[4], alone.images[0])
            torch.testing.assert_close(whole.input_ids[4], alone.input_ids[0])

    def test_the_page_says_how_much_is_lost(self, tmp_path: Path) -> None:
        result = self.result()
        rows = {row.name: row for row in result.summary}
        assert rows["question_only"].value == 0.5
        assert rows["lost_question_only"].value == pytest.approx(0.3)
        assert rows["lost_question_only"].metric.unit == "points"
        assert rows["clean"].value == 0.8
        (page, _), text = write_report([result], tmp_path), markdown([result])
        assert page.read_text() == text
        assert re.findall("(?m)^[|].*$", text)[2:] == [
            "| clean | 80.00 (70.00 to 90.00) |",
            "| without the image | 50.00 |",
            "| lost: without the image | 30.00 (20.00 to 40.00) |",
        ]
        assert ".png" not in text
        assert "severities" not in text
        assert "of the same questions" in text

    def test_losses_of_earlier_versions_have_no_interval(self) -> None:
        text = markdown([self.result(lost={})])
        assert "| lost: without the image | 30.00 |" in text
        assert "of the same questions" not in text

    def result(self, **changes: Any) -> Robustness:
        common: Any = {"suite": "grounding", "level": None, "items": 3, "conditions": {}}
        clean = Cell(**common, title="clean", part=None, metrics={"vqa": 0.8}, intervals={"vqa": (0.7, 0.9)})
        blind = Cell(**common, title="without the image", part="question_only", metrics={"vqa": 0.5},
                     intervals={"vqa": None}, **{"lost": {"vqa": (0.2, 0.4)}} | changes)  # fmt: skip
        cells = {"clean": clean, "grounding/question_only": blind}
        return Robustness(
            label="llm", suite="grounding", metric=VQA, things="questions", cells=cells, notes=(),
            summary=Grounding().summary(cells, VQA),
        )  # fmt: skip

    def test_one_image_alone(self, scenes: Path) -> None:
        data = data_of(scenes)
        data.split("test").image[:] = 0
        data.still = lambda name: data.split(name)  # type: ignore[method-assign]
        other = next(one for one in Grounding().conditions(data) if one.part == "other_image")
        with pytest.raises(DataError, match="about one thing"):
            other.items.__getitems__([Draw(0, 0)])
