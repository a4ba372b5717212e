"""Captions: readers, what fits what, negatives and partners; recalls, and images that are encoded once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from image_trees import emoji_packages, picture, tar_of
from PIL import Image
from torch import Tensor, nn

from lmgraft.data.loader import Draw
from lmgraft.data.vision_language import stamps as stamps_module
from lmgraft.data.vision_language.caption_files import CaptionFiles
from lmgraft.data.vision_language.caption_table import Fits
from lmgraft.data.vision_language.captions import NONE, TEST, VAL, CaptionSet
from lmgraft.data.vision_language.emoji_captions import EmojiCaptions, wordings, write_set
from lmgraft.data.vision_language.karpathy import CocoCaptions, Flickr30k
from lmgraft.data.vision_language.stamps import CaptionedStamps
from lmgraft.data.vision_language.toy_captions import ToyCaptions
from lmgraft.errors import DataError, RecipeError
from lmgraft.studies.robustness.suites.grounding import CaptionGrounding
from lmgraft.tasks.retrieval import DEPTHS, Retrieval, places

SMALL: dict[str, Any] = {"img_size": 16, "batch_size": 1, "num_workers": 0}


class Scores(nn.Module):
    """Pairs are scored by tokens of images and texts, as `backbones.meter` takes them."""

    def __init__(self, words: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Conv2d(3, 8, 8, 8), nn.Embedding(words, 8)
        self.head = nn.Linear(16, 3)
        self.encoded = 0

    def encode_image(self, images: Tensor) -> Tensor:
        self.encoded += len(images)
        return self.image(images).flatten(2).mT.tanh()

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.text(ids) * mask[..., None]

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        image = images if images.dim() == 3 else self.encode_image(images)
        text = ids if ids.is_floating_point() else self.encode_text(ids, mask)
        pooled = text.sum(-2) / mask.sum(-1, keepdim=True)
        seen = image.mean(1)
        seen = seen[:, None].expand_as(pooled) if pooled.dim() == 3 else seen
        return self.head(torch.cat([pooled * seen, pooled + seen], -1))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyCaptions:
    data = ToyCaptions(str(tmp_path_factory.mktemp("toy")), batch_size=4, eval_batch_size=3, num_workers=0)
    data.setup()
    return data


def test_stamps_of_one_caption_lie_in_one_part_and_are_one_concept(tmp_path: Path) -> None:
    stamps, out = tmp_path / "usr/share/tuxpaint/stamps", tmp_path / "set"
    (stamps / "birds/owls").mkdir(parents=True)
    for number in range(40):
        file = stamps / ("birds" if number % 2 else "birds/owls") / f"{number:02}.png"
        Image.new("RGBA", (200, 50 + number), (number, 0, 0, 255)).save(file)
        file.with_suffix(".txt").write_text(f"{'An Owl' if number < 4 else f'bird {number}'}.\nde.utf8=Vogel\n")
    Image.new("RGBA", (9, 9)).save(stamps / "birds/mirror.png")
    stamps_module.write_set(tmp_path, out)
    about = json.loads((out / "set.json").read_text())
    assert about["left_out"] == {"without a text": 1}
    assert sum(table["pictures"] for table in about["tables"].values()) == 40
    rows = {name: (out / f"{name}.jsonl").read_text().splitlines() for name in ("train", "val", "test")}
    assert all(rows.values())
    assert [sum("An Owl" in line for line in lines) for lines in rows.values()].count(4) == 1
    first = json.loads(rows["train"][0])
    assert "Vogel" not in first["caption"]
    with Image.open(out / first["image"]) as image:
        assert (image.size, image.mode, image.getpixel((0, 0))) == ((96, 96), "RGB", (255, 255, 255))
    data = CaptionedStamps(str(out), batch_size=4, num_workers=0, tokenizer="words", negatives=2)
    data.setup()
    assert len(data.split("test")) == len(rows["test"])


def task_of(data: Any, **options: Any) -> Retrieval:
    return Retrieval(Scores(), data, torch.optim.SGD, Mock(), **options).eval()


def save(folder: Path, *names: str) -> None:
    for key, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(key, (20, 20)).save(folder / name)


def evaluated(task: Retrieval, data: Any, split: Any) -> None:
    items = data.split(split)
    size = data.eval_batch_size
    with torch.no_grad():
        parts = [task.columns(items.batch(range(at, min(at + size, len(items))))) for at in range(0, len(items), size)]
    task.settle(parts, split)


class TestWhatFits:
    def test_captions_of_equal_words_fit_each_others_images(self) -> None:
        texts = ["A dog", "two cats", "a  dog", "cats", "a dog"]
        fits = Fits.of(texts, np.array([0, 1, 2, 1, 0]), equal_texts=True)
        assert fits.caption.tolist() == [0, 1, 0, 2, 0]
        assert fits.of_concept.tolist() == [[0, -1], [1, 2], [0, -1]]
        assert fits.shared() == 1
        alone = Fits.of(texts, np.array([0, 1, 2, 1, 0]), equal_texts=False)
        assert alone.caption.tolist() == [0, 1, 2, 1, 0]
        assert alone.of_concept.tolist() == [[0], [1], [2]]

    @given(st.integers(0, 10_000))
    @settings(max_examples=20, deadline=None)
    def test_places_by_definition(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        scores, fits = rng.integers(0, 4, (5, 6)).astype(float), rng.random((5, 6)) < 0.4
        fits[np.arange(5), rng.integers(0, 6, 5)] = True
        for row, of, place in zip(scores, fits, places(scores, fits), strict=True):
            order = sorted(range(6), key=lambda i: (-row[i], of[i]))  # of equal scores the wrong one first
            assert place == next(n for n, i in enumerate(order) if of[i])

    def test_scores_that_are_no_numbers_have_no_place(self) -> None:
        assert np.isnan(places(np.array([[np.nan, 1.0]]), np.array([[True, False]]))).all()


class TestBatches:
    def test_negatives_never_fit_and_partners_do_not_either(self, toy: ToyCaptions) -> None:
        items = toy.split("train")
        assert isinstance(items, CaptionSet)
        names = toy.captions["train"]
        text_of_item = [names.texts[i] for i in items.indices.tolist()]
        concepts = [names.concepts[names.image[i]] for i in items.indices.tolist()]
        fitting = {c: {t for t, d in zip(text_of_item, concepts, strict=True) if d == c} for c in concepts}
        swapped = 0
        for epoch in range(8):
            samples = range(0, len(items), 5)
            batch = items.__getitems__([Draw(epoch, s) for s in samples]).batch
            for row, sample in enumerate(samples):
                shown = [toy.tokenizer.decode(ids.tolist()) for ids in batch.input_ids[row]]
                assert shown[0] == text_of_item[sample]
                assert not set(shown[1:]) & fitting[concepts[sample]]
                partner = samples[int(batch.partner[row])]
                assert partner == sample or text_of_item[partner] not in fitting[concepts[sample]]
                swapped += partner != sample
        assert 0.3 < swapped / (8 * len(samples)) < 0.7

    def test_negatives_are_drawn_evenly(self, toy: ToyCaptions) -> None:
        items = toy.split("train")
        drawn = [items.__getitems__([Draw(epoch, 0)]).batch.input_ids[0, 1:] for epoch in range(80)]
        counts = {tuple(ids.tolist()): 0 for ids in toy.tokens([items.text(n) for n in range(len(items))], "")}
        for ids in torch.cat(drawn).tolist():
            counts[tuple(ids)] += 1
        own = [n for n, count in counts.items() if count == 0]
        assert len(own) == 2  # the two captions of its concept

    def test_draws_depend_on_seed_epoch_and_item_alone(self, toy: ToyCaptions) -> None:
        items = toy.split("train")
        together = items.__getitems__([Draw(2, n) for n in range(9)]).batch
        alone = items.__getitems__([Draw(2, 7)]).batch
        assert torch.equal(together.input_ids[7], alone.input_ids[0])
        assert not torch.equal(items.__getitems__([Draw(3, 7)]).batch.input_ids, alone.input_ids)
        assert torch.equal(toy.still("train").batch([7]).input_ids[:, 0], alone.input_ids[:, 0])

    def test_evaluation_shows_one_caption_and_says_its_gallery(self, toy: ToyCaptions) -> None:
        for split, gallery in (("val", VAL), ("test", TEST)):
            batch = toy.split(split).batch([0, 1, 2])
            assert batch.input_ids.shape[1] == 1
            assert batch.gallery.tolist() == [gallery] * 3
            assert batch.partner.tolist() == [0, 1, 2]
        assert len(toy.gallery(TEST)) == len(toy.captions["test"].names)

    def test_a_limit_of_the_gallery_leaves_captions_out(self, toy: ToyCaptions) -> None:
        data = ToyCaptions(str(toy.tree), max_gallery=3, max_gallery_test=2, batch_size=4, num_workers=0)
        data.setup()
        assert len(data.gallery(VAL)) == 3
        assert len(data.gallery(TEST)) == 2
        assert len(data.split("test")) == 4
        assert data.fingerprint()["galleries"] == {"val": 3, "test": 2}

    def test_captions_that_all_fit_one_image(self, tmp_path: Path) -> None:
        save(tmp_path, "a.png", "b.png")
        rows = "image,caption,split\na.png,a thing,train\nb.png,A thing,train\na.png,it,test\n"
        (tmp_path / "c.csv").write_text(rows)
        with pytest.raises(DataError, match=r"all captions of .* fit one image"):
            CaptionFiles(str(tmp_path / "c.csv"), val_size=0, **SMALL).setup()
        CaptionFiles(str(tmp_path / "c.csv"), val_size=0, equal_texts=False, **SMALL).setup()


class TestTask:
    def test_recalls_by_definition(self, toy: ToyCaptions) -> None:
        task = task_of(toy, pairs=7)
        evaluated(task, toy, "test")
        part, items, gallery = toy.captions["test"], toy.split("test"), toy.gallery(TEST)
        concept, text = [part.concepts[n] for n in part.image], part.texts
        fits = np.array([
            [any(text[c] == text[d] and concept[d] == part.concepts[image] for d in range(len(text)))
             for image in gallery.image.tolist()] for c in range(len(text))
        ])  # fmt: skip
        images = gallery.batch(range(len(gallery))).images
        ids, mask = items.texts(torch.arange(len(items)))
        with torch.no_grad():
            scores = torch.stack([task.model(images, i.expand(len(images), -1), m.expand(len(images), -1))[:, 0]
                                  for i, m in zip(ids, mask, strict=True)]).numpy()  # fmt: skip
        for name, of, fit in (("ir", scores, fits), ("tr", scores.T, fits.T)):
            for most in DEPTHS:
                reached = [fit[n][np.argsort(-of[n], kind="stable")[:most]].any() for n in range(len(of))]
                assert task.values[f"{name}{most}"] == pytest.approx(np.mean(reached))
        assert not {"scores", "gallery", "caption"} & set(task.items)
        assert task.items["images/group"].tolist() == gallery.groups.tolist()
        assert len(task.items["images/tr1"]) == len(gallery) < len(task.items["ir1"])
        assert set(task.items) >= {"ir1", "match", "by_wording", "images/index", "images/tr10"}

    def test_a_model_that_gives_all_pairs_one_score_finds_nothing(self, toy: ToyCaptions) -> None:
        task = task_of(toy)
        nn.init.zeros_(task.model.head.weight)
        evaluated(task, toy, "val")
        assert task.values["ir1"] == task.values["tr1"] == 0

    def test_images_are_encoded_once_for_the_weights_as_they_are(self, toy: ToyCaptions) -> None:
        task, model, batch = task_of(toy), Scores(), toy.split("test").batch([0, 1])
        task.model = model
        count = len(toy.gallery(TEST))

        def encoded() -> int:
            before = model.encoded
            with torch.no_grad():
                task.outputs(batch)
            return model.encoded - before - len(batch.index)  # its own pairs

        assert [encoded(), encoded()] == [count, 0]
        first = task.outputs(batch).rank
        with torch.no_grad():
            model.image.weight.add_(0.5)
        assert encoded() == count
        assert not torch.equal(task.outputs(batch).rank, first)
        model.load_state_dict(Scores().state_dict())
        assert encoded() == count
        torch.testing.assert_close(task.outputs(batch).rank, first)
        assert not task.outputs(batch).rank.requires_grad
        assert task.outputs(toy.split("val").batch([0])).rank.shape == (1, len(toy.gallery(VAL)))

    def test_loss_of_training(self, toy: ToyCaptions) -> None:
        batch = toy.split("train").batch(range(6))
        task = task_of(toy, rank_weight=2.0, match_weight=0.5)
        own = task.model(batch.images, batch.input_ids, batch.attention_mask)[..., 0].log_softmax(1)[:, 0]
        ids, mask = (of[batch.partner, 0] for of in (batch.input_ids, batch.attention_mask))
        match = task.model(batch.images, ids, mask)[:, 1:].log_softmax(1)
        right = match[torch.arange(6), (batch.partner == torch.arange(6)).long()]
        loss = task.loss(task.outputs(batch), batch)
        torch.testing.assert_close(loss, -2 * own.mean() - 0.5 * right.mean())
        assert (batch.partner != torch.arange(6)).any()
        without = task_of(toy, match_weight=0.0)
        torch.testing.assert_close(without.loss(without.outputs(batch), batch), -own.mean())
        loss.backward()
        assert all(p.grad is not None for p in task.model.parameters())

    def test_encoders_are_aligned_before_fusion_where_wanted(self, toy: ToyCaptions) -> None:
        batch = toy.split("train").batch(range(8))
        plain, task = task_of(toy), task_of(toy, align_weight=3.0, temperature=0.5)
        task.model.load_state_dict(plain.model.state_dict())
        for one in (task, plain):
            one.train().model.requires_grad_(False)
        ids, mask = batch.input_ids[:, 0], batch.attention_mask[:, 0]
        image = F.normalize(task.model.encode_image(batch.images).mean(1), dim=1)
        words = task.model.encode_text(ids, mask)
        text = F.normalize(torch.stack([of[: int(n)].mean(0) for of, n in zip(words, mask.sum(1), strict=True)]), dim=1)
        total = 0.0
        for i in range(8):
            others = [j for j in range(8) if j == i or int(batch.caption[j]) not in batch.fitting[i].tolist()]
            total -= float((text[others] @ image[i] / 0.5).log_softmax(0)[others.index(i)]) / 16
            others = [j for j in range(8) if j == i or int(batch.caption[i]) not in batch.fitting[j].tolist()]
            total -= float((image[others] @ text[i] / 0.5).log_softmax(0)[others.index(i)]) / 16
        assert len(others) < 8
        loss, without = (float(one.loss(one.outputs(batch), batch)) for one in (task, plain))
        assert loss == pytest.approx(without + 3 * total, rel=1e-5)
        task.eval()
        assert task.outputs(batch).aligned is None

    def test_what_it_refuses(self, toy: ToyCaptions) -> None:
        with pytest.raises(RecipeError, match="batch_size=1"):
            task_of(toy).check(1)
        task_of(toy, match_weight=0.0).check(1)
        with pytest.raises(RecipeError, match="weights are not negative"):
            task_of(toy, rank_weight=0.0, match_weight=0.0)
        with pytest.raises(RecipeError, match="Identity cannot"):
            Retrieval(nn.Identity(), toy, torch.optim.SGD, Mock())

    def test_a_model_of_other_columns(self, toy: ToyCaptions) -> None:
        task = task_of(toy)
        task.model.head = nn.Linear(16, 5)
        with pytest.raises(RecipeError, match="head: matching"):
            task.try_on(toy.example(4), toy.name)

    def test_an_example_goes_all_the_way(self, toy: ToyCaptions) -> None:
        task = task_of(toy)
        task.try_on(toy.example(4), toy.name)
        assert set(task.values) == set(task.scored)

    def test_pairs_of_ones_own(self, toy: ToyCaptions, tmp_path: Path) -> None:
        fresh = ToyCaptions(str(tmp_path / "elsewhere"), num_workers=0)
        fresh.recall({"data": toy.fingerprint(), "categories": toy.categories()})
        save(tmp_path, "x.png")
        (tmp_path / "pairs.csv").write_text("image,caption\nx.png,a red disc\nx.png,a blue square\n")
        items, task = fresh.open([str(tmp_path / "pairs.csv")]), task_of(fresh)
        batch = items.readable([0, 1])
        assert batch.gallery.tolist() == [NONE, NONE]
        rows = task.predict(task.outputs(batch), batch)
        assert [set(row) for row in rows] == [{"match", "score"}] * 2
        assert rows[0] != rows[1]
        assert "x.png: 'a red disc'" in items.place(0)
        assert items.about(1) == {
            "file": str(tmp_path / "x.png"), "source": str(tmp_path / "pairs.csv"), "row": 2,
            "caption": "a blue square",
        }  # fmt: skip
        ranked = task_of(toy)
        batch = toy.split("test").batch([0])
        (row,) = ranked.predict(ranked.outputs(batch), batch)
        assert len(row) == 6
        assert all(name == "match" or (toy.tree / name).is_file() for name in row)

    def test_pictures_of_what_is_found_have_a_blue_frame_where_they_fit(self, toy: ToyCaptions) -> None:
        task, batch = task_of(toy), toy.split("test").batch([0, 1])
        out, gallery = task.outputs(batch), toy.gallery(TEST)
        for rank, caption, titled in zip(out.rank, batch.caption, task.pictures(out, batch), strict=True):
            assert list(titled) == ["found 1", "found 2", "found 3"]
            for at, framed in zip(rank.topk(3).indices.tolist(), titled.values(), strict=True):
                image = gallery.batch([at]).images[0]
                torch.testing.assert_close(framed[:, 1:-1, 1:-1], image)
                fits = bool((gallery.fits_of_all[at] == caption).any())
                assert framed[2 if fits else 0, 0, 0] == image.max()

    def test_an_item_alone_needs_no_other_image(self, toy: ToyCaptions) -> None:
        task, batch = task_of(toy), toy.split("test").batch([0, 1, 2])
        model: Any = task.model
        before = model.encoded
        alone = task.score_alone(batch)[task.alone.column]
        assert model.encoded - before == 3
        torch.testing.assert_close(alone, task.score(task.outputs(batch), batch)[task.alone.column])

    def test_other_images_to_be_ranked(self, toy: ToyCaptions) -> None:
        """As a suite shows them: its own gallery, named by the batch."""
        task, items = task_of(toy), toy.split("test")
        assert isinstance(items, CaptionSet)
        number = toy.add_gallery(toy.gallery(TEST).take([0, 1, 2]))
        batch = items.batch([0, 1])
        other = batch._replace(gallery=torch.full_like(batch.gallery, number))
        torch.testing.assert_close(task.outputs(other).rank, task.outputs(batch).rank[:, :3])


def karpathy(root: Path, file: str, images: list[dict[str, Any]]) -> Path:
    (root / file).write_text(json.dumps({"images": images, "dataset": "x"}))
    return root


def row(name: str, split: str, *raw: str, **more: Any) -> dict[str, Any]:
    return {"filename": name, "split": split, "sentences": [{"raw": one, "tokens": []} for one in raw], **more}


class TestKarpathy:
    FLICKR = [
        row("1.jpg", "train", "A dog runs .", "A dog"),
        row("2.jpg", "train", "A cat", "A dog"),
        row("5.jpg", "train", "A pig", "Pigs"),
        row("3.jpg", "val", "A cow", "a cow"),
        row("4.jpg", "test", "A hen", "Birds", "Birds"),
    ]

    def test_flickr30k(self, tmp_path: Path) -> None:
        save(tmp_path / "flickr30k-images", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg")
        root = str(karpathy(tmp_path, "dataset_flickr30k.json", self.FLICKR))
        data = Flickr30k(root, **SMALL)
        data.setup()
        assert [len(data.split(split)) for split in ("train", "val", "test")] == [6, 2, 3]
        assert data.selection == "val"
        assert data.split_names() == {"train": "Karpathy's train", "val": "Karpathy's val", "test": "Karpathy's test"}
        items = data.split("train")
        assert isinstance(items, CaptionSet)
        assert items.caption.tolist() == [0, 0, 1, 1, 2, 2]  # equal words count for their own image alone
        meter = Flickr30k(root, train_on="train+val", val_size=0, **SMALL)
        meter.setup()
        assert [len(meter.split(split)) for split in ("train", "val", "test")] == [8, 3, 3]
        assert meter.fingerprint()["selection"] == "test"
        assert meter.fingerprint()["train_on"] == "train+val"
        assert meter.split_names() == {"train": "Karpathy's train and val", "test": "Karpathy's test"}
        on_val = Flickr30k(root, test_split="val", val_size=1, **SMALL)
        on_val.setup()
        assert [len(on_val.split(split)) for split in ("train", "val", "test")] == [4, 2, 2]
        assert on_val.split_names()["test"] == "Karpathy's val"
        assert on_val.split_names()["val"] == "held out of Karpathy's train"
        with pytest.raises(DataError, match="trains on what it tests"):
            Flickr30k(root, train_on="train+val", test_split="val")

    def test_coco(self, tmp_path: Path) -> None:
        save(tmp_path, "train2014/1.jpg", "val2014/2.jpg", "val2014/3.jpg")
        rows = [row("1.jpg", "train", "one", filepath="train2014"), row("2.jpg", "restval", "two", filepath="val2014"),
                row("3.jpg", "test", "three", filepath="val2014")]  # fmt: skip
        data = CocoCaptions(str(karpathy(tmp_path, "dataset_coco.json", rows)), val_size=0, **SMALL)
        data.setup()
        assert [len(data.split(split)) for split in ("train", "test")] == [2, 1]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([row("1.jpg", "dev", "x")], "1.jpg is of split 'dev'"),
            ([row("1.jpg", "train")], "1.jpg has no sentences"),
            ([row("1.jpg", "train", " ")], "1.jpg has a sentence without text"),
            ([row("1.jpg", "train", "x")], "no captions for test"),
            ([row("1.jpg", "train", "x"), row("2.jpg", "test", "y")], r"1 image not in .*2\.jpg"),
            ([{"split": "train"}], "image 0 has no filename"),
            ([row("1.jpg", "train", "x", filepath=3)], "1.jpg has a filepath that is no text"),
            ([row("1.jpg", "train"), row("2.jpg", "val")], "1.jpg has no sentences; 2 of 2 rows"),
            (["x"], "is not Karpathy's"),
        ],
    )
    def test_what_is_wrong_with_it(self, tmp_path: Path, rows: list[Any], message: str) -> None:
        save(tmp_path / "flickr30k-images", "1.jpg")
        with pytest.raises(DataError, match=message):
            Flickr30k(str(karpathy(tmp_path, "dataset_flickr30k.json", rows)), val_size=0, **SMALL).setup()

    def test_a_file_that_is_not_there_or_cut_off(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be read"):
            Flickr30k(str(tmp_path)).setup()
        (tmp_path / "dataset_flickr30k.json").write_text('{"images": [{"spl')
        with pytest.raises(DataError, match="is not Karpathy's"):
            Flickr30k(str(tmp_path)).setup()


class TestTables:
    def test_pictures_of_one_concept(self, tmp_path: Path) -> None:
        save(tmp_path, "a.png", "b.png", "c.png")
        rows = ["image\tcaption\tconcept\tsplit", "a.png\tdog\t1\ttrain", "b.png\thound\t1\ttrain",
                "c.png\tcat\t2\ttrain", "a.png\tdog\t1\ttest", "c.png\tcat\t2\ttest"]  # fmt: skip
        (tmp_path / "c.tsv").write_text("\n".join(rows) + "\n")
        data = CaptionFiles(str(tmp_path / "c.tsv"), val_size=0, **SMALL)
        data.setup()
        assert data.split("train").groups.tolist() == [0, 0, 1]
        assert data.selection == "test"
        batch = data.split("train").batch([0])
        assert {data.tokenizer.decode(ids.tolist()) for ids in batch.input_ids[0, 1:]} == {"cat"}

    def test_concepts_are_held_out_whole(self, tmp_path: Path) -> None:
        names = [f"{number}.png" for number in range(24)]
        save(tmp_path, *names)
        rows = [{"image": name, "caption": f"thing {n // 3}", "concept": n // 3, "split": "test" if n < 3 else "train"}
                for n, name in enumerate(names)]  # fmt: skip
        (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for size in (0.4, 2):
            data = CaptionFiles(str(tmp_path / "c.jsonl"), val_size=size, **SMALL)
            data.setup()
            train, val = (set(data.split(split).groups.tolist()) for split in ("train", "val"))
            assert val
            assert train
            assert not val & train
            assert len(data.split("val")) == 3 * len(val)
        assert len(val) == 2
        with pytest.raises(DataError, match="has 7 concepts"):
            CaptionFiles(str(tmp_path / "c.jsonl"), val_size=7, **SMALL).setup()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("image,caption\na.png,\n", "line 2 has no caption"),
            ("image,caption\na.png,  \na.png,x\na.png,\n", "line 2 has no caption; 2 of 3 rows lack"),
            (
                "image,caption,concept,split\na.png,x,1,train\na.png,y,2,train\na.png,y,1,test\n",
                "3: the image has",
            ),
            ("image,caption,concept,split\na.png,x,1,train\na.png,y,,train\na.png,y,1,test\n", "line 3 has no concept"),
            ("image,caption\na.png,x\n", "no captions for test"),
        ],
    )
    def test_what_is_wrong_with_a_table(self, tmp_path: Path, text: str, message: str) -> None:
        save(tmp_path, "a.png")
        (tmp_path / "c.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            CaptionFiles(str(tmp_path / "c.csv"), **SMALL).setup()


def test_emoji_with_their_words(tmp_path: Path) -> None:
    assert [one.text for one in wordings(["grinning_face", "face", "smile", ":D", "face"])] == [
        "grinning face", "face, smile",
    ]  # fmt: skip
    assert [one.kind for one in wordings(["memo", "paper"])] == ["name"]
    words = {
        chr(int(f"1f6{key:02}", 16)): [f"thing_{key}", "red" if key < 2 else f"word {key}", "thing"]
        for key in range(23)
    }
    packed = tar_of({"package/dist/emoji-en-US.json": json.dumps(words).encode()})
    (tmp_path / "words.tgz").write_bytes(gzip.compress(packed))
    with pytest.raises(DataError, match="lmgraft prepare emoji-captions"):
        EmojiCaptions(str(tmp_path / "set")).setup()
    write_set(emoji_packages(tmp_path), tmp_path / "words.tgz", tmp_path / "set")
    about = json.loads((tmp_path / "set" / "set.json").read_text())
    assert about["left_out"]["without words"] == 7  # the men, and the one of which there are none
    tables = about["tables"]
    assert tables["style"]["concepts"] + tables["concepts"]["concepts"] == 23
    assert tables["style"]["pictures"] == tables["style"]["concepts"] == tables["train"]["concepts"]
    assert tables["train"]["pictures"] + tables["val"]["pictures"] == 2 * tables["style"]["pictures"]
    sets = {unseen: EmojiCaptions(str(tmp_path / "set"), unseen=unseen, batch_size=2, num_workers=0)
            for unseen in ("style", "concepts", "both")}  # fmt: skip
    shown = {}
    for unseen, data in sets.items():
        data.setup()
        parts = data.captions
        shown[unseen] = {name.split("/")[1] for name in parts["test"].names}
        assert set(parts["test"].concepts) <= set(parts["train"].concepts) or unseen != "style"
        assert not set(parts["test"].concepts) & set(parts["train"].concepts) or unseen == "style"
        assert not set(parts["val"].names) & set(parts["train"].names)
        assert set(parts["val"].concepts) <= set(parts["train"].concepts)
    assert shown == {"style": {"fluent"}, "concepts": {"google"}, "both": {"fluent"}}
    image = sets["style"].split("test").batch([0]).images
    assert image.shape == (1, 3, 64, 64)


def test_what_is_lost_without_images_or_the_own_caption(tmp_path: Path) -> None:
    data = ToyCaptions(str(tmp_path), batch_size=4, eval_batch_size=3, num_workers=0)
    conditions = {one.part or one.key: one.items for one in CaptionGrounding().conditions(data)}
    task = task_of(data)
    draws = [Draw(0, sample) for sample in range(len(data.split("test")))]
    shown = {name: items.__getitems__(draws).batch for name, items in conditions.items()}  # type: ignore[union-attr]
    assert set(shown) == {"clean", "other_caption", "shuffled_words", "mean_image"}
    own, other, moved = (shown[name].input_ids for name in ("clean", "other_caption", "shuffled_words"))
    assert (own != other).any(-1).all()
    assert (own != moved).any()
    torch.testing.assert_close(own.sort(-1).values, moved.sort(-1).values)
    with torch.no_grad():
        reached = {name: task.columns(batch)["ir1"].mean() for name, batch in shown.items()}
    assert reached["mean_image"] == 0  # all images are alike, and the wrong one comes first
    assert reached["clean"] > 0
    images = data.gallery(int(shown["mean_image"].gallery[0]))
    assert not images.batch([0]).images.any()
    assert data.gallery(TEST).batch([0]).images.any()
