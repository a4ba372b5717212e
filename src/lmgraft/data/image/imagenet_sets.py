"""ImageNet and its robustness sets as they lie on disk, checked folder by folder before anything runs.

Labels come from a folder's name and never from its place in a listing, so nothing beside the
class folders can shift them.

ImageNet        root/<wnid>/*                     its validation images; with ReaL labels too
ImageNet-C      root/<corruption>/<1..5>/<wnid>/* Hendrycks and Dietterich, ICLR 2019
ImageNet-A, -R  root/<wnid>/*                     200 classes each; arXiv 1907.07174, 2006.16241
ImageNet-Sketch root/<wnid>/*                     Wang et al., NeurIPS 2019
ImageNet-V2     root/<0..999>/*                   Recht et al., ICML 2019
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from lmgraft.data.image.corruptions import CORRUPTIONS, SEVERITIES
from lmgraft.errors import DataError

NUM_CLASSES = 1000
IMAGES = {
    "imagenet_train": 1_281_167,
    "imagenet": 50_000,
    "imagenet_c": 50_000,
    "imagenet_v2": 10_000,
    "imagenet_sketch": 50_889,
    "imagenet_r": 30_000,
    "imagenet_a": 7_500,
}
"""Images of each set as published; of ImageNet-C for each corruption and severity."""
_ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm")
_SHOWN = 5  # folders that an error names


@dataclass(frozen=True)
class PublishedSet:
    """Image files and what counts as a right answer for each."""

    name: str
    """"imagenet_a", or "imagenet_c/fog/3"."""
    root: Path
    files: tuple[str, ...]
    """Relative to `root`, in a fixed order."""
    targets: tuple[tuple[int, ...], ...]
    """For each file the right classes among the 1000, one or several."""
    classes: tuple[int, ...] | None = None
    """The classes among which the model may choose; None for all."""
    transform: Literal["evaluation", "crop"] = "evaluation"
    """"crop": a centre crop of 224 pixels without resizing."""

    def __len__(self) -> int:
        return len(self.files)

    def digest(self) -> str:
        """SHA-256 over names and right answers, the same wherever the set lies."""
        lines = (f"{file} {' '.join(map(str, right))}\n" for file, right in zip(self.files, self.targets, strict=True))
        return hashlib.sha256("".join([f"{self.classes} {self.transform}\n", *lines]).encode()).hexdigest()


@cache
def wnids() -> tuple[str, ...]:
    """ImageNet's 1000 class names in the order of a model's outputs."""
    return _timm_list("imagenet_synsets.txt")


@cache
def subset(which: Literal["a", "r"]) -> tuple[str, ...]:
    """The 200 classes of ImageNet-A or -R, sorted."""
    return _timm_list(f"imagenet_{which}_synsets.txt")


def _timm_list(name: str) -> tuple[str, ...]:
    text = resources.files("timm.data").joinpath("_info", name).read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def by_wnid(name: str, root: Path, expected: Sequence[str]) -> PublishedSet:
    """A set of one folder a class.

    Args:
        expected: The classes; where they are not all 1000, the model chooses among them alone.

    Raises:
        DataError: If a class folder is missing or empty, or a folder is none of the classes.
    """
    place = {wnid: index for index, wnid in enumerate(wnids())}
    classes = None if len(expected) == NUM_CLASSES else tuple(sorted(place[wnid] for wnid in expected))
    return _gather(name, root, {wnid: place[wnid] for wnid in expected}, classes)


def imagenet_a(root: Path) -> PublishedSet:
    return by_wnid("imagenet_a", root, subset("a"))


def imagenet_r(root: Path) -> PublishedSet:
    return by_wnid("imagenet_r", root, subset("r"))


def imagenet_sketch(root: Path) -> PublishedSet:
    return by_wnid("imagenet_sketch", root, wnids())


def imagenet_val(root: Path) -> PublishedSet:
    return by_wnid("imagenet", root, wnids())


def imagenet_v2(root: Path) -> PublishedSet:
    """Folders are named by class number without leading zeros: sorted as text, 10 would precede 2."""
    return _gather("imagenet_v2", root, {str(number): number for number in range(NUM_CLASSES)}, None)


def imagenet_real(val: PublishedSet, labels: Path | None = None) -> PublishedSet:
    """ImageNet's validation images with the reassessed labels of "ReaL" (arXiv 2006.07159).

    Images for which the raters found no label are left out.

    Args:
        val: From `imagenet_val`; files are named ILSVRC2012_val_00000001 and so on.
        labels: real.json; by default timm's copy.

    Raises:
        DataError: If the labels or a file's name are not what they should be.
    """
    import json

    where = "timm's copy of real.json" if labels is None else str(labels)
    try:
        source = resources.files("timm.data").joinpath("_info", "imagenet_real_labels.json")
        lists = json.loads((source if labels is None else labels).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{where} cannot be read: {error}", "fetch real.json of google-research again") from None
    if not isinstance(lists, list) or not all(
        isinstance(one, list) and all(type(label) is int and 0 <= label < NUM_CLASSES for label in one) for one in lists
    ):
        raise DataError(f"{where} is no list of lists of class numbers", "give real.json of google-research")
    kept = [(file, tuple(lists[number])) for file in val.files if lists[number := _val_number(val, file, len(lists))]]
    return PublishedSet("imagenet_real", val.root, tuple(f for f, _ in kept), tuple(right for _, right in kept))


def _val_number(val: PublishedSet, file: str, count: int) -> int:
    head, _, digits = Path(file).stem.rpartition("_")
    if head != "ILSVRC2012_val" or not digits.isdigit() or not 1 <= int(digits) <= count:
        raise DataError(
            f"{val.root / file}: ReaL labels go by the validation images' own names, ILSVRC2012_val_00000001 to "
            f"{count:08d}",
            "keep the names of the archive, or leave ReaL out with --sets",
        )
    return int(digits) - 1


def imagenet_c(root: Path) -> dict[tuple[str, int], PublishedSet]:
    """The 75 sets of ImageNet-C by corruption and severity.

    Raises:
        DataError: If a corruption, a severity or a class folder is missing.
    """
    places = {name: _corruption_folder(root, name) for name in CORRUPTIONS}
    lost = [name for name, place in places.items() if place is None]
    if lost:
        raise DataError(
            f"{root}: of ImageNet-C's {len(CORRUPTIONS)} corruptions {len(lost)} are missing: {', '.join(lost)}",
            "unpack noise.tar, blur.tar, weather.tar and digital.tar there",
        )
    cells = [(name, severity, place) for name, place in places.items() if place for severity in SEVERITIES]
    absent = [place / str(severity) for _, severity, place in cells if not (place / str(severity)).is_dir()]
    if absent:
        raise DataError(f"severities are missing: {_some(map(str, absent))}", "unpack the archives of ImageNet-C again")

    def gather(cell: tuple[str, int, Path]) -> PublishedSet:
        name, severity, place = cell
        found = by_wnid(f"imagenet_c/{name}/{severity}", place / str(severity), wnids())
        return PublishedSet(found.name, found.root, found.files, found.targets, None, "crop")

    with ThreadPoolExecutor(8) as pool:  # 75,000 folders, perhaps over a network
        return {
            (name, severity): made for (name, severity, _), made in zip(cells, pool.map(gather, cells), strict=True)
        }


def _corruption_folder(root: Path, name: str) -> Path | None:
    """root/<corruption>, or one level deeper, where the archives' own folders were kept."""
    for place in (root / name, *sorted(root.glob(f"*/{name}"))):
        if place.is_dir():
            return place
    return None


def _gather(name: str, root: Path, labels: Mapping[str, int], classes: tuple[int, ...] | None) -> PublishedSet:
    if not root.is_dir():
        raise DataError(f"{name}: {root} is no folder", "check the path")
    # Hidden folders and macOS's archive leftovers hold no classes.
    found = {entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] not in "._"}
    faults = {
        "class folders are missing": labels.keys() - found,
        "folders are none of its classes": found - labels.keys(),
    }
    listed = {folder: _images(root / folder) for folder in labels if folder in found}
    faults["class folders hold no image"] = {folder for folder, files in listed.items() if not files}
    differences = [f"{len(ones)} {what} ({_some(sorted(ones))})" for what, ones in faults.items() if ones]
    if differences:
        raise DataError(
            f"{root} is not {name} as published: {'; '.join(differences)}",
            f"it should hold one folder for each of its {len(labels)} classes and no other",
        )
    right = {folder: (label,) for folder, label in labels.items()}
    # Interned: ImageNet-C's 75 sets name the same 50,000 files.
    pairs = [(sys.intern(f"{folder}/{file}"), right[folder]) for folder in sorted(labels) for file in listed[folder]]
    return PublishedSet(name, root, tuple(f for f, _ in pairs), tuple(answers for _, answers in pairs), classes)


def _images(folder: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.name.lower().endswith(_ENDINGS) and e.name[0] != ".")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
