"""`lmgraft evaluate ... --suite`: options of the robustness suites and what is printed of them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path

from lmgraft.cli.tables import print_table
from lmgraft.data.corruptions import CORRUPTIONS
from lmgraft.errors import DataError, RecipeError
from lmgraft.registry import suggest
from lmgraft.report.robustness.table import notes, table, to_dict, write_report
from lmgraft.studies.robustness.run import RobustnessConfig, evaluate_robustness
from lmgraft.studies.robustness.sets import SETS
from lmgraft.studies.robustness.timm_model import evaluate_checkpoint

SUITES = ("corruptions", "imagenet-robustness")


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """The options that only a suite has."""
    suite = parser.add_argument_group("options of a suite")
    suite.add_argument("--out", type=Path, help="folder for table and figure (default: the run's, or for several "
                       "'robustness' beside the first)")  # fmt: skip
    suite.add_argument("--limit", type=int, metavar="N", help="at most so many images a cell: a quick look")
    suite.add_argument("--batch-size", type=int, metavar="N", help="images a batch (default: the recipe's)")
    suite.add_argument("--workers", type=int, metavar="N", help="processes that read and corrupt (default: one a core)")
    flying = parser.add_argument_group("--suite corruptions: any images, corrupted on the fly")
    flying.add_argument("--corruptions", metavar="A,B", help=f"only these of: {', '.join(CORRUPTIONS)}")
    flying.add_argument(
        "--corruption-seed", type=int, default=0, metavar="N", help="seed of what they draw (default: 0)"
    )
    flying.add_argument(
        "--frost", type=Path, metavar="DIR", help="pictures of frost (default: ImageNet-C's, fetched once)"
    )
    published = parser.add_argument_group("--suite imagenet-robustness: the published sets; absent ones are left out")
    published.add_argument("--suite-root", type=Path, metavar="DIR", help="folder with imagenet-c, imagenet-a, ...")
    published.add_argument("--sets", metavar="A,B", help=f"only these, none left out, of: {', '.join(SETS)}")
    for key, kind in SETS.items():
        metavar, what = ("FILE", "real.json; default: timm's copy") if key == "imagenet_real" else ("DIR", kind.title)
        published.add_argument(_option(key), dest=key, type=Path, metavar=metavar, help=what)
    elsewhere = parser.add_argument_group("a model from elsewhere, for imagenet-robustness")
    elsewhere.add_argument("--model", metavar="timm:NAME", help="the model, instead of RUN")
    elsewhere.add_argument("--checkpoint", type=Path, metavar="FILE", help="its weights: .safetensors, .pth, .ckpt")


def suite_options_given(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """Those of `add_suite_options` that are not at their defaults."""
    names = ["out", "limit", "batch_size", "workers", "corruptions", "corruption_seed", "frost", "suite_root", "sets"]
    names += [*SETS, "model", "checkpoint"]
    return [_option(name) for name in names if getattr(arguments, name) != parser.get_default(name)]


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")


def run_suite(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Evaluate, print the table, write page and figure."""
    if arguments.approximate is not None:
        raise RecipeError("--approximate works without --suite only", "leave out one of them")
    config = RobustnessConfig(
        suite=arguments.suite,
        corruptions=_chosen(arguments.corruptions, CORRUPTIONS, "--corruptions") or tuple(CORRUPTIONS),
        seed=arguments.corruption_seed,
        frost=arguments.frost,
        suite_root=arguments.suite_root,
        places={key: getattr(arguments, key) for key in SETS if getattr(arguments, key) is not None},
        sets=_chosen(arguments.sets, SETS, "--sets"),
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )
    if arguments.model is not None:
        if arguments.run or overrides:
            raise RecipeError(
                f"--model is given instead of RUN; not known: {' '.join(map(str, [*arguments.run, *overrides]))}"
            )
        if arguments.checkpoint is None:
            raise RecipeError("--model needs --checkpoint FILE", "give the file of its weights")
        out = arguments.out or arguments.checkpoint.parent / f"{arguments.checkpoint.stem}_robustness"
        results = [evaluate_checkpoint(arguments.model, arguments.checkpoint, out, config, say=_say)]
    else:
        first = arguments.run[0]
        out = arguments.out or (first if len(arguments.run) == 1 else first.resolve().parent / "robustness")
        results = evaluate_robustness(arguments.run, config, overrides=overrides, say=_say)
    written = write_report(results, out)
    if arguments.json:
        print(json.dumps([to_dict(result) for result in results], indent=2))
        return 0
    width = None if sys.stdout.isatty() else 60 + 32 * len(results)
    print_table(table(results), notes(results), width=width)
    print(f"\nWritten: {', '.join(str(path) for path in written)}")
    return 0


def _chosen(text: str | None, known: Collection[str], option: str) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(dict.fromkeys(name.strip().replace("-", "_") for name in text.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise DataError(f"{option}: there is no {name!r}", suggest(name, known))
    if not names:
        raise DataError(f"{option} names nothing", f"choose of {', '.join(known)}")
    return names


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
