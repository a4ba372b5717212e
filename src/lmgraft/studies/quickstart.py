"""The quickstart: one recipe in three arms with the same seed, and what is to be shown of it.

<out>/<arm>/            a run folder for each arm
<out>/quickstart.json   the arms' results
<out>/flops.json        counted operations of each arm
<out>/times.json        training steps of each arm, timed in turns with the plain one's
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lmgraft import records
from lmgraft.analysis.activations import frequency, magnitude
from lmgraft.analysis.curves import Curve, read_curves, running_mean
from lmgraft.analysis.intervals import wilson_interval
from lmgraft.analysis.observe import observe
from lmgraft.analysis.timing import TimeRatio, time_ratio
from lmgraft.block import FrozenBlock, load_block
from lmgraft.data.base import Data
from lmgraft.data.image.arrays import ImageArray
from lmgraft.data.image.images import ImageData
from lmgraft.errors import RunError
from lmgraft.graft import find_graft
from lmgraft.recipes import ARMS, Result, load_recipe, load_trained, read_result
from lmgraft.studies.engine.local import local
from lmgraft.studies.engine.progress import Say, silent
from lmgraft.studies.engine.runs import Run, train_missing
from lmgraft.studies.study.costs import counted_flops, timed_pairs
from lmgraft.training.fit import Verbosity

QUICKSTART_ARMS = ("plain", "llm", "random_frozen")
RECIPE = "image/fashion_vit"
LOSS_WINDOW = 10
"""Logged losses in the running mean that the page shows."""
_NUM_SAMPLES, _NUM_MAPPED = 12, 4


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One test image and what each arm makes of it."""

    image: Tensor
    """(H, W) uint8."""
    label: str
    predicted: dict[str, tuple[str, float]]
    """Arm -> class and its probability."""


@dataclass(frozen=True, kw_only=True)
class MappedImage:
    """One test image and activation maps of its patch tokens, in [0, 1]."""

    image: Tensor
    label: str
    maps: dict[str, dict[str, Tensor]]
    """Where the tokens were taken -> measure -> (rows, columns)."""


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Everything the report shows; nothing in it is left to compute."""

    recipe: str
    results: dict[str, Result]
    intervals: dict[str, tuple[float, float]]
    curves: dict[str, dict[str, Curve]]
    samples: list[Sample]
    mapped: list[MappedImage]
    block: str
    llm: str
    train_size: int
    val_size: int
    seed: int
    environment: dict[str, object]
    time: TimeRatio
    """How the LLM arm's training time compares with the plain arm's."""
    operations: float | None
    """Counted operations of a training step of the LLM arm, as a multiple of the plain arm's; None if not countable."""


def run_quickstart(
    out: Path,
    *,
    recipe: str = RECIPE,
    overrides: Sequence[str] = (),
    say: Say | None = None,
    progress: Verbosity = "auto",
) -> Quickstart:
    """Train what is missing, evaluate all arms, and gather what the report shows.

    Args:
        out: Folder; finished arms in it are kept, an interrupted one goes on.
        recipe: Name or path of the recipe.
        overrides: Changes of it, for all arms.
        say: Told what happens.
        progress: See `lmgraft.training.fit.fit`.

    Raises:
        LmgraftError: If data or block cannot be had, or `out` holds other runs.
    """
    say = say or silent
    checked = load_recipe(recipe, overrides)
    say("Data: finding or fetching")
    checked.data.prepare_data()
    checked.data.setup()
    say(f"Block: layer {checked.graft.layer} of {checked.graft.llm}")
    block = load_block(checked.graft.llm, checked.graft.layer, final_norm=checked.graft.final_norm)
    say(f"  {block.config.num_params():,} frozen parameters, width {block.config.dim}, digest {_short(block)}")
    runs = _runs(out, recipe, overrides, checked.seed, progress)
    for arm, run in runs.items():
        say(f"Arm {arm}: {ARMS[arm].question}")
        if run.finished:
            run.check_recipe()
    failed = train_missing("arms", list(runs.values()), local(), say)
    if failed:
        listed = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise RunError(f"{len(failed)} of {len(runs)} arms could not be trained: {listed}", "the same command goes on")
    results = {arm: read_result(run.folder) for arm, run in runs.items()}
    records.write_json(out / "quickstart.json", {arm: asdict(result) for arm, result in results.items()})
    say("Looking at test images")
    samples, mapped = _look(out, checked.data)
    say("Timing a few steps of the arms, in turns")
    time_, operations = _costs(runs, out, results)
    return Quickstart(
        recipe=recipe,
        results=results,
        intervals={arm: _interval(result) for arm, result in results.items()},
        curves={arm: _smoothed(read_curves(out / arm)) for arm in QUICKSTART_ARMS},
        samples=samples,
        mapped=mapped,
        block=f"layer {block.provenance.layers[0]} of {block.provenance.num_layers}, digest {_short(block)}",
        llm=checked.graft.llm,
        train_size=len(checked.data.split("train")),
        val_size=len(checked.data.split("val")),
        seed=checked.seed,
        environment=records.environment(),
        time=time_,
        operations=operations,
    )


def _runs(out: Path, recipe: str, overrides: Sequence[str], seed: int, progress: Verbosity) -> dict[str, Run]:
    return {
        arm: Run(
            arm=arm,
            seed=seed,
            folder=out / arm,
            recipe=recipe,
            options=(*overrides, "--arm", arm),
            progress=progress,
        )
        for arm in QUICKSTART_ARMS
    }


def _costs(runs: Mapping[str, Run], out: Path, results: Mapping[str, Result]) -> tuple[TimeRatio, float | None]:
    """What the LLM arm costs against the plain one: in time, and in counted operations of a training step."""
    arms = {arm: runs[arm] for arm in ("plain", "llm")}
    flops, pairs = counted_flops(arms, out, here=True), timed_pairs(arms, "plain", out, here=True)
    operations = flops["llm"][0] / flops["plain"][0] if flops.keys() == arms.keys() else None
    return time_ratio(results["llm"], results["plain"], pairs.get("llm")), operations


def _interval(result: Result) -> tuple[float, float]:
    return wilson_interval(round(result.metrics["accuracy"] * result.items), result.items)


def _smoothed(curves: dict[str, Curve]) -> dict[str, Curve]:
    """With the training loss as a running mean: single batches of 64 are too noisy to compare arms by eye."""
    return curves | {"train/loss": running_mean(curves.get("train/loss", []), LOSS_WINDOW)}


def _short(block: FrozenBlock) -> str:
    return block.provenance.digest[:12]


@torch.no_grad()
def _look(out: Path, data: Data) -> tuple[list[Sample], list[MappedImage]]:
    """The first test images, unselected: predictions of all arms, maps of plain and llm."""
    models = {arm: load_trained(out / arm)[1] for arm in QUICKSTART_ARMS}
    test = data.split("test")
    if not isinstance(test, ImageArray) or not isinstance(data, ImageData):
        raise RunError("the quickstart's page shows images that fit into memory", "use lmgraft train for this recipe")
    count, names = min(_NUM_SAMPLES, len(test)), data.class_names
    images, labels, *_ = test.batch(range(count))
    chosen = {arm: model(images).softmax(-1).max(-1) for arm, model in models.items()}
    samples = [
        Sample(
            image=test.images[i, 0],
            label=names[int(labels[i])],
            predicted={arm: (names[int(top.indices[i])], float(top.values[i])) for arm, top in chosen.items()},
        )
        for i in range(count)
    ]
    return samples, _map_images(models, test, names)


def _map_images(models: dict[str, nn.Module], test: ImageArray, names: tuple[str, ...]) -> list[MappedImage]:
    """The first test image of each of a few classes."""
    first: dict[int, int] = {}
    for i, label in enumerate(test.labels.tolist()):
        first.setdefault(label, i)
    chosen = sorted(first.values())[:_NUM_MAPPED]
    images, labels, *_ = test.batch(chosen)
    places = {"plain: encoder": ("plain", "encoder")}
    if find_graft(models["llm"]) is not None:
        places |= {"llm: encoder, before the block": ("llm", "encoder"), "llm: behind W2": ("llm", "mapper_out")}
    observed = {arm: observe(models[arm], images) for arm in ("plain", "llm")}
    maps: dict[str, dict[str, Tensor]] = {}
    for title, (arm, stage) in places.items():
        features = observed[arm].at[stage]
        maps[title] = {
            "magnitude": magnitude(features.tokens, features.grid),
            "frequency": frequency(features.tokens, features.grid),
        }
    return [
        MappedImage(
            image=test.images[i, 0],
            label=names[int(labels[row])],
            maps={title: {measure: m[row] for measure, m in both.items()} for title, both in maps.items()},
        )
        for row, i in enumerate(chosen)
    ]
