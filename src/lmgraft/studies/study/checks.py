"""What would make a study fail or mean nothing, found before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import yaml

from lmgraft import records
from lmgraft.block import inspect_llm
from lmgraft.errors import LmgraftError, RecipeError, RunError
from lmgraft.recipes import ARMS, Recipe
from lmgraft.recipes.arms import arm_layer
from lmgraft.recipes.build import build_encoder, set_up_data
from lmgraft.recipes.record import changed_keys
from lmgraft.studies.engine.runs import Run
from lmgraft.studies.study.config import Study
from lmgraft.studies.study.facts import Fact, other_versions


def check_cells(cells: Sequence[Run]) -> None:
    """Read every arm's recipe, so that a mistake is found before anything is trained.

    Raises:
        RecipeError: If one does not fit; it names the arm.
    """
    seen: set[tuple[str, float | None]] = set()
    for cell in cells:
        if (cell.arm, cell.learning_rate) not in seen:
            seen.add((cell.arm, cell.learning_rate))
            try:
                train = cell.plan.train
            except LmgraftError as error:
                raise RecipeError(f"arm {cell.arm}: {error.message}", error.remedy) from None
            if str(train.devices) not in ("auto", "1") or train.num_nodes != 1:
                raise RecipeError(
                    f"arm {cell.arm}: train.devices={train.devices}, train.num_nodes={train.num_nodes}: a study trains "
                    "each run in one process on one device, and several runs beside each other",
                    "leave them out and give --workers; train.accumulate makes a step of several batches",
                )


def check_data_and_encoder(study: Study, cell: Run, facts: Sequence[Fact]) -> None:
    """Find, check and split the data, which all runs share, and make the encoder once, before any is begun.

    Raises:
        LmgraftError: If the data cannot be had, are not those of the runs that are finished, would choose the epoch
            by the test items, or have no such metric; if the encoder cannot be made, or its weights cannot be had.
    """
    recipe = cell.load()
    set_up_data(recipe)
    check_selection(recipe, cell.name)
    metrics = [metric.name for metric in recipe.task_class.metrics(recipe.data)]
    if study.metric.name not in metrics:
        raise RecipeError(
            f"{recipe.task_class.__name__} on these data has no metric {study.metric.name!r}",
            f"compare by {', '.join(metrics)}",
        )
    here = json.loads(json.dumps(recipe.data.fingerprint()))
    changed = changed_keys(facts[0].record["data"], here, "data") if facts else []
    if changed:
        raise RunError(
            f"the data are not those of the runs that are finished: {'; '.join(map(str, changed[:3]))}",
            "give the same data, or choose another --out",
        )
    build_encoder(recipe)


def check_selection(recipe: Recipe, name: str) -> None:
    """Refuse what chooses its epoch by the test data.

    Raises:
        RunError: If it does.
    """
    if recipe.data.selection == "test":
        raise RunError(
            f"{name}: this recipe chooses its best epoch by the test items, so that its figures are too good by "
            "an unknown amount",
            "hold training items out for it, for instance --data.val_size 0.02 (docs/data.md)",
        )


def check_environment(facts: Sequence[Fact], allow_difference: bool) -> None:
    """Refuse to add runs of these versions to finished ones of others.

    Raises:
        RunError: If versions differ.
    """
    there = facts[0].record["environment"]["versions"] if facts else {}
    here = records.environment(there)["versions"]
    differ = [f"{name} {there[name]} there, {here[name]} here" for name in other_versions(there, here)]
    if differ and not allow_difference:
        raise RunError(
            f"the runs that are finished were made with other versions: {'; '.join(differ)}",
            "install those, train all anew in another --out, or add --allow-difference",
        )


def check_blocks(cells: Sequence[Run]) -> None:
    """Find every LLM that these runs need and read its header; no weights.

    Raises:
        LmgraftError: If one cannot be had, or has no such layer.
    """
    for error in missing_blocks(cells):
        raise error
    check_different(cells)


def check_different(cells: Sequence[Run]) -> None:
    """Refuse arms that have one block under two numbers, such as layers 29 and -1; LLMs' headers must be there.

    Raises:
        RecipeError: If there are such arms.
    """
    seen: dict[str, str] = {}
    counts: dict[tuple[str, str | None], int] = {}
    for cell in {cell.arm: cell for cell in cells}.values():
        recipe = cell.plan
        if ARMS[recipe.arm].block is None:
            continue
        layers = arm_layer(recipe.arm, recipe.graft.layer)
        layers = layers if isinstance(layers, tuple) else (layers,)
        llm = recipe.graft.llm, recipe.graft.revision
        if llm not in counts:  # its header is read once, however many arms have it
            counts[llm] = inspect_llm(llm[0], layers[0], revision=llm[1]).num_layers
        count = counts[llm]
        content = yaml.safe_load(recipe.yaml)
        content["graft"]["layer"] = [layer % count for layer in layers]
        content["seed"] = None
        content["optim"]["lr"] = None if cell.learning_rate is not None else content["optim"]["lr"]
        other = seen.setdefault(json.dumps(content, sort_keys=True), cell.arm)
        if other != cell.arm:
            raise RecipeError(
                f"arms {other} and {cell.arm} are the same: layer {layers[0] % count} of {count}", "leave one out"
            )


def missing_blocks(cells: Sequence[Run]) -> Iterator[LmgraftError]:
    """As `check_blocks`, what is wrong with each of them."""
    wanted: dict[tuple[str, int, str | None], str] = {}
    for cell in {cell.arm: cell for cell in cells}.values():
        recipe = cell.plan
        if ARMS[recipe.arm].block is None:
            continue
        layers = arm_layer(recipe.arm, recipe.graft.layer)
        for layer in layers if isinstance(layers, tuple) else (layers,):
            wanted.setdefault((recipe.graft.llm, layer, recipe.graft.revision), cell.arm)
    for (llm, layer, revision), arm in wanted.items():
        try:
            inspect_llm(llm, layer, revision=revision)
        except LmgraftError as error:
            yield type(error)(f"arm {arm}: {error.message}", error.remedy)
