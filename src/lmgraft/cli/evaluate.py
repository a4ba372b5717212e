"""`lmgraft evaluate RUN`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jsonargparse import ArgumentParser

from lmgraft import records
from lmgraft.cli.command import Command, option, word
from lmgraft.errors import RecipeError
from lmgraft.graft.approximate import MODES
from lmgraft.registry import SUITES


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Evaluate a run's best checkpoint on its test items, from the run's own record; or one or several runs on a
    robustness suite, with table and figure (docs/robustness.md). Further options change the recipe, for instance
    --data.root DIR."""

    examples = f"""suites: {", ".join(SUITES.names())}; lmgraft evaluate --suite NAME --help shows the options of one

examples:
  lmgraft evaluate runs/fashion                          the test images once more
  lmgraft evaluate runs/fashion --suite corruptions      15 corruptions in 5 severities, made on the fly
  lmgraft evaluate runs/plain runs/llm --suite corruptions --limit 1000 --out compared
  lmgraft evaluate runs/vit_s --suite imagenet-robustness --suite-root /data/robustness
  lmgraft evaluate runs/vit_s --suite imagenet-robustness --imagenet-c /data/imagenet-c --sets imagenet_c
  lmgraft evaluate --model timm:vit_tiny_patch16_224 --checkpoint weights.safetensors \\
      --suite imagenet-robustness --suite-root /data/robustness"""
    takes_more = True
    runs: list[Path] = word(default=[], many=True, metavar="RUN")
    """Run folder, as lmgraft train made it; several with --suite."""
    json: bool = False
    """Print JSON."""
    approximate: str | None = option(None, const="auto", metavar="MODE")
    """Compute the graft in fewer bits, and print its error on the first test batch: auto, 16bit or int8; without MODE
    auto, int8 on a CPU and 16 bits elsewhere. Give it behind RUN."""
    suite: str | None = None
    """Evaluate on a suite instead of the test items."""
    out: Path | None = option(None, metavar="DIR")
    """Of a suite: folder for table and figure (default: the run's, or for several 'robustness' beside the first)."""
    limit: int | None = option(None, metavar="N")
    """Of a suite: at most so many items a cell, a quick look."""
    batch_size: int | None = option(None, metavar="N")
    """Of a suite: items a batch (default: the recipe's)."""
    workers: int | None = option(None, metavar="N")
    """Of a suite: processes that read items (default: one a core)."""
    model: str | None = option(None, metavar="timm:NAME")
    """Of a suite: a model from elsewhere, instead of RUN."""
    checkpoint: Path | None = option(None, metavar="FILE")
    """Of a suite: its weights, .safetensors, .pth or .ckpt."""

    @classmethod
    def needs_words(cls) -> bool:
        return True

    @classmethod
    def extend(cls, parser: ArgumentParser, words: Sequence[str]) -> ArgumentParser:
        for name in SUITES.names():
            if name in words or f"--suite={name}" in words:
                from lmgraft.cli.evaluate_suite import add_options

                add_options(parser, name)
        return parser

    def run(self) -> int:
        if self.approximate not in (None, *MODES):
            raise RecipeError(f"--approximate {self.approximate} is not known", f"one of {', '.join(MODES)}")
        if self.suite is not None:
            from lmgraft.cli.evaluate_suite import run_suite

            return run_suite(self, self.suite)
        from lmgraft.cli.evaluate_suite import of_suites

        given = of_suites(self)
        if given:
            raise RecipeError(
                f"{', '.join(given)}: only a suite has this", f"add --suite, one of {', '.join(SUITES.names())}"
            )
        if len(self.runs) != 1:
            raise RecipeError("one run is evaluated on its test items, several on a suite", "add --suite corruptions")
        return _evaluate(self, self.runs[0])


COMMAND = Evaluate


def _evaluate(command: Evaluate, run_dir: Path) -> int:
    import numpy as np

    from lmgraft.analysis.items import metric_interval
    from lmgraft.recipes import evaluate_run
    from lmgraft.recipes.run import read_run
    from lmgraft.training.approximate import ApproximateTest
    from lmgraft.words.numbers import value as written
    from lmgraft.words.splits import of_splits

    watch = None if command.approximate is None else ApproximateTest(command.approximate)
    result, items = evaluate_run(run_dir, list(command.more), [] if watch is None else [watch])
    recipe = read_run(run_dir, list(command.more))
    metrics = [recipe.metric(name) for name in result.metrics]
    intervals = {metric.name: metric_interval(items, metric) for metric in metrics}
    report = None if watch is None else watch.report
    record = asdict(result) | {"intervals": intervals}
    record |= {} if report is None else {"approximation": report.to_dict()}
    records.write_json(run_dir / "evaluation.json", record)
    if command.json:
        print(json.dumps(record, indent=2))
        return 0
    things, width = recipe.data.things, max(len(metric.title) for metric in metrics)
    print(f"{run_dir}: arm {result.arm}, seed {result.seed}, {result.items} test {things}")
    sentence = of_splits(things, result.selection, result.splits)
    if sentence:
        print(sentence)
    for metric in metrics:
        text, ends = written(result.metrics[metric.name], metric), intervals[metric.name]
        between = "" if ends is None else f"  ({written(ends[0], metric)} to {written(ends[1], metric)})"
        print(f"{metric.title:<{width}}  {text:>8} {metric.unit}{between}")
    groups = len(np.unique(items["group"]))
    grouped = "" if groups == result.items else f" in {groups} groups"
    print(f"in brackets: 95 % interval over test {things}{grouped}, of this one run")
    primary = recipe.metric(result.primary)
    for category, parts in result.by.items():
        print(f"by {category.replace('_', ' ')}, {primary.title}:")
        width = max(map(len, parts))
        for name, value in parts.items():
            print(f"  {name:<{width}}  {written(value, primary):>8} {primary.unit}")
    if report is not None:
        print(report)
    return 0
