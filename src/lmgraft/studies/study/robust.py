"""Runs of a study on its robustness suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmgraft.errors import RunError
from lmgraft.studies.progress import Say
from lmgraft.studies.robustness.run import RobustnessConfig, evaluate_robustness
from lmgraft.training.checkpoints import checkpoint_path


def check_weights(folders: Sequence[Path]) -> None:
    """Make sure that finished runs have what is to be evaluated.

    Raises:
        RunError: If a run's weights are not there.
    """
    without = [folder for folder in folders if not checkpoint_path(folder, "best").exists()]
    if without:
        raise RunError(
            f"{without[0]} has no best.ckpt to be evaluated on a suite (a run taken by --reuse has none)",
            "leave out --reuse, or robustness",
        )


def evaluate_missing(folders: Sequence[Path], wanted: RobustnessConfig, say: Say) -> None:
    """Evaluate runs on the suite, condition by condition; what their robustness.json holds is kept.

    Raises:
        RunError: If a run's weights are not there.
    """
    check_weights(folders)
    for folder in folders:
        evaluate_robustness([folder], wanted, say=say)
