"""`lmgraft evaluate RUN`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from lmgraft import records
from lmgraft.analysis.intervals import wilson_interval
from lmgraft.graft.approximate import MODES
from lmgraft.recipes import evaluate_run
from lmgraft.training.approximate import ApproximateTest


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lmgraft evaluate",
        description="Evaluate a run's best checkpoint on its test images, from the run's own record. "
        "Further options change the recipe, for instance --data.root DIR.",
        epilog="example:  lmgraft evaluate runs/fashion",
    )
    parser.add_argument("run", type=Path, help="run folder, as lmgraft train made it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--approximate",
        nargs="?",
        const="auto",
        choices=MODES,
        help="compute the graft in fewer bits, and print its error on the first test batch; default: auto, int8 on "
        "a CPU and 16 bits elsewhere. Give it behind RUN",
    )
    arguments, overrides = parser.parse_known_args(argv)
    watch = None if arguments.approximate is None else ApproximateTest(arguments.approximate)
    result = evaluate_run(arguments.run, overrides, [] if watch is None else [watch])
    report = None if watch is None else watch.report
    record = asdict(result) | ({} if report is None else {"approximation": report.to_dict()})
    records.write_json(arguments.run / "evaluation.json", record)
    if arguments.json:
        print(json.dumps(record, indent=2))
        return 0
    low, high = wilson_interval(result.correct, result.total)
    print(f"{arguments.run}: arm {result.arm}, seed {result.seed}")
    print(f"test accuracy  {100 * result.accuracy:.2f} %  ({result.correct} of {result.total})")
    print(f"95 % interval  {100 * low:.2f} to {100 * high:.2f} %, over test images of this one run")
    width = max(map(len, result.class_accuracy))
    for name, accuracy in result.class_accuracy.items():
        print(f"  {name:<{width}}  {100 * accuracy:6.2f} %")
    if report is not None:
        print(report)
    return 0
