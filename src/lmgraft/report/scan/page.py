"""`report.html` of a scan: what its template shows, gathered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from lmgraft import records
from lmgraft.report.drawing import write_figures
from lmgraft.report.html import facts_of, render
from lmgraft.report.scan.figures import draw_all
from lmgraft.report.scan.findings import candidates_to_train, findings, metric_of, next_study, score_facts, truths
from lmgraft.report.scan.tables import TIED, agreement_table, scores_table, write_tables
from lmgraft.report.table import Table
from lmgraft.studies.scan.known import Known
from lmgraft.studies.scan.ranking import agreements, columns
from lmgraft.studies.scan.results import Scan
from lmgraft.words import numbers as write
from lmgraft.words.scan import sentences

_OF_SCORES = ("score", "measures", "why it might predict", "interval")


def write_report(scan: Scan, out: Path, known: Known | None = None) -> Path:
    """Write report.html, next_study.yaml, tables/ and figures/ into `out`; returns the page."""
    tables = {
        source: agreement_table(scan, agreements(scan, truth), metric_of(scan, source, known))
        for source, truth in truths(scan, known).items()
    }
    named = {_file_name(source, known): table for source, table in tables.items()}
    files = [f"tables/{path.name}" for path in write_tables(scan, out / "tables", named)]
    svgs = write_figures(draw_all(scan, known), out / "figures")
    files += [f"figures/{name}.{ending}" for name in svgs for ending in ("svg", "png")]
    if candidates_to_train(scan):
        records.write_text(out / "next_study.yaml", next_study(scan))
        files.append("next_study.yaml")
    records.write_text(out / "report.html", page(scan, out, known, tables, svgs, files))
    return out / "report.html"


def _file_name(source: str, known: Known | None) -> str:
    return "known" if known is not None and source == known.source else "short_training"


def page(
    scan: Scan,
    out: Path,
    known: Known | None,
    tables: Mapping[str, Table],
    svgs: Mapping[str, str],
    files: Sequence[str],
) -> str:
    """The whole page as HTML."""
    m = scan.metric
    what = m.title.removeprefix("test ")
    encoder = {
        s.candidate.position: p.parts["encoder"] for s in scan.chosen() if (p := s.scores.get("probe")) and p.parts
    }
    failures = [
        (scanned.candidate.title, name, str(measured.failed))
        for scanned in scan.chosen()
        for name, measured in [*scanned.scores.items(), *([("training", scanned.gain)] if scanned.gain else [])]
        if measured.failed
    ]
    blocks = [(s.candidate.llm, str(s.candidate.layer), s.digest) for s in scan.chosen() if s.digest]
    held_out = scan.encoder.val
    environment = scan.environment
    return render(
        "scan.html",
        scan=scan,
        svgs=svgs,
        files=files,
        things=scan.things,
        metric=what,
        count=len(columns(scan)),
        held_out="" if held_out is None else f"{what} {write.value(held_out, m)} {m.unit}",
        sentences=sentences(findings(scan, known)),
        tied=TIED,
        without=", ".join(f"{write.value(value, m)} {m.unit} ({place})" for place, value in encoder.items()),
        scores=scores_table(scan),
        failures=Table(("candidate", "what", "why"), failures),
        agreements=[
            (
                source,
                f"against_{_file_name(source, known)}",
                table,
                known.unmatched if known and source == known.source else [],
            )
            for source, table in tables.items()
        ],
        facts_of_scores=Table(_OF_SCORES, score_facts()),
        next_study=next_study(scan) if candidates_to_train(scan) else "",
        next_file=str(out / "next_study.yaml"),
        recipe=yaml.safe_dump(scan.settings["recipe"], sort_keys=False),
        blocks=Table(("LLM", "layer", "digest"), [*dict.fromkeys(blocks)]),
        facts={
            "recipe": scan.recipe,
            "encoder": scan.encoder.origin,
            "run of it": scan.encoder.run or "",
            "effort": ", ".join(f"{key} {v}" for key, v in scan.settings["effort"].items() if v is not None),
            **facts_of(environment),
            "commit": str(environment.get("git_commit") or "not a checkout"),
        },
    )
