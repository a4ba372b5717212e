"""The verdict claims what the numbers show and no more."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmgraft.analysis.metrics import METRICS
from lmgraft.analysis.paired import contrasts
from lmgraft.analysis.verdict import verdict
from lmgraft.analysis.verdict_words import WORDS
from lmgraft.recipes import ARMS

ACCURACY, NLL = METRICS["accuracy"], METRICS["nll"]
NOISE = np.array([0.3, -1.2, 0.9, -0.6, 0.6])  # sums to zero


def values_of(effects, sd, seeds=5):
    """Arm -> seed -> 0.8 + effect, with a spread of about sd, each arm's in another order."""
    noise = NOISE[:seeds] - NOISE[:seeds].mean()
    return {
        arm: {s: 0.8 + effect + sd * float(np.roll(noise, k)[s]) for s in range(seeds)}
        for k, (arm, effect) in enumerate(effects.items())
    }


def speak(effects, sd=0.0005, *, metric=ACCURACY, seeds=5, pairs=None, kinds=None, items=None):
    pairs = pairs or [("llm", arm) for arm in effects if arm != "llm"]
    found = contrasts(
        values_of(effects, sd, seeds),
        pairs,
        margin=metric.margin,
        higher_is_better=metric.higher_is_better,
        items=items,
    )
    kinds = kinds or {arm: arm for arm in effects}
    return verdict(found, metric, margin=metric.margin, confidence=0.95, arms=kinds)


def test_helps_and_the_language_matters():
    said = speak({"llm": 0.03, "plain": 0.0, "random_frozen": 0.01, "mlp": 0.0})
    assert said[0].startswith("Helps: with the frozen LLM block (llm), test accuracy is 3.00 points higher")
    assert re.search(
        r"llm - plain: \+3\.00 points, 95 % interval \+2\.\d\d to \+3\.\d\d, p < 0\.001 after Holm", said[0]
    )
    assert "5 paired seeds" in said[0]
    assert said[1].startswith("The language matters: ")
    assert said[2].startswith("The block does more than the extra trained layers: ")
    assert len(said) == 3


def test_helps_but_any_frozen_block_does():
    said = speak({"llm": 0.03, "plain": 0.0, "random_frozen": 0.03})
    assert said[0].startswith("Helps: ")
    assert "the gain is explained by a frozen random block, within the margin." in said[1]
    assert "equivalent within the margin of 0.50 points" in said[1]
    assert "matters" not in " ".join(said)


@pytest.mark.parametrize(("control", "by"), [("random_frozen", "a frozen random block"), ("mlp", "the extra trained")])
@pytest.mark.parametrize(("of_control", "outcome"), [(0.0285, "better"), (0.0315, "worse")])
def test_different_by_less_than_the_margin_counts_as_equal_in_one_sentence(control, by, of_control, outcome):
    said = speak({"llm": 0.03, "plain": 0.0, control: of_control}, sd=0.0003)
    assert len(said) == 2
    assert said[1].startswith(
        "A difference was shown, and it is within the margin of 0.50 points, so it counts as equal here: "
        f"the frozen LLM block (llm) is {outcome} than "
    )
    assert f"The gain is explained by {by}" in said[1]
    assert not re.search(r"matters|does more|Worse than its control", said[1])


def test_equal_within_the_margin_explains_no_gain_that_is_not_shown_to_exceed_it():
    said = speak({"llm": 0.003, "plain": 0.0, "random_frozen": 0.0015}, sd=0.0003)
    assert said[0].startswith("Helps: ")
    assert said[1] == "The difference is shown, and within the margin of 0.50 points, so it counts as equal here."
    assert said[2].startswith("A difference was shown, and it is within the margin")
    assert "explain" not in " ".join(said)


@pytest.mark.parametrize("sign", [1, -1])
def test_explained_needs_the_whole_interval_of_the_gain_beyond_the_margin(sign):
    """The gain's estimate exceeds the margin of half a point, its interval does not."""
    noise = np.array([0.001, -0.0015, 0.002, -0.0005, -0.001])
    values = {"plain": dict.fromkeys(range(5), 0.8)}
    values["llm"] = {s: 0.8 + sign * (0.006 + float(noise[s])) for s in range(5)}
    values["random_frozen"] = {s: value + 1e-4 * (s - 2) for s, value in values["llm"].items()}
    found = contrasts(values, [("llm", "plain"), ("llm", "random_frozen")], margin=0.005)
    gain, control = found
    assert gain.outcome != "not shown"
    assert min(map(abs, gain.interval)) < 0.005 < abs(gain.mean)
    assert control.equivalent
    said = " ".join(verdict(found, ACCURACY, margin=0.005, confidence=0.95, arms={a: a for a in values}))
    assert "is explained by" not in said
    assert "itself is not shown to exceed the margin, so this does not tell what explains it" in said


def test_hurts_comes_first():
    said = speak({"llm": -0.03, "plain": 0.0, "random_frozen": -0.05, "mlp": -0.03, "linear": 0.0})
    assert said[0].startswith("Hurts: ")
    assert "3.00 points lower" in said[0]
    assert said[1].startswith("The language matters: ")
    assert said[1].endswith("It does not follow that the block helps.")
    assert "the loss is explained by the extra trained layers" in said[2]
    assert said[3].startswith("Worse than its control: ")


def test_not_shown_says_what_could_have_been():
    said = speak({"llm": 0.004, "plain": 0.0, "random_frozen": 0.0}, sd=0.02)
    assert said[0].startswith("Not shown: that the frozen LLM block (llm) helps or hurts")
    assert re.search(r"A true difference of \d+\.\d\d points would have been shown with 80 %", said[1])
    assert "was not shown either" in said[1]
    assert said[2].startswith("Neither shown: whether the language matters")
    assert not re.search(r"no effect|explained|The language matters", " ".join(said))


def test_equal_to_plain_leaves_nothing_to_explain():
    said = speak({"llm": 0.0, "plain": 0.0, "random_frozen": 0.0})
    assert said[0].startswith("Not shown: ")
    assert said[1] == "The two are equivalent within the margin of 0.50 points."
    assert "no gain over the encoder alone (plain) was shown that this could explain" in said[2]


def test_a_gain_within_the_margin_is_not_explained():
    said = speak({"llm": 0.003, "plain": 0.0, "random_frozen": 0.003}, sd=0.0003)
    assert said[0].startswith("Helps: ")
    assert "counts as equal here" in said[1]
    assert "the gain itself is not shown to exceed the margin" in said[2]


def test_lower_is_better():
    said = speak({"llm": -0.05, "plain": 0.0, "random_frozen": -0.02}, metric=NLL)
    assert said[0].startswith(
        "Helps: with the frozen LLM block (llm), test cross-entropy (lower is better) is 0.0500 nats"
    )
    assert said[1].startswith("The language matters: ")
    assert speak({"llm": 0.05, "plain": 0.0}, metric=NLL)[0].startswith("Hurts: ")


@pytest.mark.parametrize("sd", [0.0005, 0.02])
def test_the_order_in_which_a_pair_was_planned_does_not_matter(sd):
    effects = {"llm": 0.03, "plain": 0.0, "random_frozen": 0.01, "mlp": 0.03}
    pairs = [("llm", arm) for arm in ("plain", "random_frozen", "mlp")]
    assert speak(effects, sd, pairs=pairs) == speak(effects, sd, pairs=[(b, a) for a, b in pairs])


def test_several_blocks_are_counted():
    kinds = {"layer_0": "llm", "layer_4": "llm", "layer_8": "llm", "none": "plain", "noise": "random_frozen"}
    effects = {"layer_0": 0.02, "layer_4": -0.02, "layer_8": 0.0, "none": 0.0, "noise": 0.02}
    pairs = [(layer, "none") for layer in ("layer_0", "layer_4", "layer_8")]
    said = speak(effects, pairs=[("layer_0", "noise"), *pairs, ("layer_8", "layer_0")], kinds=kinds)
    assert [s.split(":")[0] for s in said[:3]] == ["Helps", "Hurts", "Not shown"]
    assert "(layer_4)" in said[1]
    assert "Of 3 frozen LLM blocks against the encoder alone: help: 1, hurt: 1, not shown: 1." in said
    text = " ".join(said)
    assert "the gain is explained by a frozen random block" in text
    assert "Worse: the frozen LLM block (layer_8) is worse than the frozen LLM block (layer_0)" in text


def test_few_seeds_are_said():
    said = speak({"llm": 0.03, "plain": 0.0}, seeds=3)
    assert said[-1] == "3 paired seeds (llm - plain) are fewer than 5: this is a first look, not a verdict."
    assert "first look" not in " ".join(speak({"llm": 0.03, "plain": 0.0}))


def test_no_spread_is_said():
    said = " ".join(speak({"llm": 0.03, "plain": 0.0}, sd=0.0))
    assert "the spread cannot be judged" in said
    assert "Not shown: that the frozen LLM block (llm) helps or hurts" in said
    assert "+3.00 points, no interval" in said
    assert "0.00 points would" not in said


def test_a_secondary_interval_that_holds_zero_is_said():
    easy = np.arange(100) / 100
    items = {
        "llm": {s: (easy < 0.82).astype(float) for s in range(5)},
        "plain": {s: (np.roll(easy, 10) < 0.80).astype(float) for s in range(5)},
    }
    said = speak({"llm": 0.02, "plain": 0.0}, items=items)
    assert said[0].startswith("Helps: ")
    assert re.search(
        r"holds zero \(-\d+\.\d\d to \+\d+\.\d\d points; nominal 95 %, covered \d\d\.\d % at worst", said[-1]
    )


def test_one_shown_and_another_not_is_no_difference_between_them():
    effects = {"a": 0.02, "b": 0.0, "plain": 0.0, "noise": 0.0, "mlp": 0.0}
    kinds = {"a": "llm", "b": "llm", "plain": "plain", "noise": "random_frozen", "mlp": "mlp"}
    said = " ".join(speak(effects, pairs=[("a", "plain"), ("b", "plain")], kinds=kinds))
    assert "No planned contrast holds noise, mlp against a frozen LLM block: " in said
    assert "that the one is shown to help and the other is not is no evidence of a difference between them." in said
    said = " ".join(speak(effects, pairs=[("a", "plain"), ("noise", "b")], kinds=kinds))
    assert "No planned contrast holds mlp against" in said
    said = speak(effects, pairs=[("a", "plain"), ("b", "noise"), ("a", "mlp")], kinds=kinds)
    assert "No planned contrast" not in " ".join(said)
    assert "No planned contrast" not in " ".join(speak({"mlp": 0.0, "plain": 0.0}, pairs=[("mlp", "plain")]))


def test_nothing_planned():
    assert verdict([], ACCURACY, margin=0.005, confidence=0.95, arms={}) == [
        "Nothing is concluded: no contrast was planned."
    ]


def test_every_arm_has_words():
    assert set(ARMS) <= set(WORDS)
    assert all(bool(w.better) == bool(w.question) == bool(w.explained) for w in WORDS.values())


@settings(max_examples=150, deadline=None)
@given(
    effects=st.lists(st.sampled_from([-0.03, -0.004, -0.001, 0.0, 0.001, 0.004, 0.03]), min_size=4, max_size=4),
    sd=st.sampled_from([0.0, 0.0002, 0.001, 0.005, 0.03]),
    seeds=st.integers(2, 5),
    higher=st.booleans(),
)
def test_no_word_without_its_test(effects, sd, seeds, higher):
    """Claims appear exactly where the contrast carries them."""
    metric = ACCURACY if higher else NLL
    names = ("llm", "plain", "random_frozen", "mlp")
    found = contrasts(
        values_of(dict(zip(names, effects, strict=True)), sd, seeds),
        [("llm", other) for other in names[1:]],
        margin=metric.margin,
        higher_is_better=higher,
    )
    said = verdict(found, metric, margin=metric.margin, confidence=0.95, arms={n: n for n in names})
    text = " ".join(said)
    plain, random, mlp = found
    word = {"better": "Helps: ", "worse": "Hurts: ", "not shown": "Not shown: "}
    assert said[0].startswith(word[plain.outcome])
    for contrast, words in ((random, "The language matters"), (mlp, "The block does more than the extra trained")):
        assert (words in text) == (contrast.outcome == "better" and not contrast.equivalent)
    low, high = plain.interval or (0.0, 0.0)
    large = plain.outcome != "not shown" and (low > metric.margin or high < -metric.margin)
    for contrast, by in ((random, "a frozen random block"), (mlp, "the extra trained layers")):
        assert (f"is explained by {by}" in text) == (contrast.equivalent and large)
    small = sum(c.outcome != "not shown" and c.equivalent for c in (random, mlp))
    assert text.count("A difference was shown, and it is within the margin") == small
    assert text.count("Neither shown") == sum(c.outcome == "not shown" and not c.equivalent for c in (random, mlp))
    assert ("first look" in text) == (seeds < 5)
    assert "nan" not in text
    assert "no effect" not in text
    assert all(s.endswith(".") for s in said)


def test_every_kind_of_pair_gets_a_sentence():
    for arm, reference in itertools.permutations(WORDS, 2):
        for effect, sd in ((0.03, 0.0005), (-0.03, 0.0005), (0.0, 0.0005), (0.0, 0.05)):
            said = speak({arm: effect, reference: 0.0}, sd, pairs=[(arm, reference)])
            assert f"({arm})" in said[0]
            assert f"({reference})" in said[0]
