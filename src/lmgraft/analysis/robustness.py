"""Accuracy under corruption: the means, mCE and what is kept of the clean accuracy.

Hendrycks and Dietterich, ICLR 2019 (arXiv 1903.12261). The paper that lmgraft follows reports
"ImageNet-C" as the mean top-1 accuracy, higher is better, and not as mCE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from lmgraft.analysis.intervals import wilson_interval

ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's top-1 error on each corruption of ImageNet-C, mean over severities: the unit of mCE."""
ALEXNET_CLEAN_ERROR = 0.43478
"""AlexNet's on clean ImageNet (torchvision's weights: 56.522 % top-1; the paper prints 43.5)."""


@dataclass(frozen=True)
class Count:
    """Right answers among images."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval over test images, of this one trained model."""
        return wilson_interval(self.correct, self.total)


@dataclass(frozen=True, kw_only=True)
class CorruptionSummary:
    """Shares in [0, 1]; mCE as a ratio to AlexNet, 1 being as bad as it.

    A mean over severities has no Wilson interval: its images are the same, corrupted again.
    """

    by_corruption: dict[str, float]
    """Mean top-1 over severities."""
    by_severity: dict[int, float]
    """Mean top-1 over corruptions."""
    mean: float
    """Mean of `by_corruption`: the paper's "ImageNet-C" where all fifteen are there."""
    clean: float | None
    kept: float | None
    """mean / clean."""
    mce: float | None
    relative_mce: float | None
    """Of the loss against the clean accuracy, in units of AlexNet's loss."""


def summarise(
    cells: Mapping[tuple[str, int], Count], clean: Count | None = None, *, published: bool = False
) -> CorruptionSummary:
    """The figures of a corruption suite.

    Args:
        cells: For each (corruption, severity) what was counted; every corruption at the same severities.
        clean: The same model on the uncorrupted images.
        published: Whether these are ImageNet-C's own files: only then AlexNet's errors apply, and
            only where all fifteen corruptions are there.

    Raises:
        ValueError: If there are no cells, or a corruption lacks a severity.
    """
    corruptions = list(dict.fromkeys(name for name, _ in cells))
    severities = sorted({severity for _, severity in cells})
    missing = [(c, s) for c in corruptions for s in severities if (c, s) not in cells]
    if not cells or missing:
        raise ValueError(f"no means without {missing or 'cells'}")
    accuracy = {key: count.accuracy for key, count in cells.items()}
    by_corruption = {c: fmean(accuracy[c, s] for s in severities) for c in corruptions}
    mean = fmean(by_corruption.values())
    top = None if clean is None else clean.accuracy
    in_units_of_alexnet = published and set(corruptions) == set(ALEXNET_ERRORS)
    return CorruptionSummary(
        by_corruption=by_corruption,
        by_severity={s: fmean(accuracy[c, s] for c in corruptions) for s in severities},
        mean=mean,
        clean=top,
        kept=mean / top if top else None,
        mce=mean_corruption_error(by_corruption) if in_units_of_alexnet else None,
        relative_mce=relative_error(by_corruption, top) if in_units_of_alexnet and top is not None else None,
    )


def mean_corruption_error(by_corruption: Mapping[str, float]) -> float:
    """mCE: the mean over corruptions of the model's error over AlexNet's; 1 is AlexNet, less is better.

    Args:
        by_corruption: For each of the fifteen the top-1 accuracy in [0, 1], mean over severities.
    """
    return fmean((1 - by_corruption[name]) / error for name, error in ALEXNET_ERRORS.items())


def relative_error(by_corruption: Mapping[str, float], clean: float) -> float:
    """Relative mCE: what corruptions cost on top of the clean error, over what they cost AlexNet.

    Args:
        by_corruption: As in `mean_corruption_error`.
        clean: Top-1 accuracy on clean ImageNet, in [0, 1].
    """
    return fmean(
        (clean - by_corruption[name]) / (error - ALEXNET_CLEAN_ERROR) for name, error in ALEXNET_ERRORS.items()
    )
