"""`lmgraft evaluate RUN`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from lmgraft import records
from lmgraft.analysis.intervals import wilson_interval
from lmgraft.cli.evaluate_suite import SUITES, add_suite_options, run_suite, suite_options_given
from lmgraft.errors import RecipeError
from lmgraft.graft.approximate import MODES
from lmgraft.recipes import evaluate_run
from lmgraft.training.approximate import ApproximateTest

_ABOUT = """Evaluate a run's best checkpoint on its test images, from the run's own record; or one or several runs
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
    parser = argparse.ArgumentParser(
        prog="lmgraft evaluate",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
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
    parser.add_argument("--suite", choices=SUITES, help="what to evaluate on instead of the test images alone")
    add_suite_options(parser)
    arguments, overrides = parser.parse_known_args(argv)
    if arguments.suite is not None:
        return run_suite(arguments, overrides)
    given = suite_options_given(arguments, parser)
    if given:
        raise RecipeError(f"{', '.join(given)}: only a suite has this", f"add --suite, one of {', '.join(SUITES)}")
    if len(arguments.run) != 1:
        raise RecipeError("several runs are evaluated on a suite", "add --suite corruptions")
    return _evaluate(arguments.run[0], arguments, overrides)


def _evaluate(run_dir: Path, arguments: argparse.Namespace, overrides: list[str]) -> int:
    watch = None if arguments.approximate is None else ApproximateTest(arguments.approximate)
    result = evaluate_run(run_dir, overrides, [] if watch is None else [watch])
    report = None if watch is None else watch.report
    record = asdict(result) | ({} if report is None else {"approximation": report.to_dict()})
    records.write_json(run_dir / "evaluation.json", record)
    if arguments.json:
        print(json.dumps(record, indent=2))
        return 0
    low, high = wilson_interval(result.correct, result.total)
    print(f"{run_dir}: arm {result.arm}, seed {result.seed}")
    print(f"test accuracy  {100 * result.accuracy:.2f} %  ({result.correct} of {result.total})")
    print(f"95 % interval  {100 * low:.2f} to {100 * high:.2f} %, over test images of this one run")
    width = max(map(len, result.class_accuracy))
    for name, accuracy in result.class_accuracy.items():
        print(f"  {name:<{width}}  {100 * accuracy:6.2f} %")
    if report is not None:
        print(report)
    return 0
