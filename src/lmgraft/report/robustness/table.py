"""Robustness as a table on the terminal and in Markdown, one column a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.analysis.robustness import CorruptionSummary
from lmgraft.contracts import Metric
from lmgraft.registry import METRICS
from lmgraft.report.robustness.figure import write_figure
from lmgraft.report.table import Table
from lmgraft.report.table import markdown as write_markdown
from lmgraft.studies.robustness.run import Robustness
from lmgraft.studies.robustness.sets import SETS
from lmgraft.words import numbers as write

NAMES = {"corruptions": "robustness", "imagenet-robustness": "imagenet_robustness"}
"""Suite -> what its files are called."""

_INTERVALS = (
    "Accuracy is top-1 in %. Intervals are 95 % (Wilson) over test images, of one trained model: they say nothing of "
    "another seed. Means over severities have none, since the same images come five times."
)
_METRIC: Metric = METRICS.find("accuracy")
_FURTHER: dict[str, Callable[[CorruptionSummary], float | None]] = {
    "share of the clean accuracy kept": lambda s: s.kept,
    "mCE (AlexNet 100, less is better)": lambda s: s.mce,
    "relative mCE (AlexNet 100)": lambda s: s.relative_mce,
}


def table(results: Sequence[Robustness]) -> Table:
    """Plain sets, then each corruption's mean, then what sums them up."""
    header = ("top-1 accuracy", *(result.label for result in results))
    keys = dict.fromkeys(key for result in results for key in result.cells if "/" not in key)
    rows = [(SETS[key].title if key in SETS else key, *(_cell(result, key) for result in results)) for key in keys]
    summaries = [result.summary for result in results]
    corruptions = list(dict.fromkeys(name for s in summaries if s for name in s.by_corruption))
    for name in corruptions:
        rows.append((name.replace("_", " "), *(_of(s, partial(_mean, name)) for s in summaries)))
    if corruptions:
        whole = "ImageNet-C" if "imagenet" in results[0].suite else "corruptions"
        rows.append((f"{whole}, mean of {len(corruptions)}", *(_of(s, lambda one: one.mean) for s in summaries)))
    further = [(title, *(_of(s, value) for s in summaries)) for title, value in _FURTHER.items()]
    return Table(header, [*rows, *(row for row in further if any(row[1:]))])


def _cell(result: Robustness, key: str) -> str:
    count = result.cells.get(key)
    return "" if count is None else f"{_share(count.accuracy)} ({write.interval(count.interval(), _METRIC)})"


def _mean(corruption: str, summary: CorruptionSummary) -> float | None:
    return summary.by_corruption.get(corruption)


def _of(summary: CorruptionSummary | None, pick: Callable[[CorruptionSummary], float | None]) -> str:
    return "" if summary is None else _share(pick(summary))


def _share(number: float | None) -> str:
    return "" if number is None else write.value(number, _METRIC)


def notes(results: Sequence[Robustness]) -> list[str]:
    """What a reader must know, each once."""
    return list(dict.fromkeys(note for result in results for note in result.notes))


def markdown(results: Sequence[Robustness]) -> str:
    """The page beside the figure."""
    name = NAMES[results[0].suite]
    lines = ["# Robustness", "", *(f"- {note}" for note in notes(results)), "", write_markdown(table(results))]
    lines.append(_INTERVALS)
    if any(result.summary for result in results):
        lines += ["", f"![accuracy against severity]({name}.png)"]
    return "\n".join([*lines, ""])


def to_dict(result: Robustness) -> dict[str, Any]:
    """For JSON: counts, accuracies, intervals, the summary with mCE, the limit and the notes."""
    cells = {
        key: asdict(count) | {"accuracy": count.accuracy, "interval": list(count.interval())}
        for key, count in result.cells.items()
    }
    summary = None if result.summary is None else asdict(result.summary)
    return {
        "label": result.label,
        "suite": result.suite,
        "limit": result.limit,
        "notes": list(result.notes),
        "summary": summary,
        "cells": cells,
    }


def write_report(results: Sequence[Robustness], out: Path) -> list[Path]:
    """Write page, figure and numbers of one suite into `out`; returns the files."""
    name = NAMES[results[0].suite]
    page = out / f"{name}.md"
    records.write_text(page, markdown(results))
    numbers = out / f"{name}_report.json"  # robustness.json is the record of what is counted
    records.write_json(numbers, [to_dict(result) for result in results])
    return [page, numbers, *write_figure(results, out, name)]
