"""`lmgraft scan RECIPE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from lmgraft.cli.tables import print_table
from lmgraft.report.scan.findings import findings
from lmgraft.report.scan.page import write_report
from lmgraft.report.scan.tables import scores_table
from lmgraft.report.table import Table as TextTable
from lmgraft.studies.engine.progress import duration
from lmgraft.studies.scan import ScanConfig, plan_scan, run_scan
from lmgraft.studies.scan.encoder import scan_recipe
from lmgraft.studies.scan.known import Trainings, check_trainings, count_named, match, read_trainings, unknown_data
from lmgraft.studies.scan.run import Plan
from lmgraft.studies.scan.scores import SCORES
from lmgraft.words.scan import sentences

_EXAMPLES = """Further options change the recipe for all candidates, for instance --data.train_size 5000 or --seed 1.
Interrupted, the same command goes on; more LLMs, layers, positions and scores may be added to a finished scan.

examples:
  lmgraft scan image/fashion_vit --llms smollm2-135m --layers 0 5 10 -1 --out runs/scan
  lmgraft scan image/fashion_vit --llms smollm2-135m path/to/qwen.gguf --layers every:4 --positions tail middle
  lmgraft scan image/fashion_vit --from-run runs/plain --train-epochs 0 --layers all
  lmgraft scan image/fashion_vit --known runs/depth_study --out runs/scan
"""


def run(argv: list[str]) -> int:
    parser = _parser()
    if not argv:
        parser.print_help()
        return 2
    given, overrides = parser.parse_known_args(argv)
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(given).items()}
    out, dry_run, known_path = options.pop("out"), options.pop("dry_run"), options.pop("known")
    verbose = options.pop("verbose")
    config = ScanConfig(overrides=tuple(overrides), **options)
    trainings = None if known_path is None else read_trainings(known_path, scan_recipe(config).metric)
    plan = plan_scan(config, _say)
    if trainings is not None:
        check_trainings(trainings, plan.candidates, plan.recipe.data.fingerprint())
        if unknown_data(trainings):
            _say(f"{trainings.source} does not say what it was trained on: see to it that these are the scan's data")
    if dry_run:
        _print_plan(plan, trainings)
        return 0
    scan = run_scan(config, out, say=_say, progress="plain" if verbose else "none", plan=plan)
    known = None if trainings is None else match(trainings, scan.candidates)
    page = write_report(scan, out, known)
    print_table(scores_table(scan), width=_width(140))
    for sentence in sentences(findings(scan, known)):
        Console(width=_width(110)).print(f"- {sentence}", highlight=False, markup=False)
    print(f"\nThe page: {page.resolve()}")
    return 0


def _parser() -> argparse.ArgumentParser:
    scores = "\n".join(f"  {name:<12}{score.measures}" for name, score in SCORES.items())
    parser = argparse.ArgumentParser(
        prog="lmgraft scan",
        description="Which LLM, layer and position: cheap scores of every candidate on a trained plain encoder, and a "
        "short training of each beside the plain one. Writes scan.json, report.html, tables and figures. "
        "Only training and held-out items are used, never test items.",
        epilog=f"scores:\n{scores}\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    default = ScanConfig(recipe="")

    def option(name: str, what: str, **more: object) -> None:
        value = getattr(default, name.replace("-", "_"))
        shown = " ".join(value) if isinstance(value, tuple) else value
        ends = "" if value is None else f" (default: {shown})"
        parser.add_argument(f"--{name}", default=value, help=what + ends, **more)  # type: ignore[arg-type]

    parser.add_argument("recipe", help="name of a recipe, or path to a .yaml file")
    option("llms", "sources of blocks, as lmgraft inspect takes them", nargs="+", metavar="LLM")
    option(
        "layers",
        "indices, negative from the end; all; every:N, the last and each N-th before it",
        nargs="+",
        metavar="LAYER",
    )
    option("positions", "tail, middle, head, the index of an encoder layer, or a dotted path", nargs="+", metavar="AT")
    option("scores", f"cheap scores to compute: {', '.join(SCORES)}", nargs="+", metavar="SCORE")
    option(
        "from-run",
        "finished run of the plain arm whose encoder is used; else scan trains one, unless the recipe's is pretrained",
        metavar="RUN",
    )
    option("draws", "draws of W1 for each candidate", type=int)
    option("train-images", "training items the probe is fitted to", type=int)
    option("val-images", "held-out items it is scored on", type=int)
    option("cka-images", "held-out items whose tokens cka compares", type=int)
    option("coherence-batches", "minibatches whose gradients are compared", type=int)
    option("coherence-images", "items of each", type=int)
    option("train-epochs", "epochs of the short training; 0 leaves it out", type=int)
    option("train-seeds", "its seeds", type=int)
    option("train-steps", "its steps at most, by using fewer training items", type=int)
    parser.add_argument("--known", type=Path, help="what real trainings gave: a study's folder, or a JSON file")
    parser.add_argument("--out", type=Path, default=Path("runs/scan"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the candidates and what they take; compute nothing"
    )
    parser.add_argument("--verbose", action="store_true", help="show the trainings' own progress")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_plan(plan: Plan, trainings: Trainings | None) -> None:
    names = list(dict.fromkeys(name for cost in plan.costs for name in cost.seconds))
    found = []
    for cost in plan.costs:
        block = plan.anatomy[cost.candidate.llm].config
        found.append(
            (
                cost.candidate.title,
                f"{block.num_params() / 1e6:.1f} M",
                *(duration(cost.seconds[name]) for name in names),
                f"{cost.memory / 2**30:.1f} GiB",
            )
        )
    print_table(TextTable(("candidate", "block", *names, "memory"), found), width=_width(140))
    total = sum(sum(cost.seconds.values()) for cost in plan.costs)
    print(f"{len(plan.costs)} candidates, about {duration(total)} by counted matrix products at this kind of device's "
          "rate; reading, norms and optimiser come on top.")  # fmt: skip
    if plan.trains_encoder:
        print("Before that, the plain encoder is trained; --from-run RUN takes a trained one.")
    if plan.config.trains:
        runs = (len(plan.costs) + 1) * plan.config.train_seeds
        print(
            f"The short training is {runs} runs of {plan.config.train_epochs} epochs; --train-epochs 0 leaves it out."
        )
    fetch = {llm: a.bytes_to_fetch for llm, a in plan.anatomy.items() if a.bytes_to_fetch}
    for llm, size in fetch.items():
        print(f"{llm}: about {size / 2**20:.0f} MiB a layer to fetch.")
    if trainings is not None:
        print(f"{trainings.source} has trainings of {count_named(trainings, plan.candidates)} of these candidates by "
              "name; others are matched by their blocks, once those are loaded.")  # fmt: skip


def _width(most: int) -> int | None:
    return None if sys.stdout.isatty() else most
