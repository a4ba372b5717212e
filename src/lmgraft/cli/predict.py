"""`lmgraft predict RUN FILE ...`."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.cli.command import Command, option, word
from lmgraft.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Predict(Command):
    """Let a run's best checkpoint look at files: a line of JSON or of a table for each, with what the task says of it
    (of classification the most likely classes and their probabilities). Further options change the recipe, for instance
    --data.eval_batch_size 8."""

    examples = """examples:
  lmgraft predict runs/photos photo.jpg
  lmgraft predict runs/photos holiday/ --csv --out holiday.csv"""
    takes_more = True
    run_dir: Path = word(metavar="RUN")
    """Run folder, as lmgraft train made it."""
    sources: list[str] = word(many=True, metavar="FILE")
    """Files, or folders of them."""
    out: Path | None = option(None, metavar="FILE")
    """Write the lines there (default: print them)."""

    json: bool = False
    """A line of JSON for each file (the default)."""
    csv: bool = False
    """A table instead, with a column for each name that any file's line has; written when all files were looked at."""

    def run(self) -> int:
        from lmgraft.recipes.predict import predict_files

        if self.json and self.csv:
            raise RecipeError("--json and --csv", "give one of them")
        rows = predict_files(self.run_dir, self.sources, self.more)
        lines = (_table if self.csv else _json_lines)({"file": file, **prediction} for file, prediction in rows)
        if self.out is None:
            for line in lines:
                sys.stdout.write(line)
                sys.stdout.flush()
            return 0
        with records.atomic_path(self.out) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(lines)
        print(f"Written: {self.out}")
        return 0


def _json_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _table(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    rows, text = list(rows), io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(chain.from_iterable(rows))), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    yield text.getvalue()


COMMAND = Predict
