"""`lmgraft check-data ROOT`, and `lmgraft check-data --recipe NAME`."""

from __future__ import annotations

import os
import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lmgraft import records
from lmgraft.cli.options import take_number, take_option
from lmgraft.data.base import Data
from lmgraft.data.check import Findings, ShowProgress
from lmgraft.errors import DataError, RecipeError
from lmgraft.recipes import load_recipe
from lmgraft.recipes.options import explained, taken_by
from lmgraft.registry import FILE_KINDS

_ABOUT = "Find unreadable files, missing classes and duplicates before a training does."
_EXAMPLES = """examples:
  lmgraft check-data photos                             # photos/<class>/*.jpg, or photos/{train,val}/<class>/*.jpg
  lmgraft check-data /data/imagenet --classes imagenet --workers 16 --json imagenet.json
  lmgraft check-data photos --csv labels.csv
  lmgraft check-data shards --dataset wds/ --train-split 'train-{0000..0127}.tar'
  lmgraft check-data --recipe image/vit_small_imagenet --data.root /data/imagenet

Every file is read in full. Exit status: 0 if all is well, 1 if something is wrong with the data.
"""
_OWN = ("recipe", "kind", "workers", "json")
_SHOWN = 20  # files listed on the terminal; --json has all
_EVERY = 10.0  # seconds between lines where there is no terminal


def run(argv: list[str]) -> int:
    rest = list(argv)
    kind = take_option(rest, "--kind") or "images"
    recipe, json_file = take_option(rest, "--recipe"), take_option(rest, "--json")
    workers = take_number(rest, "--workers", least=0)
    of_files = recipe is None or "-h" in rest or "--help" in rest
    data = _of_files(kind, rest) if of_files else load_recipe(str(recipe), rest).data
    findings = data.check(os.cpu_count() or 1 if workers is None else workers, _progress(data.things))
    if json_file:
        records.write_json(Path(json_file), findings.to_dict())
    for line in findings.problems:
        print(f"wrong: {line}")
    _show(findings)
    print(_advice(findings, json_file))
    return 1 if findings.is_wrong else 0


def _of_files(kind: str, arguments: list[str]) -> Data:
    """Data of files of one's own, from the options of their class."""
    parser = ArgumentParser(
        prog="lmgraft check-data",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("root", nargs="?", help="folder of the files, or one file that holds them (.tar)")
    parser.add_argument("--recipe", help="check a recipe's data; options beside it change it, as in lmgraft train")
    parser.add_argument("--kind", default="images", help=f"what the files are: {', '.join(FILE_KINDS.names())}")
    parser.add_argument("--workers", type=int, help="processes (default: one a CPU)")
    parser.add_argument("--json", metavar="FILE", help="write everything that was found")
    data_class: type[Data] = FILE_KINDS.find(kind)
    parser.add_class_arguments(data_class, skip={"root"})
    try:
        options = vars(parser.parse_args([_spelt(argument) for argument in arguments]))
        root = options.pop("root")
        if root is None and not any(options.get(name) for name in ("csv", "dataset")):
            raise DataError("no folder was given", "lmgraft check-data DIR")
        if root is not None and not Path(root).expanduser().exists():
            raise DataError(f"{root}: there is no such folder", "check the path")
        options = vars(parser.instantiate(parser.parse_args([_spelt(argument) for argument in arguments])))
    except (ArgumentError, TypeError) as error:
        raise RecipeError(
            explained(error, taken_by(data_class)), "lmgraft check-data --help lists every option"
        ) from None
    given = {
        name: value for name, value in options.items() if name not in ("root", "recipe", "kind", "workers", "json")
    }
    return data_class(root=root, **given)  # type: ignore[call-arg]


def _spelt(argument: str) -> str:
    """`--train-split=x` as `--train_split=x`, as recipes spell it."""
    name, equals, value = argument.partition("=")
    return (name.replace("-", "_").replace("__", "--", 1) if name.startswith("--") else name) + equals + value


def _progress(things: str) -> ShowProgress:
    """What shows the progress of a split: a bar on a terminal, else a line now and then."""

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


def _advice(findings: Findings, json_file: str | None) -> str:
    if not findings.is_wrong:
        return f"All {findings.things} can be read. What to do: train."
    bad = sum(map(len, findings.faults.values()))
    steps = []
    if findings.problems:
        steps.append("mend what is named above and check again")
    if bad:
        where = f"{json_file} lists them" if json_file else "--json FILE lists all of them"
        limits = " ".join(f"--data.{key} {count}" for key, count in findings.limits().items())
        steps.append(
            f"copy or fetch the {bad:,} unreadable files again, or remove them ({where}); to train all the same, give "
            + limits
        )
    return "What to do: " + "; ".join(steps) + "."
