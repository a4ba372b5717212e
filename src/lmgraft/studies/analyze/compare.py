"""Columns of items to what is shown: means with intervals, and paired differences between arms and rules.

Of several seeds a mean's interval is over seeds and items, a difference's a paired t over seeds, as in studies. Of one
seed both are over items alone, and nothing is planned: other trainings are not spoken of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from lmgraft.analysis.comparison import LEVEL, Comparison, Interval
from lmgraft.analysis.holm import holm
from lmgraft.analysis.intervals import ItemInterval, items_interval
from lmgraft.analysis.paired import boots, paired_test
from lmgraft.contracts import Metric
from lmgraft.studies.analyze.look import CENTRE, Arrays
from lmgraft.studies.analyze.results import Found, Loss, Probe, Reached, Score, Subject

Column = NDArray[np.float64]
BySeed = Mapping[int, Arrays]

PLANNED_SCORE: Score = "average_precision"
"""The score of planned comparisons: no threshold, none chosen with the truth in hand."""
_MARGIN = 0.02  # of a score from 0 to 1
_AGAINST = ("random", "magnitude", "attention", "random block")
_RANDOM = "random_frozen"

_SHARE: Interval = (0.0, 1.0)
_ANY: Interval = (-math.inf, math.inf)


def interval_of(values: Column, groups: NDArray[np.int64], possible: Interval = _ANY) -> Interval | None:
    """The 95 % interval over items, by group; None where there is none. It is cut at what is `possible`."""
    return _two(items_interval(values, groups, possible=possible).ends)


def _two(ends: Sequence[float] | None) -> Interval | None:
    return None if ends is None else (float(ends[0]), float(ends[1]))


def _mean(runs: Sequence[Arrays], name: str, possible: Interval = _ANY) -> tuple[float, Interval | None, int]:
    """Over the runs and those items of which something can be said in all of them; how many these are."""
    values = np.stack([columns[name].astype(np.float64) for columns in runs])
    known = np.isfinite(values).all(0)
    if not known.any():
        return float("nan"), None, 0
    values, groups = values[:, known], runs[0]["group"][known]
    ends = interval_of(values[0], groups, possible) if len(values) == 1 else _crossed(values, groups, possible)
    return float(values.mean()), ends, int(known.sum())


def _crossed(values: Column, groups: NDArray[np.int64], possible: Interval) -> Interval | None:
    """Over seeds and items, (n, N); None where groups are fewer than two, or nothing spreads."""
    ends = boots(values[None], groups)[0].ends if values.shape[1] > 1 else None
    return _cut(ends, possible)


def _cut(ends: Interval | None, possible: Interval) -> Interval | None:
    return None if ends is None else (max(ends[0], possible[0]), min(ends[1], possible[1]))


def by_arm(subjects: Sequence[Subject], looked: Mapping[str, Arrays]) -> dict[str, list[Arrays]]:
    """Arm -> the columns of its runs, those that were looked at before training as "ARM untrained"."""
    arms: dict[str, list[Arrays]] = {}
    for ending in ("", " untrained"):
        for subject in subjects:
            if f"{subject.label}{ending}" in looked:
                arms.setdefault(f"{subject.arm}{ending}", []).append(looked[f"{subject.label}{ending}"])
    return arms


def reached(subjects: Sequence[Subject], looked: Mapping[str, Arrays], metric: Metric) -> list[Reached]:
    """What each arm's runs reach, where they have a column of the metric."""
    rows, name = [], f"task/{metric.column}"
    first = {subject.arm: subject for subject in reversed(subjects)}
    for arm, runs in by_arm(subjects, looked).items():
        if all(name in columns for columns in runs):
            mean, interval, items = _mean(runs, name, metric.bounds)
            of = first[arm]
            rows.append(
                Reached(
                    arm=arm,
                    seeds=len(runs),
                    items=items,
                    tokens=of.tokens,
                    block=of.block,
                    metric=mean,
                    interval=interval,
                )
            )
    return rows


def found(looked: Mapping[str, Sequence[Arrays]]) -> list[Found]:
    """How well maps find the object, of runs or, with the columns of several, of arms; the floor comes once."""
    rows: list[Found] = []
    for label, runs in looked.items():
        for name in (name for name in runs[0] if name.startswith("score/") and all(name in of for of in runs)):
            _, stage, measure, score = name.split("/")
            if stage == CENTRE and any(row.stage == CENTRE and row.score == score for row in rows):
                continue
            mean, interval, items = _mean(runs, name, _SHARE)
            rows.append(
                Found(
                    label=CENTRE if stage == CENTRE else label,
                    stage=stage,
                    measure=measure,
                    score=score,
                    mean=mean,
                    interval=interval,
                    items=items,
                    seeds=len(runs),
                )
            )
    return rows


def probes(looked: Mapping[str, Sequence[Arrays]]) -> list[Probe]:
    """Spread of attention and dimensions in use."""
    rows = []
    for label, runs in looked.items():
        for name in (name for name in runs[0] if name.startswith("probe/") and all(name in of for of in runs)):
            _, stage, probe = name.split("/")
            mean, interval, _ = _mean(runs, name)
            rows.append(Probe(label=label, stage=stage, name=probe, mean=mean, interval=interval))
    return rows


def loss_rows(masked: Mapping[tuple[str, str], Sequence[Arrays]], metric: Metric) -> list[Loss]:
    """What each rule's masking takes, of runs or, with the columns of several, of arms.

    Args:
        masked: (label, arm) -> the columns of its runs.
        metric: Of which it takes.
    """
    rows = []
    for (label, arm), runs in masked.items():
        for where, rule, share in _masks(runs):
            lost = np.stack([_lost(columns, f"{where}/{rule}/{share}", metric) for columns in runs])
            groups, largest = runs[0]["group"], metric.largest_difference
            several = len(runs) > 1
            interval = (
                _crossed(lost, groups, (-largest, largest))
                if several
                else _two(_over_items(lost[0], groups, largest).ends)
            )
            rows.append(
                Loss(
                    label=label,
                    arm=arm,
                    where=where,
                    rule=rule,
                    share=float(share),
                    mean=float(lost.mean()),
                    interval=interval,
                    items=lost.shape[1],
                    seeds=len(runs),
                )
            )
    return rows


def _masks(runs: Sequence[Arrays]) -> list[tuple[str, str, str]]:
    names = [name.split("/") for name in runs[0] if name.count("/") == 2 and all(name in of for of in runs)]
    return [(where, rule, share) for where, rule, share in names]


def _lost(columns: Arrays, name: str, metric: Metric) -> Column:
    lost: Column = metric.direction * (columns["whole"].astype(float) - columns[name].astype(float))
    return lost


def leading_arm(arms: Mapping[str, bool]) -> str:
    """The arm that others are held against, and that chooses the gallery: the LLM's block, or else the first graft.

    Args:
        arms: Arm -> whether it has a block, in the order of the runs.
    """
    grafted = [arm for arm, has_block in arms.items() if has_block]
    return "llm" if "llm" in grafted else next(iter(grafted), next(iter(arms)))


def arms_of(subjects: Sequence[Subject]) -> dict[str, bool]:
    """Arm -> whether it has a block."""
    return {subject.arm: subject.block is not None for subject in subjects}


def _over_items(apart: Column, groups: NDArray[np.int64], largest: float) -> ItemInterval:
    """Of the differences (N,) of one seed, which are at most `largest`."""
    return items_interval(apart, groups, possible=(-largest, largest), differences=True)


@dataclass(frozen=True)
class _Pair:
    """Two sides to be compared, by seed: columns of the same items."""

    about: dict[str, Any]
    """Fields of the `Comparison`."""
    ones: Mapping[int, Column]
    others: Mapping[int, Column]
    groups: NDArray[np.int64]
    largest: float
    margin: float
    planned: bool = False


def _compared(pairs: Sequence[_Pair]) -> list[Comparison]:
    """Each pair over the seeds and items that both sides have; the planned ones are corrected together."""
    sides = [(pair, *both) for pair in pairs if (both := _in_common(pair)) is not None]
    planned = sum(pair.planned and len(ones) > 1 for pair, ones, *_ in sides)
    made = [_alone(*of, level=LEVEL / max(1, planned)) for of in sides]
    adjusted = iter(holm([c.p for c, _ in made if c.planned and c.p is not None]))
    same = iter(holm([p_same for c, p_same in made if c.planned]))
    return [replace(c, p_holm=next(adjusted), equivalent=next(same) < LEVEL) if c.planned else c for c, _ in made]


def _in_common(pair: _Pair) -> tuple[Column, Column, NDArray[np.int64]] | None:
    """Both sides, (n, N) of n seeds, and the items' groups; None where nothing is known of both."""
    seeds = [seed for seed in pair.ones if seed in pair.others]
    if not seeds:
        return None
    ones, others = (np.stack([of[seed] for seed in seeds]) for of in (pair.ones, pair.others))
    known = np.isfinite(ones).all(0) & np.isfinite(others).all(0)
    return (ones[:, known], others[:, known], pair.groups[known]) if known.any() else None


def _alone(
    pair: _Pair, ones: Column, others: Column, groups: NDArray[np.int64], *, level: float
) -> tuple[Comparison, float]:
    """One comparison as if it were the only one, and the p of equivalence; `level` is that of Holm's first step."""
    apart, possible = ones - others, (-pair.largest, pair.largest)
    seeds, items = apart.shape
    common = {**pair.about, "seeds": seeds, "items": items, "margin": pair.margin}
    if seeds == 1:
        over = _over_items(apart[0], groups, pair.largest)
        difference = float(apart.mean())
        return Comparison(**common, difference=difference, interval=_two(over.ends), missing=over.missing), 1.0
    test = paired_test(ones.mean(1).tolist(), others.mean(1).tolist(), pair.margin, level=level)
    comparison = Comparison(
        **common,
        difference=test.mean,
        interval=_cut(test.interval, possible),
        over_items=_crossed(apart, groups, possible),
        missing=test.no_interval,
        planned=pair.planned,
        p=test.p,
        detectable=test.detectable if pair.planned and test.sd else None,
    )
    return comparison, test.p_equivalence


def comparisons(
    subjects: Sequence[Subject],
    looked: Mapping[str, Arrays],
    before: Mapping[str, Arrays],
    masked: Mapping[str, Arrays],
    metric: Metric,
) -> list[Comparison]:
    """Everything that is compared; what is planned is corrected together.

    Args:
        subjects: The runs, one for each arm and seed.
        looked: Label -> a run's columns.
        before: "LABEL untrained" -> those of its model before training.
        masked: Label -> its metric with tokens masked, for those that have it.
        metric: Of which masking takes a part.
    """
    return _compared([*_of_maps(subjects, looked, before), *_of_masks(subjects, masked, metric)])


def _of_arms(subjects: Sequence[Subject], columns: Mapping[str, Arrays], ending: str = "") -> dict[str, BySeed]:
    """Arm -> seed -> columns."""
    arms: dict[str, dict[int, Arrays]] = {}
    for subject in subjects:
        if f"{subject.label}{ending}" in columns:
            arms.setdefault(subject.arm, {})[subject.seed] = columns[f"{subject.label}{ending}"]
    return dict(arms)


def _of_maps(
    subjects: Sequence[Subject], looked: Mapping[str, Arrays], before: Mapping[str, Arrays]
) -> Iterator[_Pair]:
    """What the leading arm's last stage finds of the object, against other arms, both floors, and attention.

    Planned are all but the last, by one score.
    """
    arms, grafted = _of_arms(subjects, looked), arms_of(subjects)
    lead = leading_arm(grafted)
    untrained = _of_arms(subjects, before, " untrained").get(lead, {})
    last = {arm: "mapper_out" if grafted[arm] else "encoder" for arm in arms}
    words = {"encoder": "encoder", "mapper_out": "W2"}
    group = next(iter(arms[lead].values()))["group"]
    for score in get_args(Score):
        name = f"score/{last[lead]}/magnitude/{score}"
        others = [
            (f"{arm} {words[last[arm]]} magnitude", of, f"score/{last[arm]}/magnitude/{score}")
            for arm, of in arms.items()
            if arm != lead
        ]
        others += [
            ("centre", arms[lead], f"score/{CENTRE}/{CENTRE}/{score}"),
            (f"{lead} untrained {words[last[lead]]} magnitude", untrained, name),
            (f"{lead} encoder attention", arms[lead], f"score/encoder/attention/{score}"),
        ]
        for second, of, other in others:
            about = {
                "kind": "object",
                "first": f"{lead} {words[last[lead]]} magnitude",
                "second": second,
                "score": score,
            }
            planned = score == PLANNED_SCORE and not second.endswith("attention")
            yield _Pair(about, _picked(arms[lead], name), _picked(of, other), group, 1.0, _MARGIN, planned)


def _picked(runs: BySeed, name: str) -> dict[int, Column]:
    """Seed -> a column, of those that have it."""
    return {seed: columns[name].astype(float) for seed, columns in runs.items() if name in columns}


def middle_share(shares: Sequence[float]) -> float:
    """The share of tokens that planned comparisons mask: the middle one, the larger of two."""
    return sorted(shares)[len(shares) // 2]


def _of_masks(subjects: Sequence[Subject], masked: Mapping[str, Arrays], metric: Metric) -> Iterator[_Pair]:
    """Whether masking what a block amplifies takes more than masking other tokens, and more so than a random block's.

    Planned are, at the middle share, the leading arm against random tokens, and what it loses by that beyond what
    the arm of random blocks does.
    """
    arms = _of_arms(subjects, masked)
    lead = leading_arm(arms_of(subjects))
    for arm, runs in arms.items():
        group = next(iter(runs.values()))["group"]
        masks = _masks(list(runs.values()))
        middle = middle_share(sorted({float(share) for _, _, share in masks}))
        for where, rule, share in masks:
            ones = _lost_by_seed(runs, f"{where}/amplified/{share}", metric)
            others = _lost_by_seed(runs, f"{where}/{rule}/{share}", metric)
            common: dict[str, Any] = {"score": where, "share": float(share)}
            largest, margin = metric.largest_difference, metric.margin
            planned = rule == "random" and float(share) == middle and arm == lead
            if rule in _AGAINST:
                about = {"kind": "causal", "first": "amplified", "second": rule, "arm": arm, **common}
                yield _Pair(about, ones, others, group, largest, margin, planned)
            if rule == "random" and arm == lead != _RANDOM and _RANDOM in arms:
                effects = [
                    {seed: a[seed] - b[seed] for seed in a}
                    for a, b in (
                        (ones, others),
                        tuple(
                            _lost_by_seed(arms[_RANDOM], f"{where}/{of}/{share}", metric)
                            for of in ("amplified", "random")
                        ),
                    )
                ]
                about = {"kind": "effect", "first": arm, "second": _RANDOM, **common}
                yield _Pair(about, effects[0], effects[1], group, 2 * largest, margin, planned)


def _lost_by_seed(runs: BySeed, name: str, metric: Metric) -> dict[int, Column]:
    return {seed: _lost(columns, name, metric) for seed, columns in runs.items()}
