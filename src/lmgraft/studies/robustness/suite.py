"""What a robustness suite is: conditions under which the task of a trained model evaluates it again.

A suite gives items, never a score; `registry.SUITES` names its class. This module knows no kind of item.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from lmgraft.analysis.robustness import level_means
from lmgraft.contracts import Batch, Metric
from lmgraft.data.base import Data
from lmgraft.data.items import ItemSet, spread_over
from lmgraft.data.loader import Draw, Reported
from lmgraft.errors import RecipeError, RunError
from lmgraft.recipes.options import explained
from lmgraft.registry import SUITES, load_object, suggest
from lmgraft.studies.engine.progress import Say
from lmgraft.studies.robustness.cells import Cell
from lmgraft.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Some items on which a model is evaluated."""

    key: str
    """The name of its cell in robustness.json, "imagenet_a" or "corruptions/fog/3"; no two suites share one."""
    items: ItemSet
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What besides key and weights decides the values, as plain data: a cell of another identity is evaluated again."""
    title: str = ""
    """Its name in tables; empty: the key."""
    part: str | None = None
    """What it is a condition of ("fog"), which a study compares by; None: it stands for itself, and in no breakdown."""
    level: int | None = None
    """How strong it is, where there are several of one part."""
    wrap: Callable[[nn.Module], nn.Module] | None = None
    """Makes the model that is evaluated of the trained one; None: as it is."""

    @property
    def name(self) -> str:
        """For progress lines."""
        return self.key


@dataclass(frozen=True, kw_only=True)
class Row:
    """A number that sums up cells."""

    kind: Literal["part", "level", "clean", "whole"]
    """A mean over levels, a mean over parts, the value on unchanged items, or of the suite as a whole."""
    name: str
    title: str
    value: float
    metric: Metric
    """How the value is written."""
    interval: tuple[float, float] | None = None
    """95 % over the items, of this one trained model; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class Suite(ABC):
    """Conditions; the fields of a subclass, a frozen dataclass too, are its options."""

    name: ClassVar[str]
    """Its row in `registry.SUITES`, or its dotted path."""
    data_type: ClassVar[type[Data]] = Data  # type: ignore[type-abstract]
    """The data whose models it takes."""
    word: ClassVar[str] = "condition"
    """What one of its parts is called, in the singular: corruption."""
    whole: ClassVar[str] = "conditions"
    """What all parts together are called."""
    clean: ClassVar[str] = "clean"
    """The key of the condition against which the others are held."""
    paired: ClassVar[bool] = False
    """Whether conditions show the items of `clean`, so that what is lost is counted item by item."""
    option_names: ClassVar[Mapping[str, str]] = {}
    """Field -> its option on the command line, where that has another name."""

    def check(self, data: Data, label: str, say: Say) -> None:
        """Find everything that is needed, before anything is computed; called for each model.

        Args:
            data: Of the model's recipe, not set up.
            label: The model's name, for errors.
            say: Told what was found.

        Raises:
            LmgraftError: If something is missing, or the suite does not fit the data.
        """
        if not isinstance(data, self.data_type):
            raise RunError(
                f"{label}: suite {self.name} takes {self.data_type.__name__}, its data are {type(data).__name__}",
                f"choose another suite of {', '.join(SUITES.names())}",
            )

    @abstractmethod
    def conditions(self, data: Any) -> list[Condition]:
        """The conditions in order, for a model of these data; a suite that shows the data's items sets them up."""

    def notes(self, data: Any) -> list[str]:
        """What a reader of the values must know; called after `conditions`."""
        return []

    def elsewhere(self, model: str, checkpoint: Path) -> tuple[Task, Data]:
        """The task around a model that lmgraft did not train, and how items are shown to it.

        Raises:
            RunError: If the suite has no items of its own to show.
        """
        raise RunError(
            f"suite {self.name} shows a run's own test items, and a model from elsewhere has none",
            "use --suite imagenet-robustness",
        )

    def summary(self, cells: Mapping[str, Cell], metric: Metric) -> list[Row]:
        """What sums up the cells: here the metric's mean over the levels of each part, and over all parts."""
        by_part: dict[str, dict[int, float]] = {}
        for cell in cells.values():
            if cell.part is not None and cell.level is not None:
                by_part.setdefault(cell.part, {})[cell.level] = cell.metrics[metric.name]
        if not by_part:
            return []
        means, what = level_means(by_part), metric.title.removeprefix("test ")
        rows = [Row(kind="part", name=p, title=_words(p), value=v, metric=metric) for p, v in means.by_part.items()]
        rows += [
            Row(kind="level", name=str(level), title=f"severity {level}", value=value, metric=metric)
            for level, value in means.by_level.items()
        ]
        title = f"{self.whole}, mean of {len(by_part)}"
        rows.append(Row(kind="whole", name="mean", title=title, value=means.mean, metric=metric))
        if self.clean in cells:
            clean = cells[self.clean].metrics[metric.name]
            rows.append(Row(kind="clean", name="clean", title=f"clean {what}", value=clean, metric=metric))
            if clean and metric.higher_is_better and metric.low == 0:
                title = f"share of the clean {what} kept"
                rows.append(Row(kind="whole", name="kept", title=title, value=means.mean / clean, metric=KEPT))
        return rows


KEPT = Metric(
    name="kept", title="share of the clean value kept", higher_is_better=True, scale=100, unit="%",
    difference_unit="points", margin=0.01, low=0.0,
)  # fmt: skip


def _words(name: str) -> str:
    return name.replace("_", " ")


class Among(nn.Module):
    """A classifier that chooses among some of its classes alone: the logits of the others are -inf.

    Args:
        model: Returns logits (B, C), or something that holds them as `logits`.
        classes: Which may be chosen.
    """

    def __init__(self, model: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.model, self.classes = model, list(classes)

    def forward(self, *inputs: Any) -> Tensor:
        out = self.model(*inputs)
        logits: Tensor = getattr(out, "logits", out)
        masked = logits.new_full(logits.shape, float("-inf"))
        masked[:, self.classes] = logits[:, self.classes]
        return masked


class Spread(ItemSet):
    """At most `limit` of some items, evenly spread over them, since items often lie class by class."""

    def __init__(self, items: ItemSet, limit: int) -> None:
        self.items = items
        self.chosen = spread_over(len(items), limit)
        self.indices, self.groups = items.indices[self.chosen], items.groups[self.chosen]

    def __getitems__(self, draws: list[Draw]) -> Batch | Reported:
        return self.items.__getitems__([draw._replace(sample=self.chosen[draw.sample]) for draw in draws])

    def place(self, index: int) -> str:
        return self.items.place(index)


def find_suite(name: str) -> type[Suite]:
    """The class of a suite: a row of `registry.SUITES`, or the dotted path of one's own.

    Raises:
        RecipeError: If there is none.
    """
    if "." not in name:
        suite: type[Suite] = SUITES.find(name)
        return suite
    module, _, attribute = name.rpartition(".")
    try:
        suite = load_object(f"{module}:{attribute}")
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"suite {name} cannot be imported: {error}", "give the dotted path of its class") from None
    return suite


def options_of(suite: type[Suite]) -> dict[str, str]:
    """Option on the command line -> field; each also as --suite.FIELD."""
    names = [f.name for f in fields(suite)]
    short = {"--" + suite.option_names.get(name, name).replace("_", "-"): name for name in names}
    return short | {f"--suite.{name}": name for name in names}


def suite_parser(suite: type[Suite]) -> ArgumentParser:
    """The schema of a suite's options: its fields."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(suite)
    return parser


def make_suite(name: str, options: Mapping[str, Any]) -> Suite:
    """A suite with its options checked.

    Args:
        name: See `find_suite`.
        options: Field -> value, or its text; a list also as "A,B".

    Raises:
        LmgraftError: If there is no such suite or option, or a value does not fit.
    """
    suite = find_suite(name)
    parser = suite_parser(suite)
    types = {f.name: str(f.type) for f in fields(suite)}
    values = dict(options)
    for key, value in options.items():
        if key not in types:
            raise RecipeError(f"suite {name} has no option {key!r}", suggest(key, types))
        if isinstance(value, str) and "tuple" in types[key] and value[:1] != "[":
            values[key] = [one.strip() for one in value.split(",") if one.strip()]
    try:
        parsed = parser.instantiate(parser.parse_object(values))
    except (ArgumentError, TypeError, ValueError) as error:
        what = explained(error, suite, values)
        raise RecipeError(f"suite {name}: {what}", "docs/robustness.md lists its options") from None
    return suite(**vars(parsed))
