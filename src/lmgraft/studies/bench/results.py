"""A cell's result, and the file that keeps them: plain JSON, written whole after every cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmgraft import records
from lmgraft.errors import RunError
from lmgraft.studies.bench.cells import PLAIN, Cell
from lmgraft.studies.bench.measure import Spread, ratios, spread

FILE, FORMAT = "bench.json", 1

METHOD = (
    "Arms of a cell run in turn in one process of their own, each round in an order drawn anew, after a step or two "
    "of each that are not counted. A training step is zero_grad, forward, the loss (of classifiers cross-entropy), "
    "backward and AdamW's step, the same in every arm; an evaluation step is a forward in inference mode. A ratio is "
    "taken round by round, over the plain arm of the same round; the median and quartiles are those of the rounds. "
    "The dense form is the published one: the whole block on every token. Blocks have random weights in the shape of "
    "the LLM that they are named after. Peak memory is that of a process that runs one arm alone, Python and "
    "libraries included; on a GPU, what was allocated there."
)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a result holds for; a result of another context is measured again."""

    versions: dict[str, str | None]
    threads: int
    machine: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def this_context(device: str = "cpu") -> Context:
    """Versions, threads and the machine as they are now."""
    import torch

    wanted = ("lmgraft", "torch", "timm")
    versions = records.environment(wanted)["versions"]
    machine = f"{records.usable_cpus()} CPU cores"
    if device.startswith("cuda"):
        machine = torch.cuda.get_device_name(device)
    return Context(versions={name: versions[name] for name in wanted}, threads=torch.get_num_threads(), machine=machine)


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What was found for one cell."""

    cell: Cell
    context: dict[str, Any]
    status: Literal["measured", "refused", "failed"]
    tokens: int = 0
    reads: int = 0
    host_width: int = 0
    llm_width: int = 0
    block_bytes: int = 0
    needed: dict[str, int] = field(default_factory=dict)
    """Arm -> estimate of its peak, bytes."""
    allowed: int = 0
    """Bytes a cell may need on this machine."""
    refused: tuple[str, ...] = ()
    """Arms that would need more, and were not tried."""
    message: str = ""
    """What went wrong, of a failed cell."""
    plans: dict[str, str] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)
    """Arm -> seconds of a step, one a round; equal positions are one round."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Arm -> bytes at the peak of a process that runs it alone."""
    load: float = 0.0
    """Processes that were running on the machine on average in the minute before."""
    git_commit: str | None = None

    def grafted(self) -> list[str]:
        """Arms with a block that were measured."""
        return [arm for arm in self.times if arm != PLAIN]

    def seconds(self, arm: str) -> Spread:
        return spread(self.times[arm])

    def ratio(self, arm: str) -> Spread:
        """Of a step's time to the plain arm's."""
        return spread(ratios(self.times, arm, PLAIN))

    def memory_ratio(self, arm: str) -> float | None:
        """The peak over that of the plain arm and the block's own bytes; None if not measured."""
        if arm not in self.peaks or PLAIN not in self.peaks:
            return None
        return self.peaks[arm] / (self.peaks[PLAIN] + self.block_bytes)

    def to_dict(self) -> dict[str, Any]:
        summary = {
            arm: {
                "seconds": self.seconds(arm).to_dict(),
                "ratio_to_plain": self.ratio(arm).to_dict(),
                "peak_over_plain_and_block": self.memory_ratio(arm),
            }
            for arm in self.times
        }
        return asdict(self) | {"summary": summary}


def read_results(out: Path) -> list[CellResult]:
    """What `out` holds; nothing if it has no file yet.

    Raises:
        RunError: If the file is damaged, or of another version.
    """
    file = out / FILE
    if not file.exists():
        return []
    content = records.read_json(file)
    try:
        if content["format"] != FORMAT:
            raise RunError(f"{file} has format {content['format']!r}", "choose another --out")
        rows = [{name: value for name, value in row.items() if name != "summary"} for row in content["results"]]
        return [records.read_as(CellResult, row, f"results[{i}]") for i, row in enumerate(rows)]
    except (KeyError, TypeError, AttributeError, records.UnfitError):
        raise RunError(f"{file} is no benchmark's result", "choose another --out") from None


def write_results(out: Path, results: Iterable[CellResult]) -> None:
    """Write all results to `out`, atomically."""
    value = {
        "format": FORMAT,
        "method": METHOD,
        "environment": records.environment(),
        "results": [result.to_dict() for result in results],
    }
    records.write_json(out / FILE, value)


def find_result(results: Sequence[CellResult], cell: Cell, context: Context) -> CellResult | None:
    """The result of `cell` in this context, whatever its arms."""
    for result in results:
        if result.cell.place() == cell.place() and result.context == context.to_dict():
            return result
    return None


def put_result(results: list[CellResult], new: CellResult) -> None:
    """Add `new`, in the place of an older result of the same cell and context."""
    for position, old in enumerate(results):
        if old.cell.place() == new.cell.place() and old.context == new.context:
            results[position] = new
            return
    results.append(new)
