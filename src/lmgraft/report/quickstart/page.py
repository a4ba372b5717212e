"""`report.html` of the quickstart: one self-contained page, no script, nothing fetched."""

from __future__ import annotations

from html import escape
from pathlib import Path

from lmgraft import records
from lmgraft.report.figures import COLORS, curves_svg, grey_png, heat_png, intervals_svg
from lmgraft.report.html import document, head, row, sentences
from lmgraft.report.quickstart.table import HEADER, rows
from lmgraft.studies.quickstart import LOSS_WINDOW, MappedImage, Quickstart, Sample, statements


def write_page(quickstart: Quickstart, path: Path) -> Path:
    """Write the page to `path`, atomically."""
    records.write_text(path, page(quickstart))
    return path


def page(quickstart: Quickstart) -> str:
    """The whole page as HTML."""
    q = quickstart
    values = {arm: (r.metrics["accuracy"], *q.intervals[arm]) for arm, r in q.results.items()}
    total = next(iter(q.results.values())).items
    lead = (
        f"A small ViT was trained three times on {q.train_size:,} Fashion-MNIST images, with the same seed, initial "
        "weights, order and augmentation: by itself, with one frozen block of an LLM as one more layer, and with a "
        f"frozen block of random weights in its place. The figures below are for {total:,} test images."
    )
    heading = "Does one frozen language-model block help a small vision encoder?"
    sections = [
        sentences(statements(q)),
        f"""<h2>Results</h2>
<div class="card">{_table(q)}</div>
<div class="card" role="img" aria-label="Test accuracy of each arm with its interval">{intervals_svg(values)}</div>

<h2>Learning curves</h2>
<p class="lead">The training loss is a running mean over {LOSS_WINDOW} logged batches; the validation accuracy
is that of images held out of training, by which the best epoch is chosen.</p>
<div class="card" role="img" aria-label="Training loss and validation accuracy of each arm">{curves_svg(q.curves)}</div>

<h2>What the arms say to the first test images</h2>
<p class="lead">Unselected. Each line is an arm's prediction and its probability; wrong ones are red.</p>
<div class="card samples">{"".join(_sample(s) for s in q.samples)}</div>

<h2>Which patches stand out</h2>
<p class="lead">Per patch: how far its features lie from the mean over all patches (magnitude), and the same for the
phases of their Fourier transform (frequency); bright is far. Each map is scaled to its own range. The paper reads such
maps as a sign that the block filters information. A head that reads only the class token gives the last layer's patch
tokens no gradient of their own, so expect little from maps of so short a training.</p>
<div class="card">{_maps(q.mapped)}</div>

<h2>To repeat it</h2>
<div class="card">{_facts(q)}</div>
""",
    ]
    return document("lmgraft quickstart", heading, lead, sections)


def _table(q: Quickstart) -> str:
    body = "".join(row(cells, before=_dot(cells[0])) for cells in rows(q))
    return f"<table>{head(HEADER)}<tbody>{body}</tbody></table>"


def _dot(arm: str) -> str:
    return f'<span class="dot" style="background:{COLORS.get(arm, "#888")}"></span>'


def _sample(sample: Sample) -> str:
    lines = "".join(
        f'<span class="{"right" if name == sample.label else "wrong"}">'
        f"{_dot(arm)}{escape(name)} {100 * share:.0f} %</span>"
        for arm, (name, share) in sample.predicted.items()
    )
    picture = f'<img src="{grey_png(sample.image)}" alt="{escape(sample.label)}">'
    return f'<div class="sample">{picture}<div><b>{escape(sample.label)}</b>{lines}</div></div>'


def _maps(mapped: list[MappedImage]) -> str:
    if not mapped:
        return "<p>No maps: there were no test images.</p>"
    places = list(mapped[0].maps)
    measures = list(mapped[0].maps[places[0]])
    top = "".join(f'<th scope="colgroup" colspan="{len(measures)}">{escape(place)}</th>' for place in places)
    second = "".join(f'<th scope="col">{escape(measure)}</th>' for _ in places for measure in measures)
    body = ""
    for image in mapped:
        cells = "".join(
            f'<td><img src="{heat_png(image.maps[place][measure])}" '
            f'alt="{measure} of {escape(image.label)}, {escape(place)}"></td>'
            for place in places
            for measure in measures
        )
        picture = f'<img src="{grey_png(image.image)}" alt="{escape(image.label)}">'
        body += f'<tr><td>{picture}<div class="name">{escape(image.label)}</div></td>{cells}</tr>'
    return (
        f'<table class="maps"><thead><tr><th rowspan="2">image</th>{top}</tr><tr>{second}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _facts(q: Quickstart) -> str:
    environment = q.environment
    versions = environment["versions"]
    assert isinstance(versions, dict)
    facts = {
        "recipe": q.recipe,
        "seed": str(q.seed),
        "block": f"{q.llm}, {q.block}",
        "images": f"{q.train_size:,} to train, {q.val_size:,} held out to choose the epoch",
        "device": next(iter(q.results.values())).device,
        "machine": f"{environment['cpu_count']} CPU cores, {environment['platform']}, Python {environment['python']}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "commit": str(environment["git_commit"] or "not a checkout"),
    }
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"
