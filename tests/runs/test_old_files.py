"""What earlier versions of lmgraft wrote is still read, with the numbers it holds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from lmgraft.errors import RunError
from lmgraft.recipes import load_recipe, read_result
from lmgraft.recipes.run import read_run
from lmgraft.registry import METRICS, MOVED, load_object
from lmgraft.studies.engine.runs import read_finished
from lmgraft.studies.scan.results import read_scan
from lmgraft.studies.study.read import read_study
from lmgraft.training.items import read_items

ROOT = Path(__file__).parents[2]
VERSION_1 = ROOT / "tests" / "fixtures" / "run_version1"
EVIDENCE = ROOT / "evidence"


@pytest.fixture
def old_run(tmp_path):
    return shutil.copytree(VERSION_1, tmp_path / "run")


def test_a_run_of_version_1_is_read(old_run):
    values = json.loads((old_run / "result.json").read_text())
    result, items, record = read_finished(old_run)
    assert result == read_result(old_run)
    assert result.metrics == {"accuracy": values["accuracy"], "top5": values["top5"]}
    assert (result.primary, result.items, result.val) == ("accuracy", 100, {"accuracy": values["val_accuracy"]})
    assert result.by == {"class": values["class_accuracy"]}
    assert items["accuracy"].mean() == pytest.approx(values["accuracy"])
    assert items["top5"].mean() == pytest.approx(values["top5"])
    assert items["index"].tolist() == items["group"].tolist() == list(range(100))
    assert np.array_equal(items["by_class"], items["label"])
    assert record["block"]["digest"] == result.block_digest
    recipe = read_run(old_run)
    assert (recipe.data.name, recipe.task_class.__name__) == ("fashion_mnist", "Classification")


def test_an_edited_result_of_version_1_is_refused(old_run):
    file = old_run / "result.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"accuracy": values["accuracy"] + 0.1}))
    with pytest.raises(RunError, match=r"result\.json was changed"):
        read_result(old_run)
    del values["correct"]
    file.write_text(json.dumps(values))
    with pytest.raises(RunError, match="correct"):
        read_result(old_run)


def test_items_of_version_1_that_do_not_fit_the_result_are_refused(old_run):
    with np.load(old_run / "test_items.npz") as arrays:
        columns = dict(arrays)
    columns["predicted"] = (columns["label"] + 1) % 10
    np.savez(old_run / "test_items.npz", **columns)
    with pytest.raises(RunError, match="the mean accuracy is 0"):
        read_finished(old_run)
    (old_run / "test_items.npz").unlink()
    assert read_items(old_run) is None


@pytest.mark.parametrize("file", sorted(EVIDENCE.glob("*/results.json")), ids=lambda file: file.parent.name)
def test_every_study_under_evidence_is_read(file):
    result = read_study(file)
    assert result.arms
    assert result.metric == METRICS.find(result.metric.name)
    recipe = yaml.safe_load((file.parent / "study.yaml").read_text())["recipe"]
    assert result.things == load_recipe(recipe).data.things


def test_scans_under_evidence_are_read():
    files = sorted(EVIDENCE.glob("*/scan.json"))
    assert files
    for file in files:
        assert read_scan(file.parent).candidates


def test_moved_classes_are_where_the_table_says():
    for path in MOVED.values():
        module, _, name = path.rpartition(".")
        assert load_object(f"{module}:{name}").__name__ == name
