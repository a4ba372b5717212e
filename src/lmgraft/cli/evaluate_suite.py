"""`lmgraft evaluate ... --suite`: a suite's own options, and what is printed of it."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from lmgraft.cli.options import take_option
from lmgraft.cli.tables import print_table
from lmgraft.errors import RecipeError
from lmgraft.registry import SUITES
from lmgraft.report.robustness.table import notes, table, to_dict, write_report
from lmgraft.studies.robustness.run import RobustnessConfig, evaluate_elsewhere, evaluate_robustness
from lmgraft.studies.robustness.suite import Suite, find_suite, make_suite, options_of, suite_parser

_OPTIONS = ("--out", "--limit", "--batch-size", "--workers", "--model", "--checkpoint")


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """The options that every suite has."""
    group = parser.add_argument_group("options of any suite")
    group.add_argument("--out", type=Path, help="folder for table and figure (default: the run's, or for several "
                       "'robustness' beside the first)")  # fmt: skip
    group.add_argument("--limit", type=int, metavar="N", help="at most so many items a cell: a quick look")
    group.add_argument("--batch-size", type=int, metavar="N", help="items a batch (default: the recipe's)")
    group.add_argument("--workers", type=int, metavar="N", help="processes that read items (default: one a core)")
    group.add_argument("--model", metavar="timm:NAME", help="a model from elsewhere, instead of RUN")
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help="its weights: .safetensors, .pth, .ckpt")


def suites_help() -> str:
    """Each suite and its own options."""
    parts = []
    for name in SUITES.names():
        suite: type[Suite] = SUITES.load(name)
        texts = {action.dest: action.help or "" for action in suite_parser(suite)._actions}
        lines = [f"--suite {name}: {(suite.__doc__ or '').splitlines()[0]}"]
        for option, field in options_of(suite).items():
            if not option.startswith("--suite."):
                lines.append(textwrap.fill(f"{option:<20}  {texts[field]}", 100, subsequent_indent=" " * 24))
        parts.append("\n  ".join(lines))
    return "\n".join(parts)


def take_suite_options(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The other arguments, and field -> text of the options of the suite that `--suite` names.

    They are taken before the command's own are read, which would take their values for run folders.
    """
    rest = list(argv)
    name = take_option(list(argv), "--suite")
    fields = {} if name is None else options_of(find_suite(name))
    given = [(field, take_option(rest, option)) for option, field in fields.items()]
    return rest, {field: text for field, text in given if text is not None}


def suite_options_given(arguments: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """Those that only a suite has, of the options that were given."""
    known = {option for name in SUITES.names() for option in options_of(SUITES.load(name))}
    names = [argument.partition("=")[0] for argument in rest]
    given = [option for option in _OPTIONS if getattr(arguments, option[2:].replace("-", "_")) is not None]
    return given + [name for name in names if name in known]


def run_suite(arguments: argparse.Namespace, overrides: list[str], options: dict[str, str]) -> int:
    """Evaluate, print the table, write page and figure.

    Args:
        arguments: Of the command.
        overrides: Options of the recipe.
        options: Of the suite, see `take_suite_options`.
    """
    if arguments.approximate is not None:
        raise RecipeError("--approximate works without --suite only", "leave out one of them")
    config = RobustnessConfig(
        suite=make_suite(arguments.suite, options),
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )
    if arguments.model is not None:
        if arguments.run or overrides:
            raise RecipeError(
                f"--model is given instead of RUN; not known: {' '.join(map(str, [*arguments.run, *overrides]))}"
            )
        if arguments.checkpoint is None:
            raise RecipeError("--model needs --checkpoint FILE", "give the file of its weights")
        out = arguments.out or arguments.checkpoint.parent / f"{arguments.checkpoint.stem}_robustness"
        results = [evaluate_elsewhere(arguments.model, arguments.checkpoint, out, config, say=_say)]
    else:
        first = arguments.run[0]
        out = arguments.out or (first if len(arguments.run) == 1 else first.resolve().parent / "robustness")
        results = evaluate_robustness(arguments.run, config, overrides=overrides, say=_say)
    written = write_report(results, out)
    if arguments.json:
        print(json.dumps([to_dict(result) for result in results], indent=2))
        return 0
    width = None if sys.stdout.isatty() else 60 + 32 * len(results)
    print_table(table(results), notes(results), width=width)
    print(f"\nWritten: {', '.join(str(path) for path in written)}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
