"""Where bytes lie: a file of which ranges can be read, and a place with named files.

File formats read through `ByteSource` and look beside themselves through `Place`, so that a
local folder and a remote repository are the same to them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lmgraft.errors import CheckpointError, SourceError

CHUNK = 1 << 22
"""Bytes read or converted at a time: 4 MiB."""


class ByteSource(Protocol):
    """A file whose ranges can be read."""

    @property
    def label(self) -> str:
        """For error messages: path or address."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset` on.

        Raises:
            CheckpointError: If the file ends before.
        """


class Place(Protocol):
    """A folder, local or remote."""

    @property
    def label(self) -> str:
        """For error messages."""

    def names(self) -> list[str]:
        """Names of the files directly in it."""

    def open(self, name: str) -> ByteSource:
        """One of its files.

        Raises:
            SourceError: If there is no such file.
        """


@runtime_checkable
class Fetching(Protocol):
    """What a `ByteSource` offers besides where its bytes first have to come from elsewhere."""

    def will_read(self, offset: int, count: int) -> None:
        """Fetch this range in one go, because it will be read in pieces."""

    def bytes_to_fetch(self, offset: int, count: int) -> int:
        """How many bytes of this range are not on this machine yet."""


class LocalFile:
    """A file on disk; opened anew for each read, so that it can be shared and pickled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}", "check the path") from None

    @property
    def label(self) -> str:
        return str(self.path)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(offset)
                done = 0
                while done < len(buffer):
                    got = file.readinto(buffer[done : done + CHUNK])
                    if not got:
                        raise CheckpointError(f"{self.path} is cut short at byte {offset + done}", "fetch it again")
                    done += got
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}", "check the disk") from None


class LocalFolder:
    """A folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def label(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        try:
            return sorted(p.name for p in self.path.iterdir() if p.is_file())
        except OSError as error:
            raise SourceError(f"{self.path} cannot be listed: {error.strerror}", "check the path") from None

    def open(self, name: str) -> LocalFile:
        if os.path.basename(name) != name or not (self.path / name).is_file():
            raise SourceError(f"{self.path} has no file {name!r}", "check that the download is complete")
        return LocalFile(self.path / name)


def snapshot_folder(path: Path) -> Path:
    """`path`, or the snapshot in it where it is a model's folder in a Hugging Face cache, or its `snapshots`.

    Raises:
        SourceError: If it holds several, and none is its branch `main`.
    """
    repo = path.parent if path.name == "snapshots" else path
    folder = repo / "snapshots"
    if not folder.is_dir() or not repo.name.startswith("models--"):
        return path
    present = sorted(p.name for p in folder.iterdir() if p.is_dir())
    main = repo / "refs" / "main"
    commit = main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else ""
    if commit not in present and len(present) != 1:
        raise SourceError(
            f"{folder} holds {len(present)} snapshots{''.join(f' {name[:12]}' for name in present[:6])}",
            "name one of them" if present else "the download was not finished: fetch the model again",
        )
    return folder / (commit if commit in present else present[0])


def will_read(source: ByteSource, offset: int, count: int) -> None:
    """Tell `source` that this range will be read in pieces; only a remote one listens."""
    if isinstance(source, Fetching):
        source.will_read(offset, count)


def bytes_to_fetch(source: ByteSource, offset: int, count: int) -> int:
    """How many bytes of this range are not on this machine yet."""
    return source.bytes_to_fetch(offset, count) if isinstance(source, Fetching) else 0


def read_bytes(source: ByteSource, offset: int, count: int) -> bytes:
    """`count` bytes from `offset` on, checked against the file's size before memory is taken."""
    if count < 0 or offset < 0 or offset + count > source.size:
        raise CheckpointError(
            f"{source.label} is cut short: bytes {offset} to {offset + count} of {source.size}", "fetch it again"
        )
    buffer = bytearray(count)
    source.read_into(offset, memoryview(buffer))
    return bytes(buffer)


_STAND_INS = {
    b"version https://git-lfs": ("a git-lfs pointer, not the file it points to", "run 'git lfs pull' in its folder"),
    b"<!doctype html": ("an HTML page that was saved under a file's name", "fetch the file itself (.../resolve/...)"),
    b"<?xml": ("a server's answer in XML, not the file", "fetch the file itself (.../resolve/...)"),
    b"<html": ("an HTML page that was saved under a file's name", "fetch the file itself (.../resolve/...)"),
}


def refuse_stand_in(source: ByteSource) -> None:
    """Refuse what is often saved in a file's place.

    Raises:
        CheckpointError: If it is a git-lfs pointer, or a page of HTML or XML.
    """
    beginning = read_bytes(source, 0, min(64, source.size)).lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    for sign, (what, remedy) in _STAND_INS.items():
        if beginning.startswith(sign):
            raise CheckpointError(f"{source.label} is {what}", remedy)


def read_tensor(source: ByteSource, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor whose values lie contiguously from `offset` on, read straight into its memory."""
    count = torch.Size(shape).numel() * dtype.itemsize
    if offset < 0 or offset + count > source.size:
        raise CheckpointError(
            f"{source.label} is cut short: bytes {offset} to {offset + count} of {source.size}", "fetch it again"
        )
    raw = torch.empty(count, dtype=torch.uint8)
    source.read_into(offset, raw.numpy().data)
    return raw.view(dtype).reshape(shape)
