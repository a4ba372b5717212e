"""An analysis in figures: scores by layer (the paper's Figs. 4 and D), what masking takes, CKA between stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lmgraft.report.analyze.tables import stage_title
from lmgraft.report.drawing import MARKERS, SOFT, STYLE, bar, colors, legend
from lmgraft.studies.analyze.look import CENTRE
from lmgraft.studies.analyze.results import Analysis, Found, Similarity
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


def arm_colors(analysis: Analysis) -> dict[str, str]:
    """The colour of each arm, also by the labels of its runs."""
    tone = colors({subject.arm: subject.arm for subject in analysis.subjects})
    return tone | {subject.label: tone[subject.arm] for subject in analysis.subjects}


def _by_layer(analysis: Analysis, score: str) -> Figure | None:
    """An arm a line over its stages, its seeds thin, by magnitude and by frequency (Fig. D); attention and floors."""
    rows = [one for one in analysis.found_by_arm if one.score == score]
    if not rows:
        return None
    stages = list(dict.fromkeys(one.stage for one in rows if one.stage.startswith("layer")))
    for name in ("encoder", "mapper_in", "attention", "feed_forward", "mapper_out"):
        stages += [name] if any(one.stage == name and one.measure != "attention" for one in rows) else []
    arms = list(dict.fromkeys(subject.arm for subject in analysis.subjects))
    tone = arm_colors(analysis)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for ax, measure in zip(panels, ("magnitude", "frequency"), strict=True):
            for at, arm in enumerate(arms):
                labels = [subject.label for subject in analysis.subjects if subject.arm == arm]
                for label in labels if len(labels) > 1 else []:
                    single = [one for one in analysis.found if (one.label, one.score) == (label, score)]
                    _line(ax, single, label, measure, stages, color=tone[arm], alpha=0.25, linewidth=0.8)
                drawn = _line(ax, rows, arm, measure, stages, color=tone[arm], marker=MARKERS[at], markersize=5)
                for place, one in drawn:
                    beside = place + 0.14 * (at - (len(arms) - 1) / 2)
                    bar(ax, beside, one.interval, 1, upright=True, color=tone[arm], width=2)
                _line(
                    ax, rows, f"{arm} untrained", measure, stages, color=tone[arm], linestyle=(0, (1, 3)), linewidth=1.2
                )
                for one in rows:
                    if (one.label, one.measure) == (arm, "attention"):
                        ax.axhline(one.mean, color=tone[arm], linestyle=_ATTENTION[one.stage], linewidth=1)
            for one in rows:
                if one.label == CENTRE:
                    ax.axhline(one.mean, color=_FLOOR, linestyle="--", linewidth=1)
            ax.set_xticks(range(len(stages)), [stage_title(stage).replace("block's ", "block's\n") for stage in stages])
            if len(stages) > 6:
                for name in ax.get_xticklabels():
                    name.set(rotation=45, ha="right", rotation_mode="anchor")
            ax.set_title(measure)
            ax.grid(alpha=0.25)
        panels[0].set_ylabel(words.SCORES[score], fontsize=9)
        legend(figure, _keys(rows, arms, tone), columns=4)
    return figure


_ATTENTION: dict[str, Any] = {"encoder": ":", "block": "-."}
_FLOOR = "#3a3f47"


def _line(
    ax: Axes, rows: Sequence[Found], label: str, measure: str, stages: Sequence[str], **style: Any
) -> list[tuple[int, Found]]:
    """What was found of a run or an arm at its stages, as a line; its points."""
    known = {one.stage: one for one in rows if (one.label, one.measure) == (label, measure)}
    drawn = [(at, known[stage]) for at, stage in enumerate(stages) if stage in known]
    ax.plot([at for at, _ in drawn], [one.mean for _, one in drawn], **style)
    return drawn


def _keys(rows: Sequence[Found], arms: Sequence[str], tone: Mapping[str, str]) -> list[Line2D]:
    """The legend: arms by colour, what else there is by the kind of line."""
    keys = [Line2D([], [], color=tone[arm], marker=MARKERS[at], label=arm) for at, arm in enumerate(arms)]
    for stage, style in _ATTENTION.items():
        if any((one.stage, one.measure) == (stage, "attention") for one in rows):
            keys.append(Line2D([], [], color=SOFT, linestyle=style, label=f"attention of the {stage}"))
    if any(one.label.endswith(" untrained") for one in rows):
        keys.append(Line2D([], [], color=SOFT, linestyle=(0, (1, 3)), label="floor: before training"))
    return [*keys, Line2D([], [], color=_FLOOR, linestyle="--", label="floor: a blob at the centre")]


def _masking(analysis: Analysis) -> Figure | None:
    """What each rule's masking takes, by share of tokens: a row a place, a column an arm."""
    losses = analysis.losses_by_arm
    if not losses:
        return None
    arms = list(dict.fromkeys(row.arm for row in losses))
    scale = analysis.lost.scale
    tone = dict(zip(_RULES, ("#c2571a", "#5b6b7f", "#18a6f2", "#6a4c93", "#2f7d6b"), strict=True))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.0, 3.1 * len(arms)), 5.2), layout="constrained")
        axes = figure.subplots(2, len(arms), squeeze=False, sharey="row", sharex=True)
        for row, (where, title) in enumerate(words.WHERE.items()):
            for column, arm in enumerate(arms):
                ax = axes[row, column]
                ax.axhline(0, color=SOFT, linewidth=0.8)
                for at, rule in enumerate(_RULES):
                    own = [r for r in losses if (r.where, r.arm, r.rule) == (where, arm, rule)]
                    places = [100 * one.share + 0.6 * (at - 2) for one in own]
                    for place, one in zip(places, own, strict=True):
                        bar(ax, place, one.interval, scale, upright=True, color=tone[rule], width=2)
                    lost = [scale * one.mean for one in own]
                    ax.plot(places, lost, color=tone[rule], marker=MARKERS[at], markersize=5, linewidth=1)
                ax.grid(alpha=0.25)
                ax.set_title(f"{arm}\n{title}" if row == 0 else title, fontsize=9)
                if column == 0:
                    ax.set_ylabel(f"lost, {analysis.lost.difference_unit}")
                if row == 1:
                    ax.set_xlabel("tokens masked, %")
        handles = [
            Line2D([], [], color=tone[rule], marker=MARKERS[at], label=words.RULES[rule])
            for at, rule in enumerate(_RULES)
            if any(r.rule == rule for r in losses)
        ]
        legend(figure, handles, columns=2)
    return figure


def _similarity(analysis: Analysis) -> Figure | None:
    """CKA between stages, a square an arm: the mean over its seeds."""
    arms: dict[str, list[Similarity]] = {}
    of = {subject.label: subject.arm for subject in analysis.subjects}
    for one in analysis.similarities:
        if len(one.stages) > 1:
            arms.setdefault(of[one.label], []).append(one)
    if not arms:
        return None
    title: Callable[[str], str] = stage_title
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(arms) + 0.6, 3.9), layout="constrained")
        axes = figure.subplots(1, len(arms), squeeze=False)[0]
        drawn = None
        for ax, (arm, ones) in zip(axes, arms.items(), strict=True):
            drawn = ax.imshow(np.mean([one.cka for one in ones], 0), vmin=0, vmax=1, cmap="viridis")
            names = [title(stage) for stage in ones[0].stages]
            ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
            ax.set_yticks(range(len(names)), names, fontsize=7)
            ax.set_title(arm)
        assert drawn is not None
        figure.colorbar(drawn, ax=list(axes), shrink=0.8, label=write.in_unit("linear CKA", ""))
    return figure
