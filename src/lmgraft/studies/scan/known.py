"""What real trainings gave for the same candidates: from a study's folder, or from a file of one's own.

A file of one's own:  {"source": "where from", "metric": "accuracy", (the task's first one by default)
                       "candidates": [{"llm": ..., "layer": 5, "position": "tail", "gain": 0.004}]}
A study:              its results.json; arms of the kind llm, each against the study's plain arm

`check_trainings` says before anything is computed whether they can belong to a scan; `match` finds
out which belongs to which candidate, for which blocks must have been loaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from lmgraft import records
from lmgraft.contracts import Metric
from lmgraft.errors import LmgraftError, RunError
from lmgraft.studies.scan.candidates import Candidate
from lmgraft.studies.scan.results import Scanned


@dataclass(frozen=True, kw_only=True)
class Training:
    """A block in a place, and what training with it gave."""

    name: str
    """As errors call it: a study's arm, or LLM and layer."""
    llm: str
    layer: int
    """May count from the end."""
    position: str
    gain: float
    """More is better."""
    digest: str | None = None
    """The block's; None where a file of one's own does not have it."""


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """All that one source knows."""

    file: Path
    source: str
    metric: Metric
    rows: list[Training]
    data: Mapping[str, Any] = field(default_factory=dict)
    """What the study was trained on; empty for a file of one's own."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """Gains of trainings by a candidate's label, more being better."""

    source: str
    gains: dict[str, float]
    unmatched: list[str]
    """What the source knows beside the candidates."""
    metric: Metric
    """What was trained for: gains are in its unit."""


def read_trainings(path: Path, find_metric: Callable[[str | None], Metric]) -> Trainings:
    """Read what is known.

    Args:
        find_metric: Gives the task's metric of a name, or with None the one that its gains are in by default.

    Raises:
        RunError: If the file cannot be read or is neither a study's results nor a list of candidates.
    """
    file = path / "results.json" if path.is_dir() else path
    held = records.read_json(file)
    try:
        source = str(held.get("source") or held.get("name") or file)
        trainings = Trainings(
            file=file,
            source=f"{source} (known)" if source == "short training" else source,
            metric=_metric(held, find_metric),
            rows=_of_study(held) if "arms" in held else [_of_file(row) for row in held["candidates"]],
            data=held.get("data") or {},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, LmgraftError):
            raise
        raise RunError(
            f"--known {file} is neither a study's results nor a list of candidates ({type(error).__name__}: {error})",
            'give {"candidates": [{"llm": ..., "layer": ..., "position": ..., "gain": ...}]} or a study\'s folder',
        ) from None
    for row in trainings.rows:
        if not abs(row.gain) <= trainings.metric.largest_difference:
            raise RunError(
                f"--known {file}: {row.name} has a gain of {row.gain:g}, which no {trainings.metric.title} can have",
                "gains are in the metric's own unit, where 0.4 points of accuracy are 0.004; more is better",
            )
    return trainings


def check_trainings(trainings: Trainings, candidates: Sequence[Candidate], data: Mapping[str, Any]) -> None:
    """Refuse, before any block is loaded, what cannot belong to these candidates.

    Args:
        data: Fingerprint of the scan's data.

    Raises:
        RunError: If it is of other data, knows no candidate's layer and position, or two of its trainings are of one
            candidate by name.
    """
    differ = _other_data(trainings.data, json.loads(json.dumps(data)))
    if differ:
        raise RunError(
            f"--known {trainings.file} was trained on other data than this scan's: {differ}",
            "scan with the data of that study, or give another --known",
        )
    if not any(_may_be(row, c) for row in trainings.rows for c in candidates):
        raise _nothing(trainings)
    _by_candidate(trainings, {c.label: [row for row in trainings.rows if _named(row, c)] for c in candidates})


def unknown_data(trainings: Trainings) -> bool:
    """Whether it is a comparison that does not say what it was trained on."""
    return not trainings.data and any(row.digest is not None for row in trainings.rows)


def count_named(trainings: Trainings, candidates: Sequence[Candidate]) -> int:
    """How many candidates have a training of their LLM's name, layer and position."""
    return sum(any(_named(row, c) for row in trainings.rows) for c in candidates)


def match(trainings: Trainings, candidates: Mapping[str, Scanned]) -> Known:
    """Match trainings with candidates: by a block's digest where both have one, else by source and layer.

    Raises:
        RunError: If none belongs to a candidate, or several belong to one.
    """
    found = {label: [row for row in trainings.rows if _is(row, scanned)] for label, scanned in candidates.items()}
    gains = _by_candidate(trainings, found)
    if not gains:
        raise _nothing(trainings)
    used = [row for rows in found.values() for row in rows]
    return Known(
        source=trainings.source,
        gains=gains,
        unmatched=[_where(row) for row in trainings.rows if row not in used],
        metric=trainings.metric,
    )


def _by_candidate(trainings: Trainings, found: Mapping[str, list[Training]]) -> dict[str, float]:
    for label, rows in found.items():
        if len(rows) > 1:
            listed = ", ".join(f"{row.name} ({row.gain:+g})" for row in rows)
            raise RunError(
                f"--known {trainings.file}: {len(rows)} of its trainings are of one candidate, {label}: {listed}",
                "give a JSON file that names one gain for each candidate (docs/scan.md)",
            )
    return {label: rows[0].gain for label, rows in found.items() if rows}


def _nothing(trainings: Trainings) -> RunError:
    listed = "; ".join(_where(row) for row in trainings.rows[:4]) or "none"
    return RunError(
        f"--known {trainings.file}: nothing in it is a candidate of this scan; it knows {listed}",
        "name the same LLMs, layers and positions",
    )


def _where(row: Training) -> str:
    return f"{row.llm} layer {row.layer}, {row.position}"


def _other_data(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """In what the training items are others, in words; how many of them were taken is not asked."""
    for key in ("name", "dataset", "classes", "sha256"):
        there, here = theirs.get(key), ours.get(key)
        if key == "sha256" and isinstance(there, dict) and isinstance(here, dict):
            there, here = there.get("train", there), here.get("train", here)
        if theirs and there != here:
            return f"{'its items' if key == 'sha256' else f'{key} {there!r} there, {here!r} here'}"[:200]
    return ""


def _metric(held: Mapping[str, Any], find_metric: Callable[[str | None], Metric]) -> Metric:
    """A study's whole metric, or what a file of one's own says of it by name."""
    given = held.get("metric")
    return Metric(**given) if isinstance(given, dict) else find_metric(given)


def _of_file(row: Mapping[str, Any]) -> Training:
    layer, gain = row["layer"], row["gain"]
    for name, value, kinds in (("layer", layer, int), ("gain", gain, int | float)):
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            raise ValueError(f"{name} {value!r} of {row['llm']}")
    return Training(
        name=f"{row['llm']} layer {layer}",
        llm=str(row["llm"]),
        layer=layer,
        position=str(row["position"]),
        gain=float(gain),
        digest=row.get("digest"),
    )


def _of_study(held: Mapping[str, Any]) -> list[Training]:
    """Mean over the seeds that an arm shares with the plain one, in the sense that more is better."""
    plain = [arm["values"] for arm in held["arms"] if arm["arm"] == "plain"]
    if not plain:
        raise RunError("--known: the study has no plain arm to hold others against", "give another study")
    sign = Metric(**held["metric"]).direction
    rows = []
    for arm in held["arms"]:
        shared = [seed for seed in arm["values"] if seed in plain[0]]
        layers = (arm["block"] or {}).get("layers", [])
        if arm["arm"] != "llm" or len(layers) != 1 or not shared:
            continue
        rows.append(
            Training(
                name=f"arm {arm['label']}",
                llm=arm["block"]["source"],
                layer=int(layers[0]),
                position=str(arm["position"]),
                gain=sign * fmean(arm["values"][seed] - plain[0][seed] for seed in shared),
                digest=arm["block"].get("digest"),
            )
        )
    return rows


def _may_be(row: Training, candidate: Candidate) -> bool:
    """Whether it can be this candidate, whose block has not been loaded."""
    return _same_place(row, candidate) and (row.llm == candidate.llm or row.digest is not None)


def _named(row: Training, candidate: Candidate) -> bool:
    return _same_place(row, candidate) and row.llm == candidate.llm


def _is(row: Training, scanned: Scanned) -> bool:
    if row.digest and scanned.digest:
        return row.digest == scanned.digest and row.position == scanned.candidate.position
    return _named(row, scanned.candidate)


def _same_place(row: Training, candidate: Candidate) -> bool:
    count = candidate.num_layers
    inside = -count <= row.layer < count
    return inside and row.position == candidate.position and row.layer % count == candidate.layer
