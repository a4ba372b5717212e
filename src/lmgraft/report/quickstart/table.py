"""The quickstart's table as rows of text, for the terminal, Markdown and HTML alike."""

from __future__ import annotations

from lmgraft.report import table
from lmgraft.report.table import Table
from lmgraft.studies.quickstart import Quickstart

HEADER = ("arm", "test accuracy", "95 % interval", "trained", "frozen", "seconds", "peak memory")


def rows(quickstart: Quickstart) -> list[tuple[str, ...]]:
    """One row an arm, formatted."""
    made: list[tuple[str, ...]] = []
    for arm, result in quickstart.results.items():
        low, high = quickstart.intervals[arm]
        made.append(
            (
                arm,
                f"{100 * result.metrics['accuracy']:.2f} %",
                f"{100 * low:.2f} to {100 * high:.2f}",
                f"{result.trained_params:,}",
                f"{result.frozen_params:,}",
                f"{result.seconds:.0f}",
                f"{result.peak_memory / 2**30:.2f} GiB",
            )
        )
    return made


def markdown(quickstart: Quickstart) -> str:
    """The table in Markdown."""
    return table.markdown(Table(HEADER, rows(quickstart)))
