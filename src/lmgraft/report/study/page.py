"""`report.html` of a study: one self-contained page, no script, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from lmgraft.analysis.bootstrap_coverage import bootstrap_coverage, coverage_words
from lmgraft.report.drawing import OUTCOMES, colors, inline, theme
from lmgraft.report.html import details, document, listed_files, plain_table
from lmgraft.report.study import format as write
from lmgraft.report.study.breakdown import MOST_COLUMNS, MOST_ROWS
from lmgraft.report.study.html import arm_table, contrast_table, repeat
from lmgraft.report.study.limits import limits
from lmgraft.report.study.tables import (
    arms_table,
    at_the_edge,
    breakdown_pairs,
    breakdown_table,
    grid_table,
    questions_table,
    seeds_table,
)
from lmgraft.studies.study.results import StudyResult

_ALT = {
    "arms": "Each arm's mean with its interval, and every seed",
    "contrasts": "Differences between arms with intervals, every seed's difference, and the margin",
    "curves": "Training loss and validation accuracy over steps, with bands over seeds",
    "cost": "Gain over the reference arm against the cost of training",
    "layers": "The metric against the layer of the LLM",
    "scale": "The metric against the number of frozen parameters",
    "breakdown_class": "Differences within each class",
    "breakdown_corruption": "Differences on each corruption",
}


def page(result: StudyResult, svgs: Mapping[str, str], files: Sequence[str] = ()) -> str:
    """The whole page as HTML.

    Args:
        result: What is shown.
        svgs: Figures by name, as SVG files' texts; those that are not there are left out.
        files: Tables and figures beside the page, relative to it.
    """
    own = colors(result)
    figures = {name: inline(svg) for name, svg in svgs.items()}
    colored = theme(list(figures.values()), [*own.values(), *(color for color, _ in OUTCOMES.values())])
    sections = [
        _verdict(result),
        _limits(result),
        _results(result, own, figures),
        _contrasts(result, figures),
        _section("Which layer, and which LLM", _DEPTH, figures, "layers", "scale"),
        _section("Learning curves", _CURVES, figures, "curves"),
        _section("Cost against gain", _COST, figures, "cost"),
        *(_breakdown(result, kind, figures) for kind in ("class", "corruption")),
        _grid(result),
        repeat(result),
        listed_files("Files beside this page", files),
    ]
    title = f"{result.question} {write.NONE} lmgraft study {result.name}"
    return document(title, result.question, _lead(result), sections, colors=colored, dark=True)


def _lead(result: StudyResult) -> str:
    m = result.metric
    arms, seeds = len(result.arms), len(result.seeds)
    better = "" if m.higher_is_better else ", of which less is better"
    items = f" on {result.test_items:,} test items" if result.test_items else ""
    return (
        f"Study {result.name}: {arms} arm{'s' * (arms != 1)} times {seeds} seed{'s' * (seeds != 1)} (recipe: "
        f"{result.recipe}), compared by {m.title}{better}{items}. What is random is shared by the arms of a seed "
        "(initial weights, order, augmentation), so differences are taken seed by seed."
    )


_AFTERWARDS = "After results "
"""How a note begins that the plan was changed, or looked into, when its results were known."""

_MARKS = (
    (
        rf"{_AFTERWARDS}|No planned contrast holds |The differences .* are the same for every seed"
        r"|.*\bmay be a favourable selection|.*\bthe secondary interval\b|.*\bfirst look, not a verdict",
        "caution",
        "!",
    ),
    (r"A difference was shown, and it is within\b|The difference is shown, and within\b", "equal", "="),
    (r"(not|neither) shown\b", "unclear", "○"),
    (r"helps\b|better\b|.*\bis better than\b", "helps", "▲"),
    (r"hurts\b|worse\b|.*\bis worse than\b", "hurts", "▼"),
    (r"of \d+ ", "tally", "\N{N-ARY SUMMATION}"),
    (r"(?!.*\bnot shown\b).*\bequivalent within\b", "equal", "="),
)
"""How a sentence begins, its style, and a sign; what fits none goes with the sentence before. Cautions never fold."""

_MOST_SENTENCES = 10


def _verdict(result: StudyResult) -> str:
    afterwards = [note for note in result.notes if note.startswith(_AFTERWARDS)]
    none = "" if result.verdict else "<p>There is no verdict: no contrast was planned.</p>"
    if none and not afterwards:
        return f'<div class="card words">{none}</div>'
    marked = [(sentence, *_mark(sentence)) for sentence in (*result.verdict, *afterwards)]
    first, rest = marked, ""
    if len(marked) > _MOST_SENTENCES:
        first = [one for one in marked if one[1] != "said"]
        if len(first) > _MOST_SENTENCES:
            first = [one for one in first if one[1] not in ("unclear", "equal")] or marked[:1]
        unclear = sum(kind == "unclear" for _, kind, _ in marked)
        title = f"All {len(marked)} sentences, {unclear} of them of what was not shown"
        rest = f"<details><summary>{title}</summary>{_sentences(marked)}</details>"
    return f'<div class="card verdict">{none}{_sentences(first)}{rest}</div>'


def _sentences(marked: Sequence[tuple[str, str, str]]) -> str:
    items = (
        f'<li class="{kind}"><span class="sign" aria-hidden="true">{sign}</span>{escape(sentence)}</li>'
        for sentence, kind, sign in marked
    )
    return f"<ul>{''.join(items)}</ul>"


def _mark(sentence: str) -> tuple[str, str]:
    for begins, kind, sign in _MARKS:
        if re.match(begins, sentence, re.IGNORECASE):
            return kind, sign
    return "said", ""


def _limits(result: StudyResult) -> str:
    said = "".join(f"<li>{escape(one)}</li>" for one in limits(result))
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
    missing = "".join(f"<li>{escape(run)}</li>" for run in result.missing)
    html = f'<h2>Limits, and what would change our mind</h2><div class="card words limits"><ul>{said}</ul>'
    if notes:
        html += f"<h3>What else may explain it</h3><ul>{notes}</ul>"
    if missing:
        html += f'<h3 class="wrong">Missing runs: {len(result.missing)}</h3><ul class="missing">{missing}</ul>'
    return html + "</div>"


def _results(result: StudyResult, own: Mapping[str, str], figures: Mapping[str, str]) -> str:
    if not result.arms:
        return '<h2>Arms</h2><div class="card"><p>No run is finished.</p></div>'
    questions = plain_table(questions_table(result), "prose")
    return (
        f'<h2>Arms</h2><div class="card">{arm_table(arms_table(result), own)}</div>'
        f'<p class="lead">Intervals are {escape(write.share(result.confidence))} (t) of each mean over seeds. They say '
        "nothing of differences between arms, which vary less: see the contrasts. Time is as measured, and disturbed "
        "by what ran beside; operations are counted.</p>"
        f"{_card(figures, 'arms')}"
        f"{details('Every seed', plain_table(seeds_table(result)))}"
        f"<h2>What each arm asks</h2><div class='card'>{questions}</div>"
    )


def _contrasts(result: StudyResult, figures: Mapping[str, str]) -> str:
    if not result.contrasts and not result.exploratory:
        return ""
    return (
        f"<h2>Contrasts</h2>{_card(figures, 'contrasts')}"
        f'<div class="card">{contrast_table(result)}</div>'
        f'<p class="lead">{escape(_tests(result))}</p>'
    )


def _tests(result: StudyResult) -> str:
    m, level = result.metric, write.share(1 - result.confidence)
    said = (
        f"p: paired t over seeds, two-sided. Holm: corrected for the {len(result.contrasts)} planned contrasts; better "
        f"or worse is said where that is below {level}. Not shown is not the same as no effect. Equivalence: the "
        f"larger p of two one-sided t tests against {write.size(result.margin, m)}; only where that is below {level}, "
        "of planned contrasts after Holm's correction too, are two arms called equivalent. Detectable: the smallest "
        f"true difference that these seeds would show with {_power(result)} power. Same sign: seeds whose difference "
        "has the sign of the mean. Intervals are not corrected for the number of contrasts, so that one may exclude "
        "zero beside the words not shown."
    )
    if any(c.sd == 0 for c in (*result.contrasts, *result.exploratory)):
        said += f" {write.NONE}: seeds do not spread, so that nothing can be tested."
    return said + _bootstraps(result)


def _bootstraps(result: StudyResult) -> str:
    """What the secondary intervals are, and how often such intervals covered the truth."""
    drawn = [c for c in (*result.contrasts, *result.exploratory) if c.bootstrap is not None]
    if not drawn:
        return ""
    least = min(drawn, key=lambda c: bootstrap_coverage(len(c.seeds), c.groups) or 0)
    covered = coverage_words(len(least.seeds), result.confidence, least.groups)
    of = "" if least.groups is None else f", these in {least.groups} groups that are drawn whole"
    return f" Bootstrap: secondary, an interval over seeds and test items drawn anew{of} ({covered})."


def _power(result: StudyResult) -> str:
    return " or ".join(write.share(p) for p in sorted({c.power for c in (*result.contrasts, *result.exploratory)}))


_DEPTH = (
    "One point for each arm, its interval over seeds. The paper (Fig. 2, ImageNet) found that depth matters, with "
    "the last layers helping consistently; among OPT models those of 125M and 350M parameters did worse than the plain "
    "encoder, but at a fifth of its learning rate, and those from 1.3B on better; nothing between 350M and 1.3B was "
    "tried. Whether an arm differs from the plain one is in the contrasts, not in "
    "whether intervals overlap here."
)
_CURVES = (
    "Means over seeds at steps that all of them logged, with intervals. The validation images are held out of "
    "training; the test images have no say in it."
)
_COST = (
    "How much better an arm is than the reference, against what a step of its training costs, both relative to the "
    "reference. Arms of the same cost stand side by side."
)


def _section(title: str, lead: str, figures: Mapping[str, str], *names: str) -> str:
    cards = "".join(_card(figures, name) for name in names)
    return f'<h2>{escape(title)}</h2><p class="lead">{escape(lead)}</p>{cards}' if cards else ""


def _card(figures: Mapping[str, str], name: str) -> str:
    if name not in figures:
        return ""
    return f'<div class="card figure" role="img" aria-label="{escape(_ALT[name])}">{figures[name]}</div>'


def _breakdown(result: StudyResult, kind: str, figures: Mapping[str, str]) -> str:
    table = breakdown_table(result, kind, minus=write.MINUS)
    if not table.rows:
        return ""
    titles = {"class": "By class", "corruption": "By corruption"}
    lead = (
        f"Exploratory: {len(table.rows)} {kind}{'es' if kind == 'class' else 's'} were looked at and nothing is "
        "corrected for that, so some intervals lie off zero by chance alone."
    )
    if kind == "corruption":
        lead += " Accuracy, the mean over severities."
    hidden = len(breakdown_pairs(result, kind)) - MOST_COLUMNS
    if hidden > 0:
        lead += f" The figure shows the first {MOST_COLUMNS} contrasts; {hidden} more are in the table."
    if len(table.rows) > MOST_ROWS:
        lead += f" The figure shows {MOST_ROWS}, those at both ends of the first contrast, by its size."
    numbers = details(f"All {len(table.rows)} in numbers", plain_table(table))
    return f'<h2>{titles[kind]}</h2><p class="lead">{escape(lead)}</p>{_card(figures, f"breakdown_{kind}")}{numbers}'


def _grid(result: StudyResult) -> str:
    table = grid_table(result)
    if table is None:
        return ""
    said = "Mean validation accuracy in % over seeds; * marks the rate taken, chosen without the test images."
    if edge := at_the_edge(result):
        said += f" At the edge of what was tried, so that a better one may lie beyond: {', '.join(edge)}."
    return f'<h2>Learning rates</h2><p class="lead">{escape(said)}</p><div class="card">{plain_table(table)}</div>'
