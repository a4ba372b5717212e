"""What real trainings gave for the same candidates: from a study's folder, or from a file of one's own.

A file of one's own:  {"source": "where from", "metric": "accuracy",
                       "candidates": [{"llm": ..., "layer": 5, "position": "tail", "gain": 0.004}]}
A study:              its results.json; arms of the kind llm, each against the study's plain arm
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lmgraft import records
from lmgraft.analysis.metrics import METRICS, Metric, find_metric
from lmgraft.errors import RunError
from lmgraft.studies.scan.results import Scanned


@dataclass(frozen=True, kw_only=True)
class Known:
    """Gains of trainings by a candidate's label, more being better."""

    source: str
    gains: dict[str, float]
    unmatched: list[str]
    """What the source knows beside the candidates."""
    metric: Metric = METRICS["accuracy"]
    """What was trained for: gains are in its unit."""


def read_known(path: Path, candidates: Mapping[str, Scanned]) -> Known:
    """Match what is known with the candidates: by a block's digest where both have one, else by source and layer.

    Raises:
        RunError: If the file cannot be read, or none of it belongs to a candidate.
    """
    file = path / "results.json" if path.is_dir() else path
    held = records.read_json(file)
    try:
        rows = _of_study(held) if "arms" in held else held["candidates"]
        rows = [dict(row, gain=float(row["gain"])) for row in rows]
        metric = _metric(held)
        source = str(held.get("source") or held.get("name") or file)
        gains: dict[str, float] = {}
        unmatched: list[str] = []
        for row in rows:
            labels = [label for label, scanned in candidates.items() if _is(row, scanned)]
            gains |= dict.fromkeys(labels, row["gain"])
            unmatched += [] if labels else [f"{row['llm']} layer {row['layer']}, {row['position']}"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"--known {file} is neither a study's results nor a list of candidates ({type(error).__name__}: {error})",
            'give {"candidates": [{"llm": ..., "layer": ..., "position": ..., "gain": ...}]} or a study\'s folder',
        ) from None
    if not gains:
        raise RunError(
            f"--known {file}: nothing in it is a candidate of this scan; it knows {'; '.join(unmatched[:4]) or 'none'}",
            "name the same LLMs, layers and positions",
        )
    return Known(source=source, gains=gains, unmatched=unmatched, metric=metric)


def _metric(held: Mapping[str, Any]) -> Metric:
    """A study's whole metric, or of a file of one's own the metric's name; accuracy where it names none."""
    given = held.get("metric", "accuracy")
    return find_metric(given) if isinstance(given, str) else Metric(**given)


def _of_study(held: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Mean over the seeds that an arm shares with the plain one, in the sense that more is better."""
    plain = [arm["values"] for arm in held["arms"] if arm["arm"] == "plain"]
    if not plain:
        raise RunError("--known: the study has no plain arm to hold others against", "give another study")
    sign = 1 if held["metric"]["higher_is_better"] else -1
    rows = []
    for arm in held["arms"]:
        shared = [seed for seed in arm["values"] if seed in plain[0]]
        layers = (arm["block"] or {}).get("layers", [])
        if arm["arm"] != "llm" or len(layers) != 1 or not shared:
            continue
        rows.append(
            {
                "llm": arm["block"]["source"],
                "layer": layers[0],
                "position": arm["position"],
                "digest": arm["block"].get("digest"),
                "gain": sign * fmean(arm["values"][seed] - plain[0][seed] for seed in shared),
            }
        )
    return rows


def _is(row: Mapping[str, Any], scanned: Scanned) -> bool:
    candidate = scanned.candidate
    if str(row["position"]) != candidate.position:
        return False
    if row.get("digest") and scanned.digest:
        return bool(row["digest"] == scanned.digest)
    return row["llm"] == candidate.llm and int(row["layer"]) % candidate.num_layers == candidate.layer
