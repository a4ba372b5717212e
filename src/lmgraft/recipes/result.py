"""result.json: what a finished run reached on the test items, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.errors import RunError

FILE = "result.json"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run reached on the test items and what it cost."""

    arm: str
    seed: int
    metrics: dict[str, float]
    """Metric -> value on the test items."""
    primary: str
    """The metric that chose the epoch."""
    items: int
    """How many test items there are."""
    by: dict[str, dict[str, float]]
    """Category -> part -> the primary metric over the part's items."""
    val: dict[str, float]
    """Metric -> value on the validation items, of the chosen epoch."""
    epochs: int
    steps: int
    seconds: float
    """Training, validation included."""
    peak_memory: int
    """Bytes."""
    trained_params: int
    frozen_params: int
    block_digest: str | None
    device: str
    selection: str = "val"
    """What chose the epoch: held-out items ("val"), the test items as the paper did, or nothing ("last")."""
    splits: dict[str, str] = field(default_factory=dict)
    """Split -> what the source calls its items, where that says more; see `Data.split_names`."""
    faults: list[dict[str, str]] = field(default_factory=list)
    """Files that could not be read, and why."""
    retries: list[dict[str, Any]] = field(default_factory=list)
    """Restarts at a lower learning rate after a loss that was not finite."""
    cpu_seconds: float | None = None
    """Of the process that trained and its loader workers, in `seconds`; None where it is not known, as of runs of
    earlier versions."""
    threads: int | None = None
    """That torch computed with."""
    share: float | None = None
    """cpu_seconds / (seconds x threads): the share of the machine that the run had; workers may bring it above 1."""
    device_seconds: float | None = None
    """Of the training steps on a GPU, by its own events; None on a CPU."""
    version: int = 2

    @property
    def value(self) -> float:
        """The primary metric on the test items."""
        return self.metrics[self.primary]


def write_result(run_dir: Path, result: Result) -> None:
    """Write result.json."""
    records.write_json(run_dir / FILE, asdict(result))


def read_result(run_dir: Path) -> Result:
    """The result of a finished run, also one that an earlier version of lmgraft wrote.

    Raises:
        RunError: If the run is not finished or its result is damaged.
    """
    file = run_dir / FILE
    if not file.exists():
        raise RunError(f"{run_dir} is not finished: it has no {FILE}", "go on with lmgraft train --resume")
    values = records.read_json(file)
    if isinstance(values, dict) and "version" not in values:
        values = _upgraded(values, file)
    known = {f.name for f in fields(Result)}
    needed = {f.name for f in fields(Result) if f.default is MISSING and f.default_factory is MISSING}
    if not isinstance(values, dict) or not needed <= set(values) <= known or values.get("version") != Result.version:
        raise RunError(f"{file} does not hold a result of this version", "delete it and evaluate the run again")
    return Result(**values)


def _upgraded(values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """A result of version 1, when all tasks were image classification.

    Raises:
        RunError: If a field is missing, or the numbers contradict each other.
    """
    rest = dict(values)
    try:
        accuracy, correct, total = rest.pop("accuracy"), rest.pop("correct"), rest.pop("total")
        by_class, val = rest.pop("class_accuracy"), rest.pop("val_accuracy")
        contradicts = abs(accuracy * total - correct) > 1e-6 * max(total, 1)
    except (KeyError, TypeError) as error:
        raise RunError(f"{file} does not hold a result: {error}", "delete it and evaluate the run again") from None
    if contradicts:
        raise RunError(
            f"{file} was changed: its accuracy {accuracy} is not correct / total = {correct} / {total}",
            "put the file back, or delete it and evaluate the run again",
        )
    top5 = rest.pop("top5", None)
    metrics = {"accuracy": accuracy} | ({} if top5 is None else {"top5": top5})
    return rest | {
        "metrics": metrics,
        "primary": "accuracy",
        "items": total,
        "by": {"class": by_class},
        "val": {"accuracy": val},
        "version": Result.version,
    }
