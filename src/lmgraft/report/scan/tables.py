"""A scan's table: every candidate with all scores, best first; as text, and as files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from lmgraft import records
from lmgraft.analysis.agreement import Agreement, Rank
from lmgraft.contracts import Metric
from lmgraft.report.table import Column, Sheet, Table, csv_text, latex, markdown
from lmgraft.studies.scan.candidates import short_name
from lmgraft.studies.scan.ranking import Ranked, column, columns, rank
from lmgraft.studies.scan.results import GAIN, Scan, Scanned, is_difference, unit_of
from lmgraft.studies.scan.scores import SCORES
from lmgraft.studies.scan.scores.measured import Measured
from lmgraft.words import numbers as write

TIED = "≈"
"""Behind a value: not told apart from the best of its column."""


def written_as(scan: Scan, name: str) -> Metric:
    """A column's title, and how its values are written."""
    unit = unit_of(scan, name)
    title = "held-out gain" if name == GAIN else SCORES[name].title
    return replace(unit, title=title, unit=unit.difference_unit)


def order(scan: Scan) -> list[Scanned]:
    """Candidates by the short training where there is one, else by the first score; those without it behind."""
    names = columns(scan)
    if not names:
        return scan.chosen()
    first = [r.label for r in rank(scan, GAIN if GAIN in names else names[0])]
    return [scan.candidates[label] for label in [*first, *(c for c in scan.candidates if c not in set(first))]]


def scores_table(scan: Scan) -> Table:
    """One row a candidate; each score with its interval, its rank in brackets, ≈ where it is not told apart."""
    columns_ = [
        Column("LLM", lambda s: short_name(s.candidate.llm)),
        Column("layer", lambda s: f"{s.candidate.layer} of {s.candidate.num_layers}"),
        Column("position", lambda s: s.candidate.position),
    ]
    for name in columns(scan):
        m, ranks = written_as(scan, name), {r.label: r for r in rank(scan, name)}
        cell = partial(_cell, m=m, signed=is_difference(name))
        of = partial(_ranked, name=name, ranks=ranks)
        columns_.append(Column(write.in_unit(m.title, m.unit), of, cell))
    return Sheet(columns_, order(scan)).table()


def _ranked(scanned: Scanned, name: str, ranks: Mapping[str, Ranked]) -> tuple[Measured, Ranked | None] | None:
    measured = column(scanned, name)
    return None if measured is None else (measured, ranks.get(scanned.candidate.label))


def _cell(cell: tuple[Measured, Ranked | None], m: Metric, signed: bool) -> str:
    measured, ranked = cell
    if ranked is None or measured.value is None:
        return "failed" if measured.applies else "not for this task"
    text = write.value(measured.value, m, signed=signed)
    if measured.interval is not None and write.is_interval(measured.interval):
        text += f" [{', '.join(write.value(end, m, signed=signed) for end in measured.interval)}]"
    elif measured.no_interval is not None:
        text += f" [{measured.no_interval}]"
    return f"{text} ({ranked.rank}{TIED if ranked.tied else ''})"


def agreement_table(scan: Scan, found: Mapping[str, Agreement], metric: Metric) -> Table:
    """One row a score: does it rank as training did, by this metric?"""
    return Sheet(
        [
            Column("score", lambda a: written_as(scan, a[0]).title),
            Column("candidates", lambda a: len(a[1].candidates)),
            Column("Kendall's tau", lambda a: a[1].kendall, _coefficient),
            Column("p", lambda a: a[1].kendall and a[1].kendall.p, "{:.2f}".format),
            Column("Spearman", lambda a: a[1].spearman, _coefficient),
            Column("its favourite", lambda a: a[1].favourite, lambda label: scan.candidates[label].candidate.title),
            Column(
                write.in_unit("lost by it", metric.difference_unit),
                lambda a: a[1].regret,
                lambda x: write.value(x, metric),
            ),
            Column("by chance", lambda a: a[1].regret_of_chance, lambda x: write.value(x, metric)),
        ],
        list(found.items()),
    ).table()


def _coefficient(rank: Rank) -> str:
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


def scores_csv(scan: Scan) -> str:
    """One row a candidate and score, numbers as measured; shares and gains of shares as shares."""
    header = (
        *("label", "llm", "layer", "num_layers", "position", "digest", "score", "rank", "tied_with_best"),
        *("value", "low", "high", "draws", "parts", "seconds", "failed"),
    )
    rows = []
    for name in columns(scan):
        ranks = {r.label: r for r in rank(scan, name)}
        for label, scanned in scan.candidates.items():
            c, m, ranked = scanned.candidate, column(scanned, name), ranks.get(label)
            if m is None:
                continue
            rows.append(
                [
                    *(c.label, c.llm, c.layer, c.num_layers, c.position, scanned.digest, name),
                    *((ranked.rank, ranked.tied) if ranked else (None, None)),
                    *(m.value, *(m.interval or (None, None))),
                    " ".join(f"{value:.10g}" for value in m.draws),
                    " ".join(f"{part}={value:.10g}" for part, value in m.parts.items()),
                    *(f"{m.seconds:.2f}", m.failed),
                ]
            )
    return csv_text(header, rows)
