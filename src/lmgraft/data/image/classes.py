"""Classes: their names and numbers, and whether all splits agree on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from timm.data.readers.class_map import load_class_map
from timm.utils.misc import natural_key

from lmgraft.data.files import listed, plural
from lmgraft.data.image.imagenet_sets import wnids
from lmgraft.data.image.tables import Found
from lmgraft.errors import DataError

ClassList = list[str] | int | str | None
"""Names in the order of their numbers, how many, "imagenet", a text file with a name a line, or None."""
ClassMap = dict[str, int] | str | None
"""Class folder -> number, or a file of it in timm's format: line k names the folder of class k."""


def known_classes(classes: ClassList, class_map: ClassMap, root: str | None = None) -> tuple[str, ...] | None:
    """The names that the options themselves give; None if they are to be found.

    Raises:
        DataError: If a file cannot be read, or numbers are missing.
    """
    if class_map is not None:
        return _names_of(_mapping(class_map, root))
    if isinstance(classes, list):
        return _unique(classes, "data.classes")
    if not isinstance(classes, str):
        return None
    if classes == "imagenet":
        return wnids()
    try:
        lines = Path(classes).expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(
            f"data.classes={classes} cannot be read: {error.strerror}",
            "give imagenet, a number, a list of names, or a text file with a name a line",
        ) from None
    return _unique([line.strip() for line in lines if line.strip()], classes)


def _mapping(class_map: dict[str, int] | str, root: str | None) -> dict[str, int]:
    if isinstance(class_map, dict):
        return class_map
    try:
        mapping: dict[str, int] = load_class_map(class_map, root or "")
    except (AssertionError, OSError, ValueError) as error:
        raise DataError(f"data.class_map={class_map}: {error}", "give a .txt file with a class folder a line") from None
    return mapping


def _names_of(mapping: Mapping[str, int]) -> tuple[str, ...]:
    numbers = sorted(set(mapping.values()))
    if numbers != list(range(len(numbers))):
        raise DataError(f"data.class_map has the numbers {listed([str(n) for n in numbers])}", "number from 0, no gaps")
    names: list[list[str]] = [[] for _ in numbers]
    for name, number in mapping.items():
        names[number].append(name)
    return tuple("+".join(part) for part in names)


def _unique(names: Iterable[str], where: str) -> tuple[str, ...]:
    names = tuple(names)
    if len(set(names)) < len(names):
        raise DataError(f"{where} names a class twice: {listed(sorted({n for n in names if names.count(n) > 1}))}")
    return names


def number_classes(
    splits: Mapping[str, Found], classes: ClassList = None, class_map: ClassMap = None, root: str | None = None
) -> tuple[tuple[str, ...], dict[str, npt.NDArray[np.int64]]]:
    """Class names, and for each split the number of each image's class, -1 where `class_map` leaves it out.

    Without a list, classes are the labels of the training images in natural order (class2 before class10), as in
    timm, or the order that the data set itself gives.

    Raises:
        DataError: If splits, folders and list do not agree.
    """
    if class_map is not None:
        mapping = _mapping(class_map, root)
        numbers = {name: _numbers(found, mapping) for name, found in splits.items()}
        names = _at_least_two(_names_of(mapping), splits["train"])
        for name, found in splits.items():
            lacking = [names[k] for k in np.setdiff1d(np.arange(len(names)), numbers[name])]
            if len(lacking) == len(names) or (lacking and (found.folders or name == "train")):
                raise DataError(f"{found.where} has no image of {listed(lacking)}, which data.class_map names")
        return names, numbers
    train = splits["train"]
    listed_names = known_classes(classes, None)
    names = listed_names or train.classes or tuple(sorted(set(train.labels), key=lambda n: (natural_key(n), n)))
    if isinstance(classes, int) and len(names) != classes:
        raise DataError(
            f"{train.where} has {len(names):,} classes, data.classes says {classes:,}",
            f"empty: {listed(list(train.empty))}" if train.empty else "look for missing or stray class folders",
        )
    mapping = {name: number for number, name in enumerate(names)}
    present = set(train.labels)
    if present.isdisjoint(names) and all(label.isdigit() for label in present):
        mapping = {str(number): number for number in range(len(names))}  # a table of numbers with a list of names
    for found in splits.values():
        _check(found, names, mapping, "data.classes" if listed_names else train.where, found.folders or found is train)
    _at_least_two(names, train)  # last: an empty folder is the better reason
    return names, {name: _numbers(found, mapping) for name, found in splits.items()}


def _at_least_two(names: tuple[str, ...], train: Found) -> tuple[str, ...]:
    if len(names) < 2:
        raise DataError(
            f"{train.where} has one class only: {listed(list(names))}",
            "there must be two at least, each a folder or a label of its own"
            if not train.folders
            else "put the images of each class into a folder of its own below it; there must be two at least",
        )
    return names


def _numbers(found: Found, mapping: Mapping[str, int]) -> npt.NDArray[np.int64]:
    return np.array([mapping.get(label, -1) for label in found.labels], np.int64)


def _check(found: Found, names: tuple[str, ...], mapping: Mapping[str, int], expected: str, complete: bool) -> None:
    present = set(found.labels)
    if found.empty:
        folders = plural(len(found.empty), "class folder")
        raise DataError(
            f"{found.where} has {folders} without an image: {listed(list(found.empty))}",
            "fill or remove them",
        )
    extra = sorted(present - set(mapping), key=natural_key)
    covered = {mapping[label] for label in present if label in mapping}
    missing = [name for number, name in enumerate(names) if number not in covered] if complete else []
    if extra or missing:
        parts = [f"lacks {len(missing):,} of {len(names):,} classes: {listed(missing)}"] if missing else []
        parts += [f"has {len(extra):,} that are not among them: {listed(extra)}"] if extra else []
        raise DataError(
            f"the classes of {found.where} are not those of {expected}; it {' and '.join(parts)}",
            "a missing or stray class would shift the numbers of all behind it; mend the folders or the labels",
        )
