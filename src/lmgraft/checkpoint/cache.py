"""The cache of fetched files: content-addressed, written whole or not at all.

    <cache>/blobs/<sha256>       what was fetched, by what it holds
    <cache>/refs/<sha256>.json   source string -> blob, size, when it was fetched

`LMGRAFT_CACHE` moves it; the default is the user cache directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

import platformdirs

from lmgraft import records


def cache_dir() -> Path:
    """The cache folder; it may not exist yet."""
    chosen = os.environ.get("LMGRAFT_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("lmgraft"))


def _ref_path(source: str) -> Path:
    return cache_dir() / "refs" / f"{hashlib.sha256(source.encode()).hexdigest()}.json"


def lookup(source: str) -> Path | None:
    """The cached file for `source`, or None if absent or not of its recorded size."""
    try:
        ref = json.loads(_ref_path(source).read_text(encoding="utf-8"))
        blob = cache_dir() / "blobs" / ref["sha256"]
        return blob if blob.stat().st_size == ref["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store(source: str, stream: IO[bytes], scratch: Path) -> tuple[Path, str]:
    """Copy `stream` by way of `scratch` into the cache as the content of `source`.

    Returns:
        Its path and SHA-256.
    """
    blobs = cache_dir() / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    size = 0
    with records.temporary_file(scratch, "incoming") as temporary:
        with open(temporary, "wb") as out:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
                out.write(chunk)
        sha256 = digest.hexdigest()
        blob = blobs / sha256
        records.commit(temporary, blob)
    fetched = datetime.now(timezone.utc).isoformat(timespec="seconds")
    records.write_json(_ref_path(source), {"source": source, "sha256": sha256, "bytes": size, "fetched": fetched})
    return blob, sha256


def forget(source: str) -> None:
    """Drop the entry of `source` and its blob."""
    blob = lookup(source)
    _ref_path(source).unlink(missing_ok=True)
    if blob is not None:
        blob.unlink(missing_ok=True)


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
