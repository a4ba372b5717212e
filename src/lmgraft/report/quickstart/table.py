"""The quickstart's table and sentences, for the terminal, Markdown and HTML alike; it may know that it is of images."""

from __future__ import annotations

from lmgraft.contracts import Metric
from lmgraft.registry import METRICS
from lmgraft.report.table import Column, Sheet, Table
from lmgraft.report.table import markdown as write_markdown
from lmgraft.studies.quickstart import Quickstart
from lmgraft.words import numbers as write
from lmgraft.words import quickstart as words

METRIC: Metric = METRICS.find("accuracy")


def values(quickstart: Quickstart) -> dict[str, float]:
    """Arm -> the metric on the test images."""
    return {arm: result.metrics[METRIC.name] for arm, result in quickstart.results.items()}


def test_images(quickstart: Quickstart) -> int:
    """How many test images there were."""
    return next(iter(quickstart.results.values())).items


def table(quickstart: Quickstart) -> Table:
    """One row an arm."""
    results, of_arm = quickstart.results, values(quickstart)
    return Sheet(
        [
            Column("arm", str),
            Column(METRIC.title, of_arm.get, lambda x: f"{write.value(x, METRIC)} {METRIC.unit}"),
            Column("95 % interval", quickstart.intervals.get, lambda ends: write.interval(ends, METRIC)),
            Column("trained", lambda arm: results[arm].trained_params, write.count),
            Column("frozen", lambda arm: results[arm].frozen_params, write.count),
            Column("seconds", lambda arm: results[arm].seconds, write.count),
            Column("peak memory", lambda arm: results[arm].peak_memory, write.memory),
        ],
        list(results),
    ).table()


def markdown(quickstart: Quickstart) -> str:
    """The table in Markdown."""
    return write_markdown(table(quickstart))


def statements(quickstart: Quickstart) -> list[str]:
    """What the numbers say and what they do not."""
    cost = quickstart.time, quickstart.operations
    return words.statements(values(quickstart), cost, METRIC, test_images(quickstart), "images")
