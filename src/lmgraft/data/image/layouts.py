"""Which splits there are: folders, tars, a table of labels, or a data set of another library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lmgraft.data.files import composed, is_system_folder, listed
from lmgraft.data.image.csv_files import ANY, find_in_csv
from lmgraft.data.image.folders import find_in_folder
from lmgraft.data.image.hub_sets import find_hfds, find_torch
from lmgraft.data.image.tables import Found
from lmgraft.data.image.tars import find_in_shards, find_in_tars
from lmgraft.errors import DataError

_TRAIN = ("train", "training")
_VAL = ("val", "valid", "validation", "eval", "evaluation")
_TEST = ("test", "testing")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the data lie: `ImageFiles`' options of the same names."""

    root: str | None = None
    """The folder of the images, or a .tar file."""
    dataset: str = ""
    """Another kind of data set, as timm names it: hfds/NAME, wds/, torch/NAME."""
    layout: Literal["auto", "splits", "classes"] = "auto"
    """What the folders directly below root are: classes, or splits; by default splits if one is called train."""
    class_folder: Literal["inner", "outer"] = "inner"
    """Which folder names the class of an image that lies deeper: the one it lies in, or the outermost."""
    split_version: Literal[1, 2] = 2
    """How images are held out: 2 keeps equal files together and spells names alike on every system; 1 does neither."""
    csv: str | None = None
    """A table with the columns path, label and perhaps split; paths are relative to root, or to the table."""
    train_split: str | None = None
    """Name of the training split (a folder, a tar, a pattern of shards); train by default."""
    val_split: str | None = None
    """The same of the split that chooses the epoch; val, valid or validation by default."""
    test_split: str | None = None
    """The same of the test split; test by default."""
    input_key: str = "image"
    """Column of the image in a Hugging Face data set."""
    target_key: str = "label"
    """Column of the class in a Hugging Face data set."""

    def spell(self, name: str) -> str:
        """A file's name as it is sorted, hashed and compared."""
        return name if self.split_version == 1 else composed(name)


def find_splits(layout: Layout) -> dict[str, Found]:
    """The splits that the data set itself has: "train", "val" and "test", as far as there are such.

    Raises:
        DataError: If there are none, or one that was asked for by name is missing.
    """
    prefix, slash, _ = layout.dataset.partition("/")
    if layout.csv is not None:
        root = None if layout.root is None else _existing(layout.root)
        found = find_in_csv(Path(layout.csv).expanduser(), root, layout.spell)
        if ANY not in found and "train" not in found:
            raise DataError(f"{layout.csv} has no images for training", "name them train in its column split")
        return {"train": found[ANY]} if ANY in found else found
    if not slash:
        if layout.dataset:
            raise DataError(
                f"data.dataset={layout.dataset}: there is no such kind of data set",
                "leave it out for folders and tars, or write wds/, hfds/NAME or torch/NAME as timm does",
            )
        return _in_files(_existing(layout.root), layout)
    return _named(prefix.lower(), layout)


def _existing(root: str | None) -> Path:
    if root is None:
        raise DataError("data.root is missing", "give the folder of the images: --data.root DIR")
    path = Path(root).expanduser()
    if not path.exists():
        raise DataError(f"data.root={root}: there is no such folder", "check the path")
    return path


def _in_files(root: Path, layout: Layout) -> dict[str, Found]:
    if root.is_file():
        if root.suffix.lower() != ".tar":
            raise DataError(f"data.root={root} is a file", "give a folder, or a .tar file")
        return {"train": find_in_tars(root, layout.spell)}
    if layout.layout == "classes":
        return {"train": _read(root, layout)}
    places: dict[str, Path] = {}
    for split, named, usual in (
        ("train", layout.train_split, _TRAIN),
        ("val", layout.val_split, _VAL),
        ("test", layout.test_split, _TEST),
    ):
        place = _place(root, named, usual)
        if place is not None:
            places[split] = place
    if "train" in places:
        found = {split: _read(place, layout) for split, place in places.items()}
        return found | {"train": replace(found["train"], notes=(*found["train"].notes, *_beside(root, places)))}
    if places or layout.layout == "splits":
        raise DataError(
            f"{root} has {' and '.join(sorted(p.name for p in places.values())) or 'no split'} but no train folder or "
            "train.tar",
            "name the folder of the training images as data.train_split; or, if these are classes, give "
            "data.layout=classes",
        )
    return {"train": _read(root, layout)}


def _beside(root: Path, places: Mapping[str, Path]) -> Iterator[str]:
    """A note of folders beside the splits, which may be classes."""
    taken = {place.name for place in places.values()}
    beside = sorted(
        entry.name
        for entry in root.iterdir()
        if entry.name not in taken and entry.is_dir() and not is_system_folder(entry.name)
    )
    if beside:
        yield (
            f"{root}: {' and '.join(sorted(taken))} are read as splits, and the folders {listed(beside)} are not read; "
            "if all of them are classes, give data.layout=classes"
        )


def _place(root: Path, named: str | None, usual: Sequence[str]) -> Path | None:
    for name in usual if named is None else (named,):
        for path in (root / name, root / f"{name}.tar"):
            if path.exists():
                return path
    if named is not None:
        raise DataError(f"{root} has neither a folder {named} nor {named}.tar", "check the names of the splits")
    return None


def _read(place: Path, layout: Layout) -> Found:
    tars = place.is_file() or (any(place.glob("*.tar")) and not any(p.is_dir() for p in place.iterdir()))
    find = find_in_tars if tars else find_in_folder
    return find(place, layout.spell, layout.class_folder == "outer")


def _named(prefix: str, layout: Layout) -> dict[str, Found]:
    splits = {"train": layout.train_split or "train", "test": layout.test_split or "validation"}
    if layout.val_split is not None:
        splits["val"] = layout.val_split
    if prefix in ("hfids", "tfds"):
        raise DataError(
            f"data.dataset={layout.dataset}: {prefix}/ is a stream, and no position of a stream can be asked for again",
            "runs could neither share draws nor be resumed inside an epoch; use hfds/, wds/, folders or tars",
        )
    if prefix == "hfds":
        return {
            split: find_hfds(layout.dataset, layout.root, name, layout.input_key, layout.target_key)
            for split, name in splits.items()
        }
    if prefix == "wds":
        root = layout.root if layout.root is not None else layout.dataset.partition("/")[2]
        folder = Path(root) if ":" in root else _existing(root)
        return {split: find_in_shards(folder, name) for split, name in splits.items()}
    if prefix == "torch":
        root = str(_existing(layout.root))
        return {split: find_torch(layout.dataset, root, name) for split, name in splits.items()}
    raise DataError(
        f"data.dataset={layout.dataset}: there is no reader {prefix}/",
        "leave it out for folders and tars, or write wds/, hfds/NAME or torch/NAME as timm does",
    )
