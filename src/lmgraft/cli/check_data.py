"""`lmgraft check-data ROOT`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lmgraft import records
from lmgraft.cli.options import take_option
from lmgraft.data.image.findings import DataFindings, check
from lmgraft.data.image.image_files import ImageFiles
from lmgraft.errors import DataError, RecipeError
from lmgraft.recipes import load_recipe

_EXAMPLES = """examples:
  lmgraft check-data photos                             # photos/<class>/*.jpg, or photos/{train,val}/<class>/*.jpg
  lmgraft check-data /data/imagenet --classes imagenet --workers 16 --json imagenet.json
  lmgraft check-data photos --csv labels.csv
  lmgraft check-data shards --dataset wds/ --train-split 'train-{0000..0127}.tar'
  lmgraft check-data --recipe image/vit_small_imagenet --data.root /data/imagenet

Every image is decoded in full. Exit status: 0 if all is well, 1 if something is wrong with the data.
"""
_SHOWN = 20  # files, classes and problems listed on the terminal; --json has all
_EVERY = 10.0  # seconds between lines where there is no terminal


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lmgraft check-data",
        description="Find unreadable images, missing classes and duplicates before a training does.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("root", nargs="?", help="folder of the images, or a .tar file")
    parser.add_argument("--dataset", default="", help="wds/, hfds/NAME or torch/NAME, as timm names them")
    parser.add_argument("--csv", help="a table with the columns path, label and perhaps split")
    for split in ("train", "val", "test"):
        parser.add_argument(f"--{split}-split", metavar="NAME", help=f"name of the {split} split")
    parser.add_argument("--classes", help="imagenet, how many there must be, or a text file with a name a line")
    parser.add_argument("--recipe", help="check a recipe's data; options beside it change it, as in lmgraft train")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a CPU)")
    parser.add_argument("--json", metavar="FILE", help="write everything that was found")
    rest = list(argv)
    recipe = take_option(rest, "--recipe")
    if recipe is None:
        arguments = parser.parse_args(rest)
        data = _data(arguments)
    else:
        own = [f"{name}={value}" for name in ("--workers", "--json") if (value := take_option(rest, name)) is not None]
        arguments = parser.parse_args(own)
        data = _of_recipe(recipe, rest)
    if arguments.workers < 0:
        raise RecipeError(f"--workers {arguments.workers} must not be negative")
    findings = check(data, arguments.workers, _progress)
    if arguments.json:
        records.write_json(Path(arguments.json), findings.to_dict())
    for line in findings.problems:
        print(f"wrong: {line}")
    _show(findings)
    print(_advice(findings, arguments.json))
    return 1 if findings.is_wrong else 0


def _of_recipe(name: str, overrides: list[str]) -> ImageFiles:
    data = load_recipe(name, overrides).data
    if not isinstance(data, ImageFiles):
        raise DataError(f"{name} has no image files", "its data set is checked when it is loaded")
    return data


def _data(arguments: argparse.Namespace) -> ImageFiles:
    if arguments.root is None and arguments.csv is None and not arguments.dataset:
        raise DataError("no folder was given", "lmgraft check-data DIR")
    if arguments.root is not None and not Path(arguments.root).expanduser().exists():
        raise DataError(f"{arguments.root}: there is no such folder", "check the path")
    names = arguments.classes
    return ImageFiles(
        root=arguments.root,
        dataset=arguments.dataset,
        csv=arguments.csv,
        train_split=arguments.train_split,
        val_split=arguments.val_split,
        test_split=arguments.test_split,
        classes=int(names) if names is not None and names.isdigit() else names,
    )


@contextmanager
def _progress(split: str, total: int) -> Iterator[Callable[[int, int], None]]:
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
            sys.stderr.write(f"[{split}] {done:,} of {total:,} images, {rate:.0f} a second, {bad:,} unreadable\n")
            sys.stderr.flush()

    yield say


def _show(findings: DataFindings) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for split, pictures in findings.seen.items():
        faults = pictures.faults
        for fault in faults[:_SHOWN]:
            console.print(f"unreadable: {split}: {fault.file}: {fault.reason}", markup=False)
        if len(faults) > _SHOWN:
            console.print(f"  and {len(faults) - _SHOWN:,} more in {split}; --json FILE lists all")
    if findings.seen:
        console.print(_splits_table(findings))
        console.print(_class_table(findings))
    for remark in findings.remarks():
        console.print(f"note: {remark}", markup=False)


def _splits_table(findings: DataFindings) -> Table:
    table = Table("split", "images", "classes", "unreadable", "median size", "modes")
    for split, pictures in findings.seen.items():
        width, height = pictures.median_size()
        modes = ", ".join(f"{mode} {count:,}" for mode, count in pictures.modes.most_common(4))
        images, classes = len(findings.found[split].names), len(findings.counts(split))
        table.add_row(split, f"{images:,}", f"{classes:,}", f"{len(pictures.faults):,}", f"{width} x {height}", modes)
    return table


def _class_table(findings: DataFindings) -> Table:
    """Images of each class; of many classes the rarest in the first split."""
    counts = {split: findings.counts(split) for split in findings.found}
    first = next(iter(counts.values()))
    names = sorted(set().union(*counts.values()), key=lambda name: (first[name], name))
    title = f"the {_SHOWN} rarest of {len(names):,} classes" if len(names) > _SHOWN else None
    table = Table("class", *counts, title=title)
    for name in names[:_SHOWN]:
        table.add_row(name, *(f"{part[name]:,}" for part in counts.values()))
    return table


def _limits(findings: DataFindings) -> str:
    """The options under which training goes on; where the test images are held out, any of the files may be one."""
    bad = {split: len(pictures.faults) for split, pictures in findings.seen.items()}
    test = next((split for split in ("test", "val") if split in bad), None)
    limits = {
        "max_corrupt": sum(count for split, count in bad.items() if split != test),
        "max_corrupt_test": sum(bad.values()) if test is None else bad[test],
    }
    return " ".join(f"--data.{key} {count}" for key, count in limits.items() if count)


def _advice(findings: DataFindings, json_file: str | None) -> str:
    if not findings.is_wrong:
        return "All images can be read. What to do: train."
    bad = sum(len(pictures.faults) for pictures in findings.seen.values())
    steps = []
    if findings.problems:
        steps.append("mend what is named above and check again")
    if bad:
        where = f"{json_file} lists them" if json_file else "--json FILE lists all of them"
        steps.append(
            f"copy or fetch the {bad:,} unreadable files again, or remove them ({where}); to train all the same, give "
            + _limits(findings)
        )
    return "What to do: " + "; ".join(steps) + "."
