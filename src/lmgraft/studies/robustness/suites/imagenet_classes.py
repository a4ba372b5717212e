"""Whether a model has ImageNet's classes, which published sets and outside weights are about."""

from __future__ import annotations

from collections.abc import Sequence

from lmgraft.data.image.imagenet_sets import NUM_CLASSES, wnids
from lmgraft.errors import RunError


def check_classes(label: str, num_classes: int, in_chans: int, class_names: Sequence[str]) -> None:
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
