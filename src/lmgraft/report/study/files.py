"""A study's tables as files: CSV with every number as it was measured, Markdown and LaTeX as they are read."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.analysis.paired import Contrast
from lmgraft.report.study import format as write
from lmgraft.report.study.tables import arms_table, contrasts_table, mark_exploratory
from lmgraft.report.table import Table, latex, markdown
from lmgraft.studies.study.results import StudyResult


def write_tables(result: StudyResult, folder: Path) -> list[Path]:
    """Write all tables into `folder`, each atomically; returns the files.

    In the CSV files values are in the metric's own unit (accuracy: a share), differences too.
    """
    arms = arms_table(result)
    planned = contrasts_table(result, result.contrasts)
    exploratory = contrasts_table(result, result.exploratory)
    contrasts = Table(planned.header, [*planned.rows, *map(mark_exploratory, exploratory.rows)])
    texts = {
        "arms.csv": arms_csv(result),
        "contrasts.csv": contrasts_csv(result),
        "breakdown.csv": breakdown_csv(result),
        "arms.md": markdown(arms),
        "arms.tex": latex(arms),
        "contrasts.md": markdown(contrasts),
        "contrasts.tex": latex(contrasts),
    }
    for name, text in texts.items():
        records.write_text(folder / name, text)
    return [folder / name for name in texts]


def arms_csv(result: StudyResult) -> str:
    """One row an arm."""
    base = write.reference_arm(result)
    seeds = list(dict.fromkeys([*result.seeds, *(seed for arm in result.arms for seed in arm.values)]))
    header = [
        *("label", "arm", "question", "metric", "mean", "low", "high", "seeds"),
        *(f"seed_{seed}" for seed in seeds),
        *("trained_params", "frozen_params", "train_flops", "train_flops_ratio", "eval_flops"),
        *("seconds", "seconds_ratio", "peak_memory", "learning_rate", "position"),
        *("block_source", "block_layers", "block_control", "block_digest", "overrides"),
    ]
    rows = []
    for arm in result.arms:
        block, cost = arm.block or {}, arm.cost
        rows.append(
            [
                *(arm.label, arm.arm, arm.question, result.metric.name, arm.mean),
                *(arm.interval or (None, None)),
                len(arm.values),
                *(arm.values.get(seed) for seed in seeds),
                *(cost.trained_params, cost.frozen_params, cost.train_flops),
                write.divide(cost.train_flops, base.cost.train_flops if base else None),
                *(cost.eval_flops, cost.seconds, write.divide(cost.seconds, base.cost.seconds if base else None)),
                *(cost.peak_memory, arm.learning_rate, arm.position if block else None),
                *(block.get("source"), " ".join(map(str, block.get("layers") or ()))),
                *(json.dumps(block["control"]) if block.get("control") else None, block.get("digest")),
                json.dumps(arm.overrides, default=str) if arm.overrides else None,
            ]
        )
    return _csv(header, rows)


def contrasts_csv(result: StudyResult) -> str:
    """One row a contrast, planned ones first."""
    seeds = list(dict.fromkeys(s for c in (*result.contrasts, *result.exploratory) for s in c.seeds))
    header = [
        *("kind", "arm", "reference", "metric", "mean", "sd", "low", "high", "p", "p_holm", "p_equivalence"),
        *("equivalent", "margin", "detectable", "bootstrap_low", "bootstrap_high", "outcome", "seeds"),
        *(f"seed_{seed}" for seed in seeds),
    ]

    def row(kind: str, c: Contrast) -> list[Any]:
        tested = [*(c.interval or ()), c.p, c.p_holm if kind == "planned" else None, c.p_equivalence]
        low, high, p, p_holm, p_equivalence = tested if c.sd else [None] * 5  # without spread there is no test
        by_seed = dict(zip(c.seeds, c.differences, strict=True))
        return [
            *(kind, c.arm, c.reference, result.metric.name, c.mean, c.sd, low, high, p),
            *(p_holm, p_equivalence, c.equivalent, result.margin, c.detectable if c.sd else None),
            *(c.bootstrap or (None, None)),
            *(c.outcome, len(c.seeds)),
            *(by_seed.get(seed) for seed in seeds),
        ]

    planned = [row("planned", contrast) for contrast in result.contrasts]
    return _csv(header, [*planned, *(row("exploratory", contrast) for contrast in result.exploratory)])


def breakdown_csv(result: StudyResult) -> str:
    """One row a class or corruption of a contrast."""
    header = ["kind", "name", "arm", "reference", "mean", "low", "high"]
    return _csv(header, [[*astuple(part)[:-1], *(part.interval or (None, None))] for part in result.breakdown])


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Numbers with all their digits; nothing for what is None or not finite."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if _absent(cell) else cell for cell in row] for row in rows])
    return text.getvalue()


def _absent(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and not math.isfinite(cell))
