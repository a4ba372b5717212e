"""Planned contrasts within each class and each corruption."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from lmgraft.analysis.paired import differences
from lmgraft.analysis.student import interval_of
from lmgraft.analysis.verdict import Finding
from lmgraft.registry import METRICS
from lmgraft.studies.study.config import Study
from lmgraft.studies.study.facts import CorruptedCell, Fact
from lmgraft.studies.study.results import Breakdown

_Values = Mapping[str, float]


def break_down(study: Study, by_arm: Mapping[str, Mapping[int, Fact]]) -> tuple[list[Breakdown], list[Finding]]:
    """Every planned contrast within what all its runs have, and which conditions are left out of it."""
    made, left_out = [], []
    for arm, reference in study.contrasts:
        seeds = sorted(by_arm[arm].keys() & by_arm[reference].keys())
        one, other = ([by_arm[label][seed] for seed in seeds] for label in (arm, reference))
        shared, every = _shared([f.by_corruption for f in (*one, *other)])
        if len(shared) < len(every):
            lacking = tuple(sorted({name.partition("/")[0] for name in every - shared}))
            counts = {"left_out": len(every - shared), "all": len(every)}
            pair = (arm, reference)
            left_out.append(Finding(kind="cells left out", key="corruption", pair=pair, names=lacking, counts=counts))
        for kind, a, b in (
            ("class", [f.by_class for f in one], [f.by_class for f in other]),
            ("corruption", [_by_name(f, shared) for f in one], [_by_name(f, shared) for f in other]),
        ):
            for name in [name for name in a[0] if all(name in values for values in (*a, *b))]:
                rows, mean, sd = differences([values[name] for values in a], [values[name] for values in b])
                made.append(
                    Breakdown(
                        kind=kind,
                        name=name,
                        arm=arm,
                        reference=reference,
                        mean=mean,
                        interval=None if sd == 0 else interval_of(rows, study.confidence),
                        metric=METRICS.find("accuracy") if kind == "corruption" else None,
                    )
                )
    return made, left_out


def _shared(runs: list[dict[str, CorruptedCell]]) -> tuple[set[str], set[str]]:
    """Names of cells that all runs have, of the same images; and of all."""
    every = {name for cells in runs for name in cells}
    return {n for n in every if len({cells[n].images if n in cells else None for cells in runs}) == 1}, every


def _by_name(fact: Fact, shared: set[str]) -> _Values:
    """Mean accuracy over the shared severities of each corruption."""
    found: dict[str, list[float]] = {}
    for name, cell in fact.by_corruption.items():
        if name in shared:
            found.setdefault(name.partition("/")[0], []).append(cell.accuracy)
    return {name: fmean(values) for name, values in found.items()}
