"""Fashion-MNIST: 70,000 photographs of garments, 28 x 28 grey, ten balanced classes (MIT licence).

Xiao, Rasul and Vollgraf, arXiv 1708.07747.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmgraft import records
from lmgraft.data.image.arrays import ImageArrays
from lmgraft.data.image.fetch import fetch_fashion_mnist
from lmgraft.errors import DataError

FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""File -> SHA-256 of its unpacked content, which every mirror and packaging shares."""


class FashionMNIST(ImageArrays):
    """Fashion-MNIST from a folder, the system's copy, lmgraft's cache or the network, in this order.

    Args:
        root: Folder with the four idx files, gzipped or not; None finds or fetches them.
        verify: Check the files' SHA-256. Turn it off for files of the same format of your own.
        options: See `ImageArrays`.
    """

    name = "fashion_mnist"
    class_names = (
        "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip
    in_chans = 1
    img_size = (28, 28)
    mean = (0.2860,)
    std = (0.3530,)

    def __init__(self, root: str | None = None, verify: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.verify = root, verify
        self._digests: dict[str, str] = {}

    def prepare_data(self) -> None:
        """Find or fetch the files; one process does this."""
        self._folder()

    def _folder(self) -> Path:
        if self.root is None:
            return fetch_fashion_mnist(FILES)
        folder = Path(self.root).expanduser()
        if not folder.is_dir():
            raise DataError(
                f"data.root={self.root}: there is no such folder",
                "leave data.root out to let lmgraft find or fetch Fashion-MNIST",
            )
        return folder

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """(N, 1, 28, 28) uint8 and (N,) int64.

        Raises:
            DataError: If a file is missing, damaged, of another format, or not Fashion-MNIST's.
        """
        folder, half = self._folder(), "train" if train else "t10k"
        images = self._read(folder, f"{half}-images-idx3-ubyte", 3)
        labels = self._read(folder, f"{half}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise DataError(f"{folder} has {len(images)} {half} images but {len(labels)} labels", "fetch it again")
        if tuple(images.shape[1:]) != self.img_size:
            raise DataError(f"{folder}: images are {tuple(images.shape[1:])}, expected {self.img_size}")
        if int(labels.max()) >= self.num_classes:
            raise DataError(f"{folder}: label {int(labels.max())} with {self.num_classes} classes")
        return images.unsqueeze(1), labels.long()

    def _read(self, folder: Path, name: str, num_dims: int) -> Tensor:
        file = folder / f"{name}.gz"
        if not file.exists():
            file = folder / name
        try:
            raw = file.read_bytes()
            content = gzip.decompress(raw) if file.suffix == ".gz" else raw
        except FileNotFoundError:
            raise DataError(
                f"{folder} holds neither {name}.gz nor {name}", "data.root is the folder of the idx files"
            ) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{file} is cut short or damaged ({error})", "delete it and fetch it again") from None
        self._digests[name] = found = hashlib.sha256(content).hexdigest()
        if self.verify and found != FILES[name]:
            raise DataError(
                f"{file} is not Fashion-MNIST's: unpacked SHA-256 {found[:16]}..., expected {FILES[name][:16]}...",
                "delete it and fetch it again; for files of your own set data.verify: false",
            )
        return _parse_idx(content, num_dims, file)

    def fingerprint(self) -> dict[str, Any]:
        """Digests of the files that were read, or with `verify` of those that there must be."""
        sizes = {name: len(images) for name, images in self._sets.items()}
        return {"name": self.name, "sha256": FILES if self.verify else dict(self._digests), "sizes": sizes}


def prepare(out: Path | None) -> Path:
    """Find or fetch the four files; into `out`, where that is given."""
    folder = fetch_fashion_mnist(FILES)
    if out is None:
        return folder
    for name in FILES:
        with records.atomic_path(out / f"{name}.gz") as temporary:
            shutil.copyfile(folder / f"{name}.gz", temporary)
    return out


def _parse_idx(content: bytes, num_dims: int, file: Path) -> Tensor:
    """The idx format: 0, 0, type 8 (uint8), number of dimensions, sizes as big-endian int32, data."""
    head = 4 + 4 * num_dims
    if content[:4] != bytes([0, 0, 8, num_dims]) or len(content) < head:
        raise DataError(f"{file} is no idx file of {num_dims} dimensions: it begins with {content[:4]!r}")
    shape = [int(n) for n in np.frombuffer(content, ">i4", count=num_dims, offset=4)]
    if len(content) - head != int(np.prod(shape)):
        raise DataError(f"{file} is cut short: {len(content) - head} bytes of data for shape {shape}", "fetch it again")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=head).reshape(shape).copy())
