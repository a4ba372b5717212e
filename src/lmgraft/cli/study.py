"""`lmgraft study NAME`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from lmgraft.cli.command import Command, add_keys, option, say, word, wrapped
from lmgraft.errors import RecipeError
from lmgraft.recipes import ARMS
from lmgraft.recipes.composing import DEBUG
from lmgraft.recipes.options import Option, one_word, read_options, taken_by
from lmgraft.registry import suggest
from lmgraft.studies.study.config import Study, StudyConfig, list_studies, load_study

if TYPE_CHECKING:
    from lmgraft.studies.engine.missing import Executor
    from lmgraft.studies.engine.runs import Run
    from lmgraft.studies.study.results import StudyResult

_STUDY, _RECIPE = "study.", "recipe."
_KEYS: dict[str, Any] = taken_by(StudyConfig) | {"arms": list[str], "contrasts": list[list[str]]}


@dataclass(frozen=True, kw_only=True)
class StudyCommand(Command):
    """Train several arms with several seeds each, all else equal bit by bit (initial weights, order and augmentation of
    the items), compare them by statistics that are fixed before anything runs, and write a page that says what was
    shown and what was not.

    Written to DIR: study.yaml (all resolved), runs/<arm>/seed<k>/ (run folders), results.json, report.html, tables/
    (CSV, Markdown, LaTeX), figures/ (SVG, PNG)."""

    examples = f"""studies (lmgraft recipes NAME shows one):
{wrapped(list_studies())}

arms:
{chr(10).join(f"  {name:<18} {arm.question}" for name, arm in ARMS.items())}

examples:
  lmgraft study image/fashion_controls --dry-run
  lmgraft study image/fashion_controls --out runs/controls
  lmgraft study image/fashion_controls --study.arms plain,llm,shuffled --study.seeds 8 --study.metric nll
  lmgraft study my_study.yaml --study.seeds 5,6,7 --recipe.train.epochs 2 --recipe.graft.layer 12
  lmgraft study image/paper_capacity --recipe.data.root IMAGENET --ray auto

Every key of a study's file is an option behind --study. and every key of its recipe (lmgraft train --help) one behind
--recipe. , for all arms. docs/studies.md shows a study's file; docs/statistics.md says what the words of the verdict
mean."""
    takes_more = True
    study: str = word()
    """A study below or a path to a .yaml file."""
    out: Path | None = option(None, metavar="DIR")
    """Folder of the study (default: runs/<study>). Runs that are there are kept, interrupted ones go on, arms and seeds
    may be added."""
    debug: bool = False
    """The study cut down to a minute or two, as its `debug` key says; NAME_debug is the same."""
    dry_run: bool = False
    """Print runs and cost, timed by a few steps of each arm, and what LLMs are missing; trains and writes nothing in
    DIR, but fetches data and blocks into the cache to time them."""
    no_timing: bool = False
    """With --dry-run: list the runs only; of LLMs only headers are fetched."""
    workers: int | None = option(None, metavar="N")
    """Runs at a time on this machine (default: 1)."""
    ray: str | None = option(None, metavar="ADDRESS")
    """Run on a Ray cluster: auto, local, or its address; --workers says how many at a time. DIR must be a folder that
    all machines see."""
    reuse: list[Path] = option([], metavar="DIR")
    """Take finished runs of the same recipe and seed from there."""
    print_jobs: bool = False
    """Check everything, print a shell command for each missing run, for a SLURM array and the like, and train nothing;
    when they are done, --report-only compares the runs."""
    report_only: bool = False
    """Read what is finished and write the report."""
    allow_difference: bool = False
    """Compare runs of different versions of lmgraft, torch or timm."""
    verbose: bool = False
    """Progress lines of single runs too."""

    @classmethod
    def extend(cls, parser: ArgumentParser, words: Sequence[str]) -> ArgumentParser:
        add_keys(parser, StudyConfig, _STUDY[:-1])
        return parser

    def run(self) -> int:
        if self.workers is not None and self.workers < 1:
            raise RecipeError(f"--workers {self.workers} is no whole number of at least 1", "for instance --workers 1")
        study = load_study(self.study + (DEBUG if self.debug else ""), options_of_both(self.more))
        folder = self.out or Path(f"runs/{study.name}")
        if self.dry_run:
            _print_plan(study, folder, self.reuse, measure=not self.no_timing)
            return 0
        from lmgraft.report.study import write_report
        from lmgraft.studies.study.run import missing_commands, run_study, summarise

        allowed = self.allow_difference
        if self.print_jobs:
            jobs = missing_commands(study, folder, reuse_from=self.reuse, say=say, allow_difference=allowed)
            print("".join(f"{job}\n" for job in jobs), end="")
            return 0
        if self.report_only:
            result = summarise(study, folder, allow_difference=allowed)
        else:
            result = run_study(
                study,
                folder,
                executor=self._executor(),
                reuse_from=self.reuse,
                say=say,
                progress="plain" if self.verbose else "none",
                allow_difference=allowed,
            )
        page = write_report(result, folder)
        _print(result)
        print(f"\nThe page: {page.resolve()}")
        return 0

    def _executor(self) -> Executor[Run]:
        if self.ray is None:
            from lmgraft.studies.engine.local import local

            return local(self.workers or 1)
        from lmgraft.studies.engine.cluster import on_ray

        return on_ray(self.ray, self.workers, allow_difference=self.allow_difference)


COMMAND = StudyCommand


def options_of_both(words: Sequence[str]) -> list[str]:
    """Options of the study (--study.KEY) and of its recipe (--recipe.KEY) as `load_study` takes them.

    As they were written until version 0.1, without a prefix, they are understood once more, with a note.
    """
    arguments, old = [], []
    for key, values in read_options(words):
        if key.startswith(_RECIPE):
            arguments += [f"--{key.removeprefix(_RECIPE)}", *values]
            continue
        name = key.removeprefix(_STUDY)
        if name.partition(".")[0] in _KEYS:
            value = one_word(Option(key, values), _KEYS.get(name, Any))
            arguments.append(f"--{name}={value}")
        elif key.startswith(_STUDY):
            raise RecipeError(f"there is no option --{key}", suggest(name, _KEYS))
        else:
            arguments += [f"--{key}", *values]
        if not key.startswith(_STUDY):
            old.append(f"--{key} is --{_STUDY if name.partition('.')[0] in _KEYS else _RECIPE}{key}")
    if old:
        say(f"lmgraft study: note: the next version wants options to say whose they are: {'; '.join(old)}")
    return arguments


def _print_plan(study: Study, folder: Path, reuse: list[Path], *, measure: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from lmgraft.studies.engine.progress import duration
    from lmgraft.studies.study.checks import check_cells, check_different, missing_blocks
    from lmgraft.studies.study.estimate import plan
    from lmgraft.studies.study.packed import unpacked
    from lmgraft.studies.study.run import make_cells, states_of

    with unpacked(folder) as place:
        cells = make_cells(study, place, foresee=True)
        check_cells(cells)
        states, _ = states_of(cells, reuse, say, dry_run=True)
        rows = plan(cells, states, measure=measure, say=say, reference=study.reference)
    print(f"{study.name}: {study.question}")
    print(f"recipe {study.recipe}, {len(study.seeds)} seeds, compared by {study.metric.title}, in {folder}")
    print("planned contrasts: " + ", ".join(f"{a} - {b}" for a, b in study.contrasts))
    table = Table()
    for position, head in enumerate(
        ("arm", "question", "runs", "missing", "trained", "frozen", "a run", "all missing")
    ):
        table.add_column(head, justify="left" if position < 2 else "right")
    for row in rows:
        cost = row.estimate
        table.add_row(
            row.arm,
            study.arms[row.arm].question,
            str(row.runs),
            str(row.missing),
            "" if cost is None else f"{cost.trained_params:,}",
            "" if cost is None else f"{cost.frozen_params:,}",
            duration(cost.seconds) if cost else "" if row.missing else "all done",
            "" if row.seconds is None else duration(row.seconds),
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for reason in dict.fromkeys(row.why_not for row in rows if row.why_not):
        arms = [row.arm for row in rows if row.why_not == reason]
        print(f"Steps of {', '.join(arms)} cannot be timed: {reason}")
    missing = list(missing_blocks([cell for cell in cells if states[cell] != "done"]))
    if not missing:
        check_different(cells)
    for error in missing:
        print(f"Missing: {error}")
    known = [row.seconds for row in rows if row.seconds is not None]
    if len(known) == len(rows):
        print(f"In all about {duration(sum(known))} of training, one run after another; nothing was started.")
    else:
        print("Nothing was started.")


def _print(result: StudyResult) -> None:
    from rich.console import Console

    from lmgraft.cli.tables import text_table
    from lmgraft.report.study.tables import arms_sheet, terminal_table

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(text_table(arms_sheet(result).table()))
    console.print(text_table(terminal_table(result)))
    for sentence in result.verdict:
        console.print(f"- {sentence}", highlight=False)
    for note in result.notes:
        console.print(f"  note: {note}", highlight=False)
