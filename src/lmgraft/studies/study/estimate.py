"""What a study will cost, before it is begun: a few training steps of each arm, timed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from lmgraft.studies.engine.runs import Run, State
from lmgraft.studies.step_times import StepTimes, time_arms


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one run of an arm costs."""

    trained_params: int
    frozen_params: int
    seconds: float
    """Of training, without validation."""
    step_seconds: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm in the plan."""

    arm: str
    runs: int
    missing: int
    estimate: Estimate | None
    why_not: str = ""
    """Why its steps cannot be timed here."""

    @property
    def seconds(self) -> float | None:
        """Of all its missing runs."""
        if self.estimate is None:
            return None if self.missing else 0.0
        return self.estimate.seconds * self.missing


def plan(
    cells: Sequence[Run],
    states: Mapping[Run, State],
    *,
    measure: bool,
    say: Callable[[str], None],
    reference: str | None = None,
) -> list[Row]:
    """One row an arm; with `measure` the arms that miss runs are timed by a few steps, in turns with one of them.

    An arm whose data or block cannot be had says so in its row.

    Args:
        cells: All runs.
        states: What of them is done.
        measure: Whether to time steps.
        say: Told which arm is timed.
        reference: The arm whose steps stand beside the others'; where it misses no run, the first that does.
    """
    of_arm = {arm: [cell for cell in cells if cell.arm == arm] for arm in dict.fromkeys(cell.arm for cell in cells)}
    todo = {arm: [cell for cell in of_arm[arm] if states[cell] != "done"] for arm in of_arm}
    recipes = {arm: missing[0].load for arm, missing in todo.items() if missing and measure}
    beside = reference if reference in recipes else next(iter(recipes), "")
    times, why_not = time_arms(recipes, beside, say)
    return [
        Row(
            arm=arm,
            runs=len(runs),
            missing=len(todo[arm]),
            estimate=_estimate(times[arm]) if arm in times else None,
            why_not=why_not.get(arm, ""),
        )
        for arm, runs in of_arm.items()
    ]


def _estimate(times: StepTimes) -> Estimate:
    step = median(times.seconds)
    return Estimate(
        trained_params=times.trained_params,
        frozen_params=times.frozen_params,
        step_seconds=step,
        seconds=step * times.run_steps,
    )
