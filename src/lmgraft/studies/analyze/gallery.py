"""Items to be shown, chosen by a rule and never by hand, with the maps that they are shown with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lmgraft.contracts import Metric
from lmgraft.errors import HostError
from lmgraft.studies.analyze.look import Opened, look, predictions, shown
from lmgraft.studies.analyze.masking import carried

ChosenBy = Literal["best", "median", "worst", "random"]


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One item with its maps, for a picture."""

    rule: ChosenBy
    index: int
    place: str
    right: str
    """What is right of it, as its task says; empty where that is not known."""
    score: float | None
    inputs: Any
    """What its task shows of it: a tensor, or a NamedTuple of them."""
    truth: Tensor | None
    """As the data have it."""
    grid: tuple[int, ...] | None
    places: Mapping[str, Tensor]
    """Run -> (T, k) or (T, K, k), where its tokens lie that lie in no grid; nothing of one whose tokens lie in one."""
    maps: Mapping[str, Mapping[str, Tensor]]
    """Run -> title -> (T,) in [0, 1], or a picture of the task's, (C, H, W)."""
    predictions: Mapping[str, Mapping[str, Any]]
    """Run -> what its task says of the item."""


def choose(scores: NDArray[Any], count: int, seed: int) -> list[tuple[ChosenBy, int]]:
    """Positions of the best, the median, the worst and of random items, `count` of each, no item twice.

    Args:
        scores: (N,), more is better; nan where nothing can be said of an item, which only chance may choose.
        count: Of each kind.
        seed: Of what chance chooses.
    """
    known = np.flatnonzero(np.isfinite(scores))
    order = known[np.argsort(-scores[known], kind="stable")]
    middle = max(0, (len(order) - count) // 2)
    ranked: dict[ChosenBy, Sequence[int]] = {
        "best": order[:count].tolist(),
        "worst": order[::-1][:count].tolist(),
        "median": order[middle : middle + count].tolist(),
    }
    taken: set[int] = set()
    chosen: list[tuple[ChosenBy, int]] = []
    for rule, places in ranked.items():
        for place in places:
            if place not in taken:
                taken.add(place)
                chosen.append((rule, place))
    left = [place for place in range(len(scores)) if place not in taken]
    drawn = np.random.default_rng(seed).permutation(len(left))[:count]
    return [*chosen, *(("random", left[place]) for place in drawn)]


STAGES = {
    "encoder": "encoder",
    "mapper_in": "W1",
    "attention": "block's attention",
    "feed_forward": "block's feed-forward",
    "mapper_out": "W2",
}
"""Stages as pages call them."""
ATTENTION_TITLES = {"encoder": "attention of the encoder", "block": "attention of the block"}
"""Attention likewise."""
NEEDED = "needed"
"""Title of the map of what each token by itself carries of the item's metric."""


def exhibits(
    runs: Sequence[Opened],
    chosen: Sequence[tuple[ChosenBy, int, int, float | None]],
    metric: Metric,
    *,
    size: int,
    say: Callable[[int], None],
) -> list[Exhibit]:
    """The chosen items under each run.

    Args:
        runs: The first one's batches are shown; all have the same test items.
        chosen: (rule, sample, index, score) of each item.
        metric: What a token's masking takes is read from this one.
        size: Items a pass.
        say: Is told how many items are done, over all runs.
    """
    samples = [sample for _, sample, _, _ in chosen]
    items: list[dict[str, Any]] = []
    maps: list[dict[str, dict[str, Tensor]]] = [{} for _ in chosen]
    predicted: list[dict[str, dict[str, Any]]] = [{} for _ in chosen]
    places: list[dict[str, Tensor]] = [{} for _ in chosen]
    for number, run in enumerate(runs):
        at = 0
        for batch in run.batches(samples, size):
            seen = look(run, batch, layers=False)
            last = seen.noted.at[run.last]
            titled = _titled(seen.maps, last.tokens.shape[1])
            beside = run.task.pictures(seen.noted.output, batch)
            right = run.task.right(batch) if run.labelled else [""] * len(batch.index)
            for place, prediction in enumerate(predictions(run, seen.noted.output, batch)):
                predicted[at + place][run.label] = prediction
                alone = {title: values[place].cpu() for title, values in titled.items()}
                needed = _needed(run, batch, place, last.tokens.shape[1], metric, size)
                maps[at + place][run.label] = alone | needed | beside[place]
                if seen.drawn is not None:
                    places[at + place][run.label] = seen.drawn[place].cpu()
                say(number * len(chosen) + at + place + 1)
                if run is runs[0]:
                    truth = getattr(batch, "truth", None)
                    items.append(
                        {
                            "right": right[place],
                            "inputs": shown(run, batch, place),
                            "truth": None if truth is None else truth[place].cpu(),
                            "grid": last.grid,
                        }
                    )
            at += len(batch.index)
    return [
        Exhibit(
            rule=rule, index=index, place=runs[0].items.place(index), score=score, maps=maps[n],
            predictions=predicted[n], places=places[n], **items[n],
        )
        for n, (rule, _, index, score) in enumerate(chosen)
    ]  # fmt: skip


def _titled(maps: Mapping[tuple[str, str], Tensor], tokens: int) -> dict[str, Tensor]:
    """Magnitude and attention by the titles of their pictures, those that are over so many tokens."""
    of = {(stage, "magnitude"): title for stage, title in STAGES.items()}
    of |= {(name, "attention"): title for name, title in ATTENTION_TITLES.items()}
    return {title: maps[key] for key, title in of.items() if key in maps and maps[key].shape[1] == tokens}


def _needed(run: Opened, batch: Any, place: int, tokens: int, metric: Metric, size: int) -> dict[str, Tensor]:
    """What each of an item's tokens carries, from 0 for none to 1 for most, in a map as long as its batch's.

    There is none for encoders that do not keep their tokens, nor for items without labels.
    """
    one = batch._replace(**{name: value[place : place + 1] for name, value in batch._asdict().items()})
    if not run.labelled:
        return {}
    try:
        lost = carried(run, one, metric, size).clamp_min(0).float()
    except HostError:
        return {}
    lost = F.pad(lost, (0, tokens - len(lost)))  # an item by itself has no padding, in its batch it may have
    return {NEEDED: lost / lost.max().clamp_min(torch.finfo(torch.float32).tiny) if len(lost) else lost}
