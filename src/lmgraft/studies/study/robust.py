"""Runs of a study on corrupted test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lmgraft.errors import RunError
from lmgraft.studies.robustness.run import RobustnessConfig, evaluate_robustness
from lmgraft.studies.study.config import Robustness
from lmgraft.training.checkpoints import checkpoint_path


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
    config = RobustnessConfig(limit=wanted.limit, seed=wanted.seed)
    if wanted.corruptions is not None:
        config = RobustnessConfig(limit=wanted.limit, seed=wanted.seed, corruptions=tuple(wanted.corruptions))
    for folder in folders:
        evaluate_robustness([folder], config, say=say)
