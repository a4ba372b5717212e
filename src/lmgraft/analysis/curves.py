"""Learning curves out of a run's CSV logs, over all its launches."""

from __future__ import annotations

import csv
from pathlib import Path

Curve = list[tuple[int, float]]
"""(step, value), by step."""


def running_mean(curve: Curve, window: int) -> Curve:
    """Each value's mean with up to `window` - 1 values before it; steps stay."""
    values = [value for _, value in curve]
    return [
        (step, sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1)) for i, (step, _) in enumerate(curve)
    ]


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """Metric name -> curve. Where two launches logged a step, the later one counts.

    A launch that was killed may have gone further than the checkpoint the next one started
    from; the later launch then repeats those steps with the same values.
    """
    values: dict[str, dict[int, float]] = {}
    folder = run_dir / "logs" / "csv"
    launches = sorted(folder.glob("version_*"), key=lambda p: int(p.name.rpartition("_")[2]))
    for launch in launches:
        file = launch / "metrics.csv"
        if not file.exists():
            continue
        with open(file, newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                step = row.get("step")
                if not step:
                    continue
                for name, value in row.items():
                    if name not in ("step", "epoch") and value:
                        values.setdefault(name, {})[int(step)] = float(value)
    return {name: sorted(by_step.items()) for name, by_step in values.items()}
