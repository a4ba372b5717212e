"""scan.json: everything a scan has found so far, written after each score of each candidate.

Plain data; the page and the tables are made of it alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.contracts import Metric
from lmgraft.errors import RunError
from lmgraft.recipes.record import changed_keys
from lmgraft.registry import METRICS
from lmgraft.studies.scan.candidates import Candidate
from lmgraft.studies.scan.encoder import EncoderRecord
from lmgraft.studies.scan.scores import SCORES
from lmgraft.studies.scan.scores.measured import Measured

FILE = "scan.json"
GAIN = "gain"
"""Column of the short training, beside the scores."""
VERSION = 2


@dataclass(kw_only=True)
class Scanned:
    """One candidate, and what is known of it."""

    candidate: Candidate
    digest: str | None = None
    """Of its block; None before it was loaded."""
    scores: dict[str, Measured] = field(default_factory=dict)
    gain: Measured | None = None
    """How much better the metric is than the plain encoder's after the short training, over seeds; None without."""


@dataclass(kw_only=True)
class Scan:
    """A scan, finished or not."""

    recipe: str
    settings: dict[str, Any]
    """What all scores have in common; see `settings_of`."""
    encoder: EncoderRecord
    plain: dict[int, float]
    """Seed -> the metric on held-out items, of the plain encoder after the short training."""
    candidates: dict[str, Scanned]
    """By label."""
    environment: dict[str, Any]
    metric: Metric
    """The task's first metric: gains are differences of it, in the direction in which it is better."""
    agreement: Metric
    """What the probe reaches; see `Task.agreement_metric`."""
    things: str
    """What the items are, in the plural."""
    version: int = VERSION

    def chosen(self) -> list[Scanned]:
        return list(self.candidates.values())


def write_scan(scan: Scan, out: Path) -> None:
    """Write scan.json, atomically."""
    records.write_json(out / FILE, asdict(scan))


def read_scan(out: Path) -> Scan | None:
    """What scan.json holds; None where there is none.

    Raises:
        RunError: If it is damaged or of another version.
    """
    file = out / FILE
    if not file.exists():
        return None
    held = records.read_json(file, upgrade=_without_width)
    try:
        if held["version"] == 1:
            held = _upgraded(held)
        if held["version"] != VERSION:
            raise RunError(f"{file} is of version {held['version']}, this is {VERSION}", "choose another --out")
        scan: Scan = records.read_as(Scan, held, "scan")
        return scan
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{file} is damaged ({type(error).__name__}: {error})", "delete it: finished trainings in runs/ are kept"
        ) from None


def _upgraded(held: dict[str, Any]) -> dict[str, Any]:
    """A scan of version 1, when all were of image classification."""
    encoder = dict(held["encoder"])
    encoder["val"] = encoder.pop("val_accuracy")
    accuracy = asdict(METRICS.find("accuracy"))
    known = {"encoder": encoder, "metric": accuracy, "agreement": accuracy, "things": "images"}
    return held | known | {"version": VERSION}


def unit_of(scan: Scan, name: str) -> Metric:
    """How values of a score, or of the gain, are written."""
    return scan.metric if name == GAIN else SCORES[name].unit or scan.agreement


def is_difference(name: str) -> bool:
    """Whether its values are differences, written with a sign."""
    return name == GAIN or SCORES[name].unit is None


def check_settings(before: Scan, settings: dict[str, Any], out: Path) -> None:
    """Whether new scores may stand beside those in `before`: candidates, scores and a short training may be added.

    Raises:
        RunError: If recipe or effort are others.
    """
    theirs, ours = dict(before.settings), dict(settings)
    if not (theirs["effort"]["train_epochs"] and ours["effort"]["train_epochs"]):
        theirs["effort"], ours["effort"] = (_without_training(s["effort"]) for s in (theirs, ours))
    changed = changed_keys(theirs, ours)
    if changed:
        raise RunError(
            f"{out} holds a scan of other settings; different now: {'; '.join(map(str, changed[:5]))}",
            "choose another --out, or give the settings it was started with",
        )


def _without_training(effort: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in effort.items() if not key.startswith("train_") or key == "train_images"}


def _without_width(values: dict[str, Any]) -> dict[str, Any]:
    """Older versions wrote two equal ends where all draws are equal; there is no interval then."""
    ends = values.get("interval")
    return values if not ends or ends[0] != ends[1] else values | {"interval": None, "no_interval": "no spread"}
