"""`lmgraft predict RUN FILE ...`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from lmgraft import records
from lmgraft.cli.command import Command, option, word


@dataclass(frozen=True, kw_only=True)
class Predict(Command):
    """Let a run's best checkpoint look at files: a line of JSON for each, with what the task says of it (of
    classification the most likely classes and their probabilities). Further options change the recipe, for instance
    --data.eval_batch_size 8."""

    examples = """examples:
  lmgraft predict runs/photos photo.jpg
  lmgraft predict runs/photos holiday/ --out holiday.jsonl"""
    takes_more = True
    run_dir: Path = word(metavar="RUN")
    """Run folder, as lmgraft train made it."""
    sources: list[str] = word(many=True, metavar="FILE")
    """Files, or folders of them."""
    out: Path | None = option(None, metavar="FILE")
    """Write the lines there (default: print them)."""

    def run(self) -> int:
        from lmgraft.recipes.predict import predict_files

        rows = predict_files(self.run_dir, self.sources, self.more)
        lines = (json.dumps({"file": file, **prediction}, ensure_ascii=False) + "\n" for file, prediction in rows)
        if self.out is None:
            for line in lines:
                sys.stdout.write(line)
                sys.stdout.flush()
            return 0
        with records.atomic_path(self.out) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(lines)
        print(f"Written: {self.out}")
        return 0


COMMAND = Predict
