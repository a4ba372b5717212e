"""`lmgraft evaluate RUN`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lmgraft import records
from lmgraft.analysis.items import metric_interval
from lmgraft.cli.evaluate_suite import (
    add_suite_options,
    run_suite,
    suite_options_given,
    suites_help,
    take_suite_options,
)
from lmgraft.errors import RecipeError
from lmgraft.graft.approximate import MODES
from lmgraft.recipes import evaluate_run
from lmgraft.recipes.run import read_run
from lmgraft.registry import SUITES
from lmgraft.training.approximate import ApproximateTest
from lmgraft.words.numbers import value as written

_ABOUT = """Evaluate a run's best checkpoint on its test items, from the run's own record; or one or several runs
on a robustness suite, with table and figure (docs/robustness.md). Further options change the recipe, for instance
--data.root DIR."""
_EXAMPLES = """examples:
  lmgraft evaluate runs/fashion                          the test images once more
  lmgraft evaluate runs/fashion --suite corruptions      15 corruptions in 5 severities, made on the fly
  lmgraft evaluate runs/plain runs/llm --suite corruptions --limit 1000 --out compared
  lmgraft evaluate runs/vit_s --suite imagenet-robustness --suite-root /data/robustness
  lmgraft evaluate runs/vit_s --suite imagenet-robustness --imagenet-c /data/imagenet-c --sets imagenet_c
  lmgraft evaluate --model timm:vit_tiny_patch16_224 --checkpoint weights.safetensors \\
      --suite imagenet-robustness --suite-root /data/robustness
"""


def run(argv: list[str]) -> int:
    wants_help = not {"-h", "--help"}.isdisjoint(argv)
    parser = argparse.ArgumentParser(
        prog="lmgraft evaluate",
        description=_ABOUT,
        epilog=f"{suites_help()}\n\n{_EXAMPLES}" if wants_help else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    rest, options = take_suite_options(argv)
    other = any(argument.partition("=")[0] == "--model" for argument in argv)
    parser.add_argument(
        "run",
        type=Path,
        nargs="*" if other else "+",
        help="run folder, as lmgraft train made it; several with --suite",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--approximate",
        nargs="?",
        const="auto",
        choices=MODES,
        help="compute the graft in fewer bits, and print its error on the first test batch; default: auto, int8 on "
        "a CPU and 16 bits elsewhere. Give it behind RUN",
    )
    parser.add_argument(
        "--suite", metavar="NAME", help=f"evaluate on a suite instead of the test items: {', '.join(SUITES.names())}"
    )
    add_suite_options(parser)
    arguments, overrides = parser.parse_known_args(rest)
    if arguments.suite is not None:
        return run_suite(arguments, overrides, options)
    given = suite_options_given(arguments, overrides)
    if given:
        raise RecipeError(
            f"{', '.join(given)}: only a suite has this", f"add --suite, one of {', '.join(SUITES.names())}"
        )
    if len(arguments.run) != 1:
        raise RecipeError("several runs are evaluated on a suite", "add --suite corruptions")
    return _evaluate(arguments.run[0], arguments, overrides)


def _evaluate(run_dir: Path, arguments: argparse.Namespace, overrides: list[str]) -> int:
    watch = None if arguments.approximate is None else ApproximateTest(arguments.approximate)
    result, items = evaluate_run(run_dir, overrides, [] if watch is None else [watch])
    recipe = read_run(run_dir, overrides)
    metrics = [recipe.metric(name) for name in result.metrics]
    intervals = {metric.name: metric_interval(items, metric) for metric in metrics}
    report = None if watch is None else watch.report
    record = asdict(result) | {"intervals": intervals}
    record |= {} if report is None else {"approximation": report.to_dict()}
    records.write_json(run_dir / "evaluation.json", record)
    if arguments.json:
        print(json.dumps(record, indent=2))
        return 0
    things, width = recipe.data.things, max(len(metric.title) for metric in metrics)
    print(f"{run_dir}: arm {result.arm}, seed {result.seed}, {result.items} test {things}")
    for metric in metrics:
        text, ends = written(result.metrics[metric.name], metric), intervals[metric.name]
        between = "" if ends is None else f"  ({written(ends[0], metric)} to {written(ends[1], metric)})"
        print(f"{metric.title:<{width}}  {text:>8} {metric.unit}{between}")
    groups = len(np.unique(items["group"]))
    grouped = "" if groups == result.items else f" in {groups} groups"
    print(f"in brackets: 95 % interval over test {things}{grouped}, of this one run")
    primary = recipe.metric(result.primary)
    for category, parts in result.by.items():
        print(f"by {category.replace('_', ' ')}, {primary.title}:")
        width = max(map(len, parts))
        for name, value in parts.items():
            print(f"  {name:<{width}}  {written(value, primary):>8} {primary.unit}")
    if report is not None:
        print(report)
    return 0
