"""Data sets that other libraries hold: Hugging Face's `datasets` and torchvision's, through timm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from timm.data import create_dataset
from timm.data.readers import create_reader

from lmgraft.data.image.opening import open_image
from lmgraft.data.image.reading import Pixels
from lmgraft.data.image.tables import Found
from lmgraft.errors import DataError, first_line
from lmgraft.versions import optional


@dataclass(frozen=True)
class ReaderFiles:
    """Images of one of timm's map-style readers."""

    reader: Any

    def open(self, index: int) -> Image.Image | Pixels:
        with self.reader[index][0] as stream:
            return open_image(stream.read())


@dataclass(frozen=True)
class TorchFiles:
    """Images of one of torchvision's data sets."""

    dataset: Any

    def open(self, index: int) -> Image.Image:
        image: Image.Image = self.dataset[index][0]
        return image


def find_hfds(name: str, root: str | None, split: str, input_key: str, target_key: str) -> Found:
    """Images of a Hugging Face data set that lies in memory-mapped tables, so that any row can be read.

    Args:
        name: `hfds/` and its name on the Hub, or a local folder.
        root: Folder of the downloads; the user's cache by default.
        split: As the data set calls it.
        input_key, target_key: Columns of the image and of its class.

    Raises:
        VersionError: If `datasets` is not installed.
        DataError: If the data set cannot be had.
    """
    optional("datasets", "", f"data.dataset={name}")
    try:
        reader = create_reader(name, root=root, split=split, input_key=input_key, target_key=target_key)
        labels = list(reader.dataset[target_key])
        sizes = _sizes(reader.dataset, input_key)
    except (OSError, ValueError, KeyError, ConnectionError) as error:
        raise DataError(
            f"data.dataset={name}, split {split}: {first_line(error)}",
            "check the name, data.train_split and data.test_split, and the columns "
            f"data.input_key={input_key}, data.target_key={target_key}",
        ) from None
    feature = getattr(reader.dataset.features[target_key], "names", None)
    classes = None if feature is None else tuple(str(name) for name in feature)
    found = _found(name, split, labels, ReaderFiles(reader), classes)
    if sizes is None:  # its own fingerprint, of which there is no public name, changes with the place as well
        return replace(found, contents=str(getattr(reader.dataset, "_fingerprint", "")))
    return replace(found, sizes=sizes)


def _sizes(dataset: Any, key: str) -> npt.NDArray[np.int64] | None:
    """Bytes of each image, which the table knows without being read; None where rows name files, or are reordered."""
    kind = dataset.data.schema.field(key).type
    if getattr(dataset, "_indices", None) is not None or "bytes" not in {part.name for part in _fields(kind)}:
        return None
    compute = import_module("pyarrow.compute")
    lengths = compute.binary_length(compute.struct_field(dataset.data.column(key), "bytes"))
    return None if lengths.null_count else np.asarray(lengths.to_numpy(), np.int64)


def _fields(kind: Any) -> list[Any]:
    return [kind.field(number) for number in range(kind.num_fields)]


def find_torch(name: str, root: str, split: str) -> Found:
    """Images of a torchvision data set, such as torch/cifar10.

    Raises:
        DataError: If torchvision does not know it, or its files are not in `root`.
    """
    try:
        dataset = create_dataset(name, root=root, split="train" if split == "train" else "val")
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"data.dataset={name}, split {split}: {first_line(error)}",
            "torchvision's data sets have to lie in data.root; timm's create_dataset lists their names",
        ) from None
    labels = getattr(dataset, "targets", None)
    if labels is None:
        raise DataError(f"data.dataset={name}: it has no list of labels", "use the folder of its images as data.root")
    classes = getattr(dataset, "classes", None)
    return _found(name, split, [int(label) for label in labels], TorchFiles(dataset), classes and tuple(classes))


def _found(name: str, split: str, labels: list[Any], files: Any, classes: tuple[str, ...] | None) -> Found:
    if not labels:
        raise DataError(f"data.dataset={name}, split {split}: it is empty")
    return Found(
        where=f"{name} ({split})",
        names=[str(row) for row in range(len(labels))],
        labels=[str(label) for label in labels],
        sizes=np.full(len(labels), -1, np.int64),
        files=files,
        classes=classes,
    )
