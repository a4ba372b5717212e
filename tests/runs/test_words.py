"""All wording in one golden text; after a change of words `python tests/runs/test_words.py` writes it anew."""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from test_verdict import ACCURACY, NLL, find

from lmgraft.analysis.agreement import agreement
from lmgraft.analysis.timing import TimeRatio
from lmgraft.analysis.verdict import Caution, Changed, Finding, Note, OfAll, OfContrast, OfTimes
from lmgraft.words import scan
from lmgraft.words.limits import limits, of_margin, of_missing, scope
from lmgraft.words.quickstart import statements
from lmgraft.words.splits import of_splits
from lmgraft.words.verdict import Setting, sentences

GOLDEN = Path(__file__).parent / "golden_words.txt"
ARMS = {"llm": "llm", "plain": "plain", "random_frozen": "random_frozen", "mlp": "mlp", "linear": "linear"}


def situations():
    """Name -> the findings of a study."""
    yield "helps, the language matters", find({"llm": 0.03, "plain": 0.0, "random_frozen": 0.01, "mlp": 0.0})
    yield "explained", find({"llm": 0.03, "plain": 0.0, "random_frozen": 0.03})
    yield "counts as equal", find({"llm": 0.03, "plain": 0.0, "mlp": 0.0285}, sd=0.0003)
    yield "a small gain", find({"llm": 0.003, "plain": 0.0, "random_frozen": 0.003}, sd=0.0003)
    yield "hurts", find({"llm": -0.03, "plain": 0.0, "random_frozen": -0.05, "mlp": -0.03, "linear": 0.0})
    yield "not shown", find({"llm": 0.004, "plain": 0.0, "random_frozen": 0.0}, sd=0.02)
    yield "equivalent", find({"llm": 0.0, "plain": 0.0, "random_frozen": 0.0})
    yield "no contrast with plain", find({"llm": 0.0, "random_frozen": 0.0})
    yield "no spread, few seeds", find({"llm": 0.03, "plain": 0.0}, sd=0.0, seeds=3)
    pairs = [("mlp", "linear"), ("random_frozen", "plain")]
    yield "others", find({"mlp": 0.0, "linear": 0.02, "random_frozen": 0.0, "plain": 0.03}, pairs=pairs)
    yield "others, nothing shown", find({"mlp": 0.0, "linear": 0.0}, 0.05, pairs=[("mlp", "linear")])
    yield "others, equivalent", find({"mlp": 0.0, "linear": 0.0}, pairs=[("mlp", "linear")])
    [shown] = find({"llm": 0.03, "plain": 0.0})
    grouped = replace(shown.contrast, bootstrap=(-0.01, 0.07), groups=12)
    missing = replace(shown.contrast, interval=None, no_interval="one value")
    yield (
        "groups, other items",
        [Finding(kind=kind, contrast=grouped) for kind in ("helps", "other items", "few groups")],
    )
    yield "no interval", [Finding(kind=kind, contrast=missing) for kind in ("helps", "no interval")]
    names, counts = ("a", "b"), {"blocks": 2, "better": 1, "worse": 0, "not shown": 1}
    yield "of all", [Finding(kind="tally", counts=counts), Finding(kind="nothing planned")]
    yield "cautions", [Finding(kind=kind, names=names) for kind in ("no own contrast", "failed runs")]
    yield (
        "changes",
        [
            Finding(kind="setting changed", key="margin", before=0.005, now=0.01),
            Finding(kind="seeds changed", key="seeds", before=2, now=5),
            *(Finding(kind=kind, names=names) for kind in ("arms added", "arms left out", "runs of others")),
            Finding(kind="stated change", key="As an older version wrote it."),
        ],
    )
    left_out = {"seeds": 3, "left_out": 2, "all": 75}
    yield (
        "notes",
        [
            Finding(kind=kind, names=names, counts=left_out, key="corruption", pair=("llm", "plain"))
            for kind in get_args(Note)
        ],
    )

    yield "times", [Finding(kind=kind, names=names, key="plain") for kind in get_args(OfTimes)]


def scan_findings():
    """One of each kind of a scan's."""
    score = replace(ACCURACY, title="probe, block minus encoder", unit="points")
    gains = {f"c{i}": 0.001 * i for i in range(5)}
    of = {
        "too few": agreement({"c1": 1.0}, gains),
        "ranked alike": agreement(gains, gains),
        "ranked otherwise": agreement({name: -gain for name, gain in gains.items()}, gains),
        "no agreement": agreement({"c0": 3, "c1": 1, "c2": 4, "c3": 0, "c4": 2}, gains),
    }
    for kind in get_args(scan.Kind):
        finding = scan.ScanFinding(kind=kind, names=("one", "two", "three"), count=4, score=score)
        if kind in of:
            finding = replace(finding, agreement=of[kind], source="short training", metric=NLL)
        elif kind in ("only one", "none apart", "apart from all", "some tied"):
            finding = replace(finding, value=0.0123, signed=True)
        yield finding


def text():
    setting = Setting(metric=ACCURACY, margin=ACCURACY.margin, confidence=0.95, arms=ARMS)
    lines = []
    for name, findings in situations():
        lines += ["", f"# {name}"]
        for finding in findings:
            lines += [f"[{finding.kind}]", *(f"  {sentence}" for sentence in sentences(finding, setting))]
        planned = list({id(f.contrast): f.contrast for f in findings if f.contrast is not None}.values())
        lines += ["[limits]", *(f"  {sentence}" for sentence in limits(planned, setting))] if planned else []
    lower = replace(setting, metric=NLL, margin=NLL.margin)
    lines += ["", "# lower is better"]
    for sd in (0.0005, 0.5):
        findings = find({"llm": -0.05, "plain": 0.0}, sd, metric=NLL)
        lines += [f"[{f.kind}]" + "".join(f"\n  {sentence}" for sentence in sentences(f, lower)) for f in findings]
    many = [f.contrast for f in find({"llm": 0.0, **{f"c{i}": 0.0 for i in range(5)}}, 0.05)]
    lines += [
        "",
        "# limits",
        *limits(many, setting),
        scope([0, 1], 10_000, "images"),
        of_margin(setting),
        of_missing(2),
    ]
    lines += ["", "# scan"]
    lines += [f"[{finding.kind}]\n  {scan.sentence(finding)}" for finding in scan_findings()]
    values, cost = {"llm": 0.81, "plain": 0.8, "random_frozen": 0.82}, (TimeRatio(basis="runs", ratio=1.5), 1.4)
    lines += ["", "# quickstart", *statements(values, cost, ACCURACY, 10_000, "images")]
    return "\n".join(lines).lstrip("\n") + "\n"


def test_the_words_are_those_of_the_golden_text():
    golden = GOLDEN.read_text(encoding="utf-8")
    assert text() == golden, "\n".join(difflib.unified_diff(golden.splitlines(), text().splitlines(), lineterm=""))


@pytest.mark.parametrize("kind", [kind for of in (OfContrast, OfAll, Caution, Changed, Note) for kind in get_args(of)])
def test_every_kind_is_in_the_golden_text(kind):
    assert f"\n[{kind}]\n" in "\n" + GOLDEN.read_text(encoding="utf-8")


def test_which_items_were_tested_and_which_chose_the_epoch():
    assert of_splits("images", "val", {}) == ""  # as everywhere
    named = {"train": "train", "val": "held out of train", "test": "Karpathy's val"}
    assert of_splits("captions", "val", named) == (
        "Trained on the captions of train, tested on those of Karpathy's val; validation captions (held out of train) "
        "chose the epoch."
    )
    assert of_splits("scenes", "test", {}) == (
        "The test scenes themselves chose the epoch, so that the figures are too good by an unknown amount."
    )
    assert of_splits("clips", "last", {"test": "2019"}) == (
        "Tested on the clips of 2019; nothing chose the epoch: the last one counts."
    )


if __name__ == "__main__":
    GOLDEN.write_text(text(), encoding="utf-8")
