"""What every task can rely on: views count once, metrics of other items and of all items, and the last epoch."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from toy_family import RECIPE, ThrowData, write_throws

from lmgraft.contracts import Metric
from lmgraft.data.base import Data
from lmgraft.errors import RecipeError
from lmgraft.recipes import read_result, train_run
from lmgraft.recipes.recipe import parse_recipe
from lmgraft.registry import METRICS
from lmgraft.tasks.base import Task
from lmgraft.tasks.influence import mean_class_accuracy
from lmgraft.tasks.items import by_category, by_unit, values_of
from lmgraft.training.checkpoints import checkpoint_path, read_checkpoint
from lmgraft.training.items import read_items, write_items

ACCURACY = METRICS.find("accuracy")
RECALL = Metric(
    name="recall", title="recall", higher_is_better=True, scale=100, unit="%", difference_unit="points",
    margin=0.01, low=0.0, high=1.0, items="pictures",
)  # fmt: skip
PRECISION = Metric(
    name="precision", title="average precision", higher_is_better=True, scale=100, unit="%", difference_unit="points",
    margin=0.01, low=0.0, high=1.0,
)  # fmt: skip


class Rows(NamedTuple):
    logits: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    group: torch.Tensor


class RowData(Data):
    name, things = "rows", "captions"

    def setup(self, stage=None): ...

    def still(self, name): ...

    def fingerprint(self): ...

    def transform_record(self): ...

    def model_arguments(self):
        return {}

    def example(self, size, seed=0): ...

    def categories(self):
        return {"class": ("a", "b", "c")}


class Captions(Task):
    """Mean-class accuracy of captions, recall over their pictures, and a metric without a column."""

    @classmethod
    def metrics(cls, data=None):
        return ACCURACY, RECALL, PRECISION

    def inputs(self, batch):
        return (batch.logits,)

    def loss(self, out, batch):
        return torch.nn.functional.cross_entropy(out, batch.labels)

    def score(self, out, batch):
        return {"hit": out.argmax(1) == batch.labels, "by_class": batch.labels}

    def finish(self, items, split):
        pictures, first = np.unique(items["group"], return_index=True)
        recall = np.maximum.reduceat(items["hit"][np.argsort(items["group"], kind="stable")], np.sort(first))
        of_pictures = {"index": pictures, "group": pictures, "recall": recall.astype(float)}
        accuracy = mean_class_accuracy(items["hit"], items["by_class"])
        return items | {"accuracy": accuracy} | {f"pictures/{name}": column for name, column in of_pictures.items()}

    def measure(self, items, split):
        hits = [items["hit"][items["by_class"] == c].mean() for c in np.unique(items["by_class"])]
        return {"precision": 0.25, "accuracy": float(np.mean(hits))}


def rows(size=12):
    index = torch.arange(size)
    logits = torch.randn(size, 3, generator=torch.Generator().manual_seed(0))
    return Rows(logits, index * index % 3, index, index // 4)


def settled(batches):
    task = Captions(torch.nn.Identity(), RowData(), None, None)
    task.settle([task.columns(batch) for batch in batches], "test")
    return task


def test_a_metric_of_all_items_is_its_own_definition():
    task = settled([rows()])
    hit, label = task.items["hit"], task.items["by_class"]
    assert task.values["accuracy"] == pytest.approx(np.mean([hit[label == c].mean() for c in (0, 1)]))
    assert task.values["recall"] == np.mean([hit[i : i + 4].any() for i in (0, 4, 8)])
    assert task.values["precision"] == 0.25
    by = by_category(task.items, ACCURACY, {"class": ("a", "b", "c")})
    assert by["class"].keys() == {"a", "b"}  # no item shows c
    assert by_category(task.items, RECALL, {"class": ("a", "b", "c")}) == {}


def test_columns_of_other_items_have_a_file_of_their_own(tmp_path):
    items = settled([rows()]).items
    write_items(tmp_path, items)
    assert {path.name for path in tmp_path.iterdir()} == {"test_items.npz", "test_items.pictures.npz"}
    again = read_items(tmp_path)
    assert again.keys() == items.keys()
    assert len(by_unit(again)["pictures"]["recall"]) == 3


def test_batches_and_processes_in_any_order_are_one_split():
    whole = rows()
    parts = [Rows(*(column[part] for column in whole)) for part in (slice(8, 12), slice(0, 5), slice(5, 8))]
    one, other = settled([whole]), settled(parts)
    assert one.values == other.values
    for name, column in one.items.items():
        assert np.array_equal(column, other.items[name]), name


def test_views_of_one_item_are_averaged_before_they_are_scored():
    views = [rows(), Rows(*(c if c.dtype == torch.int64 else c.flip(0) for c in rows()))]
    seen = [torch.stack(column, 1).flatten(0, 1) for column in zip(*views, strict=True)]
    together = settled([Rows(*seen)])
    mean = rows()._replace(logits=(views[0].logits + views[1].logits) / 2)
    assert together.items["index"].tolist() == list(range(12))
    assert np.array_equal(together.items["hit"], settled([mean]).items["hit"])


def test_what_a_split_must_not_be():
    metrics = {"accuracy": ACCURACY}
    good = {"index": np.arange(3), "group": np.zeros(3, int), "accuracy": np.ones(3)}
    assert values_of(good, metrics, {}, {}, "T") == {"accuracy": 1.0}
    for broken, words in (
        ({"index": np.array([0, 1, 1])}, "two items have one index"),
        ({"accuracy": np.ones(2)}, "unequal lengths"),
        ({"by_class": np.array([0, 1, 5])}, "whole numbers from 0 to 2"),
        ({"pictures/recall": np.ones(3)}, "of unit 'pictures' have no 'index'"),
    ):
        with pytest.raises(RecipeError, match=words):
            values_of(good | broken, metrics, {}, {"class": ("a", "b", "c")}, "T")
    del good["group"]
    with pytest.raises(RecipeError, match="have no 'group'"):
        values_of(good, metrics, {}, {}, "T")


class LastThrows(ThrowData):
    selection = "last"


def test_the_last_epoch_counts_where_the_data_say_so(llama_folder, tmp_path):
    root = write_throws(tmp_path / "throws", train=24, test=4)
    text = RECIPE.format(root=root, llm=llama_folder).replace("toy_family.ThrowData", "test_tasks.LastThrows")
    options = ["--arm=plain", "--optim.lr=3.0", "--train.epochs=3", "--optim.schedule=constant"]
    train_run(parse_recipe(text, options), tmp_path / "run", progress="none")
    result, best = read_result(tmp_path / "run"), read_checkpoint(checkpoint_path(tmp_path / "run", "best"))
    assert result.selection == "last"
    assert best["global_step"] == result.steps
