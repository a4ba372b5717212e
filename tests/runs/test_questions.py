"""Questions about images: VQAv2's rules for answers, readers of its files and of tables, batches, broken files."""

from __future__ import annotations

import json
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from lmgraft.data.loader import Draw
from lmgraft.data.vision_language import easy_vqa
from lmgraft.data.vision_language.answers import (
    SOFT,
    normalised,
    score,
    spelt,
    usual,
    vocabulary,
    worth,
    worth_as_written,
)
from lmgraft.data.vision_language.question_files import QuestionFiles
from lmgraft.data.vision_language.question_table import find_questions
from lmgraft.data.vision_language.questions import Key, QuestionSet
from lmgraft.data.vision_language.text import PretrainedTokenizer, WordTokenizer
from lmgraft.data.vision_language.toy_questions import ToyQuestions
from lmgraft.data.vision_language.vqav2 import VQAv2
from lmgraft.errors import DataError, SourceError
from lmgraft.tasks.question_answering import QuestionAnswering


class TestAnswers:
    @pytest.mark.parametrize(
        ("answer", "plain"),
        [
            ("A Dog!", "dog"), ("the two cats", "2 cats"), ("none", "0"), ("dont", "don't"),
            ("couldnt've", "couldn't've"), ("t-shirt", "t shirt"), ("left/ right", "left right"), ("1,000", "1000"),
            ("3.5", "3.5"), ("u.s.", "us"), ("black, white", "black white"), ("somebody'd", "somebodyd"),
        ],
    )  # fmt: skip
    def test_spelling_of_the_evaluation_code(self, answer: str, plain: str) -> None:
        assert normalised(answer) == plain

    @pytest.mark.parametrize(
        ("count", "worked_out"),
        # n of ten: each of the n sees n - 1 others, each of the 10 - n sees n; a third for every one, at most 1.
        [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
    )
    def test_official_score(self, count: int, worked_out: float) -> None:
        people = ["red"] * count + [f"other {n}" for n in range(10 - count)]
        assert score("red", people) == pytest.approx(worked_out)
        assert score("The Red", people) == pytest.approx(
            worked_out if count < 10 else 0.0
        )  # agreed: compared as written

    @given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=10, max_size=10), st.sampled_from(["a", "b", "d"]))
    def test_score_is_the_mean_over_nine_of_ten(self, people: list[str], answer: str) -> None:
        people = [f"x{one}" for one in people]
        by_definition = [min(1.0, [*people[:n], *people[n + 1 :]].count(f"x{answer}") / 3) for n in range(10)]
        assert score(f"x{answer}", people) == pytest.approx(sum(by_definition) / 10)

    def test_vocabulary_is_in_order_of_first_coming(self) -> None:
        assert vocabulary(["yes", "Two", "no", "2", "yes", "a cat"], least=2) == ("yes", "2")
        assert usual(["b", "a", "a", "b"]) == "b"

    def test_what_spelling_would_leave_nothing_of_stays(self) -> None:
        assert [spelt(one) for one in ("A", "B.", "The", " ? ", "a cat")] == ["a", "b", "the", "?", "cat"]
        assert vocabulary(["A", "B", "a"], least=1) == ("a", "b")
        assert worth(("A",), {"a": 0}) == ((0,), (1.0,), (1.0,))
        assert worth(("A", "a", "the"), {"a": 0, "the": 1}).scores == pytest.approx((4 / 9, 2 / 9))

    @pytest.mark.parametrize("people", [("Red",) * 10, ("Red", "red ", "RED!", "the red") + ("red",) * 6])
    def test_spellings_of_one_answer_count_as_one(self, people: tuple[str, ...]) -> None:
        assert worth(people, {"red": 0}) == ((0,), (1.0,), (1.0,))
        assert worth(("one", "1", "x"), {"1": 0}).soft == (SOFT[2],)
        assert usual([spelt(one) for one in ("Red", "red", "blue", "blue", "RED")]) == "red"

    def test_one_person_s_answer_is_right_in_any_spelling(self) -> None:
        numbers = {"2": 0, "two cats": 1, "no": 2}
        assert worth(("No",), numbers) == ((2,), (1.0,), (1.0,))
        assert worth(("maybe",), numbers) == ((), (), ())

    def test_worth_of_vqav2_in_training_counts_what_people_wrote(self) -> None:
        numbers = {"2": 0, "two cats": 1, "no": 2}
        found = worth_as_written(("2", "2", "two", "two cats", "x", "y", "z", "u", "v", "w"), numbers)
        assert found.labels == (0, 1)
        assert found.soft == (SOFT[2], SOFT[1])
        assert found.scores == pytest.approx((0.9, 0.3))  # "two" counts as "2"
        assert worth_as_written(("two",) * 10, numbers) == ((0,), (0.0,), (0.0,))  # agreed: compared as written

    def test_key_gives_rows_of_any_questions(self) -> None:
        answers = [("yes",), ("what",), ("no",), ("yes", "yes", "no")]
        key = Key.of(answers, ["yes", "no"])
        assert key.is_taught.tolist() == [True, False, True, True]
        assert key.best.tolist() == pytest.approx([1, 0, 1, (2 / 3 + 2 / 3) / 3])
        soft, scores = key.dense([3, 1, 0], 2)
        torch.testing.assert_close(soft, torch.tensor([[0.6, 0.3], [0, 0], [1, 0]]))
        part = key.take(np.array([3, 0]))
        torch.testing.assert_close(part.dense([0, 1], 2)[1], scores[[0, 2]])
        assert key.take(np.array([], np.int64)).is_taught.tolist() == []

    def test_what_is_worth_nothing_is_not_taught(self) -> None:
        key = Key.of([("one",) * 10, ("one",) * 6 + ("1",) + ("x",) * 3], ["1"], as_written=True)
        assert key.is_taught.tolist() == [False, True]
        assert key.best.tolist() == pytest.approx([0, 1])


class TestText:
    def test_words_of_training(self) -> None:
        tokenizer = WordTokenizer.of(["Is it red?", "what shape"])
        ids, cut, unknown = tokenizer.encode(["is it BLUE?", "what"], most=20)
        assert (ids.shape, cut, unknown) == ((2, 6), 0, 1)
        assert tokenizer.decode(ids[0].tolist()) == "is it [UNK] ?"
        assert ids[1].tolist()[-3:] == [0, 0, 0]
        short = tokenizer.encode(["is it red ?", "what"], most=4)
        assert (short.ids[0].tolist()[-1], short.ids.shape, short.cut) == (3, (2, 4), 1)  # cut, with both ends

    def test_a_tokenizer_in_a_folder(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "it", "red", "?"]
        (tmp_path / "vocab.txt").write_text("\n".join(words))
        transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
        tokenizer = PretrainedTokenizer(str(tmp_path))
        encoded = tokenizer.encode(["Is it red?", "it"], 10)
        assert encoded.ids.tolist() == [[2, 5, 6, 7, 8, 3], [2, 6, 3, 0, 0, 0]]
        short = tokenizer.encode(["Is it red?", "it blue"], 4)
        assert (short.ids.tolist(), short.cut, short.unknown) == ([[2, 5, 6, 3], [2, 6, 1, 3]], 1, 1)
        assert tokenizer.vocab_size == 9
        with pytest.raises(DataError, match=r"data\.tokenizer=.*gives no tokenizer"):
            PretrainedTokenizer(str(tmp_path / "nothing"))

    def test_a_hub_that_does_not_answer_is_asked_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        transformers = pytest.importorskip("transformers")
        from huggingface_hub import constants

        def silent(name: str) -> None:
            raise SourceError("the Hub does not answer", "connect")

        def load(name: str, **options: Any) -> None:
            assert constants.HF_HUB_OFFLINE  # else it would ask for a minute
            raise OSError("not there")

        monkeypatch.setattr("lmgraft.backbones.refusals.reach", silent)
        monkeypatch.setattr("lmgraft.backbones.refusals.is_offline", lambda: False)
        monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load)
        with pytest.raises(DataError, match=r"in no cache, and the Hub does not answer"):
            PretrainedTokenizer("nobody/nothing")


def save(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (200, 10, 10)).save(folder / name)


@pytest.fixture
def vqav2(tmp_path: Path) -> Path:
    for split, images in (("train2014", (9, 11)), ("val2014", (42,))):
        questions = [
            {"image_id": image, "question": f"is it {n}?", "question_id": 10 * image + n}
            for image in images
            for n in range(2)
        ]
        answers = [["yes"] * 10, ["no"] * 6 + ["maybe"] * 4]
        notes = [
            {
                "question_id": q["question_id"], "image_id": q["image_id"], "answer_type": ("yes/no", "other")[n % 2],
                "question_type": "is it", "multiple_choice_answer": answers[n % 2][0],
                "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(answers[n % 2], 1)],
            }
            for n, q in enumerate(questions)
        ]  # fmt: skip
        (tmp_path / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps({"questions": questions}))
        # Annotations come in another order in the real files too.
        (tmp_path / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps({"annotations": notes[::-1]}))
        save(tmp_path, *(f"{split}/COCO_{split}_{image:012d}.jpg" for image in images))
    return tmp_path


def change(root: Path, key: str, split: str, row: int, **values: Any) -> None:
    """Give a row of VQAv2's files other values; None takes one away."""
    name = f"v2_OpenEnded_mscoco_{split}" if key == "questions" else f"v2_mscoco_{split}"
    file = root / f"{name}_{key}.json"
    rows = json.loads(file.read_text())[key]
    rows[row] = {name: value for name, value in (rows[row] | values).items() if value is not None}
    file.write_text(json.dumps({key: rows}))


def small(**options: Any) -> dict[str, Any]:
    return {"img_size": 8, "batch_size": 1, "num_workers": 0, **options}


class TestVQAv2:
    def test_its_own_files(self, vqav2: Path) -> None:
        data = VQAv2(str(vqav2), min_answer_count=2, val_size=1, **small())
        data.setup()
        assert {split: len(data.split(split)) for split in ("train", "val", "test")} == {
            "train": 2,
            "val": 2,
            "test": 2,
        }
        assert data.answer_names == ("yes", "no")
        assert data.categories() == {"answer_type": ("other", "yes/no"), "question_type": ("is it",)}
        batch = data.split("test").batch([0, 1])
        torch.testing.assert_close(batch.scores, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        assert batch.group.tolist() == [0, 0]
        assert batch.kinds.tolist() == [[1, 0], [0, 0]]
        train_images, val_images = (set(data.split(split).groups.tolist()) for split in ("train", "val"))
        assert not train_images & val_images

    def test_questions_whose_answers_are_worth_nothing_are_left_out(
        self, vqav2: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        change(vqav2, "annotations", "train2014", 0, answers=[{"answer": "one"}] * 10, multiple_choice_answer="one")
        data = VQAv2(str(vqav2), min_answer_count=1, val_size=0, **small())
        data.setup()
        assert "1" in data.answer_names
        assert len(data.split("train")) == 3  # "1" was in nobody's writing
        assert "train: 1 question without a right answer in the vocabulary: left out" in capsys.readouterr().err

    def test_agreed_answers_are_the_noted_ones(self, vqav2: Path) -> None:
        for row in (0, 1):
            change(vqav2, "annotations", "train2014", row, multiple_choice_answer="perhaps")
        data = VQAv2(str(vqav2), min_answer_count=1, val_size=0, **small())
        assert set(data.questions) == {"train", "test"}
        assert set(data.answer_names) == {"yes", "no", "perhaps"}
        change(vqav2, "annotations", "val2014", 0, multiple_choice_answer=None)
        assert VQAv2(str(vqav2), min_answer_count=2, **small()).questions

    @pytest.mark.parametrize(
        ("key", "values", "message"),
        [
            ("questions", {"image_id": None}, r"train2014_questions\.json: question 90 has no number under image_id"),
            ("questions", {"image_id": "x"}, "question 90 has no number under image_id"),
            ("questions", {"question_id": None}, "question number 1 has no number under question_id"),
            ("questions", {"question": None}, "question 90 has no text under question"),
            ("questions", {"question": " "}, "question 90 has no text under question"),
            ("annotations", {"answers": None}, r"train2014_annotations\.json: question 111 has no answers"),
            ("annotations", {"answers": []}, "question 111 has no answers"),
            ("annotations", {"answers": ["yes"]}, "question 111 has an answer without text"),
            ("annotations", {"question_type": None}, "question 111 has no text under question_type"),
            ("annotations", {"multiple_choice_answer": 3}, "question 111 has no text under multiple_choice_answer"),
        ],
    )
    def test_rows_that_are_not_whole(self, vqav2: Path, key: str, values: dict[str, Any], message: str) -> None:
        change(vqav2, key, "train2014", 0, **values)
        with pytest.raises(DataError, match=message):
            VQAv2(str(vqav2), min_answer_count=1, **small()).setup()

    def test_rows_that_are_not_whole_are_counted(self, vqav2: Path) -> None:
        for row in (1, 3):
            change(vqav2, "annotations", "train2014", row, answers=[])
        with pytest.raises(DataError, match=r"question 110 has no answers; 2 of 4 rows lack something"):
            VQAv2(str(vqav2), **small()).setup()
        (vqav2 / "v2_OpenEnded_mscoco_train2014_questions.json").write_text('{"questions": {"a": 1}}')
        with pytest.raises(DataError, match="questions is no list of objects"):
            VQAv2(str(vqav2), **small()).setup()

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"img_size": 0}, "data.img_size must be at least 1, got 0"),
            ({"img_size": (8, -3)}, "data.img_size must be at least 1, got -3"),
            ({"max_text_len": 2}, "data.max_text_len must be at least 3, got 2"),
        ],
    )
    def test_settings_that_are_too_small(self, vqav2: Path, setting: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            VQAv2(str(vqav2), **setting)

    def test_train_and_val_together(self, vqav2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lmgraft.data.vision_language.vqav2._HELD_OUT", 1)
        data = VQAv2(str(vqav2), train_on="train+val", min_answer_count=2, val_size=0, **small())
        data.setup()
        assert len(data.split("train")) == 4  # all of val's only image is held out
        assert data.selection == "test"

    def test_files_of_two_versions(self, vqav2: Path) -> None:
        file = vqav2 / "v2_mscoco_val2014_annotations.json"
        file.write_text(json.dumps({"annotations": json.loads(file.read_text())["annotations"][1:]}))
        with pytest.raises(DataError, match="1 questions of val2014 have no annotation"):
            VQAv2(str(vqav2), **small()).setup()

    def test_an_image_that_is_not_there(self, vqav2: Path) -> None:
        (vqav2 / "val2014/COCO_val2014_000000000042.jpg").unlink()
        with pytest.raises(DataError, match=r"1 image not in .*000000000042\.jpg"):
            VQAv2(str(vqav2), min_answer_count=2, val_size=1, **small()).setup()


class TestTables:
    def table(self, folder: Path, name: str, text: str) -> str:
        save(folder, "a.png", "b.png")
        (folder / name).write_text(text)
        return str(folder / name)

    def test_csv_and_json_lines_are_one(self, tmp_path: Path) -> None:
        csv = self.table(
            tmp_path, "q.csv", 'image,question,answer,split\na.png,"red, or not?",yes,train\nb.png,blue?,no,train\n'
            "a.png,green?,no,test\n",
        )  # fmt: skip
        lines = [
            {"image": "a.png", "question": "red, or not?", "answer": "yes", "split": "train"},
            {"image": "b.png", "question": "blue?", "answer": ["no"], "split": "train"},
            {"image": "a.png", "question": "green?", "answer": "no", "split": "test"},
        ]
        jsonl = self.table(tmp_path, "q.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        first, second = (QuestionFiles(table, val_size=0, **small()) for table in (csv, jsonl))
        assert first.fingerprint()["sha256"] == second.fingerprint()["sha256"]
        assert first.fingerprint()["words"] == second.fingerprint()["words"]
        assert first.selection == "test"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("image,answer\na.png,yes\n", "line 2 has no question"),
            ("image,question,answer\na.png,red?,\n", "line 2 has no answer"),
            ("image,question,answer\na.png,red, or not?,yes\n", "line 2 has more columns"),
            ("image,question,answer,split\na.png,red?,yes,dev\n", "no split 'dev'"),
            ("image,question,answer\na.png,red?,yes\n", "no questions for test"),
            (
                "image,question,answer,split\na.png,red?,yes,train\na.png,red?,yes,\n",
                "names no split, and other rows do",
            ),
            ("", "has no rows"),
            ("image,question,answer\na.png,red?,  \n", "line 2 has no answer"),
            ("image,question,answer\na.png, ,\n,red?,\n", "line 2 has no question and no answer; 2 of 2 rows lack"),
            (
                "image,question,answer,answer_type\na.png,red?,yes,\na.png,blue?,yes,colour\n",
                "line 2 has no answer_type, and other rows do",
            ),
        ],
    )
    def test_what_is_wrong_with_a_table(self, tmp_path: Path, text: str, message: str) -> None:
        table = self.table(tmp_path, "q.csv", text)
        with pytest.raises(DataError, match=message):
            QuestionFiles(table, **small()).setup()

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ("NaN", "object 2 has no answer"), ("[]", "object 2 has no answer"),
            ('["a", " "]', "object 2 has no answer"),
            ("[Infinity]", "object 2 has no answer"), ("true", "object 2 has no text under answer"),
            ('{"a": 1}', "object 2 has no text under answer"),
        ],
    )  # fmt: skip
    def test_values_that_are_no_text(self, tmp_path: Path, answer: str, message: str) -> None:
        row = '{"image": "a.png", "question": "how many?", "answer": %s}'
        table = self.table(tmp_path, "q.json", f"[{row % 3}, {row % answer}]")
        with pytest.raises(DataError, match=message):
            QuestionFiles(table, **small()).setup()

    @pytest.mark.parametrize("name", ["q.csv", "q.jsonl"])
    def test_what_only_some_take_for_the_end_of_a_line_is_text(self, tmp_path: Path, name: str) -> None:
        texts = ["red\u2028or blue?", "a\x0bb\x0cc?", "x\x85y?"]
        rows = [{"image": "a.png", "question": text, "answer": "yes"} for text in texts]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        if name == "q.csv":
            lines = ["image,question,answer", *(",".join(row.values()) for row in rows)]
        table = self.table(tmp_path, name, "\r\n".join(lines))
        (part,) = find_questions(Path(table), None).values()
        assert part.texts == texts

    def test_images_of_two_splits_are_said(self, tmp_path: Path) -> None:
        lines = ("image,question,answer,split", "a.png,red?,yes,train", "b.png,blue?,no,train", "b.png,green?,no,test")
        table = self.table(tmp_path, "q.csv", "\n".join([*lines, "./a.png,red?,yes,val"]))
        found = QuestionFiles(table, **small()).check(0, Mock(return_value=nullcontext(Mock())))
        assert f"1 image of test also in train: {tmp_path}/b.png" in found.remarks
        assert f"1 image of val also in train: {tmp_path}/a.png" in found.remarks

    def test_what_is_lost_of_texts_and_answers_is_said(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = ("image,question,answer,split", "a.png,red or blue?,yes,train", "b.png,blue?,no,train")
        table = self.table(tmp_path, "lost.csv", "\n".join([*lines, "b.png,green?,maybe,test"]))
        data = QuestionFiles(table, val_size=0, max_text_len=5, **small())
        found = data.check(0, Mock(return_value=nullcontext(Mock())))
        noted = capsys.readouterr().err
        for part in ("1 text cut behind data.max_text_len=5", "1 word not in the vocabulary", "counted as wrong"):
            assert any(part in remark for remark in found.remarks)
            assert part in noted

    def test_agreeing_people_are_believed_in_any_spelling(self, tmp_path: Path) -> None:
        rows = [
            {"image": "a.png", "question": "colour?", "answer": [f"{colour}!"] * 3, "split": split}
            for split in ("train", "test")
            for colour in ("Red", "Blue")
        ]
        data = QuestionFiles(self.table(tmp_path, "q.json", json.dumps(rows)), val_size=0, **small())
        found = data.check(0, Mock(return_value=nullcontext(Mock())))
        assert data.answer_names == ("red", "blue")
        batch = data.split("train").batch([0, 1])
        torch.testing.assert_close(batch.targets, 0.9 * torch.eye(2))
        torch.testing.assert_close(batch.scores, torch.eye(2) * 2 / 3)
        assert any("2 questions with the answers of two or three" in remark for remark in found.remarks)
        assert any("66.7 % is the most" in remark for remark in found.remarks)

    def test_a_broken_image_is_counted_and_replaced_in_training(self, tmp_path: Path) -> None:
        rows = "image,question,answer,split\na.png,red?,yes,train\nb.png,blue?,no,train\nb.png,green?,no,test\n"
        table = self.table(tmp_path, "q.csv", rows)
        (tmp_path / "b.png").write_bytes(b"nothing")
        data = QuestionFiles(table, val_size=0, **small())
        data.setup()
        train = data.split("train").__getitems__([Draw(0, 1)])
        assert train.batch.index.tolist() == [0]  # the next readable one, with its own question and answer
        assert [fault.file for fault in train.faults] == [str(tmp_path / "b.png")]
        test = data.split("test").__getitems__([Draw(0, 0)])
        assert not test.batch.images.any()
        assert len(test.faults) == 1


class TestBatches:
    def test_training_does_not_depend_on_the_batch(self, tmp_path: Path) -> None:
        data = ToyQuestions(str(tmp_path), auto_augment="rand-m9-n2", batch_size=4, num_workers=0)
        data.setup()
        items = data.split("train")
        together = items.__getitems__([Draw(3, sample) for sample in range(6)]).batch
        alone = items.__getitems__([Draw(3, 5)]).batch
        torch.testing.assert_close(together.images[5], alone.images[0], rtol=0, atol=0)
        still = data.still("train").batch([5])
        assert not torch.equal(still.images, alone.images)
        torch.testing.assert_close(still.input_ids, alone.input_ids)

    def test_task_scores_by_the_official_rule(self, tmp_path: Path) -> None:
        data = ToyQuestions(str(tmp_path), batch_size=4, num_workers=0)
        data.setup()
        task = QuestionAnswering(nn.Identity(), data, torch.optim.SGD, Mock())
        batch = data.split("test").batch(range(12))
        right = 10 * batch.targets - 5
        columns = task.score(right, batch)
        assert columns["vqa"].tolist() == [1.0] * 12
        assert set(columns) == {"vqa", "vqa_loss", "predicted", "by_answer_type"}
        assert next(iter(task.predict(right, batch)[0])) == data.answer_names[int(batch.targets[0].argmax())]
        by_hand = torch.log1p(torch.exp(-right)) * batch.targets + torch.log1p(torch.exp(right)) * (1 - batch.targets)
        torch.testing.assert_close(task.loss(right, batch), by_hand.sum(1).mean())

    def test_questions_of_some_types_alone(self, tmp_path: Path) -> None:
        data = ToyQuestions(str(tmp_path), only={"answer_type": ["shape"]}, batch_size=4, num_workers=0)
        data.prepare_data()
        data.setup()
        assert not {"yes", "no"} & set(data.answer_names)
        shapes = data.categories()["answer_type"].index("shape")
        for split in ("train", "val", "test"):
            items = data.split(split)
            assert set(items.kinds[:, list(data.categories()).index("answer_type")].tolist()) == {shapes}
        wrong = ToyQuestions(str(tmp_path), only={"answer_type": ["colour"]}, batch_size=4, num_workers=0)
        with pytest.raises(DataError, match=r"no such texts in train"):
            wrong.setup()

    def test_questions_of_ones_own_without_answers(self, tmp_path: Path) -> None:
        data = ToyQuestions(str(tmp_path / "toy"), batch_size=4, num_workers=0)
        record = {"data": data.fingerprint(), "categories": data.categories()}
        save(tmp_path, "x.png")
        (tmp_path / "mine.csv").write_text("image,question\nx.png,is it red?\n")
        fresh = ToyQuestions(str(tmp_path / "elsewhere"), num_workers=0)
        fresh.recall(record)
        items = fresh.open([str(tmp_path / "mine.csv")])
        batch = items.readable([0])
        assert isinstance(items, QuestionSet)
        assert not (tmp_path / "elsewhere").exists()
        assert fresh.tokenizer.decode(batch.input_ids[0].tolist()) == "is it red ?"
        assert "x.png: 'is it red?'" in items.place(0)

    def test_questions_of_ones_own_come_back_as_given_and_in_order(self, tmp_path: Path) -> None:
        data = ToyQuestions(str(tmp_path / "toy"), batch_size=4, num_workers=0)
        record = {"data": data.fingerprint(), "categories": data.categories()}
        save(tmp_path, "photos/x.png", "photos/y.png")
        rows = [
            "image,question,split,answer_type",
            "x.png,Is it MAUVE?,train,",
            "y.png,A,test,colour",
            "x.png,B?,train,",
        ]
        tables = [str(tmp_path / name) for name in ("first.csv", "second.csv")]
        for table in tables:
            Path(table).write_text("\n".join(rows))
        fresh = QuestionFiles("nowhere.csv", root=str(tmp_path / "photos"), num_workers=0)
        fresh.recall(record)
        items = fresh.open(tables)
        said = [items.about(index) for index in items.readable(range(6)).index.tolist()]
        assert [(row["source"], row["row"]) for row in said] == [(table, n) for table in tables for n in (1, 2, 3)]
        assert [row["question"] for row in said] == ["Is it MAUVE?", "A", "B?"] * 2
        assert [Path(row["file"]).name for row in said] == ["x.png", "y.png", "x.png"] * 2
        assert items.place(0) == f"{tmp_path}/photos/x.png: 'Is it MAUVE?'"


def test_easy_vqa_out_of_its_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "easy.whl"
    save(tmp_path, "0.png")
    with zipfile.ZipFile(wheel, "w") as archive:
        for split in ("train", "test"):
            rows = [["what is the blue shape?", "circle", 0], ["is it red?", "no", 0], ["which colour?", "blue", 0]]
            archive.writestr(f"easy_vqa/data/{split}/questions.json", json.dumps(rows))
            archive.write(tmp_path / "0.png", f"easy_vqa/data/{split}/images/0.png")
    with pytest.raises(DataError, match="lmgraft prepare easy-vqa"):
        easy_vqa.EasyVQA(str(tmp_path / "set")).setup()
    easy_vqa.write_set(wheel, tmp_path / "set")
    data = easy_vqa.EasyVQA(str(tmp_path / "set"), val_size=0, batch_size=2, num_workers=0)
    data.setup()
    assert data.categories() == {"answer_type": ("colour", "shape", "yes/no")}
    assert data.split("test").batch([0]).images.shape == (1, 3, 64, 64)
