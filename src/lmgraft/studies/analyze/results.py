"""What an analysis found, as data: `analysis.json` and, by item, items/LABEL.npz."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmgraft import records
from lmgraft.analysis.comparison import Comparison, Interval
from lmgraft.contracts import Metric
from lmgraft.errors import RunError

FILE = "analysis.json"

Measure = Literal["magnitude", "frequency", "attention"]
Score = Literal["best_iou", "iou", "average_precision", "pointing", "share"]
Where = Literal["input", "keys"]
Rule = Literal["amplified", "random", "magnitude", "attention", "random block"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A run that was looked at."""

    label: str
    arm: str
    seed: int
    folder: str
    metric: float | None
    """The task's first metric on the items that were looked at; None where their classes are not the run's."""
    metric_interval: Interval | None
    items: int
    tokens: int
    """Of an item, without prefix tokens."""
    block: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Reached:
    """The task's first metric of an arm, on the items that were looked at."""

    arm: str
    seeds: int
    items: int
    tokens: int
    block: dict[str, Any] | None
    metric: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Found:
    """How well a map finds the object."""

    label: str
    """Of the run, or the arm; "LABEL untrained" of models before training, or "centre", the floor."""
    stage: str
    measure: str
    score: str
    """One of `Score`."""
    mean: float
    interval: Interval | None
    items: int
    """Those of which it can be said."""
    seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One number of a stage, the mean over items."""

    label: str
    stage: str
    name: str
    mean: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Coherence:
    """How far the gradients of a run's items agree."""

    label: str
    part: str
    """"whole" of all that is trained, "mappers" of the graft, "encoder" of the rest."""
    value: float
    interval: Interval | None
    items: int


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What was computed of each item, of the run that took most."""

    what: str
    """One of `words.analyze.EFFORTS`."""
    items: int
    forward: int
    """Passes of an item; one of the graft in its dense form counts as one."""
    backward: int = 0


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Linear CKA between the stages of a run."""

    label: str
    stages: list[str]
    cka: list[list[float]]
    items: int


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What a model loses by masked tokens: its metric as it is, minus its metric with them masked."""

    label: str
    arm: str
    where: str
    """One of `Where`."""
    rule: str
    """One of `Rule`."""
    share: float
    mean: float
    interval: Interval | None
    items: int
    seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An item of the gallery."""

    rule: Literal["best", "median", "worst", "random"]
    index: int
    place: str
    """Where it lies, as the data set says."""
    score: float | None
    """By which it was chosen."""
    file: str
    """Of the picture, beside the page."""
    alt: str
    right: str = ""
    """What is right of it, in the words of its task; empty where that is not known."""
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Run -> what its task says of the item."""
    has_pictures: bool = False
    """Whether what each run found for the item is shown beside the maps."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that the page shows."""

    metric: Metric
    things: str
    limit: int
    causal: int
    has_truth: bool
    shown: dict[str, Any] | None = None
    """What was looked at in place of the runs' test items: "name", "where", "items", "labelled"."""
    subjects: list[Subject]
    reached: list[Reached] = field(default_factory=list)
    """Arm by arm; none where the items' classes are not the runs'."""
    found: list[Found]
    """Run by run."""
    found_by_arm: list[Found] = field(default_factory=list)
    """Arm by arm, over its seeds."""
    probes: list[Probe]
    similarities: list[Similarity]
    losses: list[Loss]
    """Run by run."""
    losses_by_arm: list[Loss] = field(default_factory=list)
    coherences: list[Coherence] = field(default_factory=list)
    efforts: list[Effort] = field(default_factory=list)
    comparisons: list[Comparison]
    masked_metric: Metric | None = None
    """Of which masking takes a part; None: `metric`."""
    gallery: list[Shown] = field(default_factory=list)
    gallery_metric: str = ""
    """What "needed" is read from."""
    gallery_run: str = ""
    """The run whose score chose the items."""
    notes: list[str] = field(default_factory=list)
    """What could not be measured, and why."""
    config: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    seconds: float

    @property
    def lost(self) -> Metric:
        """Of which masking takes a part."""
        return self.masked_metric or self.metric


def read_analysis(out: Path) -> Analysis:
    """What `analyze_runs` wrote.

    Raises:
        RunError: If there is none in `out`, or it is damaged.
    """
    file = out / FILE
    if not file.is_file():
        raise RunError(f"there is no {FILE} in {out}", "lmgraft analyze RUN ... --out DIR writes it")
    analysis: Analysis = records.read_as(Analysis, records.read_json(file), "the analysis")
    return analysis
