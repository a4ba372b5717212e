"""`lmgraft train RECIPE`, `lmgraft train --resume --out RUN` and `lmgraft train --from-run RUN`."""

from __future__ import annotations

import errno
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from lmgraft.cli.command import Command, add_keys, option, say, word, wrapped
from lmgraft.errors import LmgraftError, RecipeError, RunError
from lmgraft.recipes import ARMS, list_recipes, load_recipe
from lmgraft.recipes.composing import DEBUG
from lmgraft.recipes.recipe import GIVEN_AT_RUN_TIME, GROUPS, Recipe

if TYPE_CHECKING:
    from lmgraft.recipes import Result

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train a recipe. The run folder gets its resolved config, logs (CSV, TensorBoard, metrics.json), the best, the
    last and the previous checkpoint, and the result on the test items.

    lmgraft train RECIPE [--debug] [--out DIR] [options of the recipe]
    lmgraft train --resume --out RUN
    lmgraft train --from-run RUN [--out NEW] [options of the recipe]
    """

    examples = f"""recipes (lmgraft recipes NAME shows one):
{wrapped(list_recipes())}

examples:
  lmgraft train image/fashion_vit --out runs/fashion
  lmgraft train image/fashion_vit --arm plain --seed 1
  lmgraft train image/fashion_vit --llm path/to/model.gguf --layer 12 --train.epochs 10
  lmgraft train image/fashion_vit --llm Qwen/Qwen2.5-1.5B --auto-lr-retry
  lmgraft train my_recipe.yaml --data.root DIR
  lmgraft train --resume --out runs/fashion
  lmgraft train --from-run runs/fashion --out runs/fashion_again
  lmgraft train image/fashion_vit --train.devices 2 --train.strategy ddp
  torchrun --nproc_per_node 4 -m lmgraft train image/fashion_vit
  lmgraft train image/fashion_vit --optim.lr 5e-4 --optim.lr_per 512 --optim.schedule epoch \\
      --optim.warmup_epochs 20 --train.epochs 300 --train.ema 0.99996

SIGTERM and Ctrl-C save at the next step and end the run, with exit status 143 and 130; --resume goes
on. docs/training.md says more about several processes, SLURM, full disks and restarts.

Every key of a recipe is an option; --llm and --layer are short for --graft.llm and --graft.layer. A list is
written 0,2 or 0 2, and null switches an optional key off. The keys of data and task depend on their
classes: lmgraft train RECIPE --help shows those of the recipe's."""
    takes_more = True
    recipe: str | None = word(default=None)
    """A name below or a path to a .yaml file."""
    debug: bool = False
    """The recipe cut down to seconds, as its `debug` key says; RECIPE_debug is the same."""
    out: Path | None = option(None, metavar="DIR")
    """The run folder (default: runs/<recipe>_<arm>_seed<seed>)."""
    resume: bool = False
    """Go on with an interrupted run from its last checkpoint; the result is the same. Without RECIPE with what the run
    folder recorded. Data and block must be what they were; how many corrupt files there may be, workers, the size of
    evaluation batches, how often it logs and saves, and where the data lie may differ."""
    auto_lr_retry: int | None = option(None, const=3, metavar="N")
    """After a loss that is not finite, go on from the last good checkpoint with a fifth of the learning rate, up to N
    times (3 without a number); see retries.json."""
    from_run: Path | None = option(None, metavar="RUN")
    """Train again what RUN/config.yaml says (default --out: RUN_repeat), with as many restarts as it had. Other
    versions are a warning; other data, another block or other pretrained weights an error."""
    allow_difference: bool = False
    """With --from-run: only warn about them."""

    @classmethod
    def extend(cls, parser: ArgumentParser, words: Sequence[str]) -> ArgumentParser:
        parser.add_argument("--seed", type=int, default=0, help="Seed of initial weights, order and every draw.")
        parser.add_argument("--arm", type=str, default="llm", help=f"What is grafted: {', '.join(ARMS)}.")
        for key, group in GROUPS.items():
            add_keys(parser, group, key)
        name = next((given for given in words if not given.startswith("-")), None)
        if name is None:
            return parser
        recipe = load_recipe(name)
        for key, kind in (("data", type(recipe.data)), ("task", recipe.task_class)):
            parser.add_class_arguments(kind, key, skip=GIVEN_AT_RUN_TIME if key == "task" else set())
        return parser

    @classmethod
    def needs_words(cls) -> bool:
        return True

    def run(self) -> int:
        from lmgraft.recipes.run import train_run
        from lmgraft.training.fit import rank
        from lmgraft.training.stopping import InterruptedRunError

        if self.auto_lr_retry is not None and self.auto_lr_retry < 0:
            raise RecipeError(f"--auto-lr-retry {self.auto_lr_retry} is no number of retries", "for instance 3")
        name, recipe, run_dir = self._wanted()
        if rank() == 0:
            say(f"Training {name}, arm {recipe.arm}, in {run_dir}")
        try:
            with _one_line_warnings(), _leaving_nothing(run_dir):
                result = train_run(
                    recipe,
                    run_dir,
                    resume=self.resume,
                    retries=self._retries(run_dir),
                    repeats=self.from_run,
                    allow_difference=self.allow_difference,
                )
        except InterruptedRunError as error:
            if rank() == 0:
                say(f"lmgraft train: {error.message} ({run_dir}); {error.remedy}")
            return error.exit_status
        except KeyboardInterrupt:
            say("\nlmgraft train: interrupted; the same command with --resume goes on")
            return 128 + signal.SIGINT
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise RunError(
                f"{error.filename or run_dir} could not be written: {error.strerror} (errno {error.errno})",
                "make room; the same command with --resume goes on",
            ) from None
        _print(recipe, result, run_dir)
        return 0

    def _wanted(self) -> tuple[str, Recipe, Path]:
        """What is trained, its recipe, and where."""
        from lmgraft.recipes.run import read_run

        if self.from_run is not None:
            out = self.out or self.from_run.with_name(f"{self.from_run.name}_repeat")
            return f"what {self.from_run} trained", read_run(self.from_run, list(self.more)), out
        if self.recipe is None and self.resume and self.out is not None:
            return f"what {self.out} began", read_run(self.out, list(self.more)), self.out
        if self.recipe is None:
            raise RecipeError(
                "no recipe was named",
                f"lmgraft train RECIPE ..., or --resume --out RUN; recipes: {', '.join(list_recipes())}",
            )
        recipe = load_recipe(self.recipe + (DEBUG if self.debug else ""), self.more)
        name = self.recipe.removesuffix(".yaml").replace("/", "_")
        return self.recipe, recipe, self.out or Path(f"runs/{name}_{recipe.arm}_seed{recipe.seed}")

    def _retries(self, run_dir: Path) -> int:
        """How often to restart at most; by default as often as the run that is repeated or resumed did."""
        from lmgraft.recipes.record import read_retries

        if self.auto_lr_retry is not None:
            return self.auto_lr_retry
        earlier = self.from_run or (run_dir if self.resume and self.recipe is None else None)
        return 0 if earlier is None else len(read_retries(earlier))


COMMAND = Train


def _print(recipe: Recipe, result: Result, run_dir: Path) -> None:
    from lmgraft.words.numbers import value as written
    from lmgraft.words.splits import of_splits

    sentence = of_splits(recipe.data.things, result.selection, result.splits)
    if sentence:
        print(sentence)
    metric = recipe.metric(result.primary)
    print(f"{metric.title} {written(result.value, metric)} {metric.unit} over {result.items:,} {recipe.data.things}, "
          f"{result.seconds:.0f} s, {result.peak_memory / 2**30:.2f} GiB; everything is in {run_dir}")  # fmt: skip


@contextmanager
def _leaving_nothing(run_dir: Path) -> Iterator[None]:
    """A run that is refused leaves no empty folder."""
    try:
        yield
    except LmgraftError:
        if run_dir.is_dir() and not any(run_dir.iterdir()):
            run_dir.rmdir()
        raise


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """A run's own warnings without the place in the code, which says nothing to its user."""
    from lmgraft.data.base import UnreadableItemWarning
    from lmgraft.training.checkpoints import RunWarning

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
