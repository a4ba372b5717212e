"""Robustness as a table on the terminal and in Markdown, one column a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.analysis.robustness import CorruptionSummary, Count
from lmgraft.report import table
from lmgraft.report.robustness.figure import write_figure
from lmgraft.report.table import Table
from lmgraft.studies.robustness.run import Robustness
from lmgraft.studies.robustness.sets import SETS

NAMES = {"corruptions": "robustness", "imagenet-robustness": "imagenet_robustness"}
"""Suite -> what its files are called."""

_INTERVALS = (
    "Accuracy is top-1 in %. Intervals are 95 % (Wilson) over test images, of one trained model: they say nothing of "
    "another seed. Means over severities have none, since the same images come five times."
)


def header(results: Sequence[Robustness]) -> tuple[str, ...]:
    return ("top-1 accuracy", *(result.label for result in results))


def rows(results: Sequence[Robustness]) -> list[tuple[str, ...]]:
    """The table's rows, formatted: plain sets, then each corruption's mean, then what sums them up."""
    made = [_row(title, results, _cell(key)) for key, title in _single_sets(results)]
    summaries = [result.summary for result in results]
    if not any(summaries):
        return made
    corruptions = list(dict.fromkeys(name for s in summaries if s for name in s.by_corruption))
    whole = "ImageNet-C" if "imagenet" in results[0].suite else "corruptions"
    for name in corruptions:
        made.append(_row(name.replace("_", " "), results, _of_summary(partial(_mean_of, name))))
    made.append(_row(f"{whole}, mean of {len(corruptions)}", results, _of_summary(lambda s: s.mean)))
    further: dict[str, Callable[[CorruptionSummary], float | None]] = {
        "share of the clean accuracy kept": lambda s: s.kept,
        "mCE (AlexNet 100, less is better)": lambda s: s.mce,
        "relative mCE (AlexNet 100)": lambda s: s.relative_mce,
    }
    for title, value in further.items():
        row = _row(title, results, _of_summary(value))
        if any(row[1:]):
            made.append(row)
    return made


def _mean_of(corruption: str, summary: CorruptionSummary) -> float | None:
    return summary.by_corruption.get(corruption)


def _single_sets(results: Sequence[Robustness]) -> list[tuple[str, str]]:
    keys = list(dict.fromkeys(key for result in results for key in result.cells if "/" not in key))
    return [(key, SETS[key].title if key in SETS else key) for key in keys]


def _row(title: str, results: Sequence[Robustness], value: Callable[[Robustness], str]) -> tuple[str, ...]:
    return (title, *(value(result) for result in results))


def _cell(key: str) -> Callable[[Robustness], str]:
    def value(result: Robustness) -> str:
        return _with_interval(result.cells[key]) if key in result.cells else ""

    return value


def _of_summary(pick: Callable[[CorruptionSummary], float | None]) -> Callable[[Robustness], str]:
    def value(result: Robustness) -> str:
        number = None if result.summary is None else pick(result.summary)
        return "" if number is None else f"{100 * number:.2f}"

    return value


def _with_interval(count: Count) -> str:
    low, high = count.interval()
    return f"{100 * count.accuracy:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def notes(results: Sequence[Robustness]) -> list[str]:
    """What a reader must know, each once."""
    return list(dict.fromkeys(note for result in results for note in result.notes))


def markdown(results: Sequence[Robustness]) -> str:
    """The page beside the figure."""
    name = NAMES[results[0].suite]
    lines = ["# Robustness", "", *(f"- {note}" for note in notes(results)), ""]
    lines += [table.markdown(Table(header(results), rows(results))), _INTERVALS]
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
