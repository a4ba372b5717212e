"""`report.html` of the quickstart: what its template shows, gathered."""

from __future__ import annotations

from pathlib import Path

from lmgraft import records
from lmgraft.report.drawing import COLORS
from lmgraft.report.html import facts_of, render
from lmgraft.report.quickstart.figures import curves_svg, grey_png, heat_png, intervals_svg
from lmgraft.report.quickstart.table import METRIC, statements, table, test_images, values
from lmgraft.studies.quickstart import LOSS_WINDOW, Quickstart


def write_page(quickstart: Quickstart, path: Path) -> Path:
    """Write the page to `path`, atomically."""
    records.write_text(path, page(quickstart))
    return path


def page(quickstart: Quickstart) -> str:
    """The whole page as HTML."""
    q = quickstart
    places = {place: list(maps) for place, maps in q.mapped[0].maps.items()} if q.mapped else {}
    return render(
        "quickstart.html",
        q=q,
        total=test_images(q),
        window=LOSS_WINDOW,
        sentences=statements(q),
        table=table(q),
        colors=COLORS,
        intervals=intervals_svg(values(q), q.intervals, METRIC),
        curves=curves_svg(q.curves, METRIC),
        grey=grey_png,
        heat=heat_png,
        places=places,
        facts={
            "recipe": q.recipe,
            "seed": str(q.seed),
            "block": f"{q.llm}, {q.block}",
            "images": f"{q.train_size:,} to train, {q.val_size:,} held out to choose the epoch",
            "device": next(iter(q.results.values())).device,
            **facts_of(q.environment),
            "commit": str(q.environment["git_commit"] or "not a checkout"),
        },
    )
