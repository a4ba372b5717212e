"""A file on the Hub as a `ByteSource`: each range that is read is fetched once, into the cache."""

from __future__ import annotations

from pathlib import Path

from lmgraft.checkpoint import cache
from lmgraft.checkpoint.hub_http import HubFile, RangeIgnoredError, is_offline, read_range
from lmgraft.checkpoint.places import LocalFile
from lmgraft.errors import CheckpointError, SourceError

_HEAD = 1 << 16  # read at once from a file's start: config.json whole, most safetensors headers whole
_SMALL = 8 << 20  # a file below this may come whole from a server that knows no ranges


class RemoteFile:
    """Ranges of one Hub file, by way of lmgraft's cache."""

    def __init__(self, file: HubFile) -> None:
        self.file = file
        self.size = file.size
        self._pieces: list[tuple[int, int, Path]] = []  # start, count, where it lies

    @property
    def label(self) -> str:
        return self.file.label

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, fetching what is not in the cache.

        Raises:
            CheckpointError: If the file ends before.
            SourceError: If it cannot be fetched, or must not be because the Hub is switched off.
        """
        if offset < 0 or offset + len(buffer) > self.size:
            raise CheckpointError(f"{self.label} ends at byte {self.size}", "check the file on the Hub")
        done = 0
        while done < len(buffer):
            start, count, path = self._piece(offset + done, len(buffer) - done)
            inside = offset + done - start
            take = min(count - inside, len(buffer) - done)
            LocalFile(path).read_into(inside, buffer[done : done + take])
            done += take

    def will_read(self, offset: int, count: int) -> None:
        """Have the range in the cache, so that reading it in pieces asks nobody."""
        while count > 0:
            start, length, _ = self._piece(offset, count)
            step = start + length - offset
            offset, count = offset + step, count - step

    def bytes_to_fetch(self, offset: int, count: int) -> int:
        """How many bytes of the range are not in the cache."""
        absent = 0
        while count > 0:
            start, length = self._window(offset, count)
            piece = self._held(offset) or self._cached(start, length)
            if piece is None:
                return absent + count
            step = piece[0] + piece[1] - offset
            offset, count = offset + step, count - step
        return absent

    def _window(self, offset: int, count: int) -> tuple[int, int]:
        return offset, min(max(count, _HEAD), self.size) if offset == 0 else count

    def _piece(self, offset: int, count: int) -> tuple[int, int, Path]:
        """A piece in the cache that holds the byte at `offset`, and what follows as far as it goes."""
        start, length = self._window(offset, count)
        piece = self._held(offset) or self._cached(start, length)
        if piece is None:
            with cache.lock(f"hf://{self.file.repo}@{self.file.commit}/{self.file.name}"):
                piece = self._cached(start, length) or self._fetch(start, length)
        return piece

    def _held(self, offset: int) -> tuple[int, int, Path] | None:
        for start, length, path in self._pieces:
            if start <= offset < start + length and path.is_file() and path.stat().st_size == length:
                return start, length, path
        return None

    def _cached(self, start: int, length: int) -> tuple[int, int, Path] | None:
        for first, count in ((start, length), (0, self.size)):  # a small file may lie there whole
            path = cache.lookup(self._key(first, count))
            if path is not None and path.stat().st_size == count:
                self._pieces.append((first, count, path))
                return first, count, path
        return None

    def _fetch(self, start: int, length: int) -> tuple[int, int, Path]:
        if is_offline():
            raise SourceError(
                f"bytes {start} to {start + length} of {self.label} are not in the cache, and HF_HUB_OFFLINE is set",
                f"unset HF_HUB_OFFLINE and load this layer once, or fetch the model (hf download {self.file.repo})",
            )
        with cache.scratch_dir("hub") as scratch:
            try:
                path, _ = cache.store_chunks(self._key(start, length), read_range(self.file, start, length), scratch)
            except RangeIgnoredError:
                if self.size >= _SMALL:
                    raise
                start, length = 0, self.size
                path, _ = cache.store_chunks(self._key(start, length), read_range(self.file, start, length), scratch)
        self._pieces.append((start, length, path))
        return start, length, path

    def _key(self, start: int, length: int) -> str:
        return f"hf://{self.file.repo}@{self.file.commit}/{self.file.name}#{start}+{length}"
