"""Images in tar files, by an index of where each begins: no unpacking, any order, any number of workers.

timm reads tars through open handles, and WebDataset's shards as streams, whose order depends on the
number of workers and cannot be entered in the middle. An index gives both exact draws.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from timm.utils.misc import natural_key

from lmgraft.data.files import composed, extension, is_system_folder, listed, most_first
from lmgraft.data.image.folders import Spell, tree_notes
from lmgraft.data.image.opening import EXTENSIONS, is_image
from lmgraft.data.image.tables import FileRanges, Found, read_range
from lmgraft.errors import DataError


class Member(NamedTuple):
    """A file inside a tar, perhaps inside a tar in a tar."""

    folder: str
    name: str
    path: str
    offset: int
    size: int


def members(path: Path) -> Iterator[Member]:
    """The regular files in a tar, those of tars inside it too.

    Raises:
        DataError: If it is no whole, uncompressed tar.
    """
    try:
        with path.open("rb") as file:
            yield from _members(file, str(path), 0, "")
    except (OSError, tarfile.TarError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"{path} is no whole tar file ({reason})", "fetch it again; a compressed tar has to be unpacked (gunzip)"
        ) from None


def _members(file: BinaryIO, path: str, start: int, prefix: str) -> Iterator[Member]:
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep a million of them
            if not info.isreg() or info.issparse():
                continue
            folder, name = os.path.split(info.name)
            stem, extension = os.path.splitext(name)
            if extension.lower() == ".tar":
                yield from _members(file, path, info.offset_data, os.path.join(prefix, stem))
            else:
                yield Member(os.path.join(prefix, folder), name, path, info.offset_data, info.size)
        # tarfile takes a file that was cut off between two members, or a damaged header, for the end.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0") or file.tell() < tar.offset + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("cut off or damaged: the end mark is missing")


def find_in_tars(root: Path, spell: Spell = composed, outer: bool = False) -> Found:
    """Images in one tar, or in the tars of a folder; the innermost folder or tar is an image's class, as in timm.

    Args:
        spell: How names are spelt before they are sorted and compared.
        outer: Whether the class is the outermost folder or tar.

    Raises:
        DataError: If a tar is damaged, or there is no image in a class folder.
    """
    single = root.is_file()
    paths = [root] if single else sorted(root.glob("*.tar"))
    rows = []
    ignored: Counter[str] = Counter()
    for path in paths:
        start = "" if single else path.stem
        for member in members(path):
            folder = spell(os.path.normpath(os.path.join(start, member.folder)).lstrip("/"))
            folder = "" if folder == "." else folder
            system = next((part for part in folder.split("/") if is_system_folder(part)), None)
            if system:
                ignored[f"{system}/"] += 1
            elif is_image(member.name):
                rows.append((f"{folder}/{spell(member.name)}", member))
            elif not member.name.startswith("."):
                ignored[extension(member.name)] += 1
    if not rows:
        raise DataError(f"{root} holds no images ({', '.join(EXTENSIONS)})", "members are named <class>/<file>")
    loose = [name for name, _ in rows if name.startswith("/")]
    if loose:
        raise DataError(f"{root} holds images outside of any class folder: {listed(loose)}")
    rows.sort(key=lambda row: (natural_key(row[0]), row[0]))
    names = [name for name, _ in rows]
    labels = [name.split("/")[0 if outer else -2] for name in names]
    found = _found(str(root), names, labels, [member for _, member in rows])
    notes = tuple(tree_notes(str(root), names, outer))
    return replace(found, folders=True, ignored=most_first(ignored), notes=notes)


def _found(where: str, names: list[str], labels: list[str], where_in: list[Member]) -> Found:
    paths = tuple(sorted({member.path for member in where_in}))
    number = {path: i for i, path in enumerate(paths)}
    sizes = np.array([member.size for member in where_in], np.int64)
    files = FileRanges(
        paths,
        np.array([number[member.path] for member in where_in], np.int32),
        np.array([member.offset for member in where_in], np.int64),
        sizes,
    )
    return Found(where=where, names=names, labels=labels, sizes=sizes, files=files)


_KEY = re.compile(r"((?:.*/)?[^./][^/.]*)\.(.+)")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_REMOTE = re.compile(r"[a-z0-9]+:")
_IMAGES = ("jpg", "jpeg", "png", "webp")


def find_in_shards(root: Path, split: str) -> Found:
    """Images in WebDataset's shards: KEY.jpg beside KEY.cls, or KEY.json with a "label".

    Args:
        root: Folder of the shards.
        split: A name in _info.json, or a pattern: `train-{0000..0127}.tar`, `train-*.tar`; a bare name
            means the shards whose file name has it as one word.

    Raises:
        DataError: If there is no such shard, or a sample has no label.
    """
    rows: list[tuple[str, str, Member]] = []
    for path in _shards(root, split):
        rows += _samples(root, path)
    if not rows:
        raise DataError(f"{root}: the shards of {split} hold no images ({', '.join(_IMAGES)})")
    return _found(f"{root} ({split})", [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])


def _shards(root: Path, split: str) -> list[Path]:
    if _REMOTE.match(str(root)) or _REMOTE.match(split):
        raise DataError(
            f"wds/ reads shards on this machine's disks, not {root}",
            "copy the shards here: a stream could not be resumed inside an epoch with the same draws",
        )
    named = split.split("|")[0]
    ranged = _RANGE.search(named)
    if ranged:
        first, last = ranged.groups()
        numbers = range(int(first), int(last) + 1)
        paths = [root / (named[: ranged.start()] + f"{n:0{len(first)}d}" + named[ranged.end() :]) for n in numbers]
        absent = [path.name for path in paths if not path.is_file()]
        if absent:
            raise DataError(f"{root} lacks {len(absent)} of {len(paths)} shards: {listed(absent)}", "fetch them")
        return paths
    if "*" in named:
        paths = sorted(root.glob(named))
    else:
        paths = [root / name for name in _info(root).get("splits", {}).get(named, {}).get("filenames", ())]
        paths = paths or sorted(p for p in root.glob("*.tar") if named in re.split(r"[-_.]", p.name))
    if not paths:
        raise DataError(f"{root} has no shards of {split!r}", "give a pattern such as train-{0000..0127}.tar")
    return paths


def _info(root: Path) -> Any:
    for name in ("_info.json", "info.json"):
        with suppress(FileNotFoundError, json.JSONDecodeError):
            return json.loads((root / name).read_text(encoding="utf-8"))
    return {}


def _samples(root: Path, path: Path) -> Iterator[tuple[str, str, Member]]:
    parts: dict[str, dict[str, Member]] = {}
    for member in members(path):
        matched = _KEY.fullmatch(os.path.join(member.folder, member.name))
        if matched:
            parts.setdefault(matched[1], {})[matched[2].lower()] = member
    shard = path.relative_to(root).as_posix()
    for key, sample in parts.items():
        image = next((sample[kind] for kind in _IMAGES if kind in sample), None)
        if image is not None:
            yield f"{shard}/{key}", _label(path, key, sample), image


def _label(path: Path, key: str, sample: dict[str, Member]) -> str:
    try:
        if "cls" in sample:
            return str(int(_content(sample["cls"])))
        return str(int(json.loads(_content(sample["json"]))["label"]))
    except (KeyError, ValueError, TypeError):
        raise DataError(f"{path}: the sample {key} has neither a number in .cls nor a label in .json") from None


def _content(member: Member) -> bytes:
    return read_range(member.path, member.offset, member.size)
