"""Columns of items to what is shown: means with intervals over items, paired differences between runs and rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lmgraft.analysis.bootstrap import crossed_bootstrap
from lmgraft.analysis.comparison import Comparison, Interval
from lmgraft.analysis.intervals import items_interval
from lmgraft.analysis.student import mean_interval
from lmgraft.contracts import Metric
from lmgraft.studies.analyze.look import CENTRE, Arrays
from lmgraft.studies.analyze.results import Found, Loss, Probe, Subject

_COMPARED = ("best_iou", "average_precision")
_AGAINST = ("random", "magnitude", "attention", "random block")

_SHARE: Interval = (0.0, 1.0)
_ANY: Interval = (-math.inf, math.inf)


def interval_of(values: NDArray[np.float64], groups: NDArray[np.int64], possible: Interval = _ANY) -> Interval | None:
    """The 95 % interval over items, by group; None where there is none. It is cut at what is `possible`."""
    ends = items_interval(values, groups, possible=possible).ends
    return None if ends is None else (float(ends[0]), float(ends[1]))


def _mean(columns: Arrays, name: str, possible: Interval = _ANY) -> tuple[float, Interval | None, int]:
    """Over the items of which something can be said."""
    values = columns[name].astype(np.float64)
    known = np.isfinite(values)
    if not known.any():
        return float("nan"), None, 0
    return float(values[known].mean()), interval_of(values[known], columns["group"][known], possible), int(known.sum())


def found(looked: Mapping[str, Arrays]) -> list[Found]:
    """How well each run's maps find the object; the floor comes once."""
    rows: list[Found] = []
    for label, columns in looked.items():
        for name in (name for name in columns if name.startswith("score/")):
            _, stage, measure, score = name.split("/")
            if stage == CENTRE and any(row.stage == CENTRE and row.score == score for row in rows):
                continue
            mean, interval, items = _mean(columns, name, _SHARE)
            rows.append(
                Found(
                    label=CENTRE if stage == CENTRE else label,
                    stage=stage,
                    measure=measure,
                    score=score,
                    mean=mean,
                    interval=interval,
                    items=items,
                )
            )
    return rows


def probes(looked: Mapping[str, Arrays]) -> list[Probe]:
    """Spread of attention and dimensions in use."""
    rows = []
    for label, columns in looked.items():
        for name in (name for name in columns if name.startswith("probe/")):
            _, stage, probe = name.split("/")
            mean, interval, _ = _mean(columns, name)
            rows.append(Probe(label=label, stage=stage, name=probe, mean=mean, interval=interval))
    return rows


def loss_rows(masked: Sequence[tuple[Subject, Arrays]], metric: Metric) -> list[Loss]:
    """What each rule's masking takes from each run."""
    rows = []
    for subject, columns in masked:
        for where, rule, share in _masks(columns):
            lost = _lost(columns, f"{where}/{rule}/{share}", metric)
            rows.append(
                Loss(
                    label=subject.label,
                    arm=subject.arm,
                    where=where,
                    rule=rule,
                    share=float(share),
                    mean=float(lost.mean()),
                    interval=interval_of(lost, columns["group"]),
                    items=len(lost),
                )
            )
    return rows


def _masks(columns: Arrays) -> list[tuple[str, str, str]]:
    names = (name.split("/") for name in columns if name.count("/") == 2)
    return [(where, rule, share) for where, rule, share in names]


def _lost(columns: Arrays, name: str, metric: Metric) -> NDArray[np.float64]:
    lost: NDArray[np.float64] = metric.direction * (columns["whole"].astype(float) - columns[name].astype(float))
    return lost


def leading_arm(subjects: Sequence[Subject]) -> str:
    """The arm that others are held against, and that chooses the gallery: the LLM's block, or else the first graft."""
    grafted = [subject.arm for subject in subjects if subject.block is not None]
    return "llm" if "llm" in grafted else next(iter(grafted), subjects[0].arm)


def comparisons(
    subjects: Sequence[Subject], looked: Mapping[str, Arrays], before: Mapping[str, Arrays]
) -> list[Comparison]:
    """What the leading arm's last stage finds of the object, against other arms, attention and both floors."""
    arms: dict[str, dict[int, Arrays]] = {}
    for subject in subjects:
        arms.setdefault(subject.arm, {})[subject.seed] = looked[subject.label]
    grafted, lead = {subject.arm for subject in subjects if subject.block is not None}, leading_arm(subjects)
    last = {arm: "mapper_out" if arm in grafted else "encoder" for arm in arms}
    untrained = {
        s.seed: before[f"{s.label} untrained"] for s in subjects if s.arm == lead and f"{s.label} untrained" in before
    }
    words = {"encoder": "encoder", "mapper_out": "W2"}
    rows = []
    for score in _COMPARED:
        first = (f"{lead} {words[last[lead]]} magnitude", arms[lead], f"score/{last[lead]}/magnitude/{score}")
        others = [
            (f"{arm} {words[last[arm]]} magnitude", of, f"score/{last[arm]}/magnitude/{score}")
            for arm, of in arms.items()
            if arm != lead
        ]
        others += [
            (f"{lead} encoder attention", arms[lead], f"score/encoder/attention/{score}"),
            ("centre", arms[lead], f"score/{CENTRE}/{CENTRE}/{score}"),
            (f"{lead} untrained {words[last[lead]]} magnitude", untrained, f"score/{last[lead]}/magnitude/{score}"),
        ]
        for title, of, name in others:
            row = _paired(first, (title, of, name), score)
            rows += [] if row is None else [row]
    return rows


def _paired(
    first: tuple[str, Mapping[int, Arrays], str], second: tuple[str, Mapping[int, Arrays], str], score: str
) -> Comparison | None:
    """None where one of both was not measured, or they have no seed in common."""
    (title, ones, name), (against, others, other) = first, second
    seeds = [s for s in ones if s in others and name in ones[s] and other in others[s]]
    if not seeds:
        return None
    differences = np.stack([ones[s][name].astype(float) - others[s][other].astype(float) for s in seeds])
    known = np.isfinite(differences).all(0)
    if not known.any():
        return None
    return Comparison(
        kind="object",
        first=title,
        second=against,
        score=score,
        seeds=len(seeds),
        items=int(known.sum()),
        difference=float(differences[:, known].mean()),
        interval=_interval(differences[:, known], ones[seeds[0]]["group"][known]),
    )


def _interval(differences: NDArray[np.float64], groups: NDArray[np.int64]) -> Interval | None:
    """Over items where there is one seed, over seeds and items where there are several."""
    units = len(np.unique(groups))
    if len(differences) == 1:
        # Differences of shares may all be 0 or 1 and are no shares for all that: Student's t, not Wilson's interval.
        return mean_interval(differences[0].tolist()) if units == len(groups) else interval_of(differences[0], groups)
    if units < 2:
        return None
    low, high = crossed_bootstrap(differences[None], groups=groups)[0]
    return float(low), float(high)


def loss_comparisons(masked: Sequence[tuple[Subject, Arrays]], metric: Metric) -> list[Comparison]:
    """Whether masking what a block amplifies takes more than masking other tokens, arm by arm."""
    arms: dict[str, list[Arrays]] = {}
    for subject, columns in masked:
        arms.setdefault(subject.arm, []).append(columns)
    rows = []
    for arm, every in arms.items():
        for where, rule, share in _masks(every[0]):
            base = f"{where}/amplified/{share}"
            name = f"{where}/{rule}/{share}"
            if rule not in _AGAINST or not all(name in columns for columns in every):
                continue
            differences = np.stack([_lost(c, base, metric) - _lost(c, name, metric) for c in every])
            rows.append(
                Comparison(
                    kind="causal",
                    first="amplified",
                    second=rule,
                    score=where,
                    share=float(share),
                    arm=arm,
                    difference=float(differences.mean()),
                    interval=_interval(differences, every[0]["group"]),
                    seeds=len(every),
                    items=differences.shape[1],
                )
            )
    return rows
