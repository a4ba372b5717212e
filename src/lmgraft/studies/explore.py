"""One item under several runs: what stands out at a stage or for a head, and what each run predicts.

Everything that `lmgraft explore` shows, as data; knows neither pictures nor pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lmgraft.analysis.activations import scaled_to_one
from lmgraft.analysis.masks import best_iou, iou
from lmgraft.data.base import Data, on_device
from lmgraft.data.items import ItemSet
from lmgraft.errors import DataError, RecipeError
from lmgraft.studies.analyze.gallery import ATTENTION_TITLES, STAGES
from lmgraft.studies.analyze.given import open_runs
from lmgraft.studies.analyze.look import Opened, first_views, look, predictions, shown

LAST = "last"
"""The stage that each run's head is given: W2, or the encoder of a plain run."""
ATTENTION = {"encoder attention": "encoder", "block attention": "block"}
"""Choices of attention -> as `Observed.attention` calls it."""
Measure = Literal["magnitude", "frequency"]
Absent = Literal["no such stage", "no such head", "no attention", "not finite", "other tokens"]
"""Why a run shows nothing at a choice."""
_REMEMBERED = 4


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is to be shown of an item.

    Raises:
        RecipeError: If the threshold is none.
    """

    stage: str = LAST
    """A name of `Explorer.stages`."""
    measure: Measure = "magnitude"
    """Of a stage's tokens; attention has no measure."""
    head: int | None = None
    """Of attention, from 0 on; None: the mean over heads."""
    threshold: float = 0.5
    """Tokens whose value is larger stand out."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise RecipeError(f"threshold {self.threshold} must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One item under one run, on the CPU."""

    inputs: Any
    """What its task shows of it: a tensor, or a NamedTuple of them."""
    truth: Tensor | None
    """As the data have it."""
    object_tokens: Tensor | None
    """(T,) bool, the truth over tokens."""
    places: Tensor | None
    """(T, k) or (T, K, k), where tokens lie that lie in no grid, as they are drawn."""
    padded: Tensor | None
    """(T,) bool."""
    unknown: Tensor | None
    """(T,) bool: padded tokens, and those of which it is not known whether they are the object's."""
    last: str
    """What `LAST` is in this run."""
    maps: Mapping[tuple[str, str], Tensor]
    """(stage, measure) -> (T,) in [0, 1]."""
    grids: Mapping[str, tuple[int, ...] | None]
    """Stage -> sizes of its grid of tokens."""
    heads: Mapping[str, Tensor]
    """"encoder" and "block" -> (heads, T), each token's share of attention."""
    prediction: Mapping[str, Any]
    """In the task's own words; None where it has none."""


@dataclass(frozen=True)
class Seen:
    """One item under all runs."""

    name: str
    truths: Mapping[str, str]
    """What the data say of it: {"class": "cat"}; nothing of a file from elsewhere."""
    sights: Mapping[str, Sight]


@dataclass(frozen=True, kw_only=True)
class Marked:
    """What stands out of an item under one run."""

    stage: str
    """Which one `LAST` was, else as chosen."""
    values: Tensor
    """(T,) in [0, 1]."""
    above: Tensor
    """(T,) bool, over the threshold."""
    tokens: int
    """How many there are, padded ones left out."""
    iou: float | None
    """With the object's tokens; None where these are not known."""
    best_iou: float | None
    """At the best threshold."""


@dataclass(frozen=True, kw_only=True)
class View:
    """An item at a choice, under the chosen runs."""

    seen: Seen
    choice: Choice
    grid: tuple[int, ...] | None
    marked: Mapping[str, Marked]
    absent: Mapping[str, Absent]
    """Runs that have nothing to show there, and why."""
    predictions: Mapping[str, Mapping[str, Any]]

    @property
    def first(self) -> Sight:
        """The sight whose item is shown."""
        return self.seen.sights[next(iter([*self.marked, *self.absent]))]


class Explorer:
    """Finished runs that have the same test items, to be looked at item by item.

    Args:
        runs: The runs, opened.

    Attributes:
        things: What the items are called, in the plural.
        endings: Of files that can be given; empty where none can.
        beside: Of files that may be given along with one.
        count: Test items.
    """

    def __init__(self, runs: Sequence[Opened]) -> None:
        self._runs = {run.label: run for run in runs}
        data = runs[0].recipe.data
        self.things, self.count = data.things, len(runs[0].items)
        self.endings, self.beside = data.endings, data.beside
        self.item = lru_cache(_REMEMBERED)(self._item)
        self.file = lru_cache(_REMEMBERED)(self._file)

    @property
    def labels(self) -> list[str]:
        return list(self._runs)

    def _item(self, number: int) -> Seen:
        """A test item, by its place in the test set from 0 on; the latest few are remembered.

        Raises:
            DataError: If there is no such item, or its file cannot be read.
        """
        if not 0 <= number < self.count:
            raise DataError(f"there is no test item {number}", f"choose one from 0 to {self.count - 1}")
        sets = {label: run.items for label, run in self._runs.items()}
        return self._seen(sets, number, f"test item {number}")

    def _file(self, *paths: str) -> Seen:
        """An item from a file of one's own, and what lies beside it; the latest few are remembered.

        Raises:
            DataError: If it is missing, broken or of another kind; it names the file without its folder.
        """
        try:
            return self._seen({label: run.recipe.data.open(paths) for label, run in self._runs.items()}, 0, "")
        except DataError as error:
            message = error.message
            for path in paths:
                message = message.replace(f"{Path(path).parent}/", "")
            raise DataError(message, "give another file") from None

    def _seen(self, sets: Mapping[str, ItemSet], sample: int, name: str) -> Seen:
        sights = {}
        truths: dict[str, str] = {}
        for label, run in self._runs.items():
            batch = first_views(sets[label].readable([sample]))
            batch = on_device(batch, next(run.model.parameters()).device)
            index = int(batch.index[0])
            file = sets[label].about(index)["file"]
            place = sets[label].place(index).replace(file, Path(file).name, 1)
            sights[label], of_data = _sight(run, batch)
            if name:  # a file from elsewhere has no labels, only what stands for them
                truths |= of_data
        return Seen(", ".join(filter(None, (name, place))), truths, sights)

    @cached_property
    def stages(self) -> dict[str, str]:
        """What can be looked at -> how it is called, in the order in which tokens pass it."""
        names = dict.fromkeys(stage for sight in self._sights for stage in sight.grids)
        layers = sorted((name for name in names if name not in STAGES), key=lambda name: int(name.split()[-1]))
        titles = {name: f"encoder, {name}" for name in layers} | {k: v for k, v in STAGES.items() if k in names}
        attention = {key: ATTENTION_TITLES[kind] for key, kind in ATTENTION.items() if self._heads(kind)}
        return {LAST: "what the head is given"} | titles | attention

    @cached_property
    def heads(self) -> int:
        """The largest number of heads of any attention; 0 where none is seen."""
        return max(map(self._heads, ATTENTION.values()))

    def _heads(self, kind: str) -> int:
        return max(len(sight.heads.get(kind, ())) for sight in self._sights)

    @cached_property
    def _sights(self) -> list[Sight]:
        """Of the first test item that can be read."""
        for number in range(self.count - 1):
            with suppress(DataError):
                return list(self.item(number).sights.values())
        return list(self.item(self.count - 1).sights.values())

    def view(self, seen: Seen, labels: Sequence[str], choice: Choice) -> View:
        """An item at a choice.

        Args:
            seen: Of `item` or `file`.
            labels: The runs, of `labels`, in the order in which they are to be shown.
            choice: What is shown.

        Raises:
            RecipeError: If no run is chosen, or the stage is none.
        """
        if not labels:
            raise RecipeError("no run is chosen", f"choose among {', '.join(self.labels)}")
        if choice.stage not in self.stages:
            raise RecipeError(f"there is no stage {choice.stage!r}", f"choose among {', '.join(self.stages)}")
        marked: dict[str, Marked] = {}
        absent: dict[str, Absent] = {}
        grid = None
        for label in labels:
            sight = seen.sights[label]
            values = _values(sight, choice)
            if isinstance(values, str):
                absent[label] = values
                continue
            its_grid = sight.grids[_stage(sight, choice)]
            if not marked:
                grid = its_grid
            if its_grid != grid:
                absent[label] = "other tokens"
            else:
                marked[label] = _marked(sight, values, choice)
        predictions = {label: p for label in labels if (p := seen.sights[label].prediction)}
        return View(seen=seen, choice=choice, grid=grid, marked=marked, absent=absent, predictions=predictions)


def open_explorer(run_dirs: Sequence[Path], overrides: Sequence[str] = (), others: Data | None = None) -> Explorer:
    """Runs opened to be looked at, and the first item looked at to see that it works.

    Args:
        run_dirs: Finished runs of one data set.
        overrides: Changes of the recipes, such as ["--data.root", "DIR"].
        others: Data whose items are looked at in place of the runs' test items.

    Raises:
        LmgraftError: If a run is not finished, its model is no host that lmgraft knows, or the runs have other data.
    """
    explorer = Explorer(open_runs(run_dirs, overrides, others))
    assert explorer.stages  # looked for now, so that what does not work is an error before any page is open
    return explorer


@torch.no_grad()
def _sight(run: Opened, batch: Any) -> tuple[Sight, dict[str, str]]:
    """The one item of a batch, and what the data say of it."""
    looked = look(run, batch, layers=True)
    noted, truth = looked.noted, getattr(batch, "truth", None)

    def first(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[0].cpu()

    categories = run.recipe.data.categories()
    truths = {
        name.removeprefix("by_"): categories[name.removeprefix("by_")][int(values[0])]
        for name, values in (run.task.score(noted.output, batch) if run.labelled else {}).items()
        if name.removeprefix("by_") in categories and name.startswith("by_")
    }
    right = run.task.right(batch)[0] if run.labelled else ""
    if right not in ("", *truths.values()):
        truths["right"] = right
    sight = Sight(
        inputs=shown(run, batch, 0),
        truth=first(truth),
        object_tokens=first(looked.truth),
        places=first(looked.drawn),
        padded=first(noted.padded),
        unknown=first(looked.unknown),
        last=run.last,
        maps={key: values[0].cpu() for key, values in looked.maps.items() if key[1] != "attention"},
        grids={stage: features.grid for stage, features in noted.at.items()},
        heads={kind: shares[0].cpu() for kind, shares in noted.attention.items()},
        prediction=predictions(run, noted.output, batch)[0],
    )
    return sight, truths


def _stage(sight: Sight, choice: Choice) -> str:
    """The stage whose tokens are shown; attention is to those of the last."""
    return sight.last if choice.stage == LAST or choice.stage in ATTENTION else choice.stage


def _values(sight: Sight, choice: Choice) -> Tensor | Absent:
    """(T,) in [0, 1], or why there are none."""
    if choice.stage in ATTENTION:
        shares = sight.heads.get(ATTENTION[choice.stage])
        if shares is None:
            return "no attention"
        if choice.head is not None and not 0 <= choice.head < len(shares):
            return "no such head"
        chosen = shares.mean(0) if choice.head is None else shares[choice.head]
        values = scaled_to_one(chosen[None], None if sight.padded is None else sight.padded[None])[0]
    else:
        key = _stage(sight, choice), choice.measure
        if key not in sight.maps:
            return "no such stage"
        values = sight.maps[key]
    return values if bool(values.isfinite().all()) else "not finite"


def _marked(sight: Sight, values: Tensor, choice: Choice) -> Marked:
    padded = sight.padded if sight.padded is not None and sight.padded.shape == values.shape else None
    above = values > choice.threshold
    scores: dict[str, float | None] = {"iou": None, "best_iou": None}
    if sight.object_tokens is not None and sight.object_tokens.shape == values.shape:
        truth, rows = sight.object_tokens[None], values[None]
        unknown = None if sight.unknown is None else sight.unknown[None]
        scores = {
            "iou": float(iou(rows, truth, choice.threshold, unknown)),
            "best_iou": float(best_iou(rows, truth, unknown)),
        }
    return Marked(
        stage=_stage(sight, choice) if choice.stage == LAST else choice.stage,
        values=values,
        above=above,
        tokens=len(values) if padded is None else int((~padded).sum()),
        **scores,
    )
