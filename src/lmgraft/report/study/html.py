"""The HTML of a study's tables and of what is needed to repeat it; all text escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape

from lmgraft.report.drawing import OUTCOMES
from lmgraft.report.html import details, head, plain_table, row
from lmgraft.report.study import format as write
from lmgraft.report.study.tables import contrasts_table
from lmgraft.report.table import Table
from lmgraft.studies.study.results import StudyResult

_SIGNS = {"better": "▲", "worse": "▼", "not shown": "○"}


def arm_table(table: Table, colors: Mapping[str, str]) -> str:
    """A table of arms, each with its colour."""
    rows = "".join(row(cells, before=_dot(colors.get(cells[0]))) for cells in table.rows)
    return f"<table>{head(table.header)}<tbody>{rows}</tbody></table>"


def contrast_table(result: StudyResult) -> str:
    """Planned contrasts, and apart from them exploratory ones; the outcome comes first of all that is said."""
    header = contrasts_table(result, []).header
    body = ""
    for title, group in (("planned", result.contrasts), ("exploratory, not corrected", result.exploratory)):
        if group:
            rows = contrasts_table(result, group, minus=write.MINUS).rows
            body += f'<tr class="group"><th colspan="{len(header)}" scope="rowgroup">{title}</th></tr>'
            body += "".join(
                row(cells[:-1], second=_outcome(contrast.outcome, cells[-1]))
                for cells, contrast in zip(rows, group, strict=True)
            )
    names = (header[0], header[-1], *header[1:-1])
    return f'<table class="contrasts">{head(names)}<tbody>{body}</tbody></table>'


def _outcome(kind: str, said: str) -> str:
    color = OUTCOMES[kind][0].lstrip("#")
    return f'<td class="outcome" style="color:var(--c{color})">{_SIGNS[kind]} {escape(said)}</td>'


def _dot(color: str | None) -> str:
    return "" if color is None else f'<span class="dot" style="background:var(--c{color.lstrip("#")})"></span>'


def repeat(result: StudyResult) -> str:
    """What was run, by which versions, on which data."""
    environment = result.environment
    versions = environment.get("versions") or {}
    machine = [
        f"{environment['cpu_count']} CPU cores" if environment.get("cpu_count") else "",
        str(environment.get("platform") or ""),
        f"Python {environment['python']}" if environment.get("python") else "",
    ]
    sizes = result.data.get("sizes") or {}
    named = [str(result.data["name"])] if result.data.get("name") else []
    facts = {
        "study": result.name,
        "recipe": result.recipe,
        "seeds": ", ".join(map(str, result.seeds)),
        "data": ", ".join([*named, *(f"{n:,} {half}" for half, n in sizes.items())]),
        "commits": ", ".join(result.commits) or "not a checkout",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "machine": ", ".join(part for part in machine if part),
    }
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items() if v)
    parts = [
        '<h2>To repeat it</h2><p class="lead">Save the study below as a file for <code>lmgraft study</code>.</p>'
        f'<div class="card"><dl>{listed}</dl></div>',
        details("The study, resolved", f"<pre>{escape(result.config)}</pre>"),
    ]
    if result.recipe_yaml:
        parts.append(details("The recipe, resolved", f"<pre>{escape(result.recipe_yaml)}</pre>"))
    if blocks := _blocks(result):
        parts.append(details("Blocks", plain_table(blocks, "prose")))
    if result.data:
        print_of_data = json.dumps(result.data, indent=1, ensure_ascii=False, default=str)
        parts.append(details("Fingerprint of the data", f"<pre>{escape(print_of_data)}</pre>"))
    return "".join(parts)


def _blocks(result: StudyResult) -> Table | None:
    rows = [
        (
            arm.label,
            write.block_name(arm.block),
            str(arm.block.get("revision") or write.NONE),
            str(arm.block.get("digest") or write.NONE),
        )
        for arm in result.arms
        if arm.block is not None
    ]
    return Table(("arm", "block", "revision", "digest"), rows) if rows else None
