"""Runs of a study on corrupted test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lmgraft.data.image.corruptions import find_corruption
from lmgraft.errors import DataError, RunError
from lmgraft.studies.robustness.run import RobustnessConfig, evaluate_robustness, plan_cells
from lmgraft.studies.study.config import Robustness
from lmgraft.training.checkpoints import checkpoint_path


def check_wanted(wanted: Robustness) -> None:
    """Find mistakes in what a study's file asks for.

    Raises:
        LmgraftError: If a corruption does not exist or is named twice, none is named, or a number does not fit.
    """
    named = wanted.corruptions
    if named is not None and (not named or len(set(named)) < len(named)):
        raise DataError(f"robustness.corruptions={named} names {'one twice' if named else 'none'}", "null takes all")
    for name in named or ():
        find_corruption(name)
    if wanted.seed < 0:
        raise DataError(f"robustness.seed={wanted.seed} must not be negative")
    _config(wanted)


def find_what_is_needed(wanted: Robustness, say: Callable[[str], None]) -> None:
    """Packages and pictures that the corruptions need, before anything is trained.

    Raises:
        LmgraftError: If something cannot be had.
    """
    plan_cells(_config(wanted), say)


def _config(wanted: Robustness) -> RobustnessConfig:
    chosen = {} if wanted.corruptions is None else {"corruptions": tuple(wanted.corruptions)}
    return RobustnessConfig(limit=wanted.limit, seed=wanted.seed, **chosen)  # type: ignore[arg-type]


def check_weights(folders: Sequence[Path]) -> None:
    """Make sure that finished runs have what is to be shown corrupted images.

    Raises:
        RunError: If a run's weights are not there.
    """
    without = [folder for folder in folders if not checkpoint_path(folder, "best").exists()]
    if without:
        raise RunError(
            f"{without[0]} has no best.ckpt to be shown corrupted images (a run taken by --reuse has none)",
            "leave out --reuse, or robustness",
        )


def evaluate_missing(folders: Sequence[Path], wanted: Robustness, say: Callable[[str], None]) -> None:
    """Evaluate runs on corruptions, cell by cell; cells that their robustness.json holds are kept.

    Raises:
        RunError: If a run's weights are not there.
    """
    check_weights(folders)
    for folder in folders:
        evaluate_robustness([folder], _config(wanted), say=say)
