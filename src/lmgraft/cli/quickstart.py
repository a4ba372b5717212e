"""`lmgraft quickstart`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from lmgraft.cli.command import Command, option, say


@dataclass(frozen=True, kw_only=True)
class QuickstartCommand(Command):
    """Train a small ViT on Fashion-MNIST three times: by itself, with a frozen block of a real LLM, and with a frozen
    random block; then write a table and a page to look at. Fetches 31 MB of images and 93 MB of weights once. A few
    minutes on two CPU cores. Interrupted, the same command goes on. Further options change the recipe for all arms,
    for instance --seed 1 or --train.epochs 8."""

    examples = "example:  lmgraft quickstart --out runs/quickstart"
    takes_more = True
    out: Path = option(Path("runs/quickstart"), metavar="DIR")
    """Folder for runs and report."""
    recipe: str = "image/fashion_vit"
    """Recipe to train in three arms."""

    def run(self) -> int:
        from lmgraft import records
        from lmgraft.cli.tables import print_table
        from lmgraft.report.quickstart.page import write_page
        from lmgraft.report.quickstart.table import markdown, statements, table
        from lmgraft.studies.quickstart import run_quickstart

        quickstart = run_quickstart(self.out, recipe=self.recipe, overrides=self.more, say=say)
        page = write_page(quickstart, self.out / "report.html")
        records.write_text(self.out / "table.md", markdown(quickstart))
        print_table(table(quickstart), statements(quickstart), width=None if sys.stdout.isatty() else 110)
        print(f"\nThe page: {page.resolve()}")
        return 0


COMMAND = QuickstartCommand
