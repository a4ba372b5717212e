"""What a finished run's model says of files that no one has labelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmgraft import records
from lmgraft.data.base import on_device
from lmgraft.recipes.run import load_task, read_run
from lmgraft.training.fit import on_gpu


class TrainedRun:
    """A finished run's best model, ready to look at files.

    Attributes:
        recipe: Of the run.
        model: The model by itself, in eval mode.
        categories: Names of what it tells apart, such as {"class": ("cat", "dog")}.
    """

    def __init__(self, run_dir: Path, overrides: Sequence[str] = ()) -> None:
        self.recipe = read_run(run_dir, list(overrides))
        self.recipe.data.recall(records.read_json(run_dir / "run.json"))
        self._task = load_task(self.recipe, run_dir)
        self._device = torch.device("cuda" if on_gpu(self.recipe.train) else "cpu")
        self._task.to(self._device)
        self.model: nn.Module = self._task.model

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        return self.recipe.data.categories()

    def predict(self, sources: str | Path | Sequence[str | Path]) -> list[dict[str, Any]]:
        """What the task says of each file, in its own terms, with the file's name as "file".

        Of tables an item is a row: with "source", "row" (from 1) and its text. A task's own column of such a name, such
        as a class of images called file, is "task.file".

        Args:
            sources: A file, a folder of them, or several of these.

        Raises:
            DataError: If a file is missing or cannot be read, or such data do not come in files.
        """
        listed = [sources] if isinstance(sources, str | Path) else sources
        return [{"file": file, **row} for file, row in self.predictions([str(source) for source in listed])]

    @torch.no_grad()
    def predictions(self, sources: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """As `predict`, one after the other: (file, what the task says of it)."""
        items, size = self.recipe.data.open(sources), self.recipe.data.eval_batch_size
        for first in range(0, len(items), size):
            batch = on_device(items.readable(range(first, min(first + size, len(items)))), self._device)
            rows = self._task.predict(self._task.outputs(batch), batch)
            for index, prediction in zip(batch.index.tolist(), rows, strict=True):
                about = items.about(index)
                named = {f"task.{name}" if name in about else name: value for name, value in prediction.items()}
                yield about.pop("file"), about | named


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> TrainedRun:
    """The best model of a finished run, which gives labels and probabilities for files.

    Args:
        path: The run's folder.
        overrides: Changes of the recipe, such as ["--data.eval_batch_size", "8"].

    Raises:
        RunError: If the folder is no finished run.
    """
    return TrainedRun(Path(path).expanduser(), overrides)


def predict_files(
    run_dir: Path, sources: Sequence[str], overrides: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each file with what the task's `predict` says of it; see `TrainedRun.predict`.

    Args:
        run_dir: A finished run.
        sources: Files, or folders of them; which kinds there are, the run's data set knows.
        overrides: Changes of the recipe, such as ["--data.eval_batch_size", "8"].
    """
    return load_run(run_dir, overrides).predictions(sources)
