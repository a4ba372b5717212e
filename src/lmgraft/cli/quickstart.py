"""`lmgraft quickstart`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lmgraft import records
from lmgraft.cli.tables import print_table
from lmgraft.report.quickstart.page import write_page
from lmgraft.report.quickstart.table import markdown, statements, table
from lmgraft.studies.quickstart import RECIPE, run_quickstart


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lmgraft quickstart",
        description="Train a small ViT on Fashion-MNIST three times: by itself, with a frozen block of a real LLM, and "
        "with a frozen random block; then write a table and a page to look at. Fetches 31 MB of images and 93 MB of "
        "weights once. A few minutes on two CPU cores. Interrupted, the same command goes on. "
        "Further options change the recipe for all arms, for instance --seed 1 or --train.epochs 8.",
        epilog="example:  lmgraft quickstart --out runs/quickstart",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quickstart"), help="folder for runs and report (default: %(default)s)"
    )
    parser.add_argument("--recipe", default=RECIPE, help="recipe to train in three arms (default: %(default)s)")
    arguments, overrides = parser.parse_known_args(argv)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    quickstart = run_quickstart(arguments.out, recipe=arguments.recipe, overrides=overrides, say=say)
    page = write_page(quickstart, arguments.out / "report.html")
    records.write_text(arguments.out / "table.md", markdown(quickstart))
    print_table(table(quickstart), statements(quickstart), width=None if sys.stdout.isatty() else 110)
    print(f"\nThe page: {page.resolve()}")
    return 0
