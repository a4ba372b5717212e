"""Where the members of an uncompressed zip archive lie, so that ranges of them can be read.

The standard library's reader hands out streams; torch checkpoints need offsets, also in a file
that is not on this machine. Only what torch writes is accepted: stored members, one disk.

Layout: members, each behind a local header; the directory that lists them; its end record, with
another one before it (zip64) where a number does not fit 32 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from lmgraft.checkpoint.places import ByteSource, read_bytes, will_read
from lmgraft.errors import CheckpointError

_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_NEAR_END = 1 << 16  # fetched at once from afar: nearly always the whole directory
_LONGEST_END = 22 + 0xFFFF  # the end record may carry a comment
_MOST_MEMBERS = 1 << 20
_MOST_DIRECTORY = 256 << 20
_ENCRYPTED = 1


@dataclass(frozen=True)
class Member:
    """One file in the archive."""

    name: str
    header: int
    """Offset of its local header."""
    size: int
    limit: int
    """Where the next member or the directory begins."""


def is_zip(source: ByteSource) -> bool:
    """Whether `source` begins as an archive with members does."""
    return source.size >= 4 and read_bytes(source, 0, 4) == _LOCAL


def read_directory(source: ByteSource) -> dict[str, Member]:
    """The archive's members by name; their bytes are not read.

    Raises:
        CheckpointError: If the directory is damaged, or holds a member that is compressed,
            encrypted, named twice, out of the file or overlapping another.
    """
    start, size, count = _find_directory(source)
    if start + size > source.size or count > _MOST_MEMBERS or size > _MOST_DIRECTORY or count * 46 > size:
        raise damaged(source, f"its directory claims {count} members in {size} bytes at {start}")
    found: dict[str, tuple[int, int]] = {}
    for name, header, length in _entries(source, read_bytes(source, start, size), count):
        if name in found:
            raise damaged(source, f"it holds {name!r} twice")
        found[name] = (header, length)
    return _with_limits(source, found, start)


def data_offset(source: ByteSource, member: Member) -> int:
    """Where the bytes of `member` begin: known only from its local header.

    Raises:
        CheckpointError: If the local header is another's, or the bytes run into the next member.
    """
    header = read_bytes(source, member.header, 30)
    name_size, extra_size = struct.unpack_from("<HH", header, 26)
    offset: int = member.header + 30 + name_size + extra_size
    name = read_bytes(source, member.header + 30, name_size)
    if header[:4] != _LOCAL or name.decode("utf-8", errors="replace") != member.name:
        raise damaged(source, f"no member {member.name!r} lies at byte {member.header}")
    if offset + member.size > member.limit:
        raise damaged(source, f"{member.name!r} runs into what lies behind it")
    return offset


def damaged(source: ByteSource, what: str) -> CheckpointError:
    return CheckpointError(f"{source.label} is cut short or damaged: {what}", "fetch it again")


def _find_directory(source: ByteSource) -> tuple[int, int, int]:
    """Offset, size and number of members of the directory."""
    tail, at = b"", -1
    near_end = min(source.size, _NEAR_END)
    will_read(source, source.size - near_end, near_end)
    for length in (22, _LONGEST_END):  # torch writes no comment, so that the end is nearly always found at once
        tail = read_bytes(source, max(0, source.size - length), min(source.size, length))
        at = tail.rfind(_END, 0, len(tail) - 18)
        if at >= 0:
            break
    if at < 0:
        raise damaged(source, "its archive has no end")
    disk, _, _, count, size, start = struct.unpack_from("<HHHHII", tail, at + 4)
    locator = source.size - len(tail) + at - 20
    if locator >= 0 and (found := read_bytes(source, locator, 20))[:4] == _LOCATOR64:
        (offset,) = struct.unpack_from("<Q", found, 8)
        record = read_bytes(source, offset, 56)
        if record[:4] != _END64:
            raise damaged(source, f"no end record lies at byte {offset}")
        count, size, start = struct.unpack_from("<QQQ", record, 32)
    elif disk:
        raise damaged(source, "it is one of several disks")
    return start, size, count


def _entries(source: ByteSource, directory: bytes, count: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset of the local header and size of each member."""
    at = 0
    for _ in range(count):
        if at + 46 > len(directory) or directory[at : at + 4] != _ENTRY:
            raise damaged(source, "its directory ends early")
        flags, method = struct.unpack_from("<HH", directory, at + 8)
        packed, size, name_size, extra_size, note_size = struct.unpack_from("<IIHHH", directory, at + 20)
        (header,) = struct.unpack_from("<I", directory, at + 42)
        end = at + 46 + name_size
        name = directory[at + 46 : end].decode("utf-8", errors="replace")
        size, packed, header = _wide(directory[end : end + extra_size], [size, packed, header], source)
        if method != 0 or packed != size or flags & _ENCRYPTED:
            raise CheckpointError(
                f"{source.label}: {name!r} is compressed or encrypted, which torch.save does not do",
                "unpack the archive and pack it without compression, or save the weights anew",
            )
        yield name, header, size
        at = end + extra_size + note_size


def _wide(extra: bytes, values: list[int], source: ByteSource) -> list[int]:
    """`values` with those that did not fit 32 bits taken from the zip64 field."""
    if 0xFFFFFFFF not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            wide = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            values = [next(wide, -1) if value == 0xFFFFFFFF else value for value in values]
            if -1 not in values:
                return values
            break
        at += 4 + length
    raise damaged(source, "a member's size is missing")


def _with_limits(source: ByteSource, found: dict[str, tuple[int, int]], directory: int) -> dict[str, Member]:
    ordered = sorted((header, size, name) for name, (header, size) in found.items())
    ends = [header for header, _, _ in ordered[1:]] + [directory]
    members = {}
    for (header, size, name), limit in zip(ordered, ends, strict=False):
        if header + 30 + size > limit:
            raise damaged(source, f"{name!r} overlaps what lies behind it, or the end")
        members[name] = Member(name, header, size, limit)
    return members
