"""Items that belong together, metrics as columns of items, and intervals over them."""

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from lmgraft.analysis.bootstrap import crossed_bootstrap, percentile_bootstrap
from lmgraft.analysis.bootstrap_coverage import COVERED_BY_GROUPS, bootstrap_coverage, coverage_words
from lmgraft.analysis.groups import group_codes, group_values
from lmgraft.analysis.intervals import items_interval, wilson_interval
from lmgraft.analysis.paired import contrasts
from lmgraft.analysis.student import mean_interval
from lmgraft.errors import LmgraftError, RunError
from lmgraft.records import read_as
from lmgraft.registry import METRICS
from lmgraft.studies.study.read import _without_width
from lmgraft.tasks.influence import correlation, mean_class_accuracy, ratio
from lmgraft.tasks.items import values_of

# ---- Groups


def uneven_groups(number, rng):
    """(N,) codes of groups of 1 to 12 items, in random order and not from zero."""
    return rng.permutation(np.repeat(np.arange(number) * 3 - 7, rng.integers(1, 13, number)))


def drawn_one_by_one(differences, groups, draws, seed=0):
    """The definition: pick seeds, pick groups, take the mean of all their items."""
    names = np.unique(groups)
    n, size = differences.shape[1], len(names)
    by_group, by_seed = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    picked_groups, picked_seeds = by_group.integers(0, size, (draws, size)), by_seed.integers(0, n, (draws, n))
    items = [np.flatnonzero(groups == name) for name in names]
    means = []
    for rows, columns in zip(picked_seeds, picked_groups, strict=True):
        means.append(differences[0][np.ix_(rows, np.concatenate([items[g] for g in columns]))].mean())
    return means


def test_the_grouped_bootstrap_draws_whole_groups():
    rng = np.random.default_rng(0)
    groups = uneven_groups(20, rng)
    differences = rng.normal(1, 1, (1, 4, len(groups)))
    means = drawn_one_by_one(differences, groups, 400)
    found = percentile_bootstrap(differences, 0.9, groups=groups, draws=400)[0]
    assert found == pytest.approx(np.quantile(means, [0.05, 0.95]), rel=1e-12)


def test_items_in_groups_of_their_own_change_nothing():
    rng = np.random.default_rng(1)
    differences = rng.normal(0, 1, (2, 3, 50))
    alone = rng.permutation(50) * 5 - 100
    assert (crossed_bootstrap(differences, groups=alone) == crossed_bootstrap(differences)).all()
    assert group_codes(alone, 50) is None


@given(st.integers(2, 12), st.integers(0, 10**6), st.floats(-5, 5))
def test_values_of_groups_have_the_mean_of_the_items(number, seed, shift):
    rng = np.random.default_rng(seed)
    groups = uneven_groups(number, rng)
    values = rng.normal(shift, 1, (3, len(groups)))
    by_group, df = group_values(values, group_codes(groups, len(groups)))
    assert by_group.mean(axis=1) == pytest.approx(values.mean(axis=1), rel=1e-12, abs=1e-12)
    assert 0 < df <= by_group.shape[1] - 1 + 1e-9


def test_the_order_of_items_and_the_names_of_groups_do_not_matter():
    rng = np.random.default_rng(2)
    groups = uneven_groups(15, rng)
    differences = rng.normal(0, 1, (1, 3, len(groups)))
    turn = rng.permutation(len(groups))
    one = crossed_bootstrap(differences, groups=groups)
    assert crossed_bootstrap(differences[..., turn], groups=groups[turn] * 2 + 9) == pytest.approx(one, rel=1e-9)


def test_groups_of_equal_items_count_once():
    """Every item twice tells no more than once."""
    values = np.random.default_rng(3).normal(0, 1, (1, 4, 40))
    once = crossed_bootstrap(values)
    twice = crossed_bootstrap(np.repeat(values, 2, axis=2), groups=np.repeat(np.arange(40), 2))
    assert twice == pytest.approx(once, rel=1e-9)


def test_the_variance_of_groups_is_unbiased_where_they_differ_in_size():
    """Of independent items the variance of the mean is known: 1 / N."""
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(8), [1, 2, 3, 4, 6, 8, 12, 24])
    by_group, _ = group_values(rng.normal(0, 1, (20_000, len(groups))), group_codes(groups, len(groups)))
    assert by_group.var(axis=1, ddof=1).mean() / 8 == pytest.approx(1 / len(groups), rel=0.03)


@pytest.mark.parametrize("groups", [np.zeros(49, int), np.zeros(50), np.zeros((50, 1), int), ["a"] * 50])
def test_groups_that_do_not_fit_are_refused(groups):
    with pytest.raises(RunError, match=r"groups are .* where 50 whole numbers"):
        group_codes(groups, 50)


# ---- Contrasts


def study_of(rng, *, seeds=5, sizes=(3, 9, 1, 5) * 8, tie=False):
    """Arms' items, values and groups: what a group is to one arm, and an item."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    items = {}
    for arm, level in (("llm", 0.3), ("plain", 0.0)):
        effect = rng.normal(0, 0.5, len(sizes))[groups]
        items[arm] = {s: level + effect + rng.normal(0, 1, len(groups)) for s in range(seeds)}
    if tie:
        for s in range(seeds):
            items["llm"][s] += 0.2 + items["plain"][s].mean() - items["llm"][s].mean()
    return items, {arm: {s: float(v.mean()) for s, v in own.items()} for arm, own in items.items()}, groups


def test_contrasts_draw_groups_and_record_how_many():
    items, values, groups = study_of(np.random.default_rng(0))
    pair = [("llm", "plain")]
    by_items, by_groups = (contrasts(values, pair, margin=0.1, items=items, groups=g)[0] for g in (None, groups))
    stacked = np.array([[items["llm"][s] - items["plain"][s] for s in range(5)]])
    assert by_groups.bootstrap == tuple(crossed_bootstrap(stacked, groups=groups)[0])
    assert (by_items.groups, by_groups.groups, by_groups.no_bootstrap) == (None, 32, None)
    widths = [c.bootstrap[1] - c.bootstrap[0] for c in (by_items, by_groups)]
    assert widths[1] > 1.5 * widths[0]
    assert (by_items.interval, by_items.p) == (by_groups.interval, by_groups.p)
    alone = contrasts(values, pair, margin=0.1, items=items, groups=np.arange(len(groups)))[0]
    assert alone == by_items


def test_why_there_is_no_bootstrap_is_recorded():
    items, values, groups = study_of(np.random.default_rng(0))
    same = {arm: {s: np.full(len(groups), v) for s, v in own.items()} for arm, own in values.items()}
    level = {arm: dict.fromkeys(own, np.arange(len(groups)) % 2) for arm, own in values.items()}
    for given_items, given_groups, reason in (
        (None, groups, "no items"),
        (items, np.zeros(len(groups), int), "one group"),
        (level, groups, "no spread"),
    ):
        [found] = contrasts(values, [("llm", "plain")], margin=0.1, items=given_items, groups=given_groups)
        assert (found.bootstrap, found.no_bootstrap, found.groups) == (None, reason, None)
        assert found.interval[0] < found.mean < found.interval[1]
    # Items that are all equal, of seeds that differ: there is a spread.
    assert contrasts(values, [("llm", "plain")], margin=0.1, items=same)[0].bootstrap is not None
    with pytest.raises(RunError, match="groups are"):
        contrasts(values, [("llm", "plain")], margin=0.1, items=items, groups=groups[1:])


@pytest.mark.parametrize("seeds", [2, 5])
def test_equal_differences_have_no_interval_over_seeds(seeds):
    items, values, groups = study_of(np.random.default_rng(5), seeds=seeds, tie=True)
    [bare] = contrasts(values, [("llm", "plain")], margin=0.1)
    assert (bare.sd, bare.interval, bare.no_interval, bare.no_bootstrap) == (0, None, "no spread", "no items")
    [found] = contrasts(values, [("llm", "plain")], margin=0.1, items=items, groups=groups)
    assert (found.sd, found.p, found.outcome, found.equivalent) == (0, 1, "not shown", False)
    assert (found.interval, found.no_interval) == (None, "no spread")
    assert found.bootstrap[0] < found.mean - 0.05 < found.mean + 0.05 < found.bootstrap[1]


def test_contrasts_of_older_results_read():
    items, values, _ = study_of(np.random.default_rng(0))
    [now] = contrasts(values, [("llm", "plain")], margin=0.1, items=items)
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(now).items()}
    assert read_as(type(now), lists, "c") == now
    old = {k: v for k, v in lists.items() if k not in ("no_interval", "groups", "no_bootstrap")}
    assert read_as(type(now), old, "c") == now
    tied = read_as(type(now), _without_width(old | {"sd": 0.0, "interval": [0.1, 0.1], "bootstrap": [0.0, 0.0]}), "c")
    assert (tied.interval, tied.bootstrap) == (None, None)


# ---- Coverage of the grouped bootstrap


def covered(studies, seeds, sizes, *, group_sd, item_sd, seed_sd=0.02):
    """Shares of studies, true difference 0, whose interval holds it: groups drawn, and items drawn as if alone."""
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    found = []
    for _ in range(studies // 250):
        shape = (250, seeds, len(groups))
        differences = rng.normal(0, item_sd, shape).astype(np.float32)
        differences += rng.normal(0, group_sd, (250, 1, len(sizes)))[..., groups]
        differences += rng.normal(0, seed_sd, (250, seeds, 1))
        for given_groups in (groups, None):
            low, high = crossed_bootstrap(differences, groups=given_groups, draws=300).T
            found.append((low <= 0) & (high >= 0))
    return np.mean(found[::2]), np.mean(found[1::2])


@pytest.mark.parametrize(("seeds", "number"), [(5, 30), (7, 67)])
def test_groups_cover_and_items_alone_do_not(seeds, number):
    sizes = np.round(np.exp(np.linspace(-1.5, 1.5, number)) * 7).astype(int)
    by_groups, by_items = covered(2000, seeds, sizes, group_sd=0.25, item_sd=0.7)
    assert 0.93 <= by_groups <= 0.985
    assert by_items < 0.8


def test_coverage_is_looked_up_by_seeds_and_groups():
    assert sorted(COVERED_BY_GROUPS) == [10, 30, 67, 300]
    assert all(set(row) >= {2, 3, 5, 10, 20} for row in COVERED_BY_GROUPS.values())
    assert bootstrap_coverage(6, 12) == COVERED_BY_GROUPS[10][5]
    assert bootstrap_coverage(5, 66) == COVERED_BY_GROUPS[30][5]
    assert bootstrap_coverage(50, 10**6) == COVERED_BY_GROUPS[300][20]
    assert bootstrap_coverage(1, 30) is None
    assert bootstrap_coverage(5, 9) is None
    share = f"{100 * COVERED_BY_GROUPS[10][5]:.1f} %"
    assert f"covered {share} at worst in simulation with 5 seeds and 10 groups" in coverage_words(6, num_groups=29)
    assert "not measured" in coverage_words(5, num_groups=9)


# ---- Metrics as columns of items

NUMBERS = st.floats(-100, 100)


def columns_of(elements, others, least=1):
    return st.integers(least, 40).flatmap(
        lambda n: st.tuples(*(hnp.arrays(float, n, elements=e) for e in (elements, others)))
    )


@given(columns_of(st.sampled_from([0.0, 1.0]) | st.floats(0, 1), st.sampled_from([0, 3, 4, 17])))
def test_mean_class_accuracy_is_the_mean_over_classes(columns):
    hit, label = columns
    expected = np.mean([hit[label == c].mean() for c in set(label)])
    assert mean_class_accuracy(hit, label).mean() == pytest.approx(expected, abs=1e-12)


@given(columns_of(NUMBERS, st.floats(0, 100)))
def test_ratio_is_the_ratio_of_sums(columns):
    above, below = columns
    assume(below.sum() > 1)
    expected = above.sum() / below.sum()
    assert ratio(above, below).mean() == pytest.approx(expected, rel=1e-12, abs=1e-12 * max(1, np.abs(above).sum()))


@given(columns_of(NUMBERS, NUMBERS, least=2))
def test_correlation_is_pearsons(columns):
    u, v = columns
    assume(u.std() > 1e-3)
    assume(v.std() > 1e-3)
    column = correlation(u, v)
    assert column.mean() == pytest.approx(np.corrcoef(u, v)[0, 1], abs=1e-12)


def accuracy_by_class(hit, label):
    return np.mean([hit[label == c].mean() for c in np.unique(label)])


def influence_cases():
    rng = np.random.default_rng(0)
    sizes = (30, 60, 120, 500)
    label = np.repeat(np.arange(4), sizes)
    hit = (rng.random(len(label)) < np.array([0.5, 0.7, 0.8, 0.95])[label]).astype(float)
    union = rng.integers(1, 200, 400).astype(float)
    u = rng.normal(size=400)
    return {
        "mean class accuracy": (mean_class_accuracy, accuracy_by_class, hit, label),
        "ratio": (ratio, lambda i, n: i.sum() / n.sum(), union * rng.beta(4, 2, 400), union),
        "correlation": (correlation, lambda a, b: np.corrcoef(a, b)[0, 1], u, 0.6 * u + rng.normal(size=400)),
    }


@pytest.mark.parametrize("name", ["mean class accuracy", "ratio", "correlation"])
def test_the_spread_of_influences_is_that_of_the_metric(name):
    """Against the metric computed anew on items drawn with replacement."""
    column_of, metric, a, b = influence_cases()[name]
    column = column_of(a, b)
    rng = np.random.default_rng(1)
    again = [metric(a[i], b[i]) for i in rng.integers(0, len(a), (2000, len(a)))]
    assert column.std() / math.sqrt(len(a)) == pytest.approx(np.std(again), rel=0.08)


def test_plain_weights_would_count_class_sizes():
    """Why accuracies of classes are centred: with 16 classes of 6 to 600 items the interval is far too wide else."""
    rng = np.random.default_rng(0)
    sizes = np.round(np.geomspace(6, 600, 16)).astype(int)
    label = np.repeat(np.arange(16), sizes)
    hit = (rng.random(len(label)) < 0.9).astype(float)
    plain = hit * len(label) / (16 * sizes[label])
    column = mean_class_accuracy(hit, label)
    assert plain.mean() == pytest.approx(column.mean())
    assert plain.std() > 2 * column.std()


def test_columns_that_make_no_metric_are_refused():
    one, two = np.ones(3), np.array([1.0, 2.0, 4.0])
    for make, match in (
        (lambda: correlation(one * 0.1, two), "column u is constant"),
        (lambda: correlation(two, one), "column v is constant"),
        (lambda: ratio(two, 0 * one), "all zero"),
        (lambda: ratio(two, np.array([1.0, -1.0, 3.0])), "negative"),
        (lambda: mean_class_accuracy([], []), "do not fit"),
        (lambda: mean_class_accuracy([1, 0], [1, 0, 1]), r"hit \(2,\), label \(3,\)"),
        (lambda: ratio([1, math.nan], [1, 1]), "numerator .* not finite"),
    ):
        with pytest.raises(LmgraftError, match=match):
            make()


def metric_of(items, **measured):
    columns = {"index": np.arange(len(items)), "group": np.arange(len(items)), "accuracy": np.asarray(items)}
    return values_of(columns, {"accuracy": METRICS.find("accuracy")}, measured, {}, "Task")["accuracy"]


def test_a_column_is_held_against_its_metric():
    column = np.array([True, False, True, True])
    assert metric_of(column, accuracy=0.75) == 0.75
    third = np.float32(0.7) / np.float32(3)
    assert metric_of(np.float32([0.1, 0.2, 0.4]), accuracy=float(third)) == pytest.approx(third)
    many = np.arange(50_000) < 40_000
    for bad, value, match in (
        (column, 0.5, r"the mean of column 'accuracy' is 0\.75, and measure\(\) says that accuracy is 0\.5"),
        (many, 40_001 / 50_000, "says that accuracy is 0.80002"),
        (np.array([0.1, math.nan]), 0.1, "'accuracy' is nan for item 1"),
        (np.ones((2, 2)), 1.0, "'accuracy' has shape"),
        (np.array([3.0, 4.0]), 3.5, "accuracy is 3.5, which it cannot be"),
    ):
        with pytest.raises(LmgraftError, match=match):
            metric_of(bad, accuracy=value)


# ---- Intervals over the items of one arm


def test_a_share_of_lone_items_has_wilsons_interval():
    hits = np.arange(50) < 40
    for groups in (None, np.arange(50)[::-1]):
        found = items_interval(hits, groups)
        assert (found.ends, found.method, found.groups) == (wilson_interval(40, 50), "wilson", None)
    assert items_interval(np.ones(50)).ends == wilson_interval(50, 50)


def test_other_columns_have_students():
    values = np.random.default_rng(0).normal(0.3, 1, 60)
    found = items_interval(values, confidence=0.9)
    assert found.ends == pytest.approx(stats.t.interval(0.9, 59, values.mean(), stats.sem(values)))
    assert (found.method, found.groups) == ("t", None)
    cut = items_interval(values, possible=(0.2, 0.4)).ends
    assert cut == (0.2, 0.4)


def test_groups_of_one_size_have_students_over_their_means():
    values = np.random.default_rng(0).random((12, 5)) < np.linspace(0.2, 1, 12)[:, None]
    means = values.mean(axis=1)
    found = items_interval(values.ravel(), np.repeat(np.arange(12), 5))
    assert found.ends == pytest.approx(stats.t.interval(0.95, 11, means.mean(), stats.sem(means)))
    assert (found.method, found.groups) == ("t", 12)


def test_differences_of_zero_and_one_are_no_shares():
    lost = np.zeros(200)
    lost[:3] = 1
    alone = items_interval(lost, differences=True)
    assert alone.method == "t"
    assert alone.ends == pytest.approx(mean_interval(lost.tolist()))
    assert alone.ends[0] < 0 < items_interval(lost).ends[0]
    nothing = items_interval(np.zeros(200), differences=True)
    assert (nothing.ends, nothing.missing) == (None, "no spread")


def test_an_interval_without_width_is_none_and_says_why():
    for values, groups, reason in (
        (np.full(9, 0.3), None, "no spread"),
        (np.ones(9), np.arange(9) // 3, "no spread"),
        (np.array([0.3]), None, "one value"),
        (np.linspace(0, 1, 9), np.zeros(9, int), "one group"),
    ):
        found = items_interval(values, groups)
        assert (found.ends, found.missing) == (None, reason)
    with pytest.raises(ValueError, match="no column"):
        items_interval(np.ones((0,)))


@pytest.mark.parametrize("shares", [False, True])
def test_intervals_over_items_cover(shares):
    """Of 40 groups of 2 to 30 items."""
    rng = np.random.default_rng(6)
    groups = np.repeat(np.arange(40), rng.integers(2, 31, 40))
    hits, alone = [], []
    for _ in range(300):
        values = rng.normal(0, 0.5, 40)[groups] + rng.normal(0, 1, len(groups))
        values = values > 0 if shares else values
        for kept, given_groups in ((hits, groups), (alone, None)):
            low, high = items_interval(values, given_groups).ends
            kept.append(low <= 0.5 * shares <= high)
    assert 0.91 < np.mean(hits) < 0.985
    assert np.mean(alone) < 0.85
