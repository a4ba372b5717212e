"""What a study's intervals and tests do over many simulated studies, where the truth is known.

    python benchmarks/statistics_coverage.py                    # a few minutes
    python benchmarks/statistics_coverage.py --studies 1000     # quicker, rougher
    python benchmarks/statistics_coverage.py --tables groups    # only those of grouped items

Prints the tables of docs/statistics.md and those in lmgraft.analysis.bootstrap_coverage.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from lmgraft.analysis.bootstrap import crossed_bootstrap, percentile_bootstrap
from lmgraft.analysis.paired import Contrast, contrasts
from lmgraft.analysis.student import detectable_difference, mean_interval

Array = npt.NDArray[np.float64]
SEEDS = (2, 3, 4, 5, 7, 10, 20)
GROUPS = (10, 30, 67, 300)
ITEMS_A_GROUP = 10
_AT_ONCE = 100


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Standard deviations of what makes an item right or wrong, in units of its noise; normal and independent."""

    arm_seed: float
    """What a seed does to one arm."""
    arm_item: float
    """What an item is to one arm alone."""
    seed: float = 0.2
    """What a seed does to both arms: pairing takes it out."""
    item: float = 1.0
    """How easy an item is for both arms."""
    arm_group: float = 0.0
    """What a group of items is to one arm alone."""
    group: float = 0.0
    """How easy a group is for both arms."""
    uneven: float = 1.0
    """Standard deviation of the logarithm of a group's size; 0 for groups of one size."""
    log: bool = False
    """Values are exponentials, heavy to the right, as cross-entropies are; else right or wrong."""


SITUATIONS = {
    "seeds differ much": Situation(arm_seed=0.4, arm_item=0.1),
    "seeds differ as much as items": Situation(arm_seed=0.05, arm_item=0.5),
    "items differ much": Situation(arm_seed=0.0, arm_item=1.0),
    "noise alone": Situation(arm_seed=0.0, arm_item=0.0),
    "cross-entropy, seeds differ much": Situation(arm_seed=0.2, arm_item=0.1, log=True),
    "cross-entropy, items differ much": Situation(arm_seed=0.0, arm_item=0.5, log=True),
}


GROUPED = {
    "groups differ, of one size": Situation(arm_seed=0.05, arm_item=0.1, arm_group=0.4, group=0.4, uneven=0),
    "groups differ": Situation(arm_seed=0.05, arm_item=0.1, arm_group=0.4, group=0.4),
    "groups differ much": Situation(arm_seed=0.05, arm_item=0.1, arm_group=1.0, group=0.4),
    "seeds and groups differ": Situation(arm_seed=0.3, arm_item=0.1, arm_group=0.3, group=0.4),
    "groups differ little": Situation(arm_seed=0.05, arm_item=0.5, arm_group=0.1, group=0.4),
    "noise alone": Situation(arm_seed=0.0, arm_item=0.0),
    "cross-entropy, groups differ": Situation(arm_seed=0.05, arm_item=0.1, arm_group=0.3, item=0.5, log=True),
}


def group_sizes(groups: int, uneven: float) -> npt.NDArray[np.intp]:
    """Sizes of so many groups, at even ranks of a log-normal distribution; the same for every study."""
    normal = NormalDist()
    sizes = np.exp([uneven * normal.inv_cdf((i + 0.5) / groups) for i in range(groups)])
    return np.maximum(np.round(sizes / sizes.mean() * ITEMS_A_GROUP), 1).astype(np.intp)


def simulate(
    situation: Situation,
    studies: int,
    seeds: int,
    groups: npt.NDArray[np.intp],
    generator: np.random.Generator,
) -> tuple[Array, float]:
    """(studies, seeds, items): differences between two arms by item; and their true mean."""
    items = len(groups)

    def by_group(sd: float) -> Array | float:
        return generator.normal(0, sd, (studies, 1, groups[-1] + 1))[..., groups] if sd else 0.0

    both = generator.normal(0, situation.item, (studies, 1, items)) + generator.normal(
        0, situation.seed, (studies, seeds, 1)
    )
    both = both + by_group(situation.group)
    parts = (situation.item, situation.seed, situation.arm_seed, situation.arm_item, 1)
    parts += (situation.group, situation.arm_group)
    variance = sum(sd**2 for sd in parts)
    values, true = [], []
    for level in (1.7, 1.5):
        latent = level + both + generator.normal(0, situation.arm_seed, (studies, seeds, 1))
        latent = latent + generator.normal(0, situation.arm_item, (studies, 1, items))
        latent = latent + by_group(situation.arm_group)
        latent = latent + generator.normal(0, 1, (studies, seeds, items))
        values.append(np.exp(latent) if situation.log else latent > 0)
        mean = math.exp(level + variance / 2) if situation.log else NormalDist().cdf(level / math.sqrt(variance))
        true.append(mean)
    return np.subtract(*values, dtype=np.float64), true[0] - true[1]


def coverage(
    interval: Callable[..., Array],
    situation: Situation,
    *,
    studies: int,
    seeds: int,
    items: int = 500,
    groups: int | None = None,
) -> float:
    """The share of simulated studies whose nominal 95 % interval holds the true mean difference.

    Args:
        items: That stand alone, where there are no groups.
        groups: Of about `ITEMS_A_GROUP` items each, drawn whole.
    """
    sizes = np.ones(items, np.intp) if groups is None else group_sizes(groups, situation.uneven)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    generator = np.random.default_rng([seeds, len(codes)])
    hits = 0
    for start in range(0, studies, _AT_ONCE):
        number = min(_AT_ONCE, studies - start)
        differences, true = simulate(situation, number, seeds, codes, generator)
        low, high = interval(differences, groups=codes, draws=1000, seed=start).T
        hits += int(((low <= true) & (true <= high)).sum())
    return hits / studies


def tied_coverage(situation: Situation, *, studies: int, seeds: int, items: int) -> tuple[float, float]:
    """How often all seeds differ by the same number of items, and how often the interval holds the truth then."""
    codes, generator = np.arange(items), np.random.default_rng([seeds, items])
    tied, hits = 0, 0
    for start in range(0, studies, _AT_ONCE):
        differences, true = simulate(situation, min(_AT_ONCE, studies - start), seeds, codes, generator)
        equal = differences[np.ptp(differences.sum(axis=2), axis=1) == 0]
        if len(equal):
            low, high = crossed_bootstrap(equal, draws=1000, seed=start).T
            tied, hits = tied + len(equal), hits + int(((low <= true) & (true <= high)).sum())
    return tied / studies, hits / max(tied, 1)


def t_coverage(studies: int, seeds: int) -> float:
    """The same of Student's interval, over normal values of seeds."""
    rows = np.random.default_rng(seeds).normal(0, 1, (studies, seeds))
    intervals = (mean_interval(row, 0.95) for row in rows.tolist())
    return float(np.mean([i is not None and i[0] <= 0 <= i[1] for i in intervals]))


def family_wise_error(studies: int, seeds: int, *, correct: bool = True) -> float:
    """How often an LLM arm that is no different is called better or worse than any of three others."""
    return _share(studies, seeds, lambda found: any(c.outcome != "not shown" for c in found), correct=correct)


def false_equivalence(studies: int, seeds: int, *, correct: bool = True) -> float:
    """How often arms that differ by exactly the margin are called equivalent, any of three."""
    return _share(studies, seeds, lambda found: any(c.equivalent for c in found), shift=1.0, correct=correct)


def power_at_detectable(studies: int, seeds: int) -> float:
    """How often a true difference of the detectable size, from the true spread, is shown, alone of three, without
    help from the others: at the level of Holm's first step."""
    true = detectable_difference(math.sqrt(2), seeds, alpha=0.05 / 3)
    return _share(studies, seeds, lambda found: found[0].p < 0.05 / 3, shift=true)


def discrete_error(studies: int, seeds: int, items: int) -> float:
    """How often two equal arms are called different by accuracies of so few items that differences tie.

    One item of fifty is right with one arm alone, another with the other alone.
    """
    return float(np.mean([c.outcome != "not shown" for c in _discrete(studies, seeds, items, 0.0)]))


def discrete_equivalence(studies: int, seeds: int, items: int) -> float:
    """How often two such arms that differ by exactly the margin, a hundredth, are called equivalent."""
    return float(np.mean([c.equivalent for c in _discrete(studies, seeds, items, 0.01)]))


def _discrete(studies: int, seeds: int, items: int, shift: float) -> list[Contrast]:
    generator = np.random.default_rng([seeds, items])
    ours, theirs = (generator.binomial(items, 0.02 + extra, (studies, seeds)) for extra in (shift, 0.0))
    both = items * 8 // 10
    return [
        contrasts(
            {name: {s: (both + n) / items for s, n in enumerate(row)} for name, row in zip("ab", pair, strict=True)},
            [("a", "b")],
            margin=0.01,
        )[0]
        for pair in zip(ours.tolist(), theirs.tolist(), strict=True)
    ]


def _share(
    studies: int, seeds: int, event: Callable[[list], bool], *, shift: float = 0.0, correct: bool = True
) -> float:
    others = ("plain", "random_frozen", "mlp")
    draws = np.random.default_rng(seeds).normal(0, 1, (studies, 4, seeds))
    draws[:, 0] += shift
    hits = 0
    for study in draws:
        values = {arm: dict(enumerate(row.tolist())) for arm, row in zip(("llm", *others), study, strict=True)}
        hits += event(contrasts(values, [("llm", other) for other in others], margin=1.0, correct=correct))
    return hits / studies


def ignoring_groups(differences: Array, *, groups: npt.NDArray[np.intp], draws: int, seed: int) -> Array:
    """`crossed_bootstrap` as if every item stood alone."""
    return crossed_bootstrap(differences, draws=draws, seed=seed)


def print_tests(studies: int) -> None:
    """Error rates and power of the t tests over seeds."""
    print("| seeds | " + " | ".join(map(str, SEEDS)) + " |\n|---|" + "---|" * len(SEEDS))
    rows: dict[str, Callable[[int], float]] = {
        "paired t interval covers (95 %)": lambda n: t_coverage(studies, n),
        "any of three false differences, Holm (at most 5 %)": lambda n: family_wise_error(studies, n),
        "the same without Holm": lambda n: family_wise_error(studies, n, correct=False),
        "any of three false equivalences at the margin, Holm (at most 5 %)": lambda n: false_equivalence(studies, n),
        "power at the detectable difference (80 %)": lambda n: power_at_detectable(studies, n),
        "one false difference, accuracies of 256 items": lambda n: discrete_error(studies, n, 256),
        "one false difference, accuracies of 10,000 items": lambda n: discrete_error(studies, n, 10_000),
    }
    for name, measure in rows.items():
        print(f"| {name} | " + " | ".join(f"{100 * measure(n):.1f}" for n in SEEDS) + " |", flush=True)


def print_ties(studies: int) -> None:
    """Of studies so small that all seeds often differ by the same."""
    cells = [(2, 64), (2, 256), (2, 1000), (3, 64)]
    print("\n| seeds, items | " + " | ".join(f"{n}, {items}" for n, items in cells) + " |\n|---|" + "---|" * len(cells))
    for name in ("seeds differ much", "items differ much"):
        found = [tied_coverage(SITUATIONS[name], studies=5 * studies, seeds=n, items=items) for n, items in cells]
        print(f"| {name}: equal | " + " | ".join(f"{100 * equal:.1f}" for equal, _ in found) + " |")
        print("| then covered | " + " | ".join(f"{100 * hit:.1f}" for _, hit in found) + " |", flush=True)


def print_coverage(
    title: str, situations: dict[str, Situation], interval: Callable[..., Array], studies: int, groups: int | None
) -> dict[int, float]:
    """One row a situation; the worst of each number of seeds."""
    print(f"\n| {title} | " + " | ".join(map(str, SEEDS)) + " |\n|---|" + "---|" * len(SEEDS))
    worst = dict.fromkeys(SEEDS, 1.0)
    for name, situation in situations.items():
        covered = {n: coverage(interval, situation, studies=studies, seeds=n, groups=groups) for n in SEEDS}
        print(f"| {name} | " + " | ".join(f"{100 * c:.1f}" for c in covered.values()) + " |", flush=True)
        worst = {n: round(min(worst[n], covered[n]), 3) for n in SEEDS}
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000, help="simulated studies a cell")
    tables = ["tests", "ties", "items", "groups"]
    parser.add_argument("--tables", nargs="+", default=tables, choices=tables)
    args = parser.parse_args()
    print(f"{args.studies} simulated studies a cell\n")
    if "tests" in args.tables:
        print_tests(args.studies)
    if "ties" in args.tables:
        print_ties(args.studies)
    if "items" in args.tables:
        worst = print_coverage("scaled, as used", SITUATIONS, crossed_bootstrap, args.studies, None)
        print_coverage("percentile", SITUATIONS, percentile_bootstrap, args.studies, None)
        print(f"\nCOVERED = {worst}")
    if "groups" in args.tables:
        by_groups = {}
        for groups in GROUPS:
            by_groups[groups] = print_coverage(f"{groups} groups", GROUPED, crossed_bootstrap, args.studies, groups)
            one = {"as if items stood alone": GROUPED["groups differ"]}
            print_coverage(f"{groups} groups, ignored", one, ignoring_groups, min(args.studies, 500), groups)
        print(f"\nCOVERED_BY_GROUPS = {by_groups}")


if __name__ == "__main__":
    main()
