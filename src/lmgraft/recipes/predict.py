"""What a finished run's model says of files that no one has labelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lmgraft import records
from lmgraft.data.base import on_device, whole_batch
from lmgraft.data.loader import Draw
from lmgraft.errors import DataError
from lmgraft.recipes.run import load_task, read_run
from lmgraft.training.fit import on_gpu


@torch.no_grad()
def predict_files(
    run_dir: Path, sources: Sequence[str], overrides: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each file with what the task's `predict` says of it.

    Args:
        run_dir: A finished run.
        sources: Files, or folders of them; which kinds there are, the run's data set knows.
        overrides: Changes of the recipe, such as ["--data.eval_batch_size", "8"].

    Raises:
        RunError: If the folder is no finished run.
        DataError: If a file is missing or cannot be read, or such data do not come in files.
    """
    recipe = read_run(run_dir, list(overrides))
    recipe.data.recall(records.read_json(run_dir / "run.json"))
    task = load_task(recipe, run_dir)
    device = torch.device("cuda" if on_gpu(recipe.train) else "cpu")
    task.to(device)
    items, size = recipe.data.open(sources), recipe.data.eval_batch_size
    for first in range(0, len(items), size):
        batch, faults = whole_batch(
            items.__getitems__([Draw(0, i) for i in range(first, min(first + size, len(items)))])
        )
        if faults:
            raise DataError(f"{faults[0].file} cannot be read ({faults[0].reason})", "leave it out, or mend it")
        batch = on_device(batch, device)
        for index, prediction in zip(batch.index.tolist(), task.predict(task.outputs(batch), batch), strict=True):
            yield items.place(index), prediction
