"""Run what is missing: cells are handed to an executor, and each that ends is noted and said.

A cell is anything with a name: a training, a condition of a robustness suite, a score of a candidate, a shape of the
benchmark. What came of it lies where its plan keeps it (a run folder, a row of a JSON file), and that alone says
whether it is finished: the same call goes on where it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from lmgraft.errors import LmgraftError
from lmgraft.studies.engine.progress import Progress, Say


class Named(Protocol):
    """What a cell has."""

    @property
    def name(self) -> str:
        """For progress lines and errors; no two cells of a grid share it."""
        ...


C = TypeVar("C", bound=Named)


@dataclass(frozen=True, kw_only=True)
class Done(Generic[C]):
    """What became of a cell."""

    cell: C
    seconds: float
    error: str | None = None
    """What went wrong; None for a cell that is finished."""


Executor = Callable[[Iterable[C], Say], Iterator[Done[C]]]
"""Does cells, in any order, and yields each as it ends. The second argument is given what happens meanwhile."""


def in_turn(do: Callable[[C], None]) -> Executor[C]:
    """An executor that does one cell after another in this process, by calling `do`; an error ends all."""

    def run(cells: Iterable[C], say: Say) -> Iterator[Done[C]]:
        for cell in cells:
            started = time.monotonic()
            do(cell)
            yield Done(cell=cell, seconds=time.monotonic() - started)

    return run


def took(done: Done[C]) -> str:
    """What there is to say of a cell that ended well: how long it took."""
    return f"done in {done.seconds:.0f} s"


def run_missing(
    title: str,
    cells: Sequence[C],
    finished: Callable[[C], bool],
    executor: Executor[C],
    say: Say,
    *,
    after: Callable[[Done[C]], str] = took,
    size: Callable[[C], tuple[str, float]] = lambda _: ("", 1.0),
) -> dict[str, str]:
    """Do those of some cells that are not finished.

    Args:
        title: What the cells are, for the first line.
        cells: All of a grid, in the order in which they are to be begun.
        finished: Whether a cell is there, so that it is left alone.
        executor: Who does the others.
        say: Is given a line at the start and one for each cell that ends.
        after: Called with each cell that ends, to keep what came of it; returns that in words.
        size: Kind and amount of work of a cell, from which the time left is told; see `Progress`.

    Returns:
        The name of each cell that failed, or was not run to its end, and why.
    """
    todo = [cell for cell in cells if not finished(cell)]
    say(f"{title}: {len(cells)} in all, {len(cells) - len(todo)} done before, {len(todo)} to do")
    progress, failed = Progress({cell.name: size(cell) for cell in todo}), {}
    for done in executor(todo, say) if todo else ():
        if done.error is not None:
            failed[done.cell.name] = done.error
        words = after(done)
        say(progress.line(done.cell.name, done.seconds, words if done.error is None else f"failed: {done.error}"))
    return failed | dict.fromkeys(progress.unfinished, "it was not run to its end")


def brief(error: BaseException) -> str:
    """An error as one line; one that is no mistake of the user's with its kind."""
    if isinstance(error, LmgraftError):
        return " ".join((f"{error.message}; {error.remedy}" if error.remedy else error.message).split())
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
