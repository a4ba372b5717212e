"""What is seen of one item as HTML: its picture, sentences, and predictions side by side."""

from __future__ import annotations

from itertools import zip_longest

from matplotlib.figure import Figure

from lmgraft.registry import PICTURES
from lmgraft.report.drawing import data_address, png_bytes
from lmgraft.report.html import render
from lmgraft.studies.explore import ATTENTION, View
from lmgraft.words import explore as words

_DPI = 150
_NOTHING: tuple[str, bool] = ("", False)


def view_html(view: View, things: str, stages: dict[str, str]) -> str:
    """A piece of a page, without script; all text in it is escaped.

    Args:
        view: What is shown.
        things: What the items are called, in the plural.
        stages: Of the explorer: how stages are called.
    """
    figure = picture(view, things)
    choice = view.choice
    known = set(view.seen.truths.values())
    columns = [
        [(words.predicted(name, value), name in known) for name, value in prediction.items()]
        for prediction in view.predictions.values()
    ]
    sentences = [
        words.marked_sentence(
            run, stages.get(one.stage, one.stage), int(one.above.sum()), one.tokens, choice.threshold,
            one.iou, one.best_iou,
        )
        for run, one in view.marked.items()
    ]  # fmt: skip
    return render(
        "explore.html",
        problem="",
        title=view.seen.name,
        truth=words.truth_sentence(view.seen.truths),
        picture=None if figure is None else data_address(png_bytes(figure, _DPI)),
        alt=words.picture_alt(view.seen.name, measured(view), list(view.marked), choice.threshold),
        sentences=[*sentences, *(words.absent_sentence(run, reason) for run, reason in view.absent.items())],
        runs=list(view.predictions),
        rows=list(zip_longest(*columns, fillvalue=_NOTHING)),
    )


def problem_html(problem: str) -> str:
    """What went wrong, in the place of an item."""
    return render("explore.html", problem=problem)


def measured(view: View) -> str:
    """What the values of tokens are."""
    choice = view.choice
    return words.head_title(choice.head) if choice.stage in ATTENTION else choice.measure


def picture(view: View, things: str) -> Figure | None:
    """The item with values of tokens and those over the threshold, a row for each run.

    Returns:
        None where there is nothing to be shown, or no picture is known for such items.
    """
    if not view.marked or things not in PICTURES.names():
        return None
    first = view.first
    title, above = measured(view), f"above {view.choice.threshold:.2f}"
    maps = {run: {title: one.values, above: one.above.float()} for run, one in view.marked.items()}
    draw = PICTURES.load(things)
    sights = {run: view.seen.sights[run] for run in view.marked}
    places = {run: sight.places for run, sight in sights.items() if sight.places is not None}
    figure: Figure = draw(first.inputs, maps, view.grid, places or None, first.truth, view.predictions)
    return figure
