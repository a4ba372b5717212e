"""`lmgraft scan RECIPE`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from lmgraft.cli.command import Command, option, say, word
from lmgraft.studies.scan.config import ScanConfig

if TYPE_CHECKING:
    from lmgraft.studies.scan import Plan, Scan
    from lmgraft.studies.scan.known import Known, Trainings


@dataclass(frozen=True, kw_only=True)
class ScanCommand(Command, ScanConfig):
    """Which LLM, layer and position: cheap scores of every candidate on a trained plain encoder, and a short training
    of each beside the plain one. Writes scan.json, report.html, tables and figures. Only training and held-out items
    are used, never test items."""

    examples = """docs/scan.md says what each score measures.

Further options change the recipe for all candidates, for instance --data.train_size 5000 or --seed 1.
Interrupted, the same command goes on; more LLMs, layers, positions and scores may be added to a finished scan.

examples:
  lmgraft scan image/fashion_vit --llms smollm2-135m --layers 0 5 10 -1 --out runs/scan
  lmgraft scan image/fashion_vit --llms smollm2-135m,path/to/qwen.gguf --layers every:4 --positions tail,middle
  lmgraft scan image/fashion_vit --from-run runs/plain --train-epochs 0 --layers all
  lmgraft scan image/fashion_vit --known runs/depth_study --out runs/scan"""
    takes_more = True
    hidden = (*Command.hidden, "overrides")
    recipe: str = word()
    """Name of a recipe, or path to a .yaml file."""
    known: Path | None = option(None, metavar="FOLDER")
    """What real trainings gave: a study's folder, or a JSON file."""
    out: Path = option(Path("runs/scan"), metavar="DIR")
    """Folder of the scan."""
    dry_run: bool = False
    """List the candidates and what they take; compute nothing."""
    verbose: bool = False
    """Show the trainings' own progress."""

    def run(self) -> int:
        from lmgraft.report.scan.page import write_report
        from lmgraft.studies.scan import plan_scan, run_scan
        from lmgraft.studies.scan.encoder import scan_recipe
        from lmgraft.studies.scan.known import check_trainings, match, read_trainings, unknown_data

        asked = {one.name: getattr(self, one.name) for one in fields(ScanConfig)}
        lists = {name: tuple(value) for name, value in asked.items() if isinstance(value, list)}
        config = ScanConfig(**asked | lists | {"overrides": self.more})
        trainings = None if self.known is None else read_trainings(self.known, scan_recipe(config).metric)
        plan = plan_scan(config, say)
        if trainings is not None:
            check_trainings(trainings, plan.candidates, plan.recipe.data.fingerprint())
            if unknown_data(trainings):
                say(f"{trainings.source} does not say what it was trained on: see to it that these are the scan's data")
        if self.dry_run:
            _print_plan(plan, trainings)
            return 0
        scan = run_scan(config, self.out, say=say, progress="plain" if self.verbose else "none", plan=plan)
        known = None if trainings is None else match(trainings, scan.candidates)
        page = write_report(scan, self.out, known)
        _print(scan, known)
        print(f"\nThe page: {page.resolve()}")
        return 0


COMMAND = ScanCommand


def _print(scan: Scan, known: Known | None) -> None:
    from rich.console import Console

    from lmgraft.cli.tables import print_table
    from lmgraft.report.scan.findings import findings
    from lmgraft.report.scan.tables import scores_table
    from lmgraft.words.scan import sentences

    print_table(scores_table(scan), width=_width(140))
    for sentence in sentences(findings(scan, known)):
        Console(width=_width(110)).print(f"- {sentence}", highlight=False, markup=False)


def _print_plan(plan: Plan, trainings: Trainings | None) -> None:
    from lmgraft.cli.tables import print_table
    from lmgraft.report.table import Table as TextTable
    from lmgraft.studies.engine.progress import duration
    from lmgraft.studies.scan.known import count_named

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
