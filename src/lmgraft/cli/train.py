"""`lmgraft train RECIPE`."""

from __future__ import annotations

import sys
from pathlib import Path

from lmgraft.cli.options import take_flag, take_option
from lmgraft.errors import LmgraftError, RecipeError
from lmgraft.recipes import list_recipes, load_recipe, recipe_parser, train_run


def run(argv: list[str]) -> int:
    if not argv or "-h" in argv or "--help" in argv:
        print(_help())
        return 0 if argv else 2
    arguments = list(argv)
    out = take_option(arguments, "--out")
    resume = take_flag(arguments, "--resume")
    if not arguments or arguments[0].startswith("-"):
        raise RecipeError("no recipe was named", f"lmgraft train RECIPE ...; recipes: {', '.join(list_recipes())}")
    name, *overrides = arguments
    recipe = load_recipe(name, overrides)
    run_dir = Path(out or f"runs/{name.removesuffix('.yaml').replace('/', '_')}_{recipe.arm}_seed{recipe.seed}")
    print(f"Training {name}, arm {recipe.arm}, in {run_dir}", file=sys.stderr)
    try:
        result = train_run(recipe, run_dir, resume=resume)
    except LmgraftError:
        if run_dir.is_dir() and not any(run_dir.iterdir()):
            run_dir.rmdir()
        raise
    print(f"test accuracy {result.accuracy:.4f} ({result.correct} of {result.total}), "
          f"{result.seconds:.0f} s, {result.peak_memory / 2**30:.2f} GiB; everything is in {run_dir}")  # fmt: skip
    return 0


def _help() -> str:
    head = f"""usage: lmgraft train RECIPE [--out DIR] [--resume] [options]

Train a recipe. The run folder gets its resolved config, logs (CSV and TensorBoard), the best and
the last checkpoint, and the result on the test images.

  RECIPE      a name or a path to a .yaml file; known: {", ".join(list_recipes())}
  --out DIR   the run folder (default: runs/<recipe>_<arm>_seed<seed>)
  --resume    go on with an interrupted run from its last checkpoint; the result is the same

examples:
  lmgraft train image/fashion_vit --out runs/fashion
  lmgraft train image/fashion_vit --arm plain --seed 1
  lmgraft train image/fashion_vit --llm path/to/model.gguf --layer 12 --train.epochs 10
  lmgraft train image/fashion_vit --llm Qwen/Qwen2.5-1.5B
  lmgraft train my_recipe.yaml --data.root DIR

Every key of a recipe is an option; --llm and --layer are short for --graft.llm and --graft.layer.
"""
    body = recipe_parser().format_help()
    return head + body[body.index("\n\n") :] + _of_the_data()


def _of_the_data() -> str:
    from jsonargparse import ArgumentParser

    from lmgraft.data.fashion_mnist import FashionMNIST

    parser = ArgumentParser(add_help=False)
    parser.add_class_arguments(FashionMNIST, "data")
    body = parser.format_help()
    return body[body.index("\n\n") :] if "\n\n" in body else body
