"""Finding ImageNet's published sets under one folder by their usual names, or where they are said to be."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmgraft.data.image import imagenet_sets as sets
from lmgraft.data.image.imagenet_sets import IMAGES, PublishedSet
from lmgraft.errors import DataError


@dataclass(frozen=True, kw_only=True)
class SetKind:
    """A published set: what people call it, its folder, and who reads it."""

    title: str
    folders: tuple[str, ...]
    """Usual names of its folder below a common one; case and signs do not matter."""
    read: Callable[[Path], PublishedSet] | None = None
    """None where it is not one set of its own."""


SETS = {
    "imagenet": SetKind(
        title="ImageNet",
        folders=("val", "imagenet-val", "imagenet/val", "imagenet-1k/val", "ilsvrc2012/val"),
        read=sets.imagenet_val,
    ),
    "imagenet_real": SetKind(title="ImageNet, ReaL labels", folders=("real.json",)),
    "imagenet_v2": SetKind(
        title="ImageNet-V2",
        folders=("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency", "imagenetv2"),
        read=sets.imagenet_v2,
    ),
    "imagenet_sketch": SetKind(
        title="ImageNet-Sketch", folders=("sketch", "imagenet-sketch"), read=sets.imagenet_sketch
    ),
    "imagenet_r": SetKind(title="ImageNet-R", folders=("imagenet-r",), read=sets.imagenet_r),
    "imagenet_a": SetKind(title="ImageNet-A", folders=("imagenet-a",), read=sets.imagenet_a),
    "imagenet_c": SetKind(title="ImageNet-C", folders=("imagenet-c",)),
}
"""By key, in the order in which they are evaluated."""


@dataclass(frozen=True)
class FoundSets:
    """What is there, checked, and what is not."""

    sets: tuple[PublishedSet, ...]
    left_out: tuple[str, ...]
    """A sentence for each set that was not found."""


def find_sets(
    root: Path | None, places: Mapping[str, Path] | None = None, only: Sequence[str] | None = None
) -> FoundSets:
    """Look for the published sets and check their folders.

    Args:
        root: Folder below which sets lie under their usual names.
        places: Where single sets lie, by key of `SETS`; "imagenet_real" is the file real.json.
        only: Keys of the sets that are wanted; all by default.

    Raises:
        DataError: If one that was named is not there, a found one is not as published, or none is there.
    """
    places = dict(places or {})
    wanted = list(SETS) if only is None else list(only)
    if root is not None and not root.is_dir():
        raise DataError(f"--suite-root {root} is no folder", "give the folder that holds imagenet-c, imagenet-a, ...")
    for key, given in places.items():
        if not given.exists():
            raise DataError(f"{_option(key)} {given} is not there", "check the path")
    found = {key: places.get(key) or _usual_place(root, SETS[key].folders) for key in wanted}
    val = places.get("imagenet") or _usual_place(root, SETS["imagenet"].folders)
    gathered: list[PublishedSet] = []
    left_out: list[str] = []
    for key in wanted:
        place, kind = found[key], SETS[key]
        if key == "imagenet_real":
            made, why = _with_real_labels(gathered, val, place, required=place is not None or only is not None)
            gathered += made
            left_out += [f"{kind.title} is left out: {why}"] if why else []
        elif place is None:
            left_out.append(
                f"{kind.title} is left out: no {kind.folders[0]} below {root}"
                if root is not None
                else f"{kind.title} is left out: no --suite-root, and no {_option(key)}"
            )
        elif kind.read is None:
            gathered += sets.imagenet_c(place).values()
        else:
            gathered.append(kind.read(place))
    if only is not None and left_out:
        raise DataError("; ".join(left_out), "take it out of --sets, or say where it is")
    if not gathered:
        raise DataError(
            "none of ImageNet's robustness sets was found:\n    " + "\n    ".join(left_out),
            "give their common folder with --suite-root DIR, or single ones with --imagenet-c DIR and the like",
        )
    return FoundSets(tuple(gathered), tuple(left_out))


def other_totals(found: Sequence[PublishedSet]) -> list[str]:
    """A sentence for each set that has not as many images as were published."""
    wrong: dict[str, list[PublishedSet]] = {}
    for one in found:
        key = one.name.partition("/")[0]
        if key in IMAGES and len(one) != IMAGES[key]:
            wrong.setdefault(key, []).append(one)
    return [_other_total(key, ones) for key, ones in wrong.items()]


def _other_total(key: str, ones: Sequence[PublishedSet]) -> str:
    counts = sorted({len(one) for one in ones})
    found = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    where = f" in {len(ones)} of its cells" if key == "imagenet_c" else ""
    each = " each" if where else ""
    return f"{SETS[key].title} has {found} images{where}, as published {IMAGES[key]:,}{each}: not the whole set"


def _with_real_labels(
    gathered: Sequence[PublishedSet], val: Path | None, labels: Path | None, required: bool
) -> tuple[list[PublishedSet], str | None]:
    """The validation images with ReaL labels, of which timm has a copy; or why there are none."""
    if val is None:
        return [], "it needs ImageNet's validation images"
    images = next((one for one in gathered if one.name == "imagenet"), None) or sets.imagenet_val(val)
    try:
        return [sets.imagenet_real(images, labels)], None
    except DataError as error:
        if required:
            raise
        return [], error.message


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _usual_place(root: Path | None, names: Sequence[str]) -> Path | None:
    if root is None:
        return None
    for name in names:
        place: Path | None = root
        for part in name.split("/"):
            place = _entry(place, part) if place is not None else None
        if place is not None:
            return place
    return None


def _entry(folder: Path, name: str) -> Path | None:
    """The entry of a folder with this name, whatever its case, hyphens and underscores."""
    if not folder.is_dir():
        return None
    return next((entry for entry in sorted(folder.iterdir()) if _plain(entry.name) == _plain(name)), None)


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()
