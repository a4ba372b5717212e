"""One run's test items under its model: maps of what stands out, how well they find the object, and probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lmgraft import records
from lmgraft.analysis.activations import distance_to_mean, frequency, scaled_to_one
from lmgraft.analysis.masks import (
    average_precision,
    best_iou,
    central_tokens,
    centred_blob,
    covered,
    iou,
    pointing,
    share,
    shares_of_tokens,
)
from lmgraft.analysis.observe import Observed, observe
from lmgraft.analysis.probes import attention_entropy, effective_rank
from lmgraft.checkpoint.digest import file_digest
from lmgraft.contracts import Host
from lmgraft.data.base import Data, on_device
from lmgraft.data.items import ItemSet, OtherItems
from lmgraft.errors import HostError, RecipeError
from lmgraft.graft import GraftLayer, find_graft
from lmgraft.graft.hosts import find_host
from lmgraft.recipes import Recipe
from lmgraft.recipes.build import build_task
from lmgraft.recipes.features import network
from lmgraft.recipes.run import load_task, read_run, set_up_trained
from lmgraft.tasks.base import Task
from lmgraft.tasks.items import joined
from lmgraft.training.checkpoints import checkpoint_path
from lmgraft.training.fit import on_gpu

Arrays = dict[str, NDArray[Any]]
CENTRE = "centre"
_THRESHOLD, _MOST = 0.5, 0.5
_SCORES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "best_iou": best_iou,
    "iou": lambda maps, truth, padded: iou(maps, truth, _THRESHOLD, padded),
    "average_precision": average_precision,
    "pointing": pointing,
}


@dataclass(frozen=True)
class Opened:
    """A run's model and its test items."""

    label: str
    recipe: Recipe
    task: Task
    folder: Path
    trained: bool = True
    other: OtherItems | None = None
    """Items of other data, looked at in place of the run's test items."""

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the file that holds the trained weights."""
        return file_digest(checkpoint_path(self.folder, "best"))

    @property
    def model(self) -> nn.Module:
        return self.task.model

    @cached_property
    def items(self) -> ItemSet:
        return self.recipe.data.still("test") if self.other is None else self.other.items

    @property
    def labelled(self) -> bool:
        """Whether it can be said how well the run does on its items."""
        return self.other is None or self.other.labelled

    @cached_property
    def source(self) -> dict[str, Any]:
        """What identifies the data that its items are of."""
        return self.recipe.data.fingerprint() if self.other is None else self.other.about

    @property
    def inserted(self) -> GraftLayer | None:
        return find_graft(self.model)

    @property
    def host(self) -> Host:
        inserted = self.inserted
        host = find_host(self.model) if inserted is None else inserted.host
        if host is None:
            raise HostError(f"{type(self.model).__qualname__} is no host that lmgraft knows", "see docs/hosts.md")
        return host

    @property
    def last(self) -> str:
        """The stage that the encoder's own norm and head are given."""
        return "encoder" if self.inserted is None else "mapper_out"

    def batches(self, samples: Sequence[int], size: int) -> Iterator[Any]:
        """Items as evaluation sees them, the first view of each."""
        device = next(self.model.parameters()).device
        for first in range(0, len(samples), size):
            yield on_device(first_views(self.items.batch(samples[first : first + size])), device)


def first_views(batch: Any) -> Any:
    """A batch with the first row alone of each item, whose views follow each other."""
    begins = torch.cat([torch.ones(1, dtype=torch.bool), batch.index[1:] != batch.index[:-1]])
    return batch._replace(**{name: values[begins] for name, values in batch._asdict().items()})


def open_run(run_dir: Path, label: str, overrides: Sequence[str], others: Data | None = None) -> Opened:
    """A finished run's best model, and its data, set up.

    Args:
        run_dir: The run's folder.
        label: What it is called.
        overrides: Changes of its recipe.
        others: Data whose items are looked at instead; the run's need not be there then.

    Raises:
        LmgraftError: If it is no finished run, or the data cannot be had.
    """
    recipe = read_run(run_dir, list(overrides))
    if others is None:
        set_up_trained(recipe, run_dir)
    else:
        recipe.data.recall(records.read_json(run_dir / "run.json"))
    task = load_task(recipe, run_dir).to("cuda" if on_gpu(recipe.train) else "cpu")
    return Opened(label, recipe, task, run_dir, other=None if others is None else others.shown_to(recipe.data))


def untrained(run: Opened) -> Opened:
    """The run's model as it was before training: a floor for what its maps find."""
    task = build_task(run.recipe)
    task.model = network(task)
    task.eval().to(next(run.model.parameters()).device)
    return replace(run, label=f"{run.label} untrained", task=task, trained=False)


@dataclass(frozen=True)
class Looked:
    """A batch under a model."""

    noted: Observed
    maps: dict[tuple[str, str], Tensor]
    """(stage, measure) -> (B, T) in [0, 1]."""
    amounts: dict[tuple[str, str], Tensor]
    """The same before they were scaled, of measures that are divided among tokens: magnitude and attention."""
    truth: Tensor | None
    """(B, T) bool."""
    unknown: Tensor | None
    """(B, T) bool: tokens that are padded, or of which it is not known whether they are the object's."""
    floor: Tensor | None
    """(B, T), the map that knows nothing of the item."""
    places: Tensor | None
    """(B, T, k), where tokens lie that lie in no grid."""
    drawn: Tensor | None
    """The same, or (B, T, K, k) what each token is made of, where it is drawn so."""


def look(run: Opened, batch: Any, layers: bool) -> Looked:
    """What stands out in the items of a batch."""
    inputs = run.task.inputs(batch)
    noted = observe(run.model, *inputs, layers=layers, call=lambda: run.task.outputs(batch))
    maps: dict[tuple[str, str], Tensor] = {}
    amounts: dict[tuple[str, str], Tensor] = {}
    for stage, features in noted.at.items():
        padded = noted.padded if noted.padded is not None and noted.padded.shape == features.tokens.shape[:2] else None
        amounts[stage, "magnitude"] = distance_to_mean(features.tokens, padded)
        maps[stage, "magnitude"] = scaled_to_one(amounts[stage, "magnitude"], padded)
        maps[stage, "frequency"] = frequency(features.tokens, padded=padded)
    for name, attention in noted.attention.items():
        amounts[name, "attention"] = attention.mean(1)
        maps[name, "attention"] = scaled_to_one(amounts[name, "attention"], noted.padded)
    truth, floor, places = truth_of_tokens(run, noted, inputs, getattr(batch, "truth", None))
    unknown = noted.padded
    if truth is not None and getattr(batch, "ignored", None) is not None:
        ignored = _shares(run, noted, inputs, batch.ignored) >= _MOST
        unknown = ignored if unknown is None else unknown | ignored
    layout, drawn = run.host.layout, places
    if places is not None and layout.parts is not None:
        drawn = layout.parts(run.model, inputs)[:, layout.num_prefix_tokens :]
    return Looked(noted, maps, amounts, truth, unknown, floor, places, drawn)


def shown(run: Opened, batch: Any, place: int) -> Any:
    """What a picture of one item of a batch is drawn from, on the CPU."""
    return tree_map_only(Tensor, lambda values: values[place].cpu(), run.task.shown(batch))


def predictions(run: Opened, output: Any, batch: Any) -> list[dict[str, Any]]:
    """What the run's task says of each item of a batch; nothing of any where it has no words for it."""
    try:
        return run.task.predict(output, batch)
    except RecipeError:
        return [{} for _ in batch.index]


def truth_of_tokens(
    run: Opened, noted: Observed, inputs: tuple[Any, ...], truth: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The truth over tokens (B, T), the floor's map, and where tokens lie in space; None for what there is not."""
    layout, grid = run.host.layout, noted.at[run.last].grid
    places = None
    if grid is None and layout.places is not None:
        places = layout.places(run.model, inputs)[:, layout.num_prefix_tokens :]
    if truth is None or (grid is None and layout.shares is None):
        return None, None, places
    tokens = covered(_shares(run, noted, inputs, truth))
    if grid is not None:
        return tokens, centred_blob(tokens, grid), places
    return tokens, None if places is None else central_tokens(tokens, places), places


def _shares(run: Opened, noted: Observed, inputs: tuple[Any, ...], of_parts: Tensor) -> Tensor:
    """How much of each token is in a mask of pixels or points: (B, T)."""
    layout, grid = run.host.layout, noted.at[run.last].grid
    if layout.shares is not None:
        return layout.shares(run.model, inputs, of_parts)[:, layout.num_prefix_tokens :]
    assert grid is not None
    return shares_of_tokens(of_parts, grid)


def columns(run: Opened, samples: Sequence[int], size: int, layers: bool, say: Callable[[int], None]) -> Arrays:
    """Everything that is measured of each item: "index", "group", the task's columns, and scores and probes.

    Args:
        run: What is looked at.
        samples: Which of the test items.
        size: Items a pass.
        layers: Look behind each encoder layer too.
        say: Is told how many items are done.
    """
    parts: list[dict[str, Any]] = []
    for batch in run.batches(samples, size):
        seen = look(run, batch, layers)
        own = run.task.score(seen.noted.output, batch) if run.labelled else {}
        part = {"index": batch.index, "group": batch.group, **{f"task/{name}": value for name, value in own.items()}}
        part |= _scores(run, seen) | _probes(seen)
        parts.append({name: torch.as_tensor(value).detach().cpu().numpy() for name, value in part.items()})
        say(sum(len(part["index"]) for part in parts))
    return joined(parts)


def _scores(run: Opened, seen: Looked) -> dict[str, Tensor]:
    if seen.truth is None:
        return {}
    values, padded = {}, seen.unknown
    for (stage, measure), maps in seen.maps.items():
        if maps.shape == seen.truth.shape:  # earlier stages of a pyramid have other tokens
            for score, of in _SCORES.items():
                values[f"score/{stage}/{measure}/{score}"] = of(maps, seen.truth, padded)
            if (stage, measure) in seen.amounts:
                values[f"score/{stage}/{measure}/share"] = share(seen.amounts[stage, measure], seen.truth, padded)
    if seen.floor is not None and run.trained:
        for score, of in _SCORES.items():
            values[f"score/{CENTRE}/{CENTRE}/{score}"] = of(seen.floor, seen.truth, padded)
        values[f"score/{CENTRE}/{CENTRE}/share"] = share(torch.ones_like(seen.floor), seen.truth, padded)
    return values


def _probes(seen: Looked) -> dict[str, Tensor]:
    values = {}
    for stage, features in seen.noted.at.items():
        padded = seen.noted.padded
        fits = padded is not None and padded.shape == features.tokens.shape[:2]
        values[f"probe/{stage}/effective_rank"] = effective_rank(features.tokens, padded if fits else None)
    for name, attention in seen.noted.attention.items():
        values[f"probe/{name}/attention_entropy"] = attention_entropy(attention, seen.noted.padded)
    return values
