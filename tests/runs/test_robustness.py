"""The robustness suites: what the task counts, resuming, records of before, table, figure and the command."""

import json
import re
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import timm
import torch
import toy_ranges
from PIL import Image
from safetensors.torch import save_file
from studying import run_here, without_flops
from test_robustness_sets import picture, published  # noqa: F401  (fixtures)
from torch import nn

from lmgraft import records
from lmgraft.analysis.intervals import items_interval, wilson_interval
from lmgraft.analysis.items import metric_interval
from lmgraft.analysis.robustness import level_means
from lmgraft.cli.main import main
from lmgraft.data.image import imagenet_sets
from lmgraft.data.image.corruptions import CORRUPTIONS, corrupt
from lmgraft.data.image.fashion_mnist import FashionMNIST
from lmgraft.data.items import ItemSet
from lmgraft.data.labelled import LabelledBatch
from lmgraft.errors import DataError, RecipeError, RunError
from lmgraft.recipes import load_trained, train_run
from lmgraft.recipes.recipe import parse_recipe
from lmgraft.registry import SUITES
from lmgraft.report.robustness.table import markdown, to_dict, write_report
from lmgraft.studies.robustness.cells import Cell, read_cells, write_cells
from lmgraft.studies.robustness.paired import lost_intervals
from lmgraft.studies.robustness.run import (
    Robustness,
    RobustnessConfig,
    Subject,
    evaluate_elsewhere,
    evaluate_robustness,
    evaluate_subject,
    robustness_config,
)
from lmgraft.studies.robustness.run import _labels as robustness_labels
from lmgraft.studies.robustness.suite import Condition, Spread, Suite
from lmgraft.studies.robustness.suites import imagenet, timm_model
from lmgraft.studies.robustness.suites.corruptions import Corruptions
from lmgraft.studies.robustness.suites.imagenet import ALEXNET_CLEAN_ERROR, ALEXNET_ERRORS, ImageNetSets
from lmgraft.studies.robustness.suites.imagenet_classes import check_classes
from lmgraft.studies.robustness.suites.imagenet_places import FoundSets
from lmgraft.studies.robustness.suites.points import PointCorruptions
from lmgraft.studies.study.config import parse_study
from lmgraft.tasks.classification import ACCURACY, NLL, Classification
from lmgraft.training.fit import TrainConfig

SOME = ("gaussian_noise", "contrast")


def cell(accuracy, part=None, level=None, **changes):
    made = Cell(
        suite="corruptions",
        title=part or "clean",
        part=part,
        level=level,
        metrics={"accuracy": accuracy},
        intervals={"accuracy": wilson_interval(round(100 * accuracy), 100)},
        items=100,
        conditions={},
    )
    return replace(made, **changes)


def rows_of(suite, cells):
    return {(row.kind, row.name): row.value for row in suite.summary(cells, ACCURACY)}


def test_mce_by_hand():
    """Half of AlexNet's errors everywhere but on fog, where they are AlexNet's own: (14 * 0.5 + 1) / 15."""
    cells = {"imagenet": cell(1 - ALEXNET_CLEAN_ERROR)}
    for name, error in ALEXNET_ERRORS.items():
        wanted = error if name == "fog" else error / 2
        for severity in range(1, 6):
            wrong = wanted + (severity - 3) / 1000  # a spread that the mean forgets
            cells[f"imagenet_c/{name}/{severity}"] = cell(1 - wrong, name, severity)
    rows = rows_of(ImageNetSets(), cells)
    assert rows["whole", "mce"] == pytest.approx(8 / 15, abs=1e-6)
    mean = np.mean([1 - e / (1 if n == "fog" else 2) for n, e in ALEXNET_ERRORS.items()])
    assert rows["whole", "mean"] == pytest.approx(mean)
    assert rows["level", "1"] - rows["level", "5"] == pytest.approx(0.004)
    assert rows["whole", "kept"] == pytest.approx(mean / (1 - ALEXNET_CLEAN_ERROR), abs=1e-6)
    itself = {key: replace(c, metrics={"accuracy": 1 - ALEXNET_ERRORS.get(c.part, 0)}) for key, c in cells.items()}
    rows = rows_of(ImageNetSets(), itself | {"imagenet": cells["imagenet"]})
    assert rows["whole", "mce"] == pytest.approx(1)
    assert rows["whole", "relative_mce"] == pytest.approx(1, abs=1e-5)
    assert not {("whole", "mce"), ("whole", "relative_mce")} & rows_of(Corruptions(), cells).keys()


def test_summaries_without_alexnet():
    values = {"fog": {1: 0.75, 2: 0.25}, "snow": {1: 0.25, 2: 0.0}}
    cells = {f"imagenet_c/{p}/{n}": cell(v, p, n) for p, row in values.items() for n, v in row.items()}
    rows = rows_of(ImageNetSets(), cells | {"imagenet": cell(1.0)})
    assert rows == {
        ("part", "fog"): 0.5,
        ("part", "snow"): 0.125,
        ("level", "1"): 0.5,
        ("level", "2"): 0.125,
        ("whole", "mean"): 0.3125,
        ("clean", "clean"): 1.0,
        ("whole", "kept"): 0.3125,
    }  # fmt: skip (two of fifteen are no mCE)
    del values["snow"][2]
    with pytest.raises(ValueError, match="snow"):
        level_means(values)
    assert list(ALEXNET_ERRORS) == list(CORRUPTIONS)


class Zeros(ItemSet):
    """Black images, of class 0 and 1 in turn; counts how many were asked for."""

    def __init__(self, size):
        self.indices = self.groups = torch.arange(size)
        self.asked = 0

    def __getitems__(self, draws):
        self.asked += len(draws)
        index = torch.tensor([draw.sample for draw in draws])
        return LabelledBatch(torch.zeros(len(draws), 3, 8, 8), index % 2, index, index)


def test_a_limit_is_spread_over_the_classes():
    assert Spread(Zeros(10), 99).indices.tolist() == list(range(10))
    some = Spread(Zeros(1000), 4)
    assert some.indices.tolist() == some.batch(range(4)).index.tolist() == [0, 250, 500, 750]


@pytest.mark.parametrize("several", [False, True])
def test_scores_of_labels_and_of_shares_against_plain_definitions(several):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 9, generator=generator)
    rights = [{int(k) for k in torch.randperm(9, generator=generator)[: 1 + several * (i % 4)]} for i in range(50)]
    shares = torch.zeros(50, 9)
    for row, right in zip(shares, rights, strict=True):
        row[list(right)] = 1 / len(right)
    labels = shares if several else torch.tensor([next(iter(right)) for right in rights])
    task = Classification(nn.Identity(), data(), None, None)
    scored = task.score(logits, LabelledBatch(logits, labels, torch.arange(50), torch.arange(50)))
    for row, right, hit, top5, nll in zip(
        logits.double().tolist(), rights, *(scored[name].tolist() for name in ("accuracy", "top5", "nll")), strict=True
    ):
        order = sorted(range(9), key=lambda k: -row[k])
        assert hit == (order[0] in right)
        assert top5 == (min(order.index(k) for k in right) < 5)
        total = np.exp(row).sum()
        assert nll == pytest.approx(-np.log(sum(np.exp(row[k]) for k in right) / total), abs=1e-5)
    if not several:
        one_hot = task.score(logits, LabelledBatch(logits, shares, torch.arange(50), torch.arange(50)))
        assert all(torch.allclose(one_hot[name], scored[name], atol=1e-6) for name in ("accuracy", "top5", "nll"))


class Brightest(nn.Module):
    """Says that the class is 100 x the mean of the first channel: an image's colour decides."""

    def forward(self, images):
        wanted = images[:, 0].mean((1, 2)) * 100
        return -(torch.arange(1000.0) - wanted[:, None]).abs()


def data(**shown):
    config = {"input_size": (3, 224, 224), "interpolation": "bicubic", "mean": (0, 0, 0), "std": (1, 1, 1)}
    return timm_model.AsTimmShows("toy", config | {"crop_pct": 1.0, "crop_mode": "center"} | shown)


def subject(tmp_path, model=None, shown=None, **changes):
    given = data() if shown is None else shown
    made = Subject(
        label="toy",
        task=Classification(Brightest() if model is None else model, given, None, None),
        data=given,
        train=TrainConfig(accelerator="cpu"),
        weights="w",
        record=tmp_path / "robustness.json",
    )
    return replace(made, **changes)


@dataclass(frozen=True, kw_only=True)
class Given(Suite):
    """These conditions."""

    name = "given"
    given: tuple = ()

    def conditions(self, data):
        return list(self.given)


def published_sets(*sets):
    suite = ImageNetSets()
    vars(suite)["found"] = FoundSets(sets, ())
    return RobustnessConfig(suite=suite, workers=0)


def test_masks_and_several_right_answers(tmp_path):
    """Red 102 / 255 says class 40; among the masked classes the nearest is taken."""
    Image.new("RGB", (224, 224), (102, 0, 0)).save(tmp_path / "a.png")
    one = imagenet_sets.PublishedSet("imagenet", tmp_path, ("a.png",), ((40,),))
    masked = replace(one, name="imagenet_a", classes=(3, 44, 900), targets=((44,),))
    config = published_sets(
        one,
        masked,
        replace(masked, name="imagenet_r", targets=((900,),)),
        replace(one, name="imagenet_real", targets=((1, 40, 77),)),
        replace(one, name="imagenet_v2", targets=((41,),)),
    )
    result = evaluate_subject(subject(tmp_path), config)
    metrics = {key: c.metrics for key, c in result.cells.items()}
    assert {key: values["accuracy"] for key, values in metrics.items()} == {
        "imagenet": 1, "imagenet_a": 1, "imagenet_r": 0, "imagenet_real": 1, "imagenet_v2": 0,
    }  # fmt: skip
    assert all(values["top5"] for values in metrics.values())  # the second best, and all three of those that are left
    logits = -(torch.arange(1000.0) - 40).abs().double()
    expected = logits.logsumexp(0) - logits[[1, 40, 77]].logsumexp(0)
    assert metrics["imagenet_real"]["nll"] == pytest.approx(float(expected), abs=1e-4)
    allowed = logits[[3, 44, 900]]
    assert metrics["imagenet_a"]["nll"] == pytest.approx(float(allowed.logsumexp(0) - allowed[1]), abs=1e-4)
    assert isinstance(subject(tmp_path).task.model, Brightest)


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    config = published_sets(imagenet_sets.PublishedSet("imagenet", tmp_path, ("a.png",), ((40,),)))
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"a\.png is not readable") as error:
            evaluate_subject(subject(tmp_path), replace(config, workers=workers))
        assert "Traceback" not in str(error.value)


def test_the_crop_of_imagenet_c():
    image = Image.fromarray(np.arange(240 * 230 * 3, dtype=np.uint32).reshape(240, 230, 3).astype(np.uint8))
    shown = imagenet.crop_transform((0.1, 0.2, 0.3), (0.5, 0.5, 0.5), (224, 224))(image)
    expected = (np.asarray(image)[8:232, 3:227] / 255 - (0.1, 0.2, 0.3)) / 0.5
    assert np.allclose(shown.permute(1, 2, 0).numpy(), expected, atol=1e-6)
    assert imagenet.crop_transform((0,), (1,), (96, 96))(image.convert("L")).shape == (1, 96, 96)


def test_done_cells_are_kept_unless_weights_or_conditions_changed(tmp_path):
    sets = {name: Zeros(6) for name in ("clean", "corruptions/fog/1", "corruptions/fog/2")}

    def evaluate(weights="w", stop_at=None, **identity):
        said = []

        def say(text):
            said.append(text)
            if stop_at is not None and stop_at in text:
                raise KeyboardInterrupt

        levels = {"clean": {}, **{f"corruptions/fog/{n}": {"part": "fog", "level": n} for n in (1, 2)}}
        given = [Condition(key=k, items=items, identity=identity, **levels[k]) for k, items in sets.items()]
        for items in sets.values():
            items.asked = 0
        config = RobustnessConfig(suite=Given(given=tuple(given)), workers=0)
        return evaluate_subject(subject(tmp_path, weights=weights), config, say), said

    def asked():
        return [items.asked for items in sets.values()]

    with pytest.raises(KeyboardInterrupt):
        evaluate(stop_at="fog/1", seed=0)
    result, said = evaluate(seed=0)
    assert asked() == [0, 0, 6]
    assert "3 in all, 2 done before" in said[0]
    assert all((c.metrics["accuracy"], c.items) == (0.5, 6) for c in result.cells.values())
    assert next(row.value for row in result.summary if row.name == "kept") == 1
    evaluate(seed=0)
    assert asked() == [0, 0, 0]
    evaluate(seed=1)
    assert asked() == [6, 6, 6]
    _, said = evaluate(weights="other", seed=1)
    assert asked() == [6, 6, 6]
    assert "other weights" in said[0]
    (tmp_path / "robustness.json").write_text('{"weights": "other"')
    _, said = evaluate(weights="other", seed=1)
    assert "damaged" in said[0]
    assert asked() == [6, 6, 6]


class Dots(ItemSet):
    """Images of these colours, of which `Brightest` says the class; it is 5 of all."""

    def __init__(self, colours, groups):
        self.colours, self.groups = torch.tensor(colours), torch.tensor(groups)
        self.indices = torch.arange(len(colours))

    def __getitems__(self, draws):
        chosen = torch.tensor([draw.sample for draw in draws])
        images = self.colours[chosen, None, None, None].expand(-1, 3, 2, 2) / 100
        return LabelledBatch(images, torch.full((len(draws),), 5), self.indices[chosen], self.groups[chosen])


@dataclass(frozen=True, kw_only=True)
class Paired(Given):
    """Of the same items."""

    name = "paired"
    paired = True


def test_what_is_lost_has_an_interval_over_the_same_items(tmp_path):
    groups = [0, 0, 1, 1, 2, 2, 3, 4]
    clean, dimmed = [5.0, 5, 5, 5, 9, 5, 5, 9], [5.0, 9, 9, 5, 5, 5, 9, 9]
    given = [
        Condition(key="clean", items=Dots(clean, groups)),
        Condition(key="paired/dim", items=Dots(dimmed, groups), part="dim"),
        Condition(key="paired/other", items=Dots(dimmed[:-1], groups[:-1]), part="other"),
    ]
    stopped = tmp_path / "stopped"
    stopped.mkdir()

    def evaluate(folder, conditions, suite=Paired):
        made = subject(folder)
        return evaluate_subject(made, RobustnessConfig(suite=suite(given=tuple(conditions)), workers=0)).cells

    cells = evaluate(tmp_path, given)
    difference = np.subtract(np.equal(clean, 5), np.equal(dimmed, 5), dtype=float)
    expected = items_interval(difference, np.array(groups), possible=(-1, 1)).ends
    assert cells["paired/dim"].lost["accuracy"] == pytest.approx(expected)
    assert cells["clean"].lost == cells["paired/other"].lost == {}  # of other items
    assert (tmp_path / "robustness_clean.npz").exists()
    assert read_cells(tmp_path / "robustness.json")[1] == cells
    evaluate(stopped, given[:1])
    assert evaluate(stopped, given) == cells  # the unchanged items are not shown again
    away = tmp_path / "away"
    away.mkdir()
    evaluate(away, given[:1])
    (away / "robustness_clean.npz").write_bytes(b"cut")
    assert evaluate(away, given)["paired/dim"].lost == {}
    alone = tmp_path / "alone"
    alone.mkdir()
    assert all(cell.lost == {} for cell in evaluate(alone, given, Given).values())
    assert not (alone / "robustness_clean.npz").exists()


def test_losses_point_where_less_is_better(tmp_path):
    items = {"index": np.arange(4), "group": np.arange(4), "nll": np.array([1.0, 2, 3, 5])}
    changed = items | {"nll": np.array([2.0, 2, 4, 7])}
    low, high = lost_intervals(items, changed, {"nll": NLL})["nll"]
    assert low + high == pytest.approx(2)
    assert lost_intervals(items, changed | {"index": np.arange(4)[::-1]}, {"nll": NLL}) == {}


VERSION_1 = """{"weights": "w", "environment": {"versions": {}}, "cells": {
  "clean": {"correct": 3, "total": 6, "conditions": CONDITIONS},
  "corruptions/fog/3": {"correct": 2, "total": 6, "conditions": {"seed": 0}},
  "imagenet_c/fog/3": {"correct": 1, "total": 6, "conditions": {}},
  "imagenet_a": {"correct": 0, "total": 6, "conditions": {}}}}"""


def test_records_of_version_1_are_read_as_accuracy_and_their_cells_kept(tmp_path):
    made = subject(tmp_path)
    items = Zeros(6)
    config = RobustnessConfig(suite=Given(given=(Condition(key="clean", items=items, title="Clean"),)), workers=0)
    evaluate_subject(made, config)
    conditions = json.loads(made.record.read_text())["cells"]["clean"]["conditions"]
    made.record.write_text(VERSION_1.replace("CONDITIONS", json.dumps(conditions)))
    weights, cells = read_cells(made.record)
    assert weights == "w"
    assert {key: (c.suite, c.part, c.level, c.metrics["accuracy"]) for key, c in cells.items()} == {
        "clean": ("corruptions", None, None, 1 / 2),
        "corruptions/fog/3": ("corruptions", "fog", 3, 1 / 3),
        "imagenet_c/fog/3": ("imagenet-robustness", "fog", 3, 1 / 6),
        "imagenet_a": ("imagenet-robustness", "imagenet_a", None, 0.0),
    }
    assert cells["clean"].intervals == {"accuracy": wilson_interval(3, 6)}
    items.asked = 0
    result = evaluate_subject(made, config)
    assert items.asked == 0
    assert (result.cells["clean"].items, result.cells["clean"].title) == (6, "Clean")
    write_cells(tmp_path / "again.json", weights, {}, cells)
    assert read_cells(tmp_path / "again.json") == (weights, cells)
    for damage in ('{"cells": {}}', VERSION_1.replace('"correct": 0, "total": 6', '"correct": 7, "total": 6'), "[]"):
        (tmp_path / "damaged.json").write_text(damage.replace("CONDITIONS", "{}"))
        with pytest.raises(RunError, match="damaged"):
            read_cells(tmp_path / "damaged.json")


def test_cells_shown_by_another_transform_are_counted_again(tmp_path, run_dir, monkeypatch):
    items, asked = Zeros(6), []
    config = RobustnessConfig(suite=Given(given=(Condition(key="clean", items=items),)), workers=0)
    for crop_pct in (0.875, 0.875, 1.0):
        items.asked = 0
        evaluate_subject(subject(tmp_path, shown=data(crop_pct=crop_pct)), config)
        asked.append(items.asked)
    assert asked == [6, 0, 6]
    said = []
    config = RobustnessConfig(suite=Corruptions(corruptions=("contrast",)), workers=0, limit=4)
    for mean in (FashionMNIST.mean, FashionMNIST.mean, (0.9,)):
        monkeypatch.setattr(FashionMNIST, "mean", mean)
        evaluate_robustness([run_dir], config, say=said.append)
    assert [line for line in said if "done before" in line] == [
        f"run: 6 in all, {n} done before, {6 - n} to do" for n in (0, 6, 0)
    ]


def test_a_checkpoint_from_elsewhere_is_shown_what_its_model_says(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_vit").state_dict(), file)
    task, shown = ImageNetSets().elsewhere("timm:test_vit", file)
    config = timm.data.resolve_model_data_config(timm.create_model("test_vit"))
    assert shown.transform_record()["preprocess"] == config | {"model": "timm:test_vit"}
    image = Image.new("RGB", (200, 180), (10, 200, 30))
    assert torch.equal(shown.prepare(image), timm.data.create_transform(**config, is_training=False)(image))
    assert torch.equal(task.model.state_dict()["head.bias"], torch.load(file)["head.bias"])
    with pytest.raises(RunError, match="imagenet-robustness") as error:
        evaluate_elsewhere("timm:test_vit", file, tmp_path, RobustnessConfig(suite=Corruptions()))
    assert "test items" in error.value.message


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "model.module."])
def test_what_a_state_dict_was_wrapped_in_is_taken_off(tmp_path, prefix):
    state = {"model.weight": torch.ones(2), "head.bias": torch.zeros(1)}  # a module may itself be called model
    torch.save({"state_dict": {prefix + name: value for name, value in state.items()}}, tmp_path / "a.ckpt")
    assert timm_model._read(tmp_path / "a.ckpt").keys() == state.keys()


def test_the_best_checkpoint_of_a_plain_arm_is_a_state_dict_of_its_model(tmp_path, make_recipe):
    train_run(make_recipe("--train.epochs", "1", "--arm", "plain"), tmp_path / "plain", progress="none")
    _, model = load_trained(tmp_path / "plain")
    state = timm_model._read(tmp_path / "plain" / "checkpoints" / "best.ckpt")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_models_of_other_classes_are_refused():
    names = imagenet_sets.wnids()
    for given, message in (
        ((10, 3, names[:10]), "10 classes, ImageNet's sets have 1000"),
        ((1000, 1, names), "1 channels"),
        ((1000, 3, names[::-1]), "in another order"),
    ):
        with pytest.raises(RunError, match=message):
            check_classes("toy", *given)
    check_classes("toy", 1000, 3, names)
    check_classes("toy", 1000, 3, tuple(map(str, range(1000))))


def test_outputs_that_are_no_numbers_stop_it(tmp_path):
    class Broken(nn.Module):
        def forward(self, images):
            return torch.full((len(images), 1000), torch.nan)

    config = RobustnessConfig(suite=Given(given=(Condition(key="clean", items=Zeros(2)),)), workers=0)
    with pytest.raises(RunError, match=r"clean: .* is nan"):
        evaluate_subject(subject(tmp_path, model=Broken()), config)


@pytest.fixture(scope="module")
def frost_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frost")
    pixels = np.random.default_rng(0).integers(100, 250, (240, 260, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "frost.png")
    return folder


@pytest.fixture
def run_dir(make_recipe, tmp_path):
    train_run(make_recipe("--train.epochs", "1"), tmp_path / "run", progress="none")
    return tmp_path / "run"


def test_values_of_a_run_equal_a_plain_loop(run_dir, tmp_path):
    config = RobustnessConfig(suite=Corruptions(corruptions=SOME, seed=4), workers=0, batch_size=7)
    (result,) = evaluate_robustness([run_dir], config)
    recipe, model = load_trained(run_dir)
    recipe.data.prepare_data()
    recipe.data.setup()
    raw = recipe.data.raw_test()
    with torch.no_grad():
        for key, cell in result.cells.items():
            correct, nll = 0, []
            for index in range(len(raw)):
                image, label = raw[index]
                if key != "clean":
                    _, name, severity = key.split("/")
                    image = corrupt(image, name, int(severity), seed=4, index=index)
                logits = model(recipe.data.prepare(image)[None])[0]
                correct += int(logits.argmax()) == label
                nll.append(float(-logits.log_softmax(0)[label]))
            assert cell.items == 60
            assert cell.metrics["accuracy"] == pytest.approx(correct / 60), key
            assert cell.metrics["nll"] == pytest.approx(np.mean(nll), abs=1e-4)
            assert cell.intervals["accuracy"] == pytest.approx(wilson_interval(correct, 60))
    assert len(result.cells) == 11
    assert "not comparable with published ImageNet-C figures" in result.notes[0]
    assert "28 x 28" in result.notes[0]
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    config_file = other / "config.yaml"
    config_file.write_text(config_file.read_text().replace("test_size: null", "test_size: 30"))
    config = replace(config, suite=Corruptions(corruptions=SOME[1:], seed=4), workers=2)
    both = evaluate_robustness([run_dir, other], config)
    assert all("cannot be compared" in result.notes[0] for result in both)
    assert [result.cells["clean"].items for result in both] == [60, 30]
    written = json.loads((run_dir / "robustness.json").read_text())
    assert written["version"] == 2
    assert written["cells"].keys() == result.cells.keys()
    assert written["environment"]["versions"]["torch"]


def test_report_of_two_runs(tmp_path):
    def made(label, shift):
        cells = {"clean": cell((90 - shift) / 100)}
        for number, name in enumerate(CORRUPTIONS):
            cells |= {
                f"corruptions/{name}/{s}": cell((80 - shift - 6 * s - number) / 100, name, s) for s in range(1, 6)
            }
        summary = Corruptions().summary(cells, ACCURACY)
        return Robustness(
            label=label, suite="corruptions", metric=ACCURACY, things="images", cells=cells, summary=summary,
            notes=("said",),
        )  # fmt: skip

    results = [made("plain", 0), replace(made("llm", 10), limit=100)]
    written = write_report(results, tmp_path)
    numbers, page, png, svg = sorted(written, key=lambda path: path.suffix)
    assert [p.name for p in (page, png, svg)] == ["robustness.md", "robustness.png", "robustness.svg"]
    assert numbers.name == "robustness_report.json"  # robustness.json is what is counted, and must stay
    content = json.loads(numbers.read_text())
    assert content == json.loads(json.dumps([to_dict(result) for result in results]))
    assert [one["limit"] for one in content] == [None, 100]
    means = {row["name"]: row["value"] for row in content[1]["summary"] if row["kind"] == "whole"}
    assert means == {"mean": pytest.approx(0.45), "kept": pytest.approx(0.5625)}
    assert content[1]["cells"]["corruptions/fog/2"]["metrics"] == results[1].cells["corruptions/fog/2"].metrics
    assert content[1]["notes"] == ["said"]
    text = markdown(results)
    assert "| accuracy in % | plain | llm |" in text
    assert "| clean | 90.00 (82.56 to 94.48) |" in text
    assert "| gaussian noise | 62.00 | 52.00 |" in text
    assert "| corruptions, mean of 15 | 55.00 | 45.00 |" in text
    assert "mCE" not in text
    assert text.count("said") == 1
    with Image.open(png) as figure:
        assert figure.size[0] > 1000
    assert ">gaussian noise</text>" in re.sub(r"\s*\n\s*", "", svg.read_text())
    assert content[0]["cells"]["clean"]["intervals"]["accuracy"] == pytest.approx([0.8256, 0.9448], abs=1e-4)


def call(capsys, *arguments):
    status = main([str(a) for a in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_runs_are_called_by_what_tells_them_apart(tmp_path):
    study = [tmp_path / "plain" / "lr0.1" / "seed0", tmp_path / "llm" / "seed1"]
    assert robustness_labels(study) == ["plain/lr0.1/seed0", "llm/seed1"]
    assert robustness_labels([tmp_path / "plain", tmp_path / "llm"]) == ["plain", "llm"]
    assert robustness_labels(study[:1]) == ["seed0"]


def test_the_command_on_a_run(capsys, run_dir, frost_folder, tmp_path):
    options = ["--suite", "corruptions", "--limit", "10", "--workers", "0", "--frost", frost_folder]
    options += ["--corruptions", "frost,gaussian-noise"]
    status, out, err = call(capsys, "evaluate", run_dir, *options)
    assert status == 0, err
    assert "corruptions, mean of 2" in out
    assert "not comparable with published ImageNet-C figures" in " ".join(out.split())
    assert "[10/11] corruptions/gaussian_noise/4: " in err
    assert (run_dir / "robustness.md").exists()
    assert (run_dir / "robustness.png").exists()
    assert json.loads((run_dir / "robustness_report.json").read_text())[0]["limit"] == 10
    status, out, err = call(capsys, "evaluate", run_dir, run_dir, *options, "--json", "--out", tmp_path / "both")
    assert "11 done before, 0 to do" in err
    both = json.loads(out)
    assert [one["label"] for one in both] == [run_dir.name] * 2
    assert both[0]["cells"]["clean"]["items"] == 10
    assert (tmp_path / "both" / "robustness.svg").exists()


MISTAKES = [
    (["RUN", "--suite", "corruptions", "--corruptions", "fgo"], "'fog'"),
    (["RUN", "--suite", "corruptions", "--frost", "nowhere"], "nowhere holds no picture"),
    (["RUN", "--suite", "corruptions", "--limit", "0"], "--limit 0"),
    (["RUN", "--suite", "imagenet-robustness"], "10 classes"),
    (["RUN", "--suite", "corruptions", "--seed", "3", "--workers", "-1"], "--workers -1"),
    (["nowhere", "--suite", "corruptions", "--corruptions", "fog"], "no run folder"),
    (["RUN", "RUN"], "--suite"),
    (["RUN", "--imagenet-c", "ROOT", "--limit", "3"], "--limit, --imagenet-c: only a suite"),
    (["RUN", "--suite", "corruptions", "--approximate"], "--approximate"),
    (["--model", "timm:test_vit", "--suite", "imagenet-robustness"], "--checkpoint"),
    (["RUN", "--suite", "corruptions", "--corruptions", "fog", "--data.rot", "x"], "rot"),
]


def test_mistakes_of_the_command(capsys, run_dir, published, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in MISTAKES:
        given = [{"RUN": run_dir, "ROOT": published}.get(a, a) for a in arguments]
        status, out, err = call(capsys, "evaluate", *given)
        assert (status, out) == (2, ""), arguments
        assert message in err
        assert len(err.splitlines()) < 20
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.long
@pytest.mark.slow
def test_the_command_on_a_checkpoint_from_elsewhere(capsys, published, tmp_path):  # noqa: F811
    torch.manual_seed(0)
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    call_ = ["evaluate", "--model", "timm:test_vit", "--checkpoint", file, "--suite", "imagenet-robustness"]
    status, out, err = call(capsys, *call_, "--suite-root", published, "--limit", "2", "--workers", "0")
    assert status == 0, err
    assert "resized to 160 x 160, not comparable" in " ".join(out.split())
    for row in (
        "ImageNet-C, mean of 15",
        "mCE",
        "ImageNet-A",
        "ImageNet, ReaL labels",
        "ImageNet-V2",
        "gaussian noise",
    ):
        assert row in out
    assert (tmp_path / "weights_robustness" / "imagenet_robustness.png").exists()
    torch.save({"state_dict": timm.create_model("test_vit").state_dict()}, tmp_path / "b.pth")
    call_[4] = tmp_path / "b.pth"
    status, out, err = call(capsys, *call_, "--imagenet-a", published / "ImageNet-A", "--limit", "2", "--json")
    assert status == 0, err
    assert list(json.loads(out)[0]["cells"]) == ["imagenet_a"]
    assert "ImageNet-C is left out" in err
    for name, message in (
        ("timm:test_vti", "test_vit"),
        ("test_vit", "timm:NAME"),
        ("timm:test_resnet", "does not fit"),
    ):
        call_[2] = name
        status, out, err = call(capsys, *call_, "--imagenet-a", published / "ImageNet-A")
        assert status == 2
        assert message in err
    call_[2], call_[4] = "timm:test_vit", tmp_path / "c.pth"
    (tmp_path / "c.pth").write_bytes(b"no weights")
    status, out, err = call(capsys, *call_, "--imagenet-a", published / "ImageNet-A")
    assert status == 2
    assert "c.pth" in err


def test_frost_of_other_pictures_is_another_cell(frost_folder, make_recipe):
    identities = []
    for brighter in (0, 1):
        suite = Corruptions(corruptions=("frost",), frost=frost_folder)
        vars(suite)["pictures"] = tuple(pixels // 2 + brighter for pixels in suite.pictures)
        identities.append(suite.conditions(make_recipe().data)[1].identity)
    assert identities[0] != identities[1]
    assert Corruptions(corruptions=("fog",)).pictures == ()  # nothing is fetched where frost is not wanted


def test_options_of_a_suite():
    config = robustness_config({"corruptions": "gaussian-noise, fog", "limit": 3, "seed": None})
    assert config.suite == Corruptions(corruptions=("gaussian_noise", "fog"))
    assert robustness_config(config.to_dict()) == config
    assert robustness_config({"suite": "toy_ranges.Noisier", "kinds": ["pink"]}).suite.kinds == ("pink",)
    for wrong, error, said in (
        ({"suite": "corruption"}, RecipeError, "corruptions"),
        ({"suite": "toy_ranges.Quieter"}, RecipeError, "Quieter"),
        ({"sead": 1}, RecipeError, "seed"),
        ({"seed": "x"}, RecipeError, "seed"),
        ({"suite": "imagenet-robustness", "imagenet_c": 3}, RecipeError, "imagenet_c"),
        ({"limit": "many"}, RecipeError, "limit"),
    ):
        with pytest.raises(error, match=said):
            robustness_config(wrong)


@pytest.fixture
def noisier(monkeypatch):
    """The toy family's suite, registered."""
    monkeypatch.setattr(SUITES, "_rows", dict(SUITES._rows))
    SUITES.register("noisier", "toy_ranges:Noisier")


def test_a_suite_of_items_in_metres_by_registration_alone(noisier, tmp_path, capsys, make_recipe):
    run = tmp_path / "run"
    train_run(parse_recipe(toy_ranges.RECIPE), run, progress="none")
    status, out, err = call(capsys, "evaluate", run)
    assert status == 0, err
    assert re.search(r"test error +\d\.\d{3} m  \(\d\.\d{3} to \d\.\d{3}\)", out)
    assert "over test echoes in 10 groups" in out
    status, out, err = call(capsys, "evaluate", run, "--suite", "noisier", "--noise-seed", "3", "--kinds", "white,pink")
    assert status == 0, err
    assert "noises, mean of 2" in out
    assert "kept" not in out  # a share of metres says nothing where less is better
    content = json.loads((run / "robustness.json").read_text())["cells"]
    assert list(content) == ["clean", *(f"noisier/{kind}/{n}" for kind in ("white", "pink") for n in (1, 2, 3))]
    model = load_trained(run)[1]
    noisy = toy_ranges.EchoSet(84, 40, 0.6, 3)
    errors = (model(noisy.inputs) - noisy.metres).abs().detach().numpy()
    cell = content["noisier/pink/3"]
    assert cell["metrics"] == {"error": pytest.approx(errors.mean(), rel=1e-5)}
    items = {"error": errors, "index": noisy.indices.numpy(), "group": noisy.groups.numpy()}
    assert cell["intervals"]["error"] == pytest.approx(metric_interval(items, toy_ranges.ERROR), rel=1e-4)
    assert content["clean"]["metrics"]["error"] < cell["metrics"]["error"]
    for arguments, said in (
        (["--suite", "corruptions"], "ImageData"),
        (["--suite", "noisier", "--noise-sead", "1"], "noise-sead"),
        (["--noise-seed", "1"], "--noise-seed: only a suite"),
    ):
        status, out, err = call(capsys, "evaluate", run, *arguments)
        assert (status, said in err) == (2, True), err


def test_a_study_breaks_down_by_the_parts_of_its_suite(noisier, tmp_path, monkeypatch):
    without_flops(monkeypatch)
    (tmp_path / "ranges.yaml").write_text(toy_ranges.RECIPE)
    text = f"""
recipe: {tmp_path / "ranges.yaml"}
arms: {{slow: {{arm: plain, optim.lr: 0.0001}}, fast: {{arm: plain, question: a}}}}
contrasts: [[fast, slow]]
reference: slow
seeds: 2
robustness: {{suite: noisier, kinds: [white], limit: 20}}
"""
    study = parse_study(text, name="ranges")
    assert parse_study(study.yaml, name="ranges") == study
    result, names, _ = run_here(study, tmp_path / "out")
    assert len(names) == 4
    parts = {part.name: part for part in result.breakdown if part.kind == "noise"}
    assert list(parts) == ["white"]
    values = {
        (arm, seed): np.mean([c.metrics["error"] for c in read_cells(path)[1].values() if c.part == "white"])
        for arm in ("fast", "slow")
        for seed in (0, 1)
        for path in [tmp_path / "out" / "runs" / arm / f"seed{seed}" / "robustness.json"]
    }
    assert parts["white"].mean == pytest.approx(np.mean([values["fast", s] - values["slow", s] for s in (0, 1)]))
    assert parts["white"].metric is None  # the study's own
    record = records.read_json(tmp_path / "out" / "runs" / "fast" / "seed0" / "robustness.json")
    assert {cell["items"] for cell in record["cells"].values()} == {20}


@pytest.mark.parametrize("suite", [Corruptions, PointCorruptions])
def test_options_of_every_suite_of_corruptions(suite):
    name = suite.known[1]
    assert suite().chosen == suite.known
    assert suite(corruptions=(name.replace("_", "-"),)).chosen == (name,)
    for wrong in ({"corruptions": ()}, {"corruptions": (name, name)}, {"corruptions": ("fogg",)}, {"seed": -1}):
        with pytest.raises(DataError):
            suite(**wrong)
