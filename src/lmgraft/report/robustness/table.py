"""Robustness as a table on the terminal and in Markdown, one column a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.contracts import Metric
from lmgraft.report.robustness.figure import quantity, write_figure
from lmgraft.report.table import Table
from lmgraft.report.table import markdown as write_markdown
from lmgraft.studies.robustness.run import Robustness
from lmgraft.words import numbers as write
from lmgraft.words.robustness import of_intervals

NAMES = {"corruptions": "robustness"}
"""Suite -> what its files are called, where that is not the suite's own name."""


def _name(results: Sequence[Robustness]) -> str:
    suite = results[0].suite
    return NAMES.get(suite, suite.replace("-", "_"))


def table(results: Sequence[Robustness]) -> Table:
    """Single conditions, then each part's mean over its levels where it has such, then what sums them up."""
    single = {key: cell.title for result in results for key, cell in result.cells.items() if cell.level is None}
    rows = [(title, *(_cell(result, key) for result in results)) for key, title in single.items()]
    for kind in ("part", "whole"):
        titles = {row.name: row.title for result in results for row in result.summary if row.kind == kind}
        if kind == "part":
            titles = {name: title for name, title in titles.items() if name in _parts_in_levels(results)}
        rows += [(title, *(_summed(result, kind, name) for result in results)) for name, title in titles.items()]
    return Table((quantity(results[0].metric), *(result.label for result in results)), rows)


def _cell(result: Robustness, key: str) -> str:
    cell, metric = result.cells.get(key), result.metric
    return "" if cell is None else _written(cell.metrics[metric.name], cell.intervals.get(metric.name), metric)


def _summed(result: Robustness, kind: str, name: str) -> str:
    row = next((row for row in result.summary if (row.kind, row.name) == (kind, name)), None)
    return "" if row is None else _written(row.value, row.interval, row.metric)


def _written(value: float, ends: tuple[float, float] | None, metric: Metric) -> str:
    written = write.value(value, metric)
    return written if ends is None else f"{written} ({write.interval(ends, metric)})"


def _parts_in_levels(results: Sequence[Robustness]) -> set[str | None]:
    """The parts that are shown in levels: of these there are means, and a figure."""
    return {cell.part for result in results for cell in result.cells.values() if cell.level is not None}


def notes(results: Sequence[Robustness]) -> list[str]:
    """What a reader must know, each once."""
    return list(dict.fromkeys(note for result in results for note in result.notes))


def markdown(results: Sequence[Robustness]) -> str:
    """The page; beside it lies a figure where something is shown in levels."""
    metric, things = results[0].metric, results[0].things
    lines = ["# Robustness", "", *(f"- {note}" for note in notes(results)), "", write_markdown(table(results))]
    levels = bool(_parts_in_levels(results))
    lost = any(row.interval is not None for result in results for row in result.summary)
    lines.append(of_intervals(things, levels=levels, lost=lost))
    if levels:
        lines += ["", f"![{metric.title.removeprefix('test ')} against severity]({_name(results)}.png)"]
    return "\n".join([*lines, ""])


def to_dict(result: Robustness) -> dict[str, Any]:
    """For JSON: metrics and intervals of every cell, what sums them up, the limit and the notes."""
    content = asdict(result)
    content["metric"] = result.metric.name
    content["summary"] = [asdict(row) | {"metric": row.metric.name} for row in result.summary]
    del content["shown"]
    return content


def write_report(results: Sequence[Robustness], out: Path) -> list[Path]:
    """Write page, figure and numbers of one suite into `out`; returns the files."""
    name = _name(results)
    page = out / f"{name}.md"
    records.write_text(page, markdown(results))
    numbers = out / f"{name}_report.json"  # robustness.json is the record of what is counted
    records.write_json(numbers, [to_dict(result) for result in results])
    return [page, numbers, *write_figure(results, out, name)]
