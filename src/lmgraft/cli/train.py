"""`lmgraft train RECIPE`, and `lmgraft train --from-run DIR`."""

from __future__ import annotations

import errno
import signal
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import ArgumentParser

from lmgraft.analysis.numbers import in_unit
from lmgraft.cli.options import take_flag, take_option
from lmgraft.data.base import UnreadableItemWarning
from lmgraft.errors import LmgraftError, RecipeError, RunError
from lmgraft.recipes import list_recipes, load_recipe, recipe_parser, train_run
from lmgraft.recipes.recipe import GIVEN_AT_RUN_TIME, Recipe
from lmgraft.recipes.record import read_retries
from lmgraft.recipes.run import read_run
from lmgraft.training.checkpoints import RunWarning
from lmgraft.training.fit import rank
from lmgraft.training.stopping import InterruptedRunError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def run(argv: list[str]) -> int:
    if not argv or "-h" in argv or "--help" in argv:
        print(_help(argv[0] if argv and not argv[0].startswith("-") else None))
        return 0 if argv else 2
    arguments = list(argv)
    out, original = take_option(arguments, "--out"), take_option(arguments, "--from-run")
    resume, allow_difference = take_flag(arguments, "--resume"), take_flag(arguments, "--allow-difference")
    retries = _take_retries(arguments)
    if retries is None:
        retries = 0 if original is None else len(read_retries(Path(original)))
    if original is None:
        name, recipe = _named(arguments)
        run_dir = Path(out or f"runs/{name.removesuffix('.yaml').replace('/', '_')}_{recipe.arm}_seed{recipe.seed}")
    else:
        name, recipe = f"what {original} trained", read_run(Path(original), arguments)
        run_dir = Path(out or f"{original.rstrip('/')}_repeat")
    if rank() == 0:
        print(f"Training {name}, arm {recipe.arm}, in {run_dir}", file=sys.stderr)
    try:
        with _one_line_warnings():
            result = train_run(
                recipe,
                run_dir,
                resume=resume,
                retries=retries,
                repeats=None if original is None else Path(original),
                allow_difference=allow_difference,
            )
    except InterruptedRunError as error:
        if rank() == 0:
            print(f"lmgraft train: {error.message} ({run_dir}); {error.remedy}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("\nlmgraft train: interrupted; the same command with --resume goes on", file=sys.stderr)
        return 128 + signal.SIGINT
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise RunError(
            f"{error.filename or run_dir} could not be written: {error.strerror} (errno {error.errno})",
            "make room; the same command with --resume goes on",
        ) from None
    except LmgraftError:
        if run_dir.is_dir() and not any(run_dir.iterdir()):
            run_dir.rmdir()
        raise
    metric = recipe.metric(result.primary)
    print(f"{metric.title} {in_unit(result.value, metric)} {metric.unit} over {result.items:,} {recipe.data.things}, "
          f"{result.seconds:.0f} s, {result.peak_memory / 2**30:.2f} GiB; everything is in {run_dir}")  # fmt: skip
    return 0


def _named(arguments: list[str]) -> tuple[str, Recipe]:
    if not arguments or arguments[0].startswith("-"):
        raise RecipeError("no recipe was named", f"lmgraft train RECIPE ...; recipes: {', '.join(list_recipes())}")
    name, *overrides = arguments
    return name, load_recipe(name, overrides)


def _take_retries(arguments: list[str]) -> int | None:
    """`--auto-lr-retry`, `--auto-lr-retry N` or `--auto-lr-retry=N`; 3 without a number, None without the option."""
    option = "--auto-lr-retry"
    if option in arguments:
        following = arguments.index(option) + 1
        if following == len(arguments) or not arguments[following].isdigit():
            arguments[following - 1] = f"{option}=3"
    value = take_option(arguments, option)
    if value is not None and not value.isdigit():
        raise RecipeError(f"{option}={value} is no number of retries", f"{option} or {option}=5")
    return None if value is None else int(value)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """A run's own warnings without the place in the code, which says nothing to its user."""
    usual = warnings.formatwarning

    def brief(message: Warning | str, category: type[Warning], *place: object, **more: object) -> str:
        if issubclass(category, RunWarning | UnreadableItemWarning):
            return f"lmgraft train: {message}\n"
        return usual(message, category, *place, **more)  # type: ignore[arg-type]

    warnings.formatwarning = brief
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _help(recipe: str | None) -> str:
    head = f"""usage: lmgraft train RECIPE [--out DIR] [--resume] [--auto-lr-retry [N]] [options]
       lmgraft train --from-run DIR [--out NEW] [--allow-difference] [options]

Train a recipe. The run folder gets its resolved config, logs (CSV, TensorBoard, metrics.json), the
best, the last and the previous checkpoint, and the result on the test items.

  RECIPE              a name below or a path to a .yaml file
  --out DIR           the run folder (default: runs/<recipe>_<arm>_seed<seed>)
  --resume            go on with an interrupted run from its last checkpoint; the result is the same. Data and
                      block must be what they were; how many corrupt files there may be, workers, the size of
                      evaluation batches, how often it logs and saves, and where the data lie may differ
  --auto-lr-retry N   after a loss that is not finite, go on from the last good checkpoint with a fifth
                      of the learning rate, up to N times (3 without a number); see retries.json
  --from-run DIR      train again what DIR/config.yaml says (default --out: DIR_repeat), with as many
                      restarts as it had. Other versions are a warning; other data, another block or
                      other pretrained weights an error
  --allow-difference  with --from-run: only warn about them

recipes (each also as NAME_debug, which takes a minute):
{_wrapped(name for name in list_recipes() if not name.endswith("_debug"))}

examples:
  lmgraft train image/fashion_vit --out runs/fashion
  lmgraft train image/fashion_vit --arm plain --seed 1
  lmgraft train image/fashion_vit --llm path/to/model.gguf --layer 12 --train.epochs 10
  lmgraft train image/fashion_vit --llm Qwen/Qwen2.5-1.5B --auto-lr-retry
  lmgraft train my_recipe.yaml --data.root DIR
  lmgraft train --from-run runs/fashion --out runs/fashion_again
  lmgraft train image/fashion_vit --train.devices 2 --train.strategy ddp
  torchrun --nproc_per_node 4 -m lmgraft train image/fashion_vit
  lmgraft train image/fashion_vit --optim.lr 5e-4 --optim.lr_per 512 --optim.schedule epoch \\
      --optim.warmup_epochs 20 --train.epochs 300 --train.ema 0.99996

SIGTERM and Ctrl-C save at the next step and end the run, with exit status 143 and 130; --resume goes
on. docs/training.md says more about several processes, SLURM, full disks and restarts.

Every key of a recipe is an option; --llm and --layer are short for --graft.llm and --graft.layer.
lmgraft train RECIPE --help shows the options of the recipe's own data and task too.
"""
    return head + _body(recipe_parser()) + ("" if recipe is None else _of_classes(load_recipe(recipe)))


def _wrapped(names: Iterable[str]) -> str:
    return textwrap.fill(", ".join(names), 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _body(parser: ArgumentParser) -> str:
    text: str = parser.format_help()
    return text[text.index("\n\n") :] if "\n\n" in text else text


def _of_classes(recipe: Recipe) -> str:
    text = ""
    for key, kind in (("data", type(recipe.data)), ("task", recipe.task_class)):
        parser = ArgumentParser(add_help=False)
        parser.add_class_arguments(
            kind, key, skip={"model", "data", "optimizer", "schedule"} if key == "task" else set()
        )
        text += f"\n\nOptions where {key}.class_path is {kind.__module__}.{kind.__qualname__}:" + _body(parser)
    return text
