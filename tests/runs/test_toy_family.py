"""A family that lmgraft does not know passes every command, by registration alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from lasting import assert_same_run, interrupt
from studying import Here, run_here, without_flops
from toy_family import MISS, RECIPE, Landing, ThrowData, Thrower, write_throws

from lmgraft.cli.main import main
from lmgraft.errors import DataError, LmgraftError, RecipeError
from lmgraft.graft import find_graft
from lmgraft.recipes import evaluate_run, load_trained, read_result, train_run
from lmgraft.recipes.cost import count_flops
from lmgraft.recipes.recipe import parse_recipe
from lmgraft.studies.study.config import parse_study
from lmgraft.training.items import read_items


@pytest.fixture(scope="session")
def throws(tmp_path_factory):
    """The files; one of training and one of test cannot be read."""
    root = write_throws(tmp_path_factory.mktemp("throws"))
    (root / "train" / "005.json").write_text('{"points": [')
    (root / "test" / "003.json").write_text("")
    return root


@pytest.fixture(scope="session")
def throw_recipe(throws, llama_folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("recipe") / "throws.yaml"
    file.write_text(RECIPE.format(root=throws, llm=llama_folder))
    return file


@pytest.fixture(scope="session")
def throw_run(throw_recipe, tmp_path_factory):
    """A finished run. Read only."""
    out = tmp_path_factory.mktemp("runs") / "throws"
    assert main(["train", str(throw_recipe), "--out", str(out)]) == 0
    return out


pytestmark = pytest.mark.filterwarnings("ignore::lmgraft.data.base.UnreadableItemWarning")


def test_check_data(throw_recipe, throws, capsys):
    assert main(["check-data", "--recipe", str(throw_recipe), "--workers", "0"]) == 1
    out = capsys.readouterr().out
    assert f"unreadable: train: {throws / 'train' / '005.json'}" in out
    assert "--data.max_corrupt 1 --data.max_corrupt_test 1" in out


def test_train_says_and_keeps_the_metric(throw_run):
    result, items = read_result(throw_run), read_items(throw_run)
    assert (result.primary, result.items, set(result.metrics)) == ("miss", 24, {"miss", "near"})
    assert result.metrics["miss"] == pytest.approx(items["miss"].mean(dtype=np.float64))
    assert items["index"].tolist() == [*range(24)]
    assert set(result.by["hand"]) == {"left", "right"}
    rows = json.loads((throw_run / "metrics.json").read_text())
    assert result.val["miss"] == pytest.approx(min(row["val/miss"] for row in rows))
    assert rows[0]["throws_per_second"] > 0
    assert [fault["file"].rpartition("/")[2] for fault in result.faults] == ["005.json", "003.json"]


def test_the_padding_mask_reaches_the_block(throw_run):
    recipe, model = load_trained(throw_run)
    assert find_graft(model) is not None
    batch = recipe.data.example(6)
    with torch.no_grad():
        before = model(*Landing.inputs(None, batch))
        noise = batch.points + 100 * batch.padded[..., None]
        assert torch.allclose(model(noise, batch.padded, batch.wind), before, atol=1e-5)


def test_killed_and_resumed_it_is_the_same_run(throw_recipe, throw_run, tmp_path):
    recipe = parse_recipe(throw_recipe.read_text())
    interrupt(recipe, tmp_path / "run", 6)
    train_run(parse_recipe(throw_recipe.read_text()), tmp_path / "run", resume=True, progress="none")
    assert_same_run(tmp_path / "run", throw_run)


def test_evaluate_and_predict(throw_run, throws, capsys):
    result, _ = evaluate_run(throw_run)
    assert result.metrics == read_result(throw_run).metrics
    assert main(["evaluate", str(throw_run)]) == 0
    out = capsys.readouterr().out
    assert "distance from the landing" in out
    assert f"{result.metrics['miss']:.3f} m" in out
    files = [str(throws / "test" / f"{i:03}.json") for i in (0, 1)]
    assert main(["predict", str(throw_run), *files]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    landing = read_items(throw_run)["landing"]
    assert [row["file"] for row in rows] == files
    assert np.allclose([[row["x"], row["y"]] for row in rows], landing[:2], atol=1e-5)


def test_a_study_of_two_arms_with_its_page(throw_recipe, tmp_path, monkeypatch):
    from lmgraft.report.study import write_report

    without_flops(monkeypatch)
    text = f"recipe: {throw_recipe}\narms: [plain, llm]\nseeds: 3\noverrides: {{train.epochs: 1}}\n"
    result, names, _ = run_here(parse_study(text, name="throws"), tmp_path / "out", executor=Here())
    assert len(names) == 6
    assert (result.metric, result.monitor, result.things) == (MISS, MISS, "throws")
    (contrast,) = result.contrasts
    values = {arm.label: arm.values for arm in result.arms}
    expected = np.mean([values["llm"][seed] - values["plain"][seed] for seed in result.seeds])
    assert contrast.mean == pytest.approx(expected)
    assert {row.kind for row in result.breakdown} == {"hand"}
    write_report(result, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "distance from the landing" in page
    for word in ("images", "accuracy", "By class"):
        assert word not in page


def test_flops_are_counted_of_both_inputs(throw_recipe):
    recipe = parse_recipe(throw_recipe.read_text(), ["--arm", "plain"])
    recipe.data.setup()
    assert count_flops(recipe).train > 2 * count_flops(recipe).evaluation > 0


@pytest.mark.long
def test_a_scan_ranks_by_numbers(throw_recipe, tmp_path):
    arguments = ["--layers", "0", "1", "--train-images", "30", "--val-images", "20", "--cka-images", "6"]
    arguments += ["--coherence-batches", "3", "--coherence-images", "4", "--draws", "2", "--train-epochs", "0"]
    assert main(["scan", str(throw_recipe), *arguments, "--out", str(tmp_path / "scan")]) == 0
    content = json.loads((tmp_path / "scan" / "scan.json").read_text())
    for candidate in content["candidates"].values():
        numbers = [score["value"] for score in candidate["scores"].values() if score["value"] is not None]
        assert len(numbers) >= 2


def test_export(throw_run, tmp_path):
    assert main(["export", str(throw_run), "--out", str(tmp_path / "program.pt2")]) == 0
    recipe, model = load_trained(throw_run)
    inputs = Landing.inputs(None, recipe.data.example(5, seed=3))
    program = torch.export.load(tmp_path / "program.pt2").module()
    with torch.no_grad():
        assert torch.allclose(program(*inputs), model(*inputs), atol=1e-5)


class Broken(Landing):
    """Returns what a task must not."""

    fault = ""

    def score(self, out, batch):
        columns = super().score(out, batch)
        if self.fault == "length":
            columns["miss"] = columns["miss"][1:]
        if self.fault == "nan":
            columns["near"] = columns["near"] * float("nan")
        if self.fault == "missing":
            del columns["near"]
        if self.fault == "category":
            columns["by_foot"] = columns.pop("by_hand")
        return columns

    def measure(self, items, split):
        return {"miss": 1e6} if self.fault == "mean" else {}

    @classmethod
    def metrics(cls, data=None):
        return (*Landing.metrics(), *([replace(MISS, margin=9.0)] if cls.fault == "twice" else []))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("length", "'miss' of"),
        ("nan", "'near' is nan"),
        ("missing", "no value for its metric 'near'"),
        ("category", "no category 'foot'"),
        ("mean", "measure\\(\\) says that miss is 1e\\+06"),
        ("twice", "two metrics of the name 'miss'"),
    ],
)
def test_a_task_that_breaks_its_contract_is_refused_before_the_first_step(
    throw_recipe, tmp_path, monkeypatch, fault, words
):
    monkeypatch.setattr(Broken, "fault", fault)
    recipe = parse_recipe(throw_recipe.read_text(), ["--task", "test_toy_family.Broken"])
    with pytest.raises(RecipeError, match=words):
        train_run(recipe, tmp_path / "run", progress="none")
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_a_batch_without_a_group_is_refused(throw_recipe, tmp_path, monkeypatch):
    from collections import namedtuple

    example = ThrowData.example

    def without(self, size, seed=0):
        values = example(self, size, seed)._asdict()
        del values["group"]
        return namedtuple("Throws", values)(**values)

    monkeypatch.setattr(ThrowData, "example", without)
    with pytest.raises(DataError, match="have no `group`"):
        train_run(parse_recipe(throw_recipe.read_text()), tmp_path / "run", progress="none")


def test_a_factory_that_cannot_be_imported(throw_recipe):
    recipe = parse_recipe(throw_recipe.read_text(), ["--backbone.factory", "toy_family.Nobody"])
    with pytest.raises(LmgraftError, match=r"toy_family\.Nobody cannot be imported"):
        train_run(recipe, throw_recipe.parent / "never", progress="none")
    assert Thrower.__name__ == "Thrower"
