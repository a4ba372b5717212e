"""Where the images of a split lie and what they show, small enough for millions of files."""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from lmgraft.data.files import Names
from lmgraft.data.image.opening import open_image
from lmgraft.data.image.reading import Pixels, Reading

UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, NotImplementedError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What PIL and the file system raise for a file that is no whole image."""


class Files(Protocol):
    """Random access to images; it has to survive pickling and forking, so it holds no open file."""

    def open(self, index: int) -> Image.Image | Pixels:
        """The image, PIL's not yet decoded; `with` closes its file.

        Raises:
            UNREADABLE: One of these, if it is none.
        """


@dataclass(frozen=True, kw_only=True)
class Found:
    """The images of one split as they were found, before their classes are numbered."""

    where: str
    """What an error calls it: a folder or file."""
    names: Sequence[str]
    """Each image's name, relative to the source and independent of where that lies."""
    labels: Sequence[str]
    """Each image's class, or its number as digits."""
    sizes: npt.NDArray[np.int64]
    """Bytes of each image; -1 where that is not known."""
    files: Files
    classes: tuple[str, ...] | None = None
    """All classes in the order of their numbers, where the source itself says so."""
    folders: bool = False
    """Whether classes are folders: every split has to have all of them then."""
    empty: tuple[str, ...] = ()
    """Class folders without an image."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Extension -> how many files of this type were passed over, most first."""
    contents: str = ""
    """What the source itself knows its contents by, where sizes of files are not known."""
    notes: tuple[str, ...] = ()
    """How the source was read, where that is not plain."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTable:
    """The images of one split with numbered classes.

    Strings lie in one array: a list of a million would be copied into every worker, piece by piece,
    as reference counts are written.
    """

    where: str
    names: Names
    labels: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    files: Files
    contents: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int | np.int64) -> str:
        return os.fsdecode(bytes(self.names[index]))

    def place(self, index: int) -> str:
        """Where an image lies, for messages."""
        name = self.name(index)
        return os.path.join(self.where, name) if os.path.isdir(self.where) else f"{self.where}: {name}"

    def digest(self) -> str:
        """SHA-256 of all names, sizes and labels, and of what the source knows its contents by; they are not read."""
        digest = hashlib.sha256(self.contents.encode())
        for column in (self.names, self.sizes, self.labels):
            digest.update(f"{column.dtype.str}{column.shape}".encode())
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class FolderFiles:
    """Image files below `root`."""

    root: str
    names: Names

    def path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.names[index].item()))

    def open(self, index: int) -> Image.Image | Pixels:
        path = self.path(index)
        try:
            return open_image(path)
        except FileNotFoundError:
            if os.path.islink(path):
                raise OSError(f"a link to {os.readlink(path)}, which is not there: mend the link") from None
            raise

    def stretch(self, index: int, offset: int, size: int) -> bytes:
        """A stretch of a file."""
        return read_range(self.path(index), offset, size)


@dataclass(frozen=True)
class FileRanges:
    """Images that are stretches of larger files."""

    paths: tuple[str, ...]
    which: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def open(self, index: int) -> Image.Image | Pixels:
        return open_image(self.stretch(index, 0, int(self.sizes[index])))

    def stretch(self, index: int, offset: int, size: int) -> bytes:
        """A stretch of a file."""
        return read_range(self.paths[self.which[index]], int(self.offsets[index]) + offset, size)


def read_range(path: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on; opened anew, since forked workers would share a position."""
    with open(path, "rb", buffering=0) as file:
        file.seek(int(offset))
        content = file.read(int(size))
    if len(content) < size:
        raise EOFError(f"{path} ends before byte {offset + size}")
    return content


def decode(files: Files, index: int, reading: Reading) -> Image.Image | Tensor:
    """The image, whole, as `Reading.read` gives it; what PIL warns of, `lmgraft check-data` lists.

    Raises:
        UNREADABLE: If it is no whole image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with files.open(index) as image:
            return reading.read(image)
