"""Facts to a study's result: the learning rate of each arm, means, contrasts, breakdown, words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from types import MappingProxyType
from typing import Any, get_args

from lmgraft import records
from lmgraft.analysis.curves import Curve
from lmgraft.analysis.paired import Contrast, contrasts
from lmgraft.analysis.student import mean_interval
from lmgraft.analysis.timing import StepPairs, TimeRatio, time_ratio
from lmgraft.analysis.verdict import ENOUGH_SEEDS, Finding, OfTimes, verdict
from lmgraft.errors import RunError
from lmgraft.studies.study.arms import ArmSpec, Pair
from lmgraft.studies.study.breakdown import break_down
from lmgraft.studies.study.config import Study
from lmgraft.studies.study.facts import Fact
from lmgraft.studies.study.results import ArmResult, Band, Cost, StudyResult, worded

ByArm = Mapping[str, Mapping[int, Fact]]


def assemble(study: Study, facts: Sequence[Fact], missing: Sequence[str] = (), recipe_yaml: str = "") -> StudyResult:
    """Compare what the runs found; its findings are not yet put into words.

    Args:
        study: What was planned.
        facts: Of the finished runs.
        missing: Names of those that are not finished.
        recipe_yaml: The resolved recipe, for the record.

    Raises:
        RunError: If an arm of a planned contrast has fewer than two seeds in common with its partner.
    """
    by_arm = _chosen(study, facts)
    planned = _compare(study, by_arm, study.contrasts, correct=True)
    others = _unplanned(study, by_arm)
    every = [fact for own in by_arm.values() for fact in own.values()]
    breakdown, uneven = break_down(study, by_arm)
    return StudyResult(
        name=study.name,
        question=study.question,
        recipe=study.recipe,
        reference=study.reference,
        metric=study.metric,
        margin=study.margin,
        confidence=study.confidence,
        seeds=sorted({fact.seed for fact in every}),
        rate_seeds=list(study.rate_seeds),
        arms=[
            _arm(study, label, study.arms[label], own, choosing([f for f in facts if f.arm == label], study.rate_seeds))
            for label, own in by_arm.items()
        ],
        contrasts=planned,
        exploratory=_compare(study, by_arm, others, correct=False),
        breakdown=breakdown,
        curves={label: _bands([f.curves for f in own.values()], study.confidence) for label, own in by_arm.items()},
        test_items=every[0].test_items,
        data=every[0].record.get("data", {}),
        environment=every[0].record.get("environment") or records.environment(),
        commits=sorted({str(f.record.get("environment", {}).get("git_commit")) for f in every}),
        config=study.yaml,
        recipe_yaml=recipe_yaml,
        missing=list(missing),
        things=every[0].things,
        splits=every[0].record.get("splits", {}),
        remarks=list(dict.fromkeys(remark for f in every for remark in f.record.get("remarks", ()))),
        selection=every[0].record.get("selection", "val"),
        monitor=every[0].monitor,
        notes=list(study.notes),
        findings=[*_verdict(study, planned), *_cautions(study, every, by_arm), *uneven],
    )


def _chosen(study: Study, facts: Sequence[Fact]) -> dict[str, dict[int, Fact]]:
    """Arm -> seed -> the run that it is compared by.

    Raises:
        RunError: See `assemble`.
    """
    chosen = {label: compared([f for f in facts if f.arm == label], study.rate_seeds) for label in study.arms}
    by_arm = {label: {f.seed: f for f in own} for label, own in chosen.items()}
    for one, other in study.contrasts:
        common = by_arm[one].keys() & by_arm[other].keys()
        if len(common) < 2:
            raise RunError(
                f"{one} and {other} have {len(common)} finished seeds in common, a comparison needs 2",
                "run the study on: what is finished is kept",
            )
    # An arm with a single finished seed has no spread: it waits for the next one.
    return {label: own for label, own in by_arm.items() if len(own) >= 2}


def _verdict(study: Study, planned: Sequence[Contrast]) -> list[Finding]:
    return verdict(planned, margin=study.margin, arms={label: spec.arm for label, spec in study.arms.items()})


def _unplanned(study: Study, by_arm: ByArm) -> list[Pair]:
    """Every arm against the reference, and where one arm has the LLM's block, it against every control."""
    blocks = [label for label in by_arm if study.arms[label].arm == "llm"]
    pairs = [(label, study.reference) for label in by_arm]
    pairs += [(blocks[0], label) for label in by_arm] if len(blocks) == 1 else []
    planned = {frozenset(pair) for pair in study.contrasts}
    kept = [(a, b) for a, b in dict.fromkeys(pairs) if a != b and b in by_arm and frozenset((a, b)) not in planned]
    return [(a, b) for a, b in kept if len(by_arm[a].keys() & by_arm[b].keys()) >= 2]


def compared(facts: Sequence[Fact], rate_seeds: Sequence[int]) -> list[Fact]:
    """Of an arm's runs those at its best rate, but for those with the seeds that only chose it."""
    rate = best_rate(choosing(facts, rate_seeds))
    return [f for f in facts if f.in_grid == rate and f.seed not in rate_seeds]


def choosing(facts: Sequence[Fact], rate_seeds: Sequence[int]) -> list[Fact]:
    """Of an arm's runs those that choose its learning rate."""
    return [f for f in facts if f.seed in rate_seeds or not rate_seeds]


def best_rate(facts: Sequence[Fact]) -> float | None:
    """The learning rate whose mean on held-out items is best; the test items have no say. None without a grid."""
    rates = {f.in_grid for f in facts}
    if len(rates) <= 1:
        return next(iter(rates), None)
    most = max(sum(f.in_grid == rate for f in facts) for rate in rates)
    whole = [rate for rate in rates if sum(f.in_grid == rate for f in facts) == most]
    return max(whole, key=lambda rate: fmean(_score(f) for f in facts if f.in_grid == rate))


def _score(fact: Fact) -> float:
    """What chose the run's epoch, such that more is better."""
    if fact.monitor is None or fact.val_value is None:
        raise AssertionError("a grid is trained by lmgraft, which knows what chose the epoch")
    return fact.monitor.direction * fact.val_value


def _compare(study: Study, by_arm: ByArm, pairs: Sequence[Pair], *, correct: bool) -> list[Contrast]:
    if not pairs:
        return []
    measured = {label: {seed: f.measured for seed, f in own.items()} for label, own in by_arm.items()}
    every = [m for own in measured.values() for m in own.values()]
    items = {label: {s: m.items for s, m in own.items() if m.items is not None} for label, own in measured.items()}
    return contrasts(
        {label: {seed: m.value for seed, m in own.items()} for label, own in measured.items()},
        pairs,
        margin=study.margin,
        higher_is_better=study.metric.higher_is_better,
        confidence=study.confidence,
        items=items if all(m.items is not None for m in every) else None,
        groups=next((m.groups for m in every if m.groups is not None), None),
        correct=correct,
    )


def _arm(
    study: Study,
    label: str,
    spec: ArmSpec,
    own: Mapping[int, Fact],
    every: Sequence[Fact],
) -> ArmResult:
    facts = list(own.values())
    values = {seed: f.measured.value for seed, f in own.items()}
    val_values: dict[float, dict[int, float]] = {}
    for f in every:
        if f.val_value is not None and f.learning_rate is not None:
            val_values.setdefault(f.learning_rate, {})[f.seed] = f.val_value
    return ArmResult(
        label=label,
        arm=spec.arm,
        question=spec.question,
        overrides=dict(spec.overrides),
        values=values,
        mean=fmean(values.values()),
        interval=mean_interval(list(values.values()), study.confidence),
        cost=_cost([f.cost for f in facts]),
        block=facts[0].block,
        position=facts[0].position,
        learning_rate=facts[0].learning_rate,
        val_values=val_values,
    )


def _cost(costs: Sequence[Cost]) -> Cost:
    """Medians over seeds; None of what not every run has, and of what is no number but differs."""

    def middle(name: str) -> float | None:
        values = [getattr(cost, name) for cost in costs]
        return None if None in values else float(median(values))

    def one(name: str) -> Any:
        values = {getattr(cost, name) for cost in costs}
        return values.pop() if len(values) == 1 else None

    memory = [cost.peak_memory for cost in costs if cost.peak_memory is not None]
    return replace(
        costs[0],
        seconds=median(cost.seconds for cost in costs),
        peak_memory=int(median(memory)) if memory else None,
        share=middle("share"),
        threads=one("threads"),
        device=one("device"),
        device_seconds=middle("device_seconds"),
    )


def completed(
    result: StudyResult,
    *,
    pairs: Mapping[str, StepPairs] = MappingProxyType({}),
    flops: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    findings: Sequence[Finding] = (),
) -> StudyResult:
    """The result with what its arms cost beside the reference arm, and with its findings in sentences: the last step.

    Args:
        result: What `assemble` made.
        pairs: Arm -> its steps and the reference arm's in turns.
        flops: Arm -> operations of a training step and of an evaluation, for each item.
        findings: What else a reader must know.
    """
    result = with_times(result, pairs)
    arms = []
    for arm in result.arms:
        train, evaluation = flops.get(arm.label, (None, None))
        arms.append(replace(arm, cost=replace(arm.cost, train_flops=train, eval_flops=evaluation)))
    every = [*result.findings, *findings, *_time_findings(result)]
    return worded(replace(result, arms=arms, findings=every))


def with_times(result: StudyResult, pairs: Mapping[str, StepPairs] = MappingProxyType({})) -> StudyResult:
    """The result with how its arms' training times compare with the reference arm's, where that has run.

    Args:
        result: What `assemble` made, or what an older version wrote.
        pairs: Arm -> its steps and the reference arm's in turns.
    """
    base = next((arm.cost for arm in result.arms if arm.label == result.reference), None)
    if base is None:
        return result
    same = TimeRatio(basis="reference", ratio=1.0)
    times = {a.label: same if a.cost is base else time_ratio(a.cost, base, pairs.get(a.label)) for a in result.arms}
    return replace(result, arms=[replace(a, cost=replace(a.cost, time=times[a.label])) for a in result.arms])


def _time_findings(result: StudyResult) -> list[Finding]:
    """What a reader must know of the arms' ratios of times."""
    by_basis: dict[str, list[str]] = {}
    for arm in result.arms:
        if arm.cost.time is not None:
            by_basis.setdefault(arm.cost.time.basis, []).append(arm.label)
    return [
        Finding(kind=kind, names=tuple(by_basis[kind]), key=result.reference)
        for kind in get_args(OfTimes)
        if kind in by_basis
    ]


def _bands(curves: Sequence[Mapping[str, Curve]], confidence: float) -> dict[str, list[Band]]:
    """Means over seeds at the steps that all seeds logged."""
    made: dict[str, list[Band]] = {}
    for name in dict.fromkeys(name for curve in curves for name in curve):
        own = [dict(curve[name]) for curve in curves if curve.get(name)]
        if len(own) < 2:
            continue
        for step in sorted(set.intersection(*(set(curve) for curve in own))):
            values = [curve[step] for curve in own]
            mean = fmean(values)
            low, high = mean_interval(values, confidence) or (mean, mean)  # a band that is drawn as the line alone
            made.setdefault(name, []).append(Band(step=step, mean=mean, low=low, high=high))
    return made


def _cautions(study: Study, facts: Sequence[Fact], by_arm: ByArm) -> list[Finding]:
    """What a reader must know and the numbers do not say."""
    environments = [f.record.get("environment", {}) for f in facts]
    commits, machines = (sorted({str(e.get(key)) for e in environments}) for key in ("git_commit", "platform"))
    retried = tuple(sorted({f.arm for f in facts if f.retries}))
    unfinished = tuple(label for label, own in by_arm.items() if set(own) != set(study.seeds))
    findings = [
        (len(study.seeds) < ENOUGH_SEEDS, Finding(kind="few seeds planned", counts={"seeds": len(study.seeds)})),
        (len(commits) > 1, Finding(kind="several commits", names=tuple(commits))),
        (len(machines) > 1, Finding(kind="several machines", names=tuple(machines))),
        (any(commit.endswith("-dirty") for commit in commits), Finding(kind="uncommitted changes")),
        (0 < sum(f.measured.items is None for f in facts) < len(facts), Finding(kind="items of some runs")),
        (bool(retried), Finding(kind="restarts", names=retried)),
        (bool(unfinished), Finding(kind="unfinished seeds", names=unfinished)),
    ]
    return [finding for holds, finding in findings if holds]
