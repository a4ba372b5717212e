"""`lmgraft check-data ROOT`, and `lmgraft check-data --recipe NAME`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from lmgraft import records
from lmgraft.cli.command import Command, option, word
from lmgraft.errors import DataError, RecipeError
from lmgraft.recipes import load_recipe
from lmgraft.recipes.kinds import data_of_kind
from lmgraft.recipes.options import read_options
from lmgraft.registry import FILE_KINDS

if TYPE_CHECKING:
    from lmgraft.data.base import Data
    from lmgraft.data.check import Findings, ShowProgress

_SHOWN = 20  # files listed on the terminal; --json has all
_EVERY = 10.0  # seconds between lines where there is no terminal


@dataclass(frozen=True, kw_only=True)
class CheckData(Command):
    """Find unreadable files, missing classes and duplicates before a training does."""

    examples = f"""kinds of files: {", ".join(FILE_KINDS.names())}; lmgraft check-data --kind images --help shows the options of one

examples:
  lmgraft check-data photos                             # photos/<class>/*.jpg, or photos/{{train,val}}/<class>/*.jpg
  lmgraft check-data /data/imagenet --classes imagenet --workers 16 --json imagenet.json
  lmgraft check-data photos --csv labels.csv
  lmgraft check-data shards --dataset wds/ --train-split 'train-{{0000..0127}}.tar'
  lmgraft check-data --recipe image/vit_small_imagenet --data.root /data/imagenet

Every file is read in full. Exit status: 0 if all is well, 1 if something is wrong with the data."""  # noqa: E501
    takes_more = True
    root: str | None = word(default=None)
    """Folder of the files, or one file that holds them (.tar)."""
    recipe: str | None = None
    """Check a recipe's data; options beside it change it, as in lmgraft train."""
    kind: str = "images"
    """What the files are."""
    near: bool = False
    """Also find items that are nearly equal."""
    workers: int | None = None
    """Processes (default: one a CPU)."""
    json: Path | None = option(None, metavar="FILE")
    """Write everything that was found."""

    @classmethod
    def extend(cls, parser: ArgumentParser, words: Sequence[str]) -> ArgumentParser:
        for kind in FILE_KINDS.names():
            if kind in words or f"--kind={kind}" in words:
                parser.add_class_arguments(FILE_KINDS.load(kind), skip={"root"})
        return parser

    def run(self) -> int:
        if self.workers is not None and self.workers < 0:
            raise RecipeError(f"--workers {self.workers} is no whole number of at least 0", "for instance --workers 0")
        data = self._of_files() if self.recipe is None else load_recipe(self.recipe, self.more).data
        data.says_remarks = False  # they are listed below
        workers = os.cpu_count() or 1 if self.workers is None else self.workers
        findings = data.check(workers, _progress(data.things), self.near)
        if self.json:
            records.write_json(self.json, findings.to_dict())
        for line in findings.problems:
            print(f"wrong: {line}")
        _show(findings)
        print(_advice(findings, self.json))
        return 1 if findings.is_wrong else 0

    def _of_files(self) -> Data:
        """Data of files of one's own, from the options of their class."""
        options = read_options(self.more)
        if self.root is None and not any(one.key in ("csv", "dataset") and any(one.words) for one in options):
            raise DataError("no folder was given", "lmgraft check-data DIR")
        if self.root is not None and not Path(self.root).expanduser().exists():
            raise DataError(f"{self.root}: there is no such folder", "check the path")
        advice = f"lmgraft check-data --kind {self.kind} --help lists every option"
        return data_of_kind(self.kind, options, advice, root=self.root)


COMMAND = CheckData


def _progress(things: str) -> ShowProgress:
    """What shows the progress of a split: a bar on a terminal, else a line now and then."""

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def show(split: str, total: int) -> Iterator[Callable[[int, int], None]]:
        done = bad = 0
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=console) as bar:
                task = bar.add_task(split, total=total)

                def advance(more: int, more_bad: int) -> None:
                    nonlocal bad
                    bad += more_bad
                    bar.update(task, advance=more, description=f"{split}, {bad:,} unreadable" if bad else split)

                yield advance
            return
        started = last = time.monotonic()

        def say(more: int, more_bad: int) -> None:
            nonlocal done, bad, last
            done, bad, now = done + more, bad + more_bad, time.monotonic()
            if now - last >= _EVERY or done == total:
                last, rate = now, done / max(now - started, 1e-9)
                sys.stderr.write(f"[{split}] {done:,} of {total:,} {things}, {rate:.0f} a second, {bad:,} unreadable\n")
                sys.stderr.flush()

        yield say

    return show


def _show(findings: Findings) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    for split, faults in findings.faults.items():
        for fault in faults[:_SHOWN]:
            console.print(f"unreadable: {split}: {fault.file}: {fault.reason}", markup=False)
        if len(faults) > _SHOWN:
            console.print(f"  and {len(faults) - _SHOWN:,} more in {split}; --json FILE lists all")
    for grid in findings.grids:
        table = Table(*grid.header, title=grid.title)
        for row in grid.rows:
            table.add_row(*row)
        console.print(table)
    for remark in findings.remarks:
        console.print(f"note: {remark}", markup=False)


def _advice(findings: Findings, json_file: Path | None) -> str:
    if not findings.is_wrong:
        return f"All {findings.things} can be read. What to do: train."
    bad = sum(map(len, findings.faults.values()))
    steps = []
    if findings.problems:
        steps.append("mend what is named above and check again")
    if bad:
        where = f"{json_file} lists them" if json_file else "--json FILE lists all of them"
        limits = " ".join(f"--data.{key} {count}" for key, count in findings.limits().items())
        files = (
            "the unreadable file again, or remove it" if bad == 1 else f"{bad:,} unreadable files again, or remove them"
        )
        steps.append(
            f"copy or fetch {files} ({where}; of a broken link, what it names); to train all the same, give {limits}"
        )
    return "What to do: " + "; ".join(steps) + "."
