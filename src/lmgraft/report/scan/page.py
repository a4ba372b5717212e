"""`report.html` of a scan: one self-contained page, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import yaml

from lmgraft import records
from lmgraft.analysis.numbers import in_unit
from lmgraft.contracts import Metric
from lmgraft.report.drawing import inline, theme, write_figures
from lmgraft.report.html import details, document, listed_files, plain_table, sentences
from lmgraft.report.scan.figures import FIGURES, draw_all
from lmgraft.report.scan.tables import TIED, agreement_table, scores_table, write_tables
from lmgraft.report.scan.words import candidates_to_train, next_study, score_facts, statements, truths, unit_for
from lmgraft.report.table import Table
from lmgraft.studies.scan.known import Known
from lmgraft.studies.scan.ranking import agreements, columns
from lmgraft.studies.scan.results import Scan

_ALT = {
    "layers": "Each score against the layer of the LLM, a line for each LLM and position",
    "against_short_training": "Each score against the gain of the short training, a point for each candidate",
    "against_known": "Each score against the gain of known trainings, a point for each candidate",
}
_OF_SCORES = ("score", "measures", "why it might predict", "interval")
_CUT = "Lines are 95 % intervals; charts are cut to the values, so that long intervals go beyond them."


def write_report(scan: Scan, out: Path, known: Known | None = None) -> Path:
    """Write report.html, next_study.yaml, tables/ and figures/ into `out`; returns the page."""
    found = truths(scan, known)
    tables = {
        name: agreement_table(agreements(scan, truth), scan.candidates, unit_for(scan, name, known))
        for name, truth in found.items()
    }
    named = {("short_training" if name == "short training" else "known"): table for name, table in tables.items()}
    files = [f"tables/{path.name}" for path in write_tables(scan, out / "tables", named)]
    svgs = write_figures(draw_all(scan, known), out / "figures", FIGURES)
    files += [f"figures/{name}.{ending}" for name in svgs for ending in ("svg", "png")]
    if candidates_to_train(scan):
        records.write_text(out / "next_study.yaml", next_study(scan))
        files.append("next_study.yaml")
    records.write_text(out / "report.html", page(scan, out, known, tables, svgs, files))
    return out / "report.html"


def page(
    scan: Scan,
    out: Path,
    known: Known | None,
    tables: Mapping[str, Table],
    svgs: Mapping[str, str],
    files: Sequence[str],
) -> str:
    """The whole page as HTML."""
    figures = {name: inline(svg) for name, svg in svgs.items()}
    sections = [
        sentences(statements(scan, known)),
        "<h2>Every candidate</h2>" + _explained(scan) + f'<div class="card">{plain_table(scores_table(scan))}</div>',
        _failures(scan),
        _figure("Against the layer", _CUT, figures, "layers"),
        *(_agreement(name, table, figures, known) for name, table in tables.items()),
        "<h2>What the scores are</h2>"
        '<p class="lead">None of them has been shown to predict training in general; why each might is said here.</p>'
        f'<div class="card">{plain_table(Table(_OF_SCORES, score_facts()), "prose")}</div>',
        _next(scan, out),
        _facts(scan),
        listed_files("Files", files),
    ]
    title, heading = f"lmgraft scan of {scan.recipe}", "Which LLM, which layer, which position?"
    return document(title, heading, _lead(scan), sections, colors=theme(list(figures.values())), dark=True)


def _lead(scan: Scan) -> str:
    count = len(scan.candidates)
    said = (
        f"{count} candidate{'s' if count != 1 else ''} for the recipe {scan.recipe}, by {len(columns(scan))} scores. "
    )
    said += f"Encoder: {scan.encoder.origin}"
    if scan.encoder.val is not None:
        said += f", held-out {_value(scan.encoder.val, scan.metric)}"
    return f"{said}. All is of training and held-out {scan.things}; no test item was looked at to rank anything."


def _value(value: float, metric: Metric) -> str:
    """With name and unit: "accuracy 84.18 %"."""
    return f"{metric.name} {in_unit(value, metric)} {metric.unit}".strip()


def _explained(scan: Scan) -> str:
    effort = scan.settings["effort"]
    trained = (
        f" The held-out gain is how much better {escape(scan.metric.name)} is than the plain encoder's after "
        f"{effort['train_epochs']} epoch{'s' if effort['train_epochs'] != 1 else ''} with the same seed, over "
        f"{len(scan.plain)} seeds."
        if scan.plain
        else ""
    )
    own = {s.candidate.position: m.parts["encoder"] for s in scan.chosen() if (m := s.scores.get("probe")) and m.parts}
    without = ", ".join(f"{_value(value, scan.agreement)} ({position})" for position, value in own.items())
    baseline = f" Without a block, the probe on the encoder's own tokens reaches {without}." if own else ""
    return (
        f'<p class="lead">Value, 95 % interval, and in brackets the rank; {TIED} is behind a rank that is not told '
        f"apart from the first: the intervals overlap.{escape(baseline)}{trained} t intervals of two or three seeds "
        "are wide: so few runs can say no more; where all values are equal there is none. Intervals do not cover other "
        f"encoders or other {escape(scan.things)}.</p>"
    )


def _failures(scan: Scan) -> str:
    rows: list[tuple[str, ...]] = [
        (scanned.candidate.title, name, str(measured.failed))
        for scanned in scan.chosen()
        for name, measured in [*scanned.scores.items(), *([("training", scanned.gain)] if scanned.gain else [])]
        if measured.failed
    ]
    if not rows:
        return ""
    return (
        f'<h2>What failed</h2><div class="card">{plain_table(Table(("candidate", "what", "why"), rows), "prose")}</div>'
    )


def _figure(title: str, lead: str, figures: Mapping[str, str], name: str) -> str:
    if name not in figures:
        return ""
    card = f'<div class="card figure" role="img" aria-label="{_ALT[name]}">{figures[name]}</div>'
    return f'<h2>{escape(title)}</h2><p class="lead">{escape(lead)}</p>{card}'


def _agreement(name: str, table: Table, figures: Mapping[str, str], known: Known | None) -> str:
    lead = (
        "1 is the same order, 0 none, -1 the opposite one; p is that of as much agreement, or disagreement, by chance. "
        "Lost is what its favourite gained less than the best candidate did; noise in training is part of it. "
        "p is not corrected for the number of scores."
    )
    picture = "against_short_training" if name == "short training" else "against_known"
    card = ""
    if picture in figures:
        card = f'<div class="card figure" role="img" aria-label="{_ALT[picture]}">{figures[picture]}</div>'
        lead += f" Numbers beside points are layers. {_CUT}"
    extra = ""
    if known is not None and name == known.source and known.unmatched:
        unused = escape("; ".join(known.unmatched[:8]))
        extra = f'<p class="lead">Known beside these candidates, and not used: {unused}.</p>'
    return (
        f"<h2>Did the scores rank as training did? Against {escape(name)}</h2>"
        f'<p class="lead">{escape(lead)}</p><div class="card">{plain_table(table)}</div>{card}{extra}'
    )


def _next(scan: Scan, out: Path) -> str:
    picked = candidates_to_train(scan)
    if not picked:
        return ""
    return (
        '<h2>What to do next</h2><p class="lead">A study on the test split, which the scan has not looked at, with '
        "five new seeds, each block beside a random one of the same shape: without that control nothing is said of "
        "the language. Look at what it will cost first.</p>"
        f'<div class="card"><pre>lmgraft study {escape(str(out / "next_study.yaml"))} --dry-run\n'
        f"lmgraft study {escape(str(out / 'next_study.yaml'))}</pre></div>"
        + details("next_study.yaml", f"<pre>{escape(next_study(scan))}</pre>")
    )


def _facts(scan: Scan) -> str:
    environment = scan.environment
    versions = environment.get("versions") or {}
    facts = {
        "recipe": scan.recipe,
        "encoder": scan.encoder.origin,
        "run of it": scan.encoder.run or "",
        "effort": ", ".join(f"{key} {value}" for key, value in scan.settings["effort"].items() if value is not None),
        "machine": f"{environment.get('cpu_count')} CPU cores, {environment.get('platform')}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "commit": str(environment.get("git_commit") or "not a checkout"),
    }
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items() if v)
    blocks = [(s.candidate.llm, str(s.candidate.layer), s.digest) for s in scan.chosen() if s.digest]
    parts = ["<h2>To repeat it</h2>", f'<div class="card"><dl>{listed}</dl></div>']
    parts.append(
        details(
            "The recipe, resolved", f"<pre>{escape(yaml.safe_dump(scan.settings['recipe'], sort_keys=False))}</pre>"
        )
    )
    if blocks:
        table = Table(("LLM", "layer", "digest"), [*dict.fromkeys(blocks)])
        parts.append(details("Blocks", plain_table(table, "prose")))
    return "".join(parts)
