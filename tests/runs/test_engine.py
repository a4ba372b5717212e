"""The loop that runs what is missing, and the time left that it tells."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from lmgraft.errors import RunError
from lmgraft.studies.engine import progress
from lmgraft.studies.engine.missing import Done, brief, in_turn, run_missing
from lmgraft.studies.engine.progress import Progress


@dataclass(frozen=True)
class Cell:
    name: str
    work: float = 1.0


CELLS = [Cell("a"), Cell("b", 2.0), Cell("c")]


@pytest.fixture
def clock(monkeypatch):
    """What the time is for the lines; a test moves it."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_what_is_there_is_left_alone_and_each_that_ends_is_said():
    there, lines = {"b"}, []
    failed = run_missing(
        "cells", CELLS, lambda cell: cell.name in there, in_turn(lambda cell: there.add(cell.name)), lines.append
    )
    assert (failed, there) == ({}, {"a", "b", "c"})
    head, first, last = lines
    assert head == "cells: 3 in all, 1 done before, 2 to do"
    assert first.startswith("[1/2] a: done in 0 s; about 0 s left")
    assert last == "[2/2] c: done in 0 s; nothing left"
    run_missing("cells", CELLS, lambda _: True, lambda *_: pytest.fail("nothing is to be done"), lines.append)


def test_what_fails_and_what_an_executor_leaves_out_are_told_apart():
    ended, lines = [], []

    def executor(cells, say):
        assert [cell.name for cell in cells] == ["a", "b", "c"]
        yield Done(cell=cells[1], seconds=1.0, error="no room")
        yield Done(cell=cells[0], seconds=1.0)

    failed = run_missing(
        "cells", CELLS, lambda _: False, executor, lines.append, after=lambda d: ended.append(d) or "ok"
    )
    assert failed == {"b": "no room", "c": "it was not run to its end"}
    assert [done.cell.name for done in ended] == ["b", "a"]
    assert [line.partition("; ")[0] for line in lines[1:]] == ["[1/3] b: failed: no room", "[2/3] a: ok"]


def test_an_error_in_this_process_ends_all():
    def do(cell):
        raise RunError("no such thing", "get it")

    with pytest.raises(RunError):
        run_missing("cells", CELLS, lambda _: False, in_turn(do), lambda _: None)
    assert brief(RunError("no such\n thing", "get it")) == "no such thing; get it"
    assert brief(KeyError("x")) == "KeyError: 'x'"


def test_the_time_left_goes_by_kind_and_work_and_by_how_many_run_beside_each_other(clock):
    parts = {"a": ("small", 1.0), "b": ("small", 3.0), "c": ("large", 1.0), "d": ("large", 1.0)}
    bar = Progress(parts)
    clock.seconds = 10.0
    assert bar.line("a", 10.0, "ok") == "[1/4] a: ok; about 50 s left"  # large ones are taken to be like small ones
    clock.seconds = 30.0
    assert bar.line("c", 20.0, "ok") == "[2/4] c: ok; about 50 s left"  # 30 s of b and 20 s of d
    assert bar.unfinished == ["b", "d"]
    beside = Progress(parts)
    clock.seconds += 10.0
    beside.line("a", 10.0, "ok")
    assert beside.line("c", 10.0, "ok").endswith("about 20 s left")  # 40 s of work, two at a time
