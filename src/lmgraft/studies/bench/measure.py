"""Arms in turn, in one process: what slows the machine down for a while slows all of them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

_LEAST = 3  # rounds, however slow
_LONG = 5.0  # seconds of a step that needs no second one to warm up
_SHORT, _MOST = 2.0, 50  # rounds go on until so many seconds or rounds, where steps are quick


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median and how far single values lie from it."""

    median: float
    min: float
    max: float
    q1: float
    """First quartile."""
    q3: float
    """Third quartile."""
    count: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Median, range and quartiles of at least one value."""
    q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Spread(median=statistics.median(values), min=min(values), max=max(values), q1=q1, q3=q3, count=len(values))


def ratios(times: Mapping[str, Sequence[float]], arm: str, to: str) -> list[float]:
    """`arm` over `to`, round by round: both of a round were measured within moments of each other."""
    return [a / b for a, b in zip(times[arm], times[to], strict=True)]


def interleave(
    steps: Mapping[str, Callable[[], None]],
    *,
    rounds: int = 5,
    seconds: float = 90.0,
    warmup: int = 2,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each step, one value a round; each round runs all of them, in an order drawn anew.

    Args:
        steps: By the name of the arm.
        rounds: At least so many, and more where steps take milliseconds.
        seconds: No round begins after so many, once three are done.
        warmup: Steps of each arm before the first round; one is enough where it takes long.
        device: Waited for before a step is begun and after it.
        clock: Seconds.
    """
    for step in steps.values():
        for _ in range(warmup):
            begun = clock()
            step()
            if clock() - begun > _LONG:
                break
    order, draw = list(steps), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in steps}
    started = clock()
    done = 0
    while done < _LEAST or _goes_on(done, rounds, clock() - started, seconds):
        draw.shuffle(order)
        for name in order:
            _wait(device)
            begun = clock()
            steps[name]()
            _wait(device)
            times[name].append(clock() - begun)
        done += 1
    return times


def _goes_on(done: int, rounds: int, passed: float, seconds: float) -> bool:
    if passed > seconds:
        return False
    return done < rounds or (passed < _SHORT and done < _MOST)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
