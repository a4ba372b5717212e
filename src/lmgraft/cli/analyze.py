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
  lmgraft analyze runs/{plain,llm,random_frozen}/seed* --limit 200 --causal 100
  lmgraft analyze runs/llm --causal 0 --layers false
  lmgraft analyze runs/plain runs/llm --masks imagenet-s --masks.root ImageNetS50"""
    takes_more = True
    runs: list[Path] = word(many=True, metavar="RUN")
    """Run folders, as lmgraft train and lmgraft study made them."""
    out: Path = option(Path("runs/analysis"), metavar="DIR")
    """Folder of the analysis."""
    masks: str | None = option(None, metavar="KIND")
    """Look at images with masks in place of the runs' test items, for instance imagenet-s or images-with-masks; options
    of the kind are written --masks.root DIR, --masks.suffix _mask and so on (docs/data.md)."""

    def run(self) -> int:
        from lmgraft.recipes.kinds import images_with_masks
        from lmgraft.report.analyze.page import sections, write_report
        from lmgraft.studies.analyze.run import analyze_runs

        overrides, others = images_with_masks(self.masks, self.more)
        config = AnalyzeConfig(**{one.name: getattr(self, one.name) for one in fields(AnalyzeConfig)})
        analysis, exhibits = analyze_runs(self.runs, self.out, config, overrides=overrides, others=others, say=say)
        page = write_report(analysis, exhibits, self.out)
        for section in sections(analysis):
            sys.stdout.write(f"{section.title} {section.answer}".rstrip() + "\n")
            sys.stdout.writelines(f"- {sentence}\n" for sentence in section.sentences)
        sys.stdout.write(f"\nThe page: {page.resolve()}\n")
        return 0


COMMAND = Analyze
