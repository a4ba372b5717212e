"""Looking after the cache: what lies in it, whether it is whole, and taking things out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from lmgraft.checkpoint import cache
from lmgraft.checkpoint.digest import file_digest
from lmgraft.checkpoint.known import KNOWN
from lmgraft.errors import SourceError

_HUB = "hf://"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the cache holds of one source; ranges of one file are one entry."""

    source: str
    nbytes: int
    pieces: int
    fetched: str
    """When the newest piece came, in ISO format; empty if not recorded."""
    path: str
    """The file; the folder where there are several."""


def entries() -> list[Entry]:
    """Everything that was fetched: files, Hub ranges and data sets, by source."""
    groups: dict[str, list[dict[str, object]]] = {}
    for _, ref in cache.refs():
        groups.setdefault(_group(ref["source"]), []).append(ref)
    blobs = cache.cache_dir() / "blobs"
    found = [
        Entry(
            source=source,
            nbytes=sum(int(str(ref["bytes"])) for ref in group),
            pieces=len(group),
            fetched=max(str(ref["fetched"]) for ref in group),
            path=str(blobs / str(group[0]["sha256"]) if len(group) == 1 else blobs),
        )
        for source, group in groups.items()
    ]
    return sorted(found + [_data_entry(folder) for folder in _data_folders()], key=lambda entry: entry.source)


def total_bytes() -> int:
    """Bytes on disk; content that several sources share is counted once, what no source names too."""
    files = [*_files(cache.cache_dir() / "blobs"), *_files(cache.cache_dir() / "data")]
    return sum(path.stat().st_size for path in files)


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One thing that was wrong, and is out of the cache now."""

    source: str
    problem: str


def verify() -> list[Damage]:
    """Hash every blob anew; what is damaged is removed, so that its next use fetches it again.

    Data sets are not hashed here: their readers do that whenever they read them.
    """
    blobs = cache.cache_dir() / "blobs"
    problems: dict[str, str] = {}
    for blob in _files(blobs):
        if file_digest(blob) != blob.name:
            problems[blob.name] = f"{blob} does not hold what its name says"
            blob.unlink(missing_ok=True)
    damages = []
    for path in sorted((cache.cache_dir() / "refs").glob("[!.]*.json")):
        ref = cache.read_ref(path)
        if ref is None:
            damages.append(Damage(source=path.name, problem=f"{path} is no whole reference"))
            path.unlink(missing_ok=True)
            continue
        problem = problems.pop(ref["sha256"], None) or _why_unusable(blobs / ref["sha256"], ref["bytes"])
        if problem is not None:
            damages.append(Damage(source=ref["source"], problem=problem))
            path.unlink(missing_ok=True)
    return damages + [Damage(source="no source", problem=problem) for problem in problems.values()]


def remove(source: str) -> int:
    """Take out everything that came from `source`; returns the bytes that became free.

    Args:
        source: As `entries` shows it; a known name; a Hub repository `owner/name`, with `@revision`
            or `/file` for a part of it; or the name of a data set.

    Raises:
        SourceError: If the cache holds nothing of it.
    """
    before = total_bytes()
    wanted = KNOWN[source.lower()].source if source.lower() in KNOWN else source
    matching = [(path, ref) for path, ref in cache.refs() if _matches(ref["source"], wanted.removeprefix(_HUB))]
    for path, _ in matching:
        path.unlink(missing_ok=True)
    # Only what these named: another process may have put a blob there that nothing names yet.
    named = {ref["sha256"] for _, ref in cache.refs()}
    for digest in {ref["sha256"] for _, ref in matching} - named:
        (cache.cache_dir() / "blobs" / digest).unlink(missing_ok=True)
    hit = bool(matching)
    for folder in _data_folders():
        if wanted in (folder.name, f"data/{folder.name}"):
            hit = True
            shutil.rmtree(folder)
    if not hit:
        raise SourceError(f"the cache holds nothing of {source!r}", "see the sources with: lmgraft cache ls")
    return before - total_bytes()


def remove_all() -> int:
    """Empty the cache; returns the bytes that became free."""
    before = total_bytes()
    for name in ("refs", "blobs", "data", "locks"):
        shutil.rmtree(cache.cache_dir() / name, ignore_errors=True)
    return before - total_bytes()


def _group(source: str) -> str:
    return source.partition("#")[0] if source.startswith(_HUB) else source


def _matches(source: str, wanted: str) -> bool:
    """Whether an entry belongs to `wanted`; a Hub file may be named with its commit or without."""
    if not source.startswith(_HUB):
        return source == wanted
    whole = _group(source).removeprefix(_HUB)
    name, _, rest = whole.partition("@")
    commit, _, file = rest.partition("/")
    return wanted in (whole, name, f"{name}@{commit}", f"{name}/{file}")


def _why_unusable(blob: Path, nbytes: int) -> str | None:
    if not blob.is_file():
        return f"{blob} is missing"
    return None if blob.stat().st_size == nbytes else f"{blob} is not of its recorded size"


def _data_folders() -> list[Path]:
    folder = cache.cache_dir() / "data"
    return sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def _data_entry(folder: Path) -> Entry:
    files = list(_files(folder))
    newest = max((path.stat().st_mtime for path in files), default=None)
    return Entry(
        source=f"data/{folder.name}",
        nbytes=sum(path.stat().st_size for path in files),
        pieces=len(files),
        fetched="" if newest is None else datetime.fromtimestamp(newest, timezone.utc).isoformat(timespec="seconds"),
        path=str(folder),
    )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
