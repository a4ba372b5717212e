"""`lmgraft analyze RUN [RUN ...]`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path

from lmgraft.cli.command import Command, option, say, word
from lmgraft.studies.analyze.config import AnalyzeConfig


@dataclass(frozen=True, kw_only=True)
class Analyze(Command, AnalyzeConfig):
    """What the block does to tokens, measured on finished runs beside each other: which tokens stand out, whether they
    lie on the object, and what is lost when those that the block amplifies are masked. Writes report.html, tables,
    figures, pictures of items chosen by rule, and analysis.json."""

    examples = """docs/analysis.md says what is measured and how to read it.

Give a plain run, one with the LLM's block and one with a random block; several runs of one arm count as its seeds.
Interrupted, the same command goes on. Further options change the runs' recipes, for instance --data.root DIR.

examples:
  lmgraft analyze runs/plain runs/llm runs/random_frozen --out runs/analysis
  lmgraft analyze runs/motion_controls/runs/*/*/seed* --limit 200 --causal 100
  lmgraft analyze runs/llm --causal 0 --layers false"""
    takes_more = True
    runs: list[Path] = word(many=True, metavar="RUN")
    """Run folders, as lmgraft train and lmgraft study made them."""
    out: Path = option(Path("runs/analysis"), metavar="DIR")
    """Folder of the analysis."""

    def run(self) -> int:
        from lmgraft.report.analyze.page import sentences, write_report
        from lmgraft.studies.analyze.run import analyze_runs

        config = AnalyzeConfig(**{one.name: getattr(self, one.name) for one in fields(AnalyzeConfig)})
        analysis, exhibits = analyze_runs(self.runs, self.out, config, overrides=self.more, say=say)
        page = write_report(analysis, exhibits, self.out)
        for sentence in sentences(analysis):
            sys.stdout.write(f"- {sentence}\n")
        sys.stdout.write(f"\nThe page: {page.resolve()}\n")
        return 0


COMMAND = Analyze
