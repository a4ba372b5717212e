"""The verdict finds what the numbers show and no more."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmgraft.analysis.paired import contrasts
from lmgraft.analysis.verdict import CAUTIONS, CONTROLS, ENOUGH_SEEDS, explains, verdict
from lmgraft.recipes import ARMS
from lmgraft.registry import METRICS
from lmgraft.words.arms import WORDS
from lmgraft.words.verdict import Setting, verdict_sentences

ACCURACY, NLL = METRICS.find("accuracy"), METRICS.find("nll")
NOISE = np.array([0.3, -1.2, 0.9, -0.6, 0.6])  # sums to zero


def values_of(effects, sd, seeds=5):
    """Arm -> seed -> 0.8 + effect, with a spread of about sd, each arm's in another order."""
    noise = NOISE[:seeds] - NOISE[:seeds].mean()
    return {
        arm: {s: 0.8 + effect + sd * float(np.roll(noise, k)[s]) for s in range(seeds)}
        for k, (arm, effect) in enumerate(effects.items())
    }


def find(effects, sd=0.0005, *, metric=ACCURACY, seeds=5, pairs=None, kinds=None, items=None):
    pairs = pairs or [("llm", arm) for arm in effects if arm != "llm"]
    planned = contrasts(
        values_of(effects, sd, seeds),
        pairs,
        margin=metric.margin,
        higher_is_better=metric.higher_is_better,
        items=items,
    )
    return verdict(planned, margin=metric.margin, arms=kinds or {arm: arm for arm in effects})


def kinds_of(findings):
    return [finding.kind for finding in findings]


def explained(findings, control, margin=ACCURACY.margin):
    """Whether the finding against this control says that it explains the gain or loss."""
    [finding] = [f for f in findings if f.contrast is not None and f.contrast.reference == control]
    return explains(finding.contrast, finding.gain, margin)


def test_helps_and_the_language_matters():
    findings = find({"llm": 0.03, "plain": 0.0, "random_frozen": 0.01, "mlp": 0.0})
    assert kinds_of(findings) == ["helps", "better", "better"]
    assert findings[0].contrast.mean == pytest.approx(0.03)
    assert len(findings[0].contrast.seeds) == 5
    assert [f.contrast.reference for f in findings] == ["plain", "random_frozen", "mlp"]
    assert all(f.gain == findings[0].contrast for f in findings[1:])


def test_helps_but_any_frozen_block_does():
    assert kinds_of(find({"llm": 0.03, "plain": 0.0, "random_frozen": 0.03})) == ["helps", "explained"]


@pytest.mark.parametrize("control", ["random_frozen", "mlp"])
@pytest.mark.parametrize(("of_control", "outcome"), [(0.0285, "better"), (0.0315, "worse")])
def test_different_by_less_than_the_margin_counts_as_equal(control, of_control, outcome):
    findings = find({"llm": 0.03, "plain": 0.0, control: of_control}, sd=0.0003)
    assert kinds_of(findings) == ["helps", "equal"]
    assert findings[1].contrast.outcome == outcome
    assert explained(findings, control)


def test_equal_within_the_margin_explains_no_gain_that_is_not_shown_to_exceed_it():
    findings = find({"llm": 0.003, "plain": 0.0, "random_frozen": 0.0015}, sd=0.0003)
    assert kinds_of(findings) == ["helps", "equal"]
    assert findings[0].contrast.equivalent
    assert not explained(findings, "random_frozen")


@pytest.mark.parametrize("sign", [1, -1])
def test_explained_needs_the_whole_interval_of_the_gain_beyond_the_margin(sign):
    """The gain's estimate exceeds the margin of half a point, its interval does not."""
    noise = np.array([0.001, -0.0015, 0.002, -0.0005, -0.001])
    values = {"plain": dict.fromkeys(range(5), 0.8)}
    values["llm"] = {s: 0.8 + sign * (0.006 + float(noise[s])) for s in range(5)}
    values["random_frozen"] = {s: value + 1e-4 * (s - 2) for s, value in values["llm"].items()}
    planned = contrasts(values, [("llm", "plain"), ("llm", "random_frozen")], margin=0.005)
    gain, control = planned
    assert gain.outcome != "not shown"
    assert min(map(abs, gain.interval)) < 0.005 < abs(gain.mean)
    assert control.equivalent
    findings = verdict(planned, margin=0.005, arms={a: a for a in values})
    assert kinds_of(findings) == ["helps" if sign == 1 else "hurts", "equivalent"]
    assert not explained(findings, "random_frozen", 0.005)


def test_hurts_comes_first():
    findings = find({"llm": -0.03, "plain": 0.0, "random_frozen": -0.05, "mlp": -0.03, "linear": 0.0})
    assert kinds_of(findings) == ["hurts", "better", "explained", "worse"]
    assert findings[1].gain.outcome == "worse"  # so that it does not follow that the block helps


def test_not_shown_has_what_could_have_been():
    findings = find({"llm": 0.004, "plain": 0.0, "random_frozen": 0.0}, sd=0.02)
    assert kinds_of(findings) == ["not shown", "not shown"]
    assert 0 < findings[0].contrast.detectable < 1


def test_equal_to_plain_leaves_nothing_to_explain():
    findings = find({"llm": 0.0, "plain": 0.0, "random_frozen": 0.0})
    assert kinds_of(findings) == ["equivalent", "equivalent"]
    assert not explained(findings, "random_frozen")


def test_an_equivalence_is_one_also_where_the_gain_is_not_shown_to_exceed_the_margin():
    """Its sentence, "equivalent within ... not shown to exceed ...", was once taken for a plain statement."""
    findings = find({"llm": 0.003, "plain": 0.0, "random_frozen": 0.003}, sd=0.0003)
    assert kinds_of(findings) == ["helps", "equivalent"]
    assert findings[0].contrast.equivalent


def test_lower_is_better():
    findings = find({"llm": -0.05, "plain": 0.0, "random_frozen": -0.02}, metric=NLL)
    assert kinds_of(findings) == ["helps", "better"]
    assert findings[0].contrast.mean < 0
    assert kinds_of(find({"llm": 0.05, "plain": 0.0}, metric=NLL)) == ["hurts"]


@pytest.mark.parametrize("sd", [0.0005, 0.02])
def test_the_order_in_which_a_pair_was_planned_does_not_matter(sd):
    effects = {"llm": 0.03, "plain": 0.0, "random_frozen": 0.01, "mlp": 0.03}
    pairs = [("llm", arm) for arm in ("plain", "random_frozen", "mlp")]
    assert find(effects, sd, pairs=pairs) == find(effects, sd, pairs=[(b, a) for a, b in pairs])


def test_several_blocks_are_counted():
    kinds = {"layer_0": "llm", "layer_4": "llm", "layer_8": "llm", "none": "plain", "noise": "random_frozen"}
    effects = {"layer_0": 0.02, "layer_4": -0.02, "layer_8": 0.0, "none": 0.0, "noise": 0.02}
    pairs = [(layer, "none") for layer in ("layer_0", "layer_4", "layer_8")]
    findings = find(effects, pairs=[("layer_0", "noise"), *pairs, ("layer_8", "layer_0")], kinds=kinds)
    assert kinds_of(findings) == ["helps", "hurts", "equivalent", "tally", "explained", "worse"]
    assert [f.contrast.arm for f in findings[:3]] == ["layer_0", "layer_4", "layer_8"]
    assert findings[3].counts == {"blocks": 3, "better": 1, "worse": 1, "not shown": 1}


def test_few_seeds_are_a_caution():
    findings = find({"llm": 0.03, "plain": 0.0}, seeds=3)
    assert kinds_of(findings) == ["helps", "few seeds"]
    assert len(findings[-1].contrast.seeds) == 3
    assert kinds_of(find({"llm": 0.03, "plain": 0.0})) == ["helps"]


def test_no_spread_is_a_caution():
    assert kinds_of(find({"llm": 0.03, "plain": 0.0}, sd=0.0)) == ["not shown", "no spread"]


def test_a_secondary_interval_that_holds_zero_is_a_caution():
    easy = np.arange(100) / 100
    items = {
        "llm": {s: (easy < 0.82).astype(float) for s in range(5)},
        "plain": {s: (np.roll(easy, 10) < 0.80).astype(float) for s in range(5)},
    }
    findings = find({"llm": 0.02, "plain": 0.0}, items=items)
    assert kinds_of(findings) == ["helps", "other items"]
    low, high = findings[1].contrast.bootstrap
    assert low < 0 < high


def test_one_shown_and_another_not_is_no_difference_between_them():
    effects = {"a": 0.02, "b": 0.0, "plain": 0.0, "noise": 0.0, "mlp": 0.0}
    kinds = {"a": "llm", "b": "llm", "plain": "plain", "noise": "random_frozen", "mlp": "mlp"}

    def unheld(pairs):
        return [f.names for f in find(effects, pairs=pairs, kinds=kinds) if f.kind == "no own contrast"]

    assert unheld([("a", "plain"), ("b", "plain")]) == [("noise", "mlp")]
    assert unheld([("a", "plain"), ("noise", "b")]) == [("mlp",)]
    assert unheld([("a", "plain"), ("b", "noise"), ("a", "mlp")]) == []
    assert kinds_of(find({"mlp": 0.0, "plain": 0.0}, pairs=[("mlp", "plain")])) == ["equivalent"]


def test_nothing_planned():
    assert kinds_of(verdict([], margin=0.005, arms={})) == ["nothing planned"]


def test_every_arm_has_words_and_every_control_a_question():
    assert set(ARMS) <= set(WORDS)
    assert all(bool(w.better) == bool(w.question) == bool(w.explained) for w in WORDS.values())
    assert {kind for kind, words in WORDS.items() if words.question} == CONTROLS


@settings(max_examples=150, deadline=None)
@given(
    effects=st.lists(st.sampled_from([-0.03, -0.004, -0.001, 0.0, 0.001, 0.004, 0.03]), min_size=4, max_size=4),
    sd=st.sampled_from([0.0, 0.0002, 0.001, 0.005, 0.03]),
    seeds=st.integers(2, 5),
    higher=st.booleans(),
)
def test_no_finding_without_its_test(effects, sd, seeds, higher):
    """Claims appear exactly where the contrast carries them."""
    metric = ACCURACY if higher else NLL
    names = ("llm", "plain", "random_frozen", "mlp")
    planned = contrasts(
        values_of(dict(zip(names, effects, strict=True)), sd, seeds),
        [("llm", other) for other in names[1:]],
        margin=metric.margin,
        higher_is_better=higher,
    )
    kinds = {n: n for n in names}
    findings = verdict(planned, margin=metric.margin, arms=kinds)
    first, *controls = [f for f in findings if f.kind not in CAUTIONS]
    gain = planned[0]
    equal = {"better": "equal", "worse": "equal", "not shown": "equivalent"}
    against_plain = {"better": "helps", "worse": "hurts", "not shown": "equivalent" if gain.equivalent else "not shown"}
    assert first.kind == against_plain[gain.outcome]
    low, high = gain.interval or (0.0, 0.0)
    large = gain.outcome != "not shown" and (low > metric.margin or high < -metric.margin)
    for contrast, finding in zip(planned[1:], controls, strict=True):
        expected = equal[contrast.outcome] if contrast.equivalent else contrast.outcome
        assert finding.kind == ("explained" if expected == "equivalent" and large else expected)
        assert explains(contrast, finding.gain, metric.margin) == (contrast.equivalent and large)
    assert ("few seeds" in kinds_of(findings)) == (seeds < ENOUGH_SEEDS)
    sentences = verdict_sentences(findings, Setting(metric=metric, margin=metric.margin, confidence=0.95, arms=kinds))
    assert len(sentences) >= len(findings)
    assert all(s.endswith(".") and "nan" not in s for s in sentences)


def test_every_kind_of_pair_gets_a_sentence():
    for arm, reference in itertools.permutations(WORDS, 2):
        kinds = {arm: arm, reference: reference}
        setting = Setting(metric=ACCURACY, margin=ACCURACY.margin, confidence=0.95, arms=kinds)
        for effect, sd in ((0.03, 0.0005), (-0.03, 0.0005), (0.0, 0.0005), (0.0, 0.05)):
            findings = find({arm: effect, reference: 0.0}, sd, pairs=[(arm, reference)])
            sentence = verdict_sentences(findings, setting)[0]
            assert f"({arm})" in sentence
            assert f"({reference})" in sentence
