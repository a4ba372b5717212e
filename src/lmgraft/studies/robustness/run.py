"""A trained model on corrupted and shifted images, cell by cell, going on where it was interrupted.

<run>/robustness.json   for each cell right answers and images, and under which conditions
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lmgraft import records
from lmgraft.analysis.robustness import CorruptionSummary, Count, summarise
from lmgraft.checkpoint.digest import file_digest
from lmgraft.data.image.corruptions import CORRUPTIONS, SIZE
from lmgraft.data.image.corruptions_filters import scipy_part
from lmgraft.data.image.imagenet_sets import NUM_CLASSES, wnids
from lmgraft.errors import DataError, RunError
from lmgraft.recipes import load_trained
from lmgraft.recipes.run import read_run
from lmgraft.studies.progress import Say, duration, silent
from lmgraft.studies.robustness.cells import (
    CLEAN,
    Batch,
    Cell,
    Item,
    Prepare,
    collate,
    corruption_cells,
    crop_transform,
    digest,
    needed_pictures,
    set_cells,
)
from lmgraft.studies.robustness.sets import find_sets, other_totals
from lmgraft.training.checkpoints import checkpoint_path
from lmgraft.training.fit import TrainConfig, evaluate

Suite = Literal["corruptions", "imagenet-robustness"]
FILE = "robustness.json"
NOT_COMPARABLE = "not comparable with published ImageNet-C figures"
_FEW = 256  # images below which starting workers costs more than they save


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig:
    """What is evaluated, and how."""

    suite: Suite = "corruptions"
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    """Those made on the fly."""
    seed: int = 0
    """Of what they draw."""
    frost: Path | None = None
    """Folder with pictures of frost; None fetches ImageNet-C's."""
    suite_root: Path | None = None
    """Folder of the published sets."""
    places: Mapping[str, Path] = field(default_factory=dict)
    """Where single ones lie, by key of `sets.SETS`."""
    sets: tuple[str, ...] | None = None
    """Keys of those wanted; None takes what is found."""
    limit: int | None = None
    """Images a cell, evenly spread over it."""
    batch_size: int | None = None
    """None takes the run's data.eval_batch_size."""
    workers: int | None = None
    """Loader processes; None takes one for each processor, at most 8, and none for small sets."""

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("batch_size", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DataError(f"--{name.replace('_', '-')} {value} must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """What one model reached in one suite; nothing in it is left to compute."""

    label: str
    suite: Suite
    cells: dict[str, Count]
    """By key of the cell, in the suite's order."""
    summary: CorruptionSummary | None
    """Of the corruptions, where there are such."""
    notes: tuple[str, ...]
    """What a reader must know."""
    limit: int | None = None
    """Images a cell, where not all were shown."""
    images: str = ""
    """SHA-256 of which images were shown and under which conditions; equal where models can be compared."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to evaluate and how images are shown to it."""

    label: str
    model: nn.Module
    prepare: Prepare
    crop: Prepare
    img_size: tuple[int, int]
    eval_batch_size: int
    train: TrainConfig
    weights: str
    """SHA-256 of the weight file."""
    record: Path
    """The robustness.json."""
    shown: Mapping[str, Any] = field(default_factory=dict)
    """What identifies `prepare` and `crop`, as plain data."""


def evaluate_robustness(
    run_dirs: Sequence[Path], config: RobustnessConfig, *, overrides: Sequence[str] = (), say: Say | None = None
) -> list[Robustness]:
    """Evaluate finished runs on a suite; each run's robustness.json is written as cells are done.

    Args:
        run_dirs: Folders made by `lmgraft train`.
        config: What is evaluated.
        overrides: Changes of the recipes, such as ["--data.root", "DIR"].
        say: Told what happens.

    Raises:
        LmgraftError: If a run, a set or the pictures of frost are missing; before anything is evaluated.
    """
    say = say or silent
    labels = _labels(run_dirs)
    for run_dir, label in zip(run_dirs, labels, strict=True):
        data = read_run(run_dir, list(overrides)).data
        if config.suite == "imagenet-robustness":
            check_imagenet_model(label, data.num_classes, data.in_chans, data.class_names)
        if not checkpoint_path(run_dir, "best").exists():
            raise RunError(f"{run_dir} has no checkpoints/best.ckpt", "go on with lmgraft train --resume")
    make_cells = plan_cells(config, say)
    results = []
    for run_dir, label in zip(run_dirs, labels, strict=True):
        recipe, model = load_trained(run_dir, overrides)
        data = recipe.data
        subject = Subject(
            label=label,
            model=model,
            prepare=data.prepare,
            crop=crop_transform(data.mean, data.std, data.img_size),
            img_size=data.img_size,
            eval_batch_size=data.eval_batch_size,
            train=recipe.train,
            weights=file_digest(checkpoint_path(run_dir, "best")),
            record=run_dir / FILE,
            shown=data.transform_record()["preprocess"],
        )
        cells, notes = make_cells(subject, data)
        results.append(evaluate_cells(subject, cells, config, notes, say))
    if len({result.images for result in results}) > 1:
        differ = "the models were not shown the same images: their columns cannot be compared"
        results = [replace(result, notes=(differ, *result.notes)) for result in results]
    return results


def plan_cells(config: RobustnessConfig, say: Say) -> Callable[[Subject, Any], tuple[list[Cell], list[str]]]:
    """What makes a subject's cells; everything the suite needs is found and checked here, once."""
    if config.suite == "corruptions":
        scipy_part("ndimage")  # its absence is said here, not by a worker
        pictures = needed_pictures(config.corruptions, config.frost)

        def on_the_fly(subject: Subject, data: Any) -> tuple[list[Cell], list[str]]:
            data.prepare_data()
            data.setup("test")
            raw = data.raw_test()
            cells = corruption_cells(
                raw,
                subject.prepare,
                data.fingerprint(),
                corruptions=config.corruptions,
                seed=config.seed,
                limit=config.limit,
                frost=pictures,
            )
            width, height = raw[0][0].size
            how = f"corruptions made on the fly on the run's own test images, {NOT_COMPARABLE}"
            small = f"; images of {width} x {height} pixels were enlarged for it and scaled back"
            return cells, [how + (small if min(width, height) < SIZE else "")]

        return on_the_fly

    say("Published sets: looking for them and checking their folders")
    found = find_sets(config.suite_root, config.places, config.sets)
    totals = other_totals(found.sets)
    for sentence in (*found.left_out, *totals):
        say(f"  {sentence}")

    def published(subject: Subject, data: Any) -> tuple[list[Cell], list[str]]:
        resized = tuple(subject.img_size) != (SIZE, SIZE) and any(one.transform == "crop" for one in found.sets)
        height, width = subject.img_size
        notes = [f"ImageNet-C's crop of {SIZE} pixels was resized to {width} x {height}, {NOT_COMPARABLE}"]
        return (
            set_cells(found.sets, subject.prepare, subject.crop, config.limit),
            [*found.left_out, *totals, *(notes if resized else [])],
        )

    return published


def check_imagenet_model(label: str, num_classes: int, in_chans: int, class_names: Sequence[str]) -> None:
    """Refuse a model whose outputs are not ImageNet's classes in their order.

    Raises:
        RunError: If they are not.
    """
    if num_classes != NUM_CLASSES:
        raise RunError(
            f"{label} ends in {num_classes} classes, ImageNet's sets have {NUM_CLASSES}",
            "--suite corruptions works with any classes",
        )
    if in_chans != 3:
        raise RunError(f"{label} takes images of {in_chans} channels, ImageNet's have 3")
    if all(name[:1] == "n" and name[1:].isdigit() for name in class_names) and tuple(class_names) != wnids():
        raise RunError(
            f"{label} was trained on 1000 classes that are not ImageNet's, or in another order",
            "--suite corruptions works with any classes",
        )


def evaluate_cells(
    subject: Subject, cells: Sequence[Cell], config: RobustnessConfig, notes: Sequence[str], say: Say
) -> Robustness:
    """Count every cell that the record does not hold yet, and sum up."""
    kept = _read_record(subject, say)
    how = {
        "precision": subject.train.precision,
        "evaluate_ema": subject.train.evaluate_ema,
        "transform": digest(subject.shown),
    }
    conditions = {cell.key: dict(cell.conditions) | how for cell in cells}
    todo = [cell for cell in cells if kept.get(cell.key, {}).get("conditions") != conditions[cell.key]]
    say(f"{subject.label}: {len(cells)} cells, {len(cells) - len(todo)} done before")
    environment = records.environment()
    task, started, images = _Score(subject.model), time.monotonic(), 0
    for number, cell in enumerate(todo, 1):
        count = _count(task, cell, subject, config)
        kept[cell.key] = asdict(count) | {"conditions": conditions[cell.key]}
        records.write_json(subject.record, {"weights": subject.weights, "environment": environment, "cells": kept})
        images += count.total
        rate = images / (time.monotonic() - started)
        left = sum(other.size for other in todo[number:]) / rate
        said = f"{100 * count.accuracy:.2f} %, {rate:.0f} images/s, {duration(left)} left"
        say(f"  {number}/{len(todo)} {cell.key}: {said}")
    counts = {cell.key: Count(kept[cell.key]["correct"], kept[cell.key]["total"]) for cell in cells}
    limited = [] if config.limit is None else [f"a quick look: at most {config.limit} images a cell"]
    return Robustness(
        label=subject.label,
        suite=config.suite,
        cells=counts,
        summary=summed(counts),
        notes=(*notes, *limited),
        limit=config.limit,
        images=digest([[cell.key, dict(cell.conditions)] for cell in cells]),
    )


def summed(counts: Mapping[str, Count]) -> CorruptionSummary | None:
    split = {tuple(key.split("/")): count for key, count in counts.items() if key.count("/") == 2}
    if not split:
        return None
    published = next(iter(split))[0] == "imagenet_c"
    cells = {(name, int(severity)): count for (_, name, severity), count in split.items()}
    return summarise(cells, counts.get("imagenet" if published else CLEAN), published=published)


class _Score(LightningModule):
    """Counts right answers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.classes: tuple[int, ...] | None = None
        self.correct = self.total = 0

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        if isinstance(batch, str):
            raise DataError(batch, "mend or replace the file; what is done is kept")
        images, rights = batch
        logits: Tensor = self.model(images)
        if not torch.isfinite(logits).all():
            raise RunError("the model's outputs are not finite numbers", "try it with --train.precision 32-true")
        if self.classes is None:
            answers = logits.argmax(-1).tolist()
        else:
            answers = [self.classes[i] for i in logits[:, list(self.classes)].argmax(-1).tolist()]
        self.correct += sum(answer in right for answer, right in zip(answers, rights, strict=True))
        self.total += len(rights)


class _OneCell(LightningDataModule):
    def __init__(self, loader: DataLoader[Item]) -> None:
        super().__init__()
        self.loader = loader

    def test_dataloader(self) -> DataLoader[Item]:
        return self.loader


def _count(task: _Score, cell: Cell, subject: Subject, config: RobustnessConfig) -> Count:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = config.workers
    if workers is None:
        workers = min(8, processors) if cell.size >= _FEW else 0
    loader: DataLoader[Item] = DataLoader(
        cell.dataset,
        batch_size=config.batch_size or subject.eval_batch_size,
        num_workers=workers,
        collate_fn=collate,
    )
    task.classes, task.correct, task.total = cell.classes, 0, 0
    evaluate(task, _OneCell(loader), subject.train)
    return Count(task.correct, task.total)


def _read_record(subject: Subject, say: Say) -> dict[str, dict[str, Any]]:
    if not subject.record.exists():
        return {}
    try:
        content = records.read_json(subject.record)
        weights, cells = content["weights"], content["cells"]
        whole = all({"correct", "total", "conditions"} <= cell.keys() for cell in cells.values())
    except (AttributeError, KeyError, TypeError, RunError):
        whole, weights, cells = False, None, {}
    if not whole:
        say(f"{subject.record} is damaged; all cells are counted again")
        return {}
    if weights != subject.weights:
        say(f"{subject.record} is of other weights; all cells are counted again")
        return {}
    return dict(cells)


def _labels(run_dirs: Sequence[Path]) -> list[str]:
    """The folders' names, or where two are alike their paths."""
    names = [run_dir.resolve().name for run_dir in run_dirs]
    return names if len(set(names)) == len(names) else [str(run_dir) for run_dir in run_dirs]
