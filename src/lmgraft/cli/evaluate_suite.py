"""`lmgraft evaluate ... --suite`: a suite's own options, and what is printed of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from lmgraft.cli.command import say
from lmgraft.cli.tables import print_table
from lmgraft.errors import RecipeError
from lmgraft.recipes.options import Option, read_options
from lmgraft.registry import SUITES
from lmgraft.report.robustness.table import notes, table, to_dict, write_report
from lmgraft.studies.robustness.run import Robustness, RobustnessConfig, evaluate_elsewhere, evaluate_robustness
from lmgraft.studies.robustness.suite import find_suite, make_suite, options_of, suite_parser

if TYPE_CHECKING:
    from lmgraft.cli.evaluate import Evaluate

_OPTIONS = ("out", "limit", "batch_size", "workers", "model", "checkpoint")


def add_options(parser: ArgumentParser, name: str) -> None:
    """Give a parser the options of a suite, for the help."""
    suite = find_suite(name)
    texts = {action.dest: action.help for action in suite_parser(suite)._actions}
    group = parser.add_argument_group(f"suite {name}", (suite.__doc__ or "").splitlines()[0])
    for one, field in options_of(suite).items():
        if not one.startswith("--suite."):
            group.add_argument(one, help=texts[field])


def of_suites(command: Evaluate) -> list[str]:
    """Those that only a suite has, of the options that were given."""
    known = {one for name in SUITES.names() for one in options_of(SUITES.load(name))}
    given = [f"--{name.replace('_', '-')}" for name in _OPTIONS if getattr(command, name) is not None]
    return given + [f"--{key}" for key, _ in read_options(command.more) if f"--{key}" in known]


def run_suite(command: Evaluate, name: str) -> int:
    """Evaluate, print the table, write page and figure."""
    if command.approximate is not None:
        raise RecipeError("--approximate works without --suite only", "leave out one of them")
    fields = options_of(find_suite(name))
    options: dict[str, str] = {}
    overrides: list[str] = []
    for one in read_options(command.more):
        if f"--{one.key}" in fields:
            options[fields[f"--{one.key}"]] = _value(one)
        else:
            overrides += [f"--{one.key}", *one.words]
    suite = make_suite(name, options)
    config = RobustnessConfig(suite=suite, limit=command.limit, batch_size=command.batch_size, workers=command.workers)
    results, out = _evaluated(command, config, overrides)
    written = write_report(results, out)
    if command.json:
        print(json.dumps([to_dict(result) for result in results], indent=2))
        return 0
    width = None if sys.stdout.isatty() else 60 + 32 * len(results)
    print_table(table(results), notes(results), width=width)
    print(f"\nWritten: {', '.join(str(path) for path in written)}")
    return 0


def _evaluated(command: Evaluate, config: RobustnessConfig, overrides: list[str]) -> tuple[list[Robustness], Path]:
    """What came of each model, and where it is to be written."""
    if command.model is None:
        if not command.runs:
            raise RecipeError("no run was named", "lmgraft evaluate RUN --suite NAME")
        first = command.runs[0]
        out = command.out or (first if len(command.runs) == 1 else first.resolve().parent / "robustness")
        return evaluate_robustness(command.runs, config, overrides=overrides, say=say), out
    if command.runs or overrides:
        extra = " ".join(map(str, [*command.runs, *overrides]))
        raise RecipeError(f"--model is given instead of RUN; not known: {extra}")
    if command.checkpoint is None:
        raise RecipeError("--model needs --checkpoint FILE", "give the file of its weights")
    out = command.out or command.checkpoint.parent / f"{command.checkpoint.stem}_robustness"
    return [evaluate_elsewhere(command.model, command.checkpoint, out, config, say=say)], out


def _value(one: Option) -> str:
    if not one.words:
        raise RecipeError(f"--{one.key} needs a value", f"write --{one.key} VALUE")
    return ",".join(one.words)
