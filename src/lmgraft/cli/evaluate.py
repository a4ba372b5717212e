"""`lmgraft evaluate RUN`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from lmgraft import records
from lmgraft.analysis.intervals import wilson_interval
from lmgraft.recipes import evaluate_run


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lmgraft evaluate",
        description="Evaluate a run's best checkpoint on its test images, from the run's own record. "
        "Further options change the recipe, for instance --data.root DIR.",
        epilog="example:  lmgraft evaluate runs/fashion",
    )
    parser.add_argument("run", type=Path, help="run folder, as lmgraft train made it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments, overrides = parser.parse_known_args(argv)
    result = evaluate_run(arguments.run, overrides)
    records.write_json(arguments.run / "evaluation.json", asdict(result))
    if arguments.json:
        print(json.dumps(asdict(result), indent=2))
        return 0
    low, high = wilson_interval(result.correct, result.total)
    print(f"{arguments.run}: arm {result.arm}, seed {result.seed}")
    print(f"test accuracy  {100 * result.accuracy:.2f} %  ({result.correct} of {result.total})")
    print(f"95 % interval  {100 * low:.2f} to {100 * high:.2f} %, over test images of this one run")
    width = max(map(len, result.class_accuracy))
    for name, accuracy in result.class_accuracy.items():
        print(f"  {name:<{width}}  {100 * accuracy:6.2f} %")
    return 0
