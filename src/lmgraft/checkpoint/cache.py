"""The cache of fetched files: content-addressed, written whole or not at all.

    <cache>/blobs/<sha256>       what was fetched, by what it holds
    <cache>/refs/<sha256>.json   source string -> blob, size, when it was fetched
    <cache>/data/<name>          data sets, kept by the room `data`

A source is `pypi://...` for a file out of a wheel, `hf://owner/name@commit/file#offset+count` for a
range of a Hub file, `hf://owner/name@revision` for what the Hub said about that revision.
`LMGRAFT_CACHE` moves the cache; the default is the user cache directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import platformdirs

from lmgraft import records

_MUCH = 16 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


def cache_dir() -> Path:
    """The cache folder; it may not exist yet."""
    chosen = os.environ.get("LMGRAFT_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("lmgraft"))


def _ref_path(source: str) -> Path:
    return cache_dir() / "refs" / f"{hashlib.sha256(source.encode()).hexdigest()}.json"


def lookup(source: str) -> Path | None:
    """The cached file for `source`, or None if absent or not of its recorded size."""
    ref = read_ref(_ref_path(source))
    if ref is None:
        return None
    blob = cache_dir() / "blobs" / ref["sha256"]
    try:
        return blob if blob.stat().st_size == ref["bytes"] else None
    except OSError:
        return None


def store(source: str, stream: IO[bytes], scratch: Path) -> tuple[Path, str]:
    """Copy `stream` by way of `scratch` into the cache as the content of `source`.

    Returns:
        Its path and SHA-256.
    """
    return store_chunks(source, iter(lambda: stream.read(1 << 20), b""), scratch)


def store_chunks(source: str, chunks: Iterable[bytes], scratch: Path) -> tuple[Path, str]:
    """As `store`, from bytes that come piece by piece; hashed in the same pass."""
    blobs = cache_dir() / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    size = 0
    with records.temporary_file(scratch, "incoming") as temporary:
        with open(temporary, "wb") as out:
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                out.write(chunk)
        sha256 = digest.hexdigest()
        blob = blobs / sha256
        records.commit(temporary, blob)
    fetched = datetime.now(timezone.utc).isoformat(timespec="seconds")
    records.write_json(_ref_path(source), {"source": source, "sha256": sha256, "bytes": size, "fetched": fetched})
    return blob, sha256


def announce(what: str, nbytes: int) -> None:
    """One line to stderr before much is fetched: it may take minutes, and happens once."""
    if nbytes >= _MUCH:
        sys.stderr.write(f"lmgraft: fetching {nbytes / 1e6:,.0f} MB, once: {what}\n")


def forget(source: str) -> None:
    """Drop the entry of `source`, and its blob unless another source holds the same bytes."""
    path = _ref_path(source)
    ref = read_ref(path)
    path.unlink(missing_ok=True)
    if ref is not None and all(other["sha256"] != ref["sha256"] for _, other in refs()):
        (cache_dir() / "blobs" / ref["sha256"]).unlink(missing_ok=True)


def read_ref(path: Path) -> dict[str, Any] | None:
    """What a reference file says: source, sha256, bytes, fetched; None if it is absent or damaged."""
    try:
        ref = json.loads(path.read_text(encoding="utf-8"))
        whole = _SHA256.fullmatch(ref["sha256"]) and isinstance(ref["bytes"], int) and isinstance(ref["source"], str)
        return {"fetched": "", **ref} if whole else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def refs() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every whole reference in the cache, with its file."""
    for path in sorted((cache_dir() / "refs").glob("[!.]*.json")):
        ref = read_ref(path)
        if ref is not None:
            yield path, ref


@contextmanager
def lock(name: str) -> Iterator[None]:
    """One process at a time for each `name`.

    Where the file system has no locks everyone gets in: what they fetch is then fetched twice,
    and still whole, because blobs appear by renaming.
    """
    with records.only_one(cache_dir() / "locks" / hashlib.sha256(name.encode()).hexdigest(), name, wait=-1):
        yield


@contextmanager
def scratch_dir(name: str) -> Iterator[Path]:
    """An empty working folder inside the cache, removed at the end; a killed process's is swept."""
    parent = cache_dir() / "tmp"
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob(f"*@{platform.node()}-*"):
        if not _is_alive(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{name}-{os.getpid()}@{platform.node()}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_alive(folder: str) -> bool:
    """Whether the process that made a scratch folder on this machine still runs."""
    try:
        os.kill(int(folder.partition("@")[0].rpartition("-")[2]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError):
        return True
    return True
