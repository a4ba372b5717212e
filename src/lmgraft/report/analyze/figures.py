"""An analysis in figures: scores by layer (the paper's Figs. 4 and D), what masking takes, CKA between stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lmgraft.report.analyze.tables import stage_title
from lmgraft.report.drawing import MARKERS, STYLE, bar, colors, legend
from lmgraft.studies.analyze.look import CENTRE
from lmgraft.studies.analyze.results import Analysis, Found
from lmgraft.words import analyze as words
from lmgraft.words import numbers as write

_RULES = ("amplified", "random", "magnitude", "attention", "random block")


def figures(analysis: Analysis) -> dict[str, Figure | None]:
    """Every figure by name; None where there is nothing to draw."""
    return {
        "object_by_layer": _by_layer(analysis, "best_iou"),
        "object_by_layer_ap": _by_layer(analysis, "average_precision"),
        "masking": _masking(analysis),
        "similarity": _similarity(analysis),
    }


def _kinds(analysis: Analysis) -> dict[str, str]:
    return {subject.label: subject.arm for subject in analysis.subjects}


def _by_layer(analysis: Analysis, score: str) -> Figure | None:
    """A line a run over its stages, the better of magnitude and frequency as in Fig. 4; attention and floors beside."""
    rows = [one for one in analysis.found if one.score == score]
    if not rows:
        return None
    stages = list(dict.fromkeys(one.stage for one in rows if one.stage.startswith("layer")))
    for name in ("encoder", "mapper_in", "attention", "feed_forward", "mapper_out"):
        stages += [name] if any(one.stage == name and one.measure != "attention" for one in rows) else []
    tone = colors(_kinds(analysis))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.8), layout="constrained")
        ax = figure.subplots()
        handles = []
        for label, color in tone.items():
            best = [(at, _best(rows, label, stage)) for at, stage in enumerate(stages)]
            drawn = [(at, one) for at, one in best if one is not None]
            marker = MARKERS[list(tone).index(label) % len(MARKERS)]
            ax.plot([at for at, _ in drawn], [one.mean for _, one in drawn], color=color, marker=marker, markersize=5)
            for at, one in drawn:
                bar(ax, at, one.interval, 1, upright=True, color=color)
            handles.append(Line2D([], [], color=color, marker=marker, label=label))
            attention = [one for one in rows if one.label == label and one.measure == "attention"]
            for one in attention:
                style: Any = ":" if one.stage == "encoder" else "-."
                ax.axhline(one.mean, color=color, linestyle=style, linewidth=1)
                handles.append(
                    Line2D([], [], color=color, linestyle=style, label=f"{label}, attention of the {one.stage}")
                )
        for one in rows:
            if one.label == CENTRE:
                ax.axhline(one.mean, color="#3a3f47", linestyle="--", linewidth=1)
                handles.append(Line2D([], [], color="#3a3f47", linestyle="--", label="floor: a blob at the centre"))
        ax.set_xticks(range(len(stages)), [stage_title(stage).replace("block's ", "block's\n") for stage in stages])
        ax.set_ylabel(words.SCORES[score], fontsize=9)
        ax.set_title("the better of magnitude and frequency")
        ax.grid(alpha=0.25)
        legend(figure, handles, columns=3)
    return figure


def _best(rows: list[Found], label: str, stage: str) -> Found | None:
    own = [
        one for one in rows if (one.label, one.stage) == (label, stage) and one.measure in ("magnitude", "frequency")
    ]
    return max(own, key=lambda one: one.mean, default=None)


def _masking(analysis: Analysis) -> Figure | None:
    """What each rule's masking takes, by share of tokens: a row a place, a column a run."""
    if not analysis.losses:
        return None
    labels = list(dict.fromkeys(row.label for row in analysis.losses))[:4]
    scale = analysis.lost.scale
    tone = dict(zip(_RULES, ("#c2571a", "#5b6b7f", "#18a6f2", "#6a4c93", "#2f7d6b"), strict=True))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.0, 3.1 * len(labels)), 5.2), layout="constrained")
        axes = figure.subplots(2, len(labels), squeeze=False, sharey="row", sharex=True)
        for row, (where, title) in enumerate(words.WHERE.items()):
            for column, label in enumerate(labels):
                ax = axes[row, column]
                ax.axhline(0, color="#8a8f98", linewidth=0.8)
                for at, rule in enumerate(_RULES):
                    own = [r for r in analysis.losses if (r.where, r.label, r.rule) == (where, label, rule)]
                    places = [100 * one.share + 0.6 * (at - 2) for one in own]
                    for place, one in zip(places, own, strict=True):
                        bar(ax, place, one.interval, scale, upright=True, color=tone[rule], width=2)
                    lost = [scale * one.mean for one in own]
                    ax.plot(places, lost, color=tone[rule], marker=MARKERS[at], markersize=5, linewidth=1)
                ax.grid(alpha=0.25)
                ax.set_title(f"{label}\n{title}" if row == 0 else title, fontsize=9)
                if column == 0:
                    ax.set_ylabel(f"lost, {analysis.lost.difference_unit}")
                if row == 1:
                    ax.set_xlabel("tokens masked, %")
        handles = [
            Line2D([], [], color=tone[rule], marker=MARKERS[at], label=words.RULES[rule])
            for at, rule in enumerate(_RULES)
            if any(r.rule == rule for r in analysis.losses)
        ]
        legend(figure, handles, columns=2)
    return figure


def _similarity(analysis: Analysis) -> Figure | None:
    """CKA between stages, a square a run."""
    shown = [one for one in analysis.similarities if len(one.stages) > 1][:4]
    if not shown:
        return None
    title: Callable[[str], str] = stage_title
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(shown) + 0.6, 3.9), layout="constrained")
        axes = figure.subplots(1, len(shown), squeeze=False)[0]
        drawn = None
        for ax, one in zip(axes, shown, strict=True):
            drawn = ax.imshow(one.cka, vmin=0, vmax=1, cmap="viridis")
            names = [title(stage) for stage in one.stages]
            ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
            ax.set_yticks(range(len(names)), names, fontsize=7)
            ax.set_title(one.label)
        assert drawn is not None
        figure.colorbar(drawn, ax=list(axes), shrink=0.8, label=write.in_unit("linear CKA", ""))
    return figure
