"""Statistics of a study: against SciPy and the definitions, and by simulation where the truth is known."""

import importlib.util
import json
import math
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lmgraft.analysis.agreement import agreement, kendall_tau_b, spearman
from lmgraft.analysis.bootstrap import crossed_bootstrap, percentile_bootstrap
from lmgraft.analysis.bootstrap_coverage import COVERED, bootstrap_coverage, coverage_words
from lmgraft.analysis.holm import holm
from lmgraft.analysis.paired import contrasts
from lmgraft.analysis.student import detectable_difference, equivalence_p, mean_interval
from lmgraft.errors import LmgraftError, RunError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def simulation():
    """benchmarks/statistics_coverage.py, which makes the tables of docs/statistics.md."""
    spec = importlib.util.spec_from_file_location("statistics_coverage", ROOT / "benchmarks" / "statistics_coverage.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


VALUES = {
    "llm": {0: 0.812, 1: 0.807, 2: 0.818, 3: 0.809, 4: 0.815},
    "plain": {0: 0.803, 1: 0.805, 2: 0.806, 3: 0.801, 4: 0.808},
    "mlp": {0: 0.810, 1: 0.809, 2: 0.815, 3: 0.812, 4: 0.813},
}
PAIRS = [("llm", "plain"), ("llm", "mlp")]


def column(arm):
    return [VALUES[arm][seed] for seed in range(5)]


def test_t_equals_scipys():
    for contrast in contrasts(VALUES, PAIRS, margin=0.005, confidence=0.9):
        expected = stats.ttest_rel(column(contrast.arm), column(contrast.reference))
        assert contrast.p == pytest.approx(expected.pvalue, rel=1e-9)
        assert contrast.interval == pytest.approx(tuple(expected.confidence_interval(0.9)), rel=1e-9)
        assert contrast.mean == pytest.approx(np.mean(contrast.differences))
        assert contrast.sd == pytest.approx(np.std(contrast.differences, ddof=1))


def test_equivalence_is_the_larger_of_scipys_one_sided_p():
    for margin in (0.001, 0.005, 0.02):
        for contrast in contrasts(VALUES, PAIRS, margin=margin):
            rows = contrast.differences
            above = stats.ttest_1samp(rows, -margin, alternative="greater").pvalue
            below = stats.ttest_1samp(rows, margin, alternative="less").pvalue
            assert contrast.p_equivalence == pytest.approx(max(above, below), rel=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(0.01, 1), st.floats(0.01, 0.2))
def test_equivalent_where_the_wider_interval_lies_within(rows, margin, alpha):
    sd, n = float(np.std(rows, ddof=1)), len(rows)
    if sd < 1e-6:
        return
    low, high = mean_interval(rows, 1 - 2 * alpha)
    if min(abs(low + margin), abs(high - margin)) > 1e-9:
        assert (equivalence_p(float(np.mean(rows)), sd, n, margin) < alpha) == (-margin < low and high < margin)


def test_detectable_equals_scipys_noncentral_t():
    for n in (2, 3, 5, 10, 30):
        for alpha in (0.05, 0.05 / 3, 0.05 / 15):
            found = detectable_difference(2.0, n, alpha=alpha)
            quantile = stats.t.isf(alpha / 2, n - 1)
            assert stats.nct.sf(quantile, n - 1, found / (2.0 / math.sqrt(n))) == pytest.approx(0.8, abs=1e-4)
    three = contrasts(VALUES, PAIRS, margin=0.005)[0]
    alone = contrasts(VALUES, PAIRS, margin=0.005, correct=False)[0]
    assert three.detectable == pytest.approx(detectable_difference(three.sd, 5, alpha=0.025))
    assert alone.detectable == pytest.approx(detectable_difference(three.sd, 5, alpha=0.05))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.floats(0.001, 0.999))
def test_holm_rejects_as_its_definition_does(p_values, alpha):
    """In order of p, reject while p(k) < alpha / (m - k); stop at the first that is not."""
    rejected = set()
    for k, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if (len(p_values) - k) * p_values[i] >= alpha:
            break
        rejected.add(i)
    adjusted = holm(p_values)
    assert {i for i, p in enumerate(adjusted) if p < alpha} == rejected
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))


def test_holm_runs_over_differences_and_over_equivalences():
    found = contrasts(VALUES, PAIRS, margin=0.005)
    assert [c.p_holm for c in found] == holm([c.p for c in found])
    wide = contrasts(VALUES, PAIRS, margin=0.02)
    assert [c.equivalent for c in wide] == [p < 0.05 for p in holm([c.p_equivalence for c in wide])]
    # A p between alpha / 2 and alpha counts alone, and not as the smaller of two.
    values = {"llm": {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}, "plain": dict.fromkeys(range(4), 0.9)}
    values["mlp"] = {0: 1.0, 1: 1.5, 2: 3.5, 3: 4.5}
    pair, both = [("llm", "plain")], [("llm", "plain"), ("llm", "mlp")]
    assert 0.05 < contrasts(values, pair, margin=1)[0].p < 0.1
    shown = [
        contrasts(values, p, margin=1, correct=c, confidence=0.9)[0].outcome for p, c in ((both, False), (both, True))
    ]
    assert shown == ["better", "not shown"]


def items_of(values, size=300, seed=0):
    """Right or wrong for each item, with about the shares in `values`."""
    generator = np.random.default_rng(seed)
    easy = generator.random(size)
    return {
        arm: {s: easy * 0.7 + 0.3 * generator.random(size) < v for s, v in own.items()} for arm, own in values.items()
    }


@pytest.mark.parametrize("higher", [True, False])
def test_swapping_arms_negates(higher):
    items = items_of(VALUES)
    kwargs = {"margin": 0.005, "higher_is_better": higher, "items": items}
    one, two = (contrasts(VALUES, [pair], **kwargs)[0] for pair in (("llm", "plain"), ("plain", "llm")))
    assert two.mean == -one.mean
    assert two.interval == pytest.approx((-one.interval[1], -one.interval[0]))
    assert two.bootstrap == pytest.approx((-one.bootstrap[1], -one.bootstrap[0]))
    assert (two.sd, two.p, two.p_equivalence, two.detectable) == (one.sd, one.p, one.p_equivalence, one.detectable)
    assert {one.outcome, two.outcome} == {"better", "worse"}
    assert one.outcome == ("better" if higher else "worse")


def test_pairing_is_by_seed():
    turned = {arm: dict(reversed(own.items())) for arm, own in VALUES.items()}
    assert contrasts(turned, PAIRS, margin=0.005) == contrasts(VALUES, PAIRS, margin=0.005)
    less = VALUES | {"plain": {s: v for s, v in VALUES["plain"].items() if s != 3} | {9: 0.1}}
    one, other = contrasts(less, PAIRS, margin=0.005)
    assert one.seeds == (0, 1, 2, 4)
    assert len(one.differences) == 4
    assert other.seeds == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("precision", [np.float64, np.float32])
def test_without_spread_nothing_is_shown(precision):
    """Differences that are equal but for rounding: no test can tell how they would vary."""
    values = {"llm": {0: 0.3, 1: 0.5, 2: 0.7}, "plain": {0: 0.2, 1: 0.4, 2: 0.6}, "same": {0: 0.3, 1: 0.5, 2: 0.7}}
    values = {arm: {seed: float(precision(v)) for seed, v in own.items()} for arm, own in values.items()}
    pairs = [("llm", "plain"), ("plain", "llm"), ("llm", "same")]
    for contrast in contrasts(values, pairs, margin=0.2):
        assert (contrast.p, contrast.p_holm, contrast.outcome) == (1.0, 1.0, "not shown")
        assert (contrast.p_equivalence, contrast.equivalent) == (1.0, False)
        assert contrast.sd == 0
        assert contrast.interval is None
        assert contrast.mean == pytest.approx({"same": 0.0}.get(contrast.reference, contrast.mean))
        json.dumps(asdict(contrast), allow_nan=False)


def test_bad_values_are_named():
    def refuse(match, values=VALUES, **kwargs):
        with pytest.raises(RunError, match=match):
            contrasts(values, PAIRS, margin=0.005, **kwargs)

    refuse("'mlp'", {arm: VALUES[arm] for arm in ("llm", "plain")})
    refuse("arm plain, seed 2: the metric is nan", VALUES | {"plain": VALUES["plain"] | {2: math.nan}})
    refuse("arm llm, seed 0: the metric is inf", VALUES | {"llm": VALUES["llm"] | {0: math.inf}})
    refuse(r"share 1 seed\n.*at least two.*five", VALUES | {"plain": {4: 0.8}})
    refuse("share 0 seeds", VALUES | {"plain": {5: 0.8, 6: 0.8}})
    items = items_of(VALUES)
    refuse("llm, seed 0: 300.*|299", items=items | {"plain": items["plain"] | {1: np.ones(299)}})
    refuse(
        "arm plain, seed 1: values by test item", items=items | {"plain": items["plain"] | {1: np.full(300, np.nan)}}
    )
    for bad in (
        {"margin": 0.0},
        {"margin": math.nan},
        {"margin": 1, "confidence": 1.0},
        {"margin": 1, "confidence": 0.1},
    ):
        with pytest.raises(ValueError, match="out of range"):
            contrasts(VALUES, PAIRS, **bad)


def test_without_scipy_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(LmgraftError, match=r"lmgraft\[image\]"):
        contrasts(VALUES, PAIRS, margin=0.005)


def test_mean_interval():
    assert mean_interval(column("llm"), 0.9) == pytest.approx(
        stats.t.interval(0.9, 4, np.mean(column("llm")), stats.sem(column("llm")))
    )
    assert mean_interval([0.8]) is None
    assert mean_interval([]) is None
    # Equal but for rounding in 32 bits, or of the numbers whose differences they are: no spread to judge by.
    assert mean_interval([0.5, 0.5]) is None
    assert mean_interval([0.5, 0.5 + 1e-7]) is None
    assert mean_interval([0.0, 0.0]) is None
    assert mean_interval([1e-9, 2e-9], rounding=1e-7) is None
    assert mean_interval([1e-9, 2e-9]) is not None


# Bootstrap


def test_bootstrap_equals_draws_one_by_one():
    """The vectorised draws, against the definition: rows and columns picked by index."""
    differences = np.random.default_rng(0).normal(1, 1, (1, 4, 30))
    items, seeds = np.random.default_rng([0, 0]), np.random.default_rng([0, 1])
    picked_items, picked_seeds = items.integers(0, 30, (500, 30)), seeds.integers(0, 4, (500, 4))
    means = [differences[0][np.ix_(s, i)].mean() for s, i in zip(picked_seeds, picked_items, strict=True)]
    assert percentile_bootstrap(differences, 0.9, draws=500)[0] == pytest.approx(np.quantile(means, [0.05, 0.95]))


def test_bootstrap_is_scaled_to_the_unbiased_variance():
    """Over many data sets half the interval's width is t times the root of the true variance."""
    seed_sd, item_sd, noise, n, size = 0.1, 1.0, 1.0, 6, 60
    draw = np.random.default_rng(0).normal
    differences = draw(0, seed_sd, (400, n, 1)) + draw(0, item_sd, (400, 1, size)) + draw(0, noise, (400, n, size))
    low, high = crossed_bootstrap(differences, draws=400).T
    true = seed_sd**2 / n + item_sd**2 / size + noise**2 / (n * size)
    assert np.sqrt(np.mean((high - low) ** 2)) / 2 == pytest.approx(2.05 * math.sqrt(true), rel=0.08)


def test_bootstrap_does_not_depend_on_the_other_contrasts():
    items = items_of(VALUES)
    together = contrasts(VALUES, PAIRS, margin=0.005, items=items)
    alone = [contrasts(VALUES, [pair], margin=0.005, items=items)[0] for pair in PAIRS]
    for one, other in zip(together, alone, strict=True):
        assert one.bootstrap == pytest.approx(other.bootstrap)
    assert contrasts(VALUES, PAIRS, margin=0.005, items=items) == together
    del items["mlp"][3]
    assert [c.bootstrap is None for c in contrasts(VALUES, PAIRS, margin=0.005, items=items)] == [False, True]


def test_bootstrap_without_spread():
    items = {arm: {s: np.array([True, False, True]) for s in range(5)} for arm in VALUES}
    found = contrasts(VALUES, PAIRS, margin=0.005, items=items)
    assert {(c.bootstrap, c.no_bootstrap) for c in found} == {(None, "no spread")}


def test_bootstrap_is_quick():
    differences = np.random.default_rng(0).integers(-1, 2, (1, 5, 10_000))
    begin = time.process_time()
    crossed_bootstrap(differences)
    assert time.process_time() - begin < 5  # 0.3 s on an idle core


def test_coverage_table():
    assert bootstrap_coverage(1) is None
    assert bootstrap_coverage(6) == COVERED[5]
    assert bootstrap_coverage(1000) == COVERED[max(COVERED)]
    assert coverage_words(5) == f"nominal 95 %, covered {100 * COVERED[5]:.1f} % at worst in simulation with 5 seeds"
    assert "not measured" in coverage_words(5, 0.9)
    page = (ROOT / "docs" / "statistics.md").read_text()
    assert all(f"{100 * covered:.1f}" in page for covered in COVERED.values())


# Simulation: what is claimed of error rates and coverage


def within(share, expected, studies):
    """Four standard errors of a share."""
    return abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / studies)


def test_rates_of_error(simulation):
    studies = 1000
    assert within(simulation.t_coverage(studies, 5), 0.95, studies)
    assert simulation.family_wise_error(studies, 5) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / studies)
    assert simulation.family_wise_error(studies, 5, correct=False) > 0.09
    assert simulation.false_equivalence(studies, 10) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / studies)
    assert simulation.false_equivalence(studies, 10, correct=False) > 0.08
    assert within(simulation.power_at_detectable(studies, 5), 0.8, studies)


@pytest.mark.parametrize(("seeds", "items"), [(2, 256), (2, 1000), (3, 64), (3, 256), (5, 256)])
def test_rates_of_error_of_accuracies_of_few_items(simulation, seeds, items):
    """Accuracies of so few items are often equally far apart by chance; that is not called a difference."""
    studies = 1000
    most = 0.05 + 4 * math.sqrt(0.05 * 0.95 / studies)
    assert simulation.discrete_error(studies, seeds, items) < most
    assert simulation.discrete_equivalence(studies, seeds, items) < most


@pytest.mark.parametrize("seeds", [5, 10])
def test_bootstrap_covers_as_the_table_says(simulation, seeds):
    studies = 600
    error = math.sqrt(0.05 * 0.95 / studies)
    for name in ("seeds differ much", "items differ much"):
        covered = simulation.coverage(
            crossed_bootstrap, simulation.SITUATIONS[name], studies=studies, seeds=seeds, items=200
        )
        assert bootstrap_coverage(seeds) - 4 * error < covered
    # What the scaling is for: unscaled draws are too narrow where seeds differ, too wide where only noise does.
    for situation, least, most in (
        (simulation.Situation(arm_seed=1, arm_item=0), 0.8, 0.94),
        (simulation.SITUATIONS["noise alone"], 0.98, 1),
    ):
        unscaled = simulation.coverage(percentile_bootstrap, situation, studies=studies, seeds=seeds, items=200)
        assert least < unscaled <= most


# Agreement of rankings


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=9))
def test_coefficients_equal_scipys(pairs):
    x, y = np.array(pairs).T
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(kendall_tau_b(x, y))
        return
    assert kendall_tau_b(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def named(values):
    return {f"layer_{i}": float(value) for i, value in enumerate(values)}


def test_exact_p_equals_scipys():
    x, y = [1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5]
    found = agreement(named(x), named(y))
    assert found.kendall.p == pytest.approx(stats.kendalltau(x, y, method="exact").pvalue)
    assert found.kendall.interval is None
    assert agreement(named(range(4)), named(range(4))).kendall.p == pytest.approx(2 / 24)


def test_many_candidates_get_an_interval():
    generator = np.random.default_rng(0)
    x = generator.normal(size=20)
    found = agreement(named(x), named(x + generator.normal(size=20)))
    for rank in (found.kendall, found.spearman):
        assert rank.interval[0] < rank.value < rank.interval[1]
        assert 0 < rank.p < 0.05
    nothing = agreement(named(x), named(generator.normal(size=20)))
    assert nothing.kendall.p > 0.05
    assert nothing.kendall.interval[0] < 0 < nothing.kendall.interval[1]


def test_direction_and_regret():
    scores, gains = named([5, 1, 2, 3]), named([0.1, 0.3, 0.2, 0.0])
    found = agreement(scores, gains)
    assert (found.favourite, found.best) == ("layer_0", "layer_1")
    assert found.regret == pytest.approx(0.2)
    assert found.regret_of_chance == pytest.approx(0.15)
    losses = {name: -gain for name, gain in gains.items()}
    lower = agreement(scores, losses, higher_is_better=False)
    assert replace(lower, note="") == found
    assert agreement(scores, losses).kendall.value == pytest.approx(-found.kendall.value)
    turned = {name: -score for name, score in scores.items()}
    assert agreement(turned, gains, score_higher_is_better=False) == found


def test_what_cannot_be_said_is_said():
    few = agreement(named([1, 2, 3]), named([1, 2, 3]))
    assert few.kendall is None
    assert "too few to say" in few.note
    assert few.regret == 0
    tied = agreement(named([1, 1, 1, 1]), named([1, 2, 3, 4]))
    assert tied.spearman is None
    assert "the score is the same for all" in tied.note
    assert tied.regret == tied.regret_of_chance == 1.5
    assert agreement({"a": 1.0}, {"b": 1.0}).note
    with pytest.raises(RunError, match="layer_1: its score is nan"):
        agreement(named([1, math.nan, 3, 4]), named([1, 2, 3, 4]))
