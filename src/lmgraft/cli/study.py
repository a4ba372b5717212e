"""`lmgraft study NAME`."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lmgraft.cli.options import take_flag, take_number, take_option, take_options
from lmgraft.cli.tables import text_table
from lmgraft.errors import RecipeError
from lmgraft.recipes import ARMS
from lmgraft.recipes.recipe import DEBUG
from lmgraft.report.study import write_report
from lmgraft.report.study.tables import arms_sheet, terminal_table
from lmgraft.studies.engine.local import local
from lmgraft.studies.engine.missing import Executor
from lmgraft.studies.engine.progress import duration
from lmgraft.studies.engine.runs import Run
from lmgraft.studies.study.checks import check_cells, check_different, missing_blocks
from lmgraft.studies.study.config import Study, list_studies, load_study, study_parser
from lmgraft.studies.study.estimate import plan
from lmgraft.studies.study.results import StudyResult
from lmgraft.studies.study.run import make_cells, missing_commands, run_study, states_of, summarise


def run(argv: list[str]) -> int:
    if not argv or "-h" in argv or "--help" in argv:
        print(_help())
        return 0 if argv else 2
    arguments = list(argv)
    out, ray = take_option(arguments, "--out"), take_option(arguments, "--ray")
    workers = take_number(arguments, "--workers", least=1)
    reuse = [Path(folder) for folder in take_options(arguments, "--reuse")]
    dry_run, report_only = take_flag(arguments, "--dry-run"), take_flag(arguments, "--report-only")
    quick, allow_difference = take_flag(arguments, "--no-timing"), take_flag(arguments, "--allow-difference")
    bars, debug = take_flag(arguments, "--verbose"), take_flag(arguments, "--debug")
    print_jobs = take_flag(arguments, "--print-jobs")
    if not arguments or arguments[0].startswith("-"):
        raise RecipeError("no study was named", f"lmgraft study NAME ...; studies: {', '.join(list_studies())}")
    name, *options = arguments
    study = load_study(name + (DEBUG if debug else ""), options)
    folder = Path(out or f"runs/{study.name}")

    if dry_run:
        _print_plan(study, folder, reuse, measure=not quick)
        return 0
    if print_jobs:
        jobs = missing_commands(study, folder, reuse_from=reuse, say=_say, allow_difference=allow_difference)
        print("".join(f"{job}\n" for job in jobs), end="")
        return 0
    if report_only:
        result = summarise(study, folder, allow_difference=allow_difference)
    else:
        result = run_study(
            study,
            folder,
            executor=_executor(ray, workers, allow_difference),
            reuse_from=reuse,
            say=_say,
            progress="plain" if bars else "none",
            allow_difference=allow_difference,
        )
    page = write_report(result, folder)
    _print(result)
    print(f"\nThe page: {page.resolve()}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _executor(ray: str | None, workers: int | None, allow_difference: bool) -> Executor[Run]:
    if ray is None:
        return local(workers or 1)
    from lmgraft.studies.engine.cluster import on_ray

    return on_ray(ray, workers, allow_difference=allow_difference)


def _print_plan(study: Study, folder: Path, reuse: list[Path], *, measure: bool) -> None:
    cells = make_cells(study, folder)
    check_cells(cells)
    states, _ = states_of(cells, reuse, _say, dry_run=True)
    rows = plan(cells, states, measure=measure, say=_say, reference=study.reference)
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
            row.why_not if cost is None else duration(cost.seconds),
            "" if row.seconds is None else duration(row.seconds),
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
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
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(text_table(arms_sheet(result).table()))
    console.print(text_table(terminal_table(result)))
    for sentence in result.verdict:
        console.print(f"- {sentence}", highlight=False)
    for note in result.notes:
        console.print(f"  note: {note}", highlight=False)


def _help() -> str:
    listed = ", ".join(list_studies())
    arms = "\n".join(f"  {name:<18} {arm.question}" for name, arm in ARMS.items())
    body = study_parser().format_help()
    return f"""usage: lmgraft study NAME [--out DIR] [--dry-run] [--workers N | --ray ADDRESS] [options]

Train several arms with several seeds each, all else equal bit by bit (initial weights, order and
augmentation of the items), compare them by statistics that are fixed before anything runs, and
write a page that says what was shown and what was not.

  NAME                a study below or a path to a .yaml file
  --out DIR           folder of the study (default: runs/<study>). Runs that are there are kept, interrupted
                      ones go on, arms and seeds may be added
  --debug             the study cut down to a minute or two, as its `debug` key says; NAME_debug is the same
  --dry-run           print runs and cost, timed by a few steps of each arm, and what LLMs are missing; trains
                      and writes nothing in DIR, but fetches data and blocks into the cache to time them;
                      with --no-timing without timing: only LLMs' headers are fetched
  --no-timing         with --dry-run: list the runs only
  --workers N         runs at a time on this machine (default 1)
  --ray ADDRESS       run on a Ray cluster: auto, local, or its address; --workers says how many at a time. DIR must
                      be a folder that all machines see
  --reuse DIR         take finished runs of the same recipe and seed from there; may be given again
  --print-jobs        check everything, print a shell command for each missing run, for a SLURM array and the like, and
                      train nothing; when they are done, --report-only compares the runs
  --report-only       read what is finished and write the report
  --allow-difference  compare runs of different versions of lmgraft, torch or timm
  --verbose           progress lines of single runs too

Written to DIR: study.yaml (all resolved), runs/<arm>/seed<k>/ (run folders), results.json, report.html,
tables/ (CSV, Markdown, LaTeX), figures/ (SVG, PNG).

studies:
{textwrap.fill(listed, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)}

arms:
{arms}

examples:
  lmgraft study image/fashion_controls --dry-run
  lmgraft study image/fashion_controls --out runs/controls
  lmgraft study image/fashion_controls --arms plain,llm,shuffled --seeds 8 --metric nll
  lmgraft study my_study.yaml --seeds "[5, 6, 7]" --train.epochs 2 --graft.layer 12
  lmgraft study image/paper_capacity --data.root IMAGENET --ray auto

Every key of a study's file is an option, and so is every key of its recipe (lmgraft train --help), for
all arms. docs/studies.md shows a study's file; docs/statistics.md says what the words of the verdict mean.
""" + body[body.index("\n\n") :]
