"""A scan's table: every candidate with all scores, best first; as text, and as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.analysis.agreement import Agreement, Rank
from lmgraft.analysis.numbers import NONE, in_unit
from lmgraft.contracts import Metric
from lmgraft.report.table import Table, latex, markdown
from lmgraft.studies.scan.candidates import short_name
from lmgraft.studies.scan.ranking import Ranked, column, columns, rank
from lmgraft.studies.scan.results import GAIN, Scan, Scanned, is_difference, unit_of
from lmgraft.studies.scan.scores import SCORES
from lmgraft.studies.scan.scores.measured import Measured

TIED = "≈"
"""Behind a value: not told apart from the best of its column."""


def title_of(name: str) -> str:
    """Of a column."""
    return "held-out gain" if name == GAIN else SCORES[name].title


def with_unit(scan: Scan, name: str) -> str:
    """The title with the unit of its values."""
    return ", ".join(filter(None, (title_of(name), unit_of(scan, name).difference_unit)))


def written(scan: Scan, value: float, name: str) -> str:
    """A score as tables have it, signed where it is a difference."""
    return in_unit(value, unit_of(scan, name), signed=is_difference(name))


def order(scan: Scan) -> list[Scanned]:
    """Candidates by the short training where there is one, else by the first score; those without it behind."""
    names = columns(scan)
    if not names:
        return scan.chosen()
    first = [r.label for r in rank(scan, GAIN if GAIN in names else names[0])]
    return [scan.candidates[label] for label in [*first, *(c for c in scan.candidates if c not in set(first))]]


def scores_table(scan: Scan) -> Table:
    """One row a candidate; each score with its interval, its rank in brackets, ≈ where it is not told apart."""
    names = columns(scan)
    header = ["LLM", "layer", "position"]
    header += [with_unit(scan, name) for name in names]
    ranks = {name: {r.label: r for r in rank(scan, name)} for name in names}
    rows = []
    for scanned in order(scan):
        c = scanned.candidate
        cells = [_cell(scan, scanned, name, ranks[name].get(c.label)) for name in names]
        rows.append((short_name(c.llm), f"{c.layer} of {c.num_layers}", c.position, *cells))
    return Table(tuple(header), rows)


def _cell(scan: Scan, scanned: Scanned, name: str, ranked: Ranked | None) -> str:
    measured = column(scanned, name)
    if measured is None:
        return NONE
    if ranked is None or measured.value is None:
        return "failed" if measured.applies else "not for this task"
    text = written(scan, measured.value, name)
    if measured.interval is not None:
        text += f" [{written(scan, measured.interval[0], name)}, {written(scan, measured.interval[1], name)}]"
    return f"{text} ({ranked.rank}{TIED if ranked.tied else ''})"


def agreement_table(found: Mapping[str, Agreement], candidates: Mapping[str, Scanned], metric: Metric) -> Table:
    """One row a score: does it rank as training did, by this metric?"""
    header = (
        "score",
        "candidates",
        "Kendall's tau",
        "p",
        "Spearman",
        "its favourite",
        f"lost by it, {metric.difference_unit}",
        "by chance",
    )
    rows: list[tuple[str, ...]] = []
    for name, a in found.items():
        favourite = NONE if a.favourite is None else candidates[a.favourite].candidate.title
        rows.append(
            (
                title_of(name),
                str(len(a.candidates)),
                _coefficient(a.kendall),
                NONE if a.kendall is None else f"{a.kendall.p:.2f}",
                _coefficient(a.spearman),
                favourite,
                NONE if a.regret is None else in_unit(a.regret, metric),
                NONE if a.regret_of_chance is None else in_unit(a.regret_of_chance, metric),
            )
        )
    return Table(header, rows)


def _coefficient(rank: Rank | None) -> str:
    if rank is None:
        return NONE
    interval = "" if rank.interval is None else f" [{rank.interval[0]:+.2f}, {rank.interval[1]:+.2f}]"
    return f"{rank.value:+.2f}{interval}"


def write_tables(scan: Scan, folder: Path, agreements: Mapping[str, Table]) -> list[Path]:
    """Write scan.csv, scan.md and scan.tex, and of each table of agreement the same; returns the files."""
    table = scores_table(scan)
    texts = {"scan.csv": scores_csv(scan), "scan.md": markdown(table), "scan.tex": latex(table)}
    for name, agreement in agreements.items():
        texts |= {f"agreement_{name}.md": markdown(agreement), f"agreement_{name}.tex": latex(agreement)}
    for file, text in texts.items():
        records.write_text(folder / file, text)
    return [folder / file for file in texts]


_CSV_HEADER = (
    *("label", "llm", "layer", "num_layers", "position", "digest", "score", "rank", "tied_with_best"),
    *("value", "low", "high", "draws", "parts", "seconds", "failed"),
)


def scores_csv(scan: Scan) -> str:
    """One row a candidate and score, numbers as measured: accuracies and their gains as shares."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for name in columns(scan):
        ranks = {r.label: r for r in rank(scan, name)}
        for label, scanned in scan.candidates.items():
            measured = column(scanned, name)
            if measured is not None:
                writer.writerow(_csv_row(scanned, name, measured, ranks.get(label)))
    return out.getvalue()


def _csv_row(scanned: Scanned, name: str, measured: Measured, ranked: Ranked | None) -> list[Any]:
    c = scanned.candidate
    return [
        *(c.label, c.llm, c.layer, c.num_layers, c.position, scanned.digest, name),
        *((ranked.rank, ranked.tied) if ranked else (None, None)),
        measured.value,
        *(measured.interval or (None, None)),
        " ".join(f"{value:.10g}" for value in measured.draws),
        " ".join(f"{part}={value:.10g}" for part, value in measured.parts.items()),
        f"{measured.seconds:.2f}",
        measured.failed,
    ]
