"""The benchmark's table: rows of text, for the terminal as they come and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lmgraft.report import table
from lmgraft.report.table import Table
from lmgraft.studies.bench.cells import PLAIN
from lmgraft.studies.bench.results import METHOD, CellResult
from lmgraft.words import numbers as write

HEADER = (
    "encoder",
    "tokens",
    "read",
    "block",
    "batch",
    "phase",
    "form",
    "plain, ms",
    "with it, ms",
    "ratio",
    "quartiles",
    "peak, GiB",
    "over plain + block",
)
_WIDTHS = (27, 6, 4, 12, 5, 5, 8, 9, 11, 6, 12, 12, 18)
_RATIO = HEADER.index("ratio")


def rows(result: CellResult) -> list[tuple[str, ...]]:
    """One row for each arm with a block; of arms that were not measured too, with the reason."""
    cell = result.cell
    size = f" ({_short(cell.storage)})" if cell.storage != "float32" else ""
    head = (cell.host, str(result.tokens), str(result.reads), cell.block + size, str(cell.batch), cell.phase)
    forms = [form for form in cell.forms if form != PLAIN]
    return [(*head, form, *_numbers(result, form)) for form in forms]


def _numbers(result: CellResult, form: str) -> tuple[str, ...]:
    if form not in result.times:
        return ("", "", _reason(result, form), "", "", "")
    plain, grafted, ratio = result.seconds(PLAIN), result.seconds(form), result.ratio(form)
    over = result.memory_ratio(form)
    peaks = "" if over is None else " / ".join(write.memory(result.peaks[arm])[:-4] for arm in (PLAIN, form))
    return (
        f"{1000 * plain.median:.1f}",
        f"{1000 * grafted.median:.1f}",
        write.ratio(ratio.median),
        f"{ratio.q1:.2f} to {ratio.q3:.2f}",
        peaks,
        "" if over is None else f"{100 * (over - 1):+.0f} %",
    )


def _reason(result: CellResult, form: str) -> str:
    if result.status == "failed":
        return f"failed: {result.message}"
    needed = result.needed.get(form, 0)
    if form in result.refused or result.status == "refused":
        return f"refused: needs about {write.memory(needed)}, {write.memory(result.allowed)} allowed"
    return "not measured"


def _short(dtype: str) -> str:
    return "16-bit" if dtype in ("bfloat16", "float16") else dtype


def line(row: Sequence[str]) -> str:
    """A row, or the header, in columns of fixed width."""
    if not row[_RATIO + 1] and row[_RATIO]:  # a reason takes the rest of the line
        row = (*row[:_RATIO], row[_RATIO])
    left = (0, 3, 5, 6, _RATIO) if len(row) <= _RATIO + 1 else (0, 3, 5, 6)
    cells = (
        text.ljust(width) if position in left else text.rjust(width)
        for position, (text, width) in enumerate(zip(row, _WIDTHS, strict=False))
    )
    return "  ".join(cells).rstrip()


def markdown(results: Iterable[CellResult]) -> str:
    """The page that stands beside the JSON: where, how, and the table."""
    results = list(results)
    lines = ["# What a frozen block costs", ""]
    contexts = [result.context for result in results]
    for context in (c for position, c in enumerate(contexts) if c not in contexts[:position]):
        versions = ", ".join(f"{name} {version}" for name, version in context["versions"].items() if version)
        lines += [f"Measured on {context['machine']}, {context['threads']} threads; {versions}.", ""]
        of_context = [row for result in results if result.context == context for row in rows(result)]
        lines.append(table.markdown(Table(HEADER, of_context)))
    return "\n".join([*lines, METHOD, ""])
