"""`report.html` of an analysis, with its tables, figures and pictures of items beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from lmgraft import records
from lmgraft.analysis.comparison import Comparison
from lmgraft.registry import PICTURES
from lmgraft.report.analyze.figures import arm_colors, figures
from lmgraft.report.analyze.tables import (
    arms_sheet,
    coherences_sheet,
    comparisons_sheet,
    efforts_sheet,
    losses_sheet,
    probes_sheet,
    runs_sheet,
    stages_sheet,
    summary_sheet,
)
from lmgraft.report.drawing import data_address, write_figures, write_png
from lmgraft.report.html import facts_of, render
from lmgraft.studies.analyze.compare import PLANNED_SCORE, arms_of, leading_arm, middle_share
from lmgraft.studies.analyze.gallery import Exhibit
from lmgraft.studies.analyze.results import FILE, Analysis, Shown
from lmgraft.words import analyze as words

_KINDS = {
    "best": "found best",
    "median": "in the middle",
    "worst": "found worst",
    "random": "drawn at random",
}


class Section(NamedTuple):
    """A question with its answer."""

    title: str
    answer: str
    """In short; empty where there is none."""
    explained: str
    sentences: list[str]


def write_report(analysis: Analysis, exhibits: Sequence[Exhibit], out: Path) -> Path:
    """Write report.html, tables/*.csv, figures/*.svg and *.png, and gallery/*.png into `out`; returns the page.

    Args:
        analysis: What was found.
        exhibits: Items of the gallery.
        out: Folder; pictures of an earlier gallery there are removed.
    """
    gallery, pictures = _write_gallery(analysis, exhibits, out)
    analysis = replace(analysis, gallery=gallery)
    records.write_json(out / FILE, asdict(analysis))
    sheets = {
        "arms": arms_sheet(analysis),
        "runs": runs_sheet(analysis),
        "object": stages_sheet(analysis.found),
        "object_by_arm": stages_sheet(analysis.found_by_arm),
        "comparisons": comparisons_sheet(analysis, "object"),
        "masking": losses_sheet(analysis, analysis.losses),
        "masking_by_arm": losses_sheet(analysis, analysis.losses_by_arm),
        "masking_comparisons": comparisons_sheet(analysis, "causal", "effect"),
        "probes": probes_sheet(analysis),
        "coherence": coherences_sheet(analysis),
        "passes": efforts_sheet(analysis),
    }
    for name, sheet in sheets.items():
        records.write_text(out / "tables" / f"{name}.csv", sheet.csv())
    svgs = write_figures(figures(analysis), out / "figures")
    files = sorted(str(p.relative_to(out)) for kind in ("tables", "figures") for p in (out / kind).glob("*"))
    path = out / "report.html"
    records.write_text(path, page(analysis, svgs, pictures, [FILE, *files]))
    return path


def page(analysis: Analysis, svgs: dict[str, str], pictures: dict[str, str], files: Sequence[str] = ()) -> str:
    """The whole page as HTML.

    Args:
        analysis: What is shown.
        svgs: Figures by name, as SVG files' texts.
        pictures: The gallery's files -> their data addresses.
        files: Beside the page, relative to it.
    """
    has_seeds = len({s.arm for s in analysis.subjects}) < len(analysis.subjects)
    looked = words.looked_at(max(s.items for s in analysis.subjects), analysis.things, analysis.shown)
    return render(
        "analyze.html",
        analysis=analysis,
        sections=sections(analysis),
        scope=words.scope(
            Counter(s.arm for s in analysis.subjects),
            looked,
            analysis.comparisons,
        ),
        colors=arm_colors(analysis),
        arms=arms_sheet(analysis).table() if analysis.reached else None,
        runs=runs_sheet(analysis).table(),
        summary=summary_sheet(analysis).table() if analysis.has_truth else None,
        stages=stages_sheet(analysis.found_by_arm).table() if analysis.has_truth else None,
        stages_of_runs=stages_sheet(analysis.found).table() if analysis.has_truth and has_seeds else None,
        comparisons=comparisons_sheet(analysis, "object").table() if analysis.has_truth else None,
        losses=losses_sheet(analysis, analysis.losses_by_arm).table() if analysis.losses else None,
        causal=comparisons_sheet(analysis, "causal", "effect").table() if analysis.losses else None,
        exploratory=words.EXPLORATORY,
        probes=probes_sheet(analysis).table(),
        coherences=coherences_sheet(analysis).table() if analysis.coherences else None,
        coherence=words.COHERENCE,
        efforts=efforts_sheet(analysis).table(),
        svgs=svgs,
        kinds=_KINDS,
        first_predictions=words.first_predictions,
        pictures=pictures,
        reading=words.READING,
        no_gradient=words.NO_GRADIENT,
        found=words.FOUND if any(one.has_pictures for one in analysis.gallery) else "",
        needed=analysis.gallery_metric,
        chosen=words.chosen_by(analysis.has_truth, analysis.gallery_metric, analysis.gallery_run),
        facts={
            "items": f"{looked}, evenly spread",
            "folder": "" if analysis.shown is None else analysis.shown["where"],
            "took": f"{analysis.seconds:.0f} s",
            **facts_of(analysis.environment),
            "commit": str(analysis.environment.get("git_commit") or "not a checkout"),
        },
        files=files,
    )


def sections(analysis: Analysis) -> list[Section]:
    """What was found, a section for each of the paper's questions, and what could not be measured."""
    lie = [c for c in analysis.comparisons if c.kind == "object" and c.score == PLANNED_SCORE]
    lie = [c for c in lie if c.planned] or lie
    need = _middle(analysis)
    parts = []
    if lie:
        listed = [words.object_sentence(c) for c in lie]
        parts.append(Section(words.OBJECT, words.object_answer(lie), words.STANDING_OUT, listed))
    if need:
        listed = [words.causal_sentence(c, analysis.lost) for c in need]
        parts.append(Section(words.CAUSAL, words.causal_answer(need), words.MASKING, listed))
    left_out = list(analysis.notes)
    if analysis.shown is not None and not analysis.shown["labelled"]:
        left_out.append(words.other_classes(analysis.things))
    if not parts:
        left_out.append("Nothing was compared: give several runs, or one with a block.")
    return [*parts, *([Section("Not measured", "", "", left_out)] if left_out else [])]


def _middle(analysis: Analysis) -> list[Comparison]:
    """The leading arm against random tokens, and beside a random block, at the middle share of the tokens."""
    causal = [c for c in analysis.comparisons if c.share is not None]
    if not causal:
        return []
    middle = middle_share(sorted({c.share for c in causal if c.share is not None}))
    lead = leading_arm(arms_of(analysis.subjects))
    return [c for c in causal if c.share == middle and (c.kind == "effect" or (c.arm == lead and c.second == "random"))]


def _write_gallery(analysis: Analysis, exhibits: Sequence[Exhibit], out: Path) -> tuple[list[Shown], dict[str, str]]:
    """Pictures of the items, and the list of them; none where no picture is known for such items."""
    folder = out / "gallery"
    if folder.is_dir():
        for old in folder.glob("*.png"):
            old.unlink()
    if analysis.things not in PICTURES.names():
        return [], {}
    draw = PICTURES.load(analysis.things)
    shown, pictures = [], {}
    counts: Counter[str] = Counter()
    for one in exhibits:
        counts[one.rule] += 1
        file = f"gallery/{one.rule}_{counts[one.rule]}.png"
        figure = draw(one.inputs, one.maps, one.grid, one.places or None, one.truth, one.predictions)
        write_png(figure, out / file, dpi=110)
        pictures[file] = data_address((out / file).read_bytes())
        score = one.score if one.score is not None and math.isfinite(one.score) else None
        alt = f"{one.place or f'item {one.index}'}: which tokens stand out, in {', '.join(one.maps)}"
        shown.append(
            Shown(
                rule=one.rule, index=one.index, place=one.place, score=score, file=file, alt=alt, right=one.right,
                predictions={run: dict(of) for run, of in one.predictions.items()},
                has_pictures=any(values.dim() == 3 for of in one.maps.values() for values in of.values()),
            )
        )  # fmt: skip
    return shown, pictures
