"""Everything that a study leaves to be read: the page, tables and figures."""

from __future__ import annotations

from pathlib import Path

from lmgraft import records
from lmgraft.report.drawing import write_figures
from lmgraft.report.study.figures import draw_all
from lmgraft.report.study.page import page
from lmgraft.report.study.tables import write_tables
from lmgraft.studies.study.results import StudyResult


def write_report(result: StudyResult, out: Path) -> Path:
    """Write `out`/report.html, tables/ and figures/ (SVG, and PNG at 200 dpi); returns the page.

    Each file is whole or absent; the page is written last. Figures without anything to show are not
    made, and removed where an earlier report of the study left them.
    """
    out = Path(out)
    tables = write_tables(result, out / "tables")
    earlier = dict.fromkeys(path.stem for path in (out / "figures").glob("breakdown_*.svg"))
    svgs = write_figures(earlier | draw_all(result), out / "figures")
    files = [f"tables/{path.name}" for path in tables]
    files += [f"figures/{name}.{ending}" for name in svgs for ending in ("svg", "png")]
    records.write_text(out / "report.html", page(result, svgs, files))
    return out / "report.html"
