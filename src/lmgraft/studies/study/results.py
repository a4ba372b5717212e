"""What a study found, as plain data: everything that its page, tables and JSON show.

Values are in the metric's own unit (accuracy: a share between 0 and 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lmgraft.analysis.paired import Contrast
from lmgraft.analysis.timing import TimeRatio
from lmgraft.analysis.verdict import Finding
from lmgraft.contracts import Metric
from lmgraft.words.verdict import Setting, note_sentences, verdict_sentences


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run of an arm costs; medians over its seeds."""

    trained_params: int
    frozen_params: int
    seconds: float
    """Training, validation included, as measured; runs beside each other disturb it. `time` compares arms."""
    peak_memory: int | None
    """Bytes; None where it was not measured."""
    train_flops: float | None = None
    """Floating-point operations of a training step, for each item; counted, so free of noise."""
    eval_flops: float | None = None
    share: float | None = None
    """Of the machine that training had: CPU seconds / (wall seconds x threads); None where it is not known."""
    threads: int | None = None
    """That torch computed with; None where it is not known, or differs from run to run."""
    device: str | None = None
    """As `threads`."""
    device_seconds: float | None = None
    """Of the training steps on a GPU, by its own events."""
    time: TimeRatio | None = None
    """How its training time compares with the reference arm's, or why it does not."""


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One arm over all seeds."""

    label: str
    """Its name in the study: llm, or for instance layer_12."""
    arm: str
    """Its kind, a row of `recipes.arms.ARMS`."""
    question: str
    overrides: dict[str, Any]
    """What it changes in the study's recipe."""
    values: dict[int, float]
    """Seed -> the metric on the test items."""
    mean: float
    interval: tuple[float, float] | None
    """Student's t over seeds (two at least), of the mean; says nothing about differences between arms. None where all
    seeds gave the same value."""
    cost: Cost
    block: dict[str, Any] | None
    """Provenance of its block: source, layers, control, digest; None without."""
    position: str | int
    """graft.at."""
    learning_rate: float | None
    """None where the training loop is not lmgraft's."""
    val_values: dict[float, dict[int, float]]
    """Learning rate -> seed -> `StudyResult.monitor` on the held-out items, of the seeds that chose the rate; several
    only with a grid."""


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """One contrast within one class or one corruption; exploratory, not corrected for how many there are."""

    kind: str
    """A category of the items (class, question_type), or the conditions of a robustness suite (corruption)."""
    name: str
    arm: str
    reference: str
    mean: float
    interval: tuple[float, float] | None
    """Paired t; None where the differences of all seeds are equal, which says nothing of another seed."""
    metric: Metric | None = None
    """What is compared here; None: the study's metric."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """One point of a learning curve over the seeds."""

    step: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A finished study, or what of it is finished."""

    name: str
    question: str
    recipe: str
    reference: str
    """Label of the arm that costs and gains are held against."""
    metric: Metric
    margin: float
    confidence: float
    seeds: list[int]
    rate_seeds: list[int] = field(default_factory=list)
    """Those that only chose learning rates; empty where the seeds compared did."""
    arms: list[ArmResult]
    contrasts: list[Contrast]
    """Fixed in the study's file before anything ran; Holm's correction is over these."""
    exploratory: list[Contrast]
    """Every other arm against the reference, and a single LLM arm against its controls; not corrected."""
    verdict: list[str] = field(default_factory=list)
    """`findings` in sentences, for readers of the JSON; nothing decides by them."""
    breakdown: list[Breakdown]
    curves: dict[str, dict[str, list[Band]]]
    """Arm -> train/loss and val/NAME, NAME that of `monitor` -> points."""
    test_items: int
    data: dict[str, Any]
    """Fingerprint of the data."""
    environment: dict[str, Any]
    commits: list[str]
    """lmgraft's commits that made the runs."""
    config: str
    """The resolved study file, YAML."""
    recipe_yaml: str
    """The resolved recipe of the first arm."""
    missing: list[str] = field(default_factory=list)
    """Runs that are not there; with any, each contrast speaks of the seeds that both its arms have."""
    notes: list[str] = field(default_factory=list)
    """Confounds and cautions, as the study's file states them, and those of `findings`, in sentences."""
    things: str = "images"
    """What an item is called, in the plural."""
    splits: dict[str, str] = field(default_factory=dict)
    """Split -> what the source calls its items; see `Data.split_names`."""
    remarks: list[str] = field(default_factory=list)
    """What is odd with the data, or is left out of them; see `Data.remarks`."""
    selection: str = "val"
    """What chose the epochs; see `Data.selection`."""
    monitor: Metric | None = None
    """The validation metric that chose epochs and learning rates; None where the training loop is not lmgraft's."""
    findings: list[Finding] = field(default_factory=list)
    """What the verdict and the notes say, as data."""

    @property
    def setting(self) -> Setting:
        """What its sentences share."""
        kinds = {arm.label: arm.arm for arm in self.arms}
        return Setting(metric=self.metric, margin=self.margin, confidence=self.confidence, arms=kinds)


def worded(result: StudyResult) -> StudyResult:
    """The result with its findings in sentences; the last step, once, before it is written or handed out."""
    setting = result.setting
    return replace(
        result,
        verdict=verdict_sentences(result.findings, setting),
        notes=[*result.notes, *note_sentences(result.findings, setting)],
    )
