"""A grid, cell by cell: what is there is kept, what is too large is refused, the rest is measured.

<out>/bench.json   every cell's result, written after each; the same command goes on where it ended
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.errors import LmgraftError
from lmgraft.studies.bench.arms import chosen_plan, make_arm
from lmgraft.studies.bench.blocks import make_block
from lmgraft.studies.bench.cells import PLAIN, Cell
from lmgraft.studies.bench.hosts import facts
from lmgraft.studies.bench.measure import interleave
from lmgraft.studies.bench.memory import SHARE, block_bytes, block_config, estimate, peak_resident, total_memory
from lmgraft.studies.bench.results import (
    CellResult,
    Context,
    find_result,
    put_result,
    read_results,
    this_context,
    write_results,
)
from lmgraft.studies.engine.missing import in_turn, run_missing
from lmgraft.studies.engine.progress import Say, silent
from lmgraft.studies.engine.worker import WorkerDiedError, in_own_process

_STEPS_FOR_PEAK = 3  # the second allocates nothing new; the third shows it


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long and what to measure."""

    rounds: int = 5
    seconds: float = 90.0
    """After so many no further round of a cell begins, once three are done."""
    memory: bool = True
    """Whether to measure each arm's peak memory too, in processes of their own."""
    fresh: bool = False
    """Measure again what is there."""


def run_bench(
    cells: Sequence[Cell],
    out: Path,
    settings: Settings | None = None,
    *,
    say: Say = silent,
    show: Callable[[CellResult], None] = lambda _: None,
    apart: Callable[..., Any] = in_own_process,
    total: int | None = None,
) -> list[CellResult]:
    """Measure what is missing of `cells`.

    Args:
        cells: In the order in which they are measured.
        out: Folder of bench.json; results in it that are not of `cells` stay there.
        settings: How long and what to measure.
        say: Is given what happens.
        show: Given each result as soon as it is there.
        apart: Calls a function in a process of its own.
        total: Bytes of memory; None asks the machine.

    Returns:
        The results of `cells`, in their order.

    Raises:
        LmgraftError: If an encoder or a block is not known, or `out` holds something else.
    """
    settings, cells = settings or Settings(), list(dict.fromkeys(cells))
    kept = read_results(out)
    before = {} if settings.fresh else {cell: find_result(kept, cell, this_context(cell.device)) for cell in cells}
    found = {cell: old for cell, old in before.items() if old is not None and _is_whole(old, cell, settings)}
    for result in found.values():
        show(result)

    def do(cell: Cell) -> None:
        result = _judge(cell, this_context(cell.device), total or total_memory(cell.device))
        old = before.get(cell)
        if old is not None and _is_timed(old, cell):
            result = old
        elif result.status != "refused":
            result = _time(result, settings, apart)
        if result.status == "measured" and settings.memory:
            result = _add_peaks(result, () if settings.fresh else kept, apart)
        found[cell] = result
        put_result(kept, result)
        write_results(out, kept)
        show(result)

    run_missing("cells", cells, found.__contains__, in_turn(do), say, after=lambda done: _in_words(found[done.cell]))
    return [found[cell] for cell in cells]


def _is_timed(old: CellResult, cell: Cell) -> bool:
    return old.status == "measured" and set(cell.forms) <= set(old.times) | set(old.refused)


def _is_whole(old: CellResult, cell: Cell, settings: Settings) -> bool:
    return _is_timed(old, cell) and (not settings.memory or set(old.times) <= set(old.peaks))


def _in_words(result: CellResult) -> str:
    words = {"measured": "measured", "refused": f"refused: {refusal(result)}", "failed": f"failed: {result.message}"}
    return words[result.status]


def _judge(cell: Cell, context: Context, total: int) -> CellResult:
    """The result of a cell before it is measured: which of its arms fit."""
    host, config = facts(cell.host), block_config(cell.block)
    needed, allowed = estimate(cell, host, config), int(SHARE * total)
    refused = tuple(form for form in cell.forms if needed[form] > allowed)
    is_refused = PLAIN in refused or len(refused) >= len(cell.forms) - 1
    return CellResult(
        cell=cell,
        context=context.to_dict(),
        status="refused" if is_refused else "measured",
        tokens=host.tokens,
        reads=host.reads,
        host_width=host.embed_dim,
        llm_width=config.dim,
        block_bytes=block_bytes(config, cell.storage),
        needed=needed,
        allowed=allowed,
        refused=refused,
        load=_load(),
        git_commit=records.environment()["git_commit"],
    )


def refusal(result: CellResult) -> str:
    """Why arms were not tried, in words."""
    arms = ", ".join(f"{arm} about {result.needed[arm] / 2**30:.1f} GiB" for arm in result.refused)
    return f"would need {arms}; allowed are {result.allowed / 2**30:.1f} GiB, {100 * SHARE:.0f} % of memory"


def _time(result: CellResult, settings: Settings, apart: Callable[..., Any]) -> CellResult:
    forms = tuple(form for form in result.cell.forms if form not in result.refused)
    try:
        times, plans = apart(time_arms, result.cell, forms, settings.rounds, settings.seconds)
    except LmgraftError as error:
        return replace(result, status="failed", message=_words(error))
    return replace(result, times=times, plans=plans)


def _add_peaks(result: CellResult, kept: Sequence[CellResult], apart: Callable[..., Any]) -> CellResult:
    peaks = dict(result.peaks)
    missing = [arm for arm in result.times if arm not in peaks]
    if not missing:
        return result
    if PLAIN in missing and (known := _plain_peak(result, kept)) is not None:
        peaks[PLAIN] = known
    try:
        for arm in missing:
            if arm not in peaks:
                peaks[arm] = apart(peak_of_arm, result.cell, arm)
    except LmgraftError as error:
        return replace(result, peaks=peaks, message=f"peak memory: {_words(error)}")
    return replace(result, peaks=peaks)


def _plain_peak(result: CellResult, kept: Sequence[CellResult]) -> int | None:
    """The plain arm's peak in a cell that differs in the block alone."""

    def plain_part(one: CellResult) -> dict[str, Any]:
        place = one.cell.place() | {"context": one.context}
        return {name: value for name, value in place.items() if name not in ("block", "storage")}

    own = plain_part(result)
    return next((one.peaks[PLAIN] for one in kept if PLAIN in one.peaks and plain_part(one) == own), None)


def time_arms(
    cell: Cell, forms: Sequence[str], rounds: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each arm's steps and each arm's plan; meant for a process of its own."""
    block = make_block(cell.block, cell.storage, cell.device)
    arms = {form: make_arm(cell, form, block) for form in forms}
    plans = {form: chosen_plan(arm, cell) for form, arm in arms.items() if form != PLAIN}
    steps = {form: arm.step for form, arm in arms.items()}
    return interleave(steps, rounds=rounds, seconds=seconds, device=cell.device), plans


def peak_of_arm(cell: Cell, form: str) -> int:
    """Bytes at the peak of a few steps of one arm; only true in a process of its own."""
    arm = make_arm(cell, form, None if form == PLAIN else make_block(cell.block, cell.storage, cell.device))
    for _ in range(_STEPS_FOR_PEAK):
        arm.step()
    if cell.device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(cell.device)
    return peak_resident()


def _words(error: LmgraftError) -> str:
    # A process that dies says nothing; the error of the pool speaks of training.
    return "its process was killed, or memory ran out" if isinstance(error, WorkerDiedError) else error.message


def _load() -> float:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:  # a platform that does not count
        return 0.0
