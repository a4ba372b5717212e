"""Which splits there are: folders, tars, a table of labels, or a data set of another library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


def find_splits(layout: Layout) -> dict[str, Found]:
    """The splits that the data set itself has: "train", "val" and "test", as far as there are such.

    Raises:
        DataError: If there are none, or one that was asked for by name is missing.
    """
    prefix, slash, _ = layout.dataset.partition("/")
    if layout.csv is not None:
        root = None if layout.root is None else _existing(layout.root)
        found = find_in_csv(Path(layout.csv).expanduser(), root)
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
        return {"train": find_in_tars(root)}
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
        return {split: _read(place) for split, place in places.items()}
    if places:
        raise DataError(
            f"{root} has {' and '.join(sorted(p.name for p in places.values()))} but no train folder or train.tar",
            "name the folder of the training images as data.train_split",
        )
    return {"train": _read(root)}


def _place(root: Path, named: str | None, usual: Sequence[str]) -> Path | None:
    for name in usual if named is None else (named,):
        for path in (root / name, root / f"{name}.tar"):
            if path.exists():
                return path
    if named is not None:
        raise DataError(f"{root} has neither a folder {named} nor {named}.tar", "check the names of the splits")
    return None


def _read(place: Path) -> Found:
    tars = place.is_file() or (any(place.glob("*.tar")) and not any(p.is_dir() for p in place.iterdir()))
    return find_in_tars(place) if tars else find_in_folder(place)


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
