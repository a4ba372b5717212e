"""A model repository on the Hugging Face Hub as a `Place`.

Each file is looked for in an existing Hugging Face cache, then in lmgraft's, then asked for over
the network, by ranges; torch files whole, into the Hugging Face cache. A branch or tag is resolved
to a commit once and stays there: what is in a cache wins, so that the same source is the same block
tomorrow. `lmgraft cache rm owner/name` makes it look again.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lmgraft.checkpoint import cache
from lmgraft.checkpoint.gguf_file import find_parts
from lmgraft.checkpoint.hub_file import RemoteFile
from lmgraft.checkpoint.hub_http import HubFile, endpoint, is_offline
from lmgraft.checkpoint.hub_listing import (
    Listing,
    download,
    hf_cache,
    licence_of_card,
    request_converted,
    request_listing,
    request_size,
)
from lmgraft.checkpoint.places import ByteSource, LocalFile
from lmgraft.errors import CheckpointError, SourceError

_FORM = re.compile(
    r"(?:hf://)?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(?P<path>.+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
WHOLE = (".bin", ".pth", ".pt")
"""Files that are fetched whole: torch reads them where they lie."""
_WEIGHTS = (".safetensors", ".gguf", *WHOLE)
_OPEN = re.compile(
    r"apache-2\.0|mit|bsd.*|isc|zlib|unlicense|cc0-1\.0|cc-by-[34]\.0|cc-by-sa-[34]\.0|mpl-2\.0|"
    r"(?:a|l)?gpl.*|epl-.*|artistic-2\.0|ms-pl|wtfpl|odc-by|pddl|cdla-permissive.*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class HubSource:
    """A source string taken apart: `owner/name[@revision][/folder][/file]`."""

    repo: str
    revision: str
    folder: str
    file: str | None


def parse_hub_source(source: str, revision: str | None = None) -> HubSource | None:
    """`source` taken apart, or None if it is not of the Hub's form.

    Raises:
        SourceError: If it names one revision and `revision` another. A full commit may be given beside
            a branch: it is what the branch was when a block was recorded.
    """
    match = _FORM.fullmatch(source)
    if match is None or ".." in source.split("/"):
        return None
    if match["repo"].endswith(_WEIGHTS):
        return None  # folder/model.gguf: a mistyped path
    named = match["revision"]
    if named is not None and revision is not None and named != revision and not _COMMIT.fullmatch(revision):
        raise SourceError(f"{source!r} names a revision, and revision={revision!r} another", "give one of them")
    folder, _, last = (match["path"] or "").strip("/").rpartition("/")
    if last and not last.endswith(_WEIGHTS):
        folder, last = f"{folder}/{last}".strip("/"), ""
    return HubSource(match["repo"], revision or named or "main", folder, last or None)


class HubFolder:
    """A repository, or a folder in it, at one commit; see `lmgraft.checkpoint.places.Place`.

    Args:
        source: Which one.

    Raises:
        SourceError: If the revision is in no cache and cannot be asked for: no network, no such
            repository or revision, no access, or `HF_HUB_OFFLINE`.
    """

    remote = True

    def __init__(self, source: HubSource) -> None:
        self.source = source
        self._cached = hf_cache() / f"models--{source.repo.replace('/', '--')}"
        self._listing: Listing | None = None
        commit = self._commit_in_hf_cache()
        if commit is None:
            self._listing = self._ask(source.revision)
            commit = self._listing.commit
        self.commit: str = commit

    @property
    def label(self) -> str:
        return "/".join(filter(None, (f"{self.source.repo}@{self.commit[:12]}", self.source.folder)))

    @property
    def licence(self) -> str | None:
        """The licence on the model card, if the card is at hand."""
        if self._listing is not None:
            return self._listing.licence
        card = self._snapshot / "README.md"
        return licence_of_card(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None

    def names(self) -> list[str]:
        """Files directly in this folder; as far as a local snapshot tells what is needed, nobody is asked."""
        folder = self._snapshot / self.source.folder
        here = sorted(p.name for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
        known = self._known_from(here)
        if known is not None:
            return sorted(known)
        try:
            files = self._list().files
        except SourceError:
            if here and is_offline():
                return here
            raise
        prefix = f"{self.source.folder}/" if self.source.folder else ""
        listed = {name[len(prefix) :] for name in files if name.startswith(prefix)}
        return sorted({name for name in listed if "/" not in name} | set(here))

    def open(self, name: str) -> ByteSource:
        """One of its files: a local copy if there is one.

        Raises:
            SourceError: If there is no such file.
        """
        local = self.at_hand(name)
        if local is not None:
            return local
        inside = self._inside(name)
        files = self._list().files
        if inside not in files:
            raise SourceError(
                f"{self.source.repo} has no file {inside!r} at revision {self.commit[:12]}",
                f"see the files at {endpoint()}/{self.source.repo}",
            )
        file = HubFile(self.source.repo, self.commit, inside, files[inside] or 0)
        if files[inside] is None:
            file = request_size(file)
        return LocalFile(download(file)) if name.endswith(WHOLE) else RemoteFile(file)

    def at_hand(self, name: str) -> LocalFile | None:
        """One of its files where a snapshot on this machine holds it."""
        local = self._snapshot / self._inside(name)
        return LocalFile(local) if local.is_file() else None

    def _inside(self, name: str) -> str:
        return "/".join(filter(None, (self.source.folder, name)))

    @property
    def _snapshot(self) -> Path:
        return self._cached / "snapshots" / self.commit

    def _commit_in_hf_cache(self) -> str | None:
        revision = self.source.revision
        if not _COMMIT.fullmatch(revision):
            try:
                revision = (self._cached / "refs" / revision).read_text(encoding="utf-8").strip()
            except (OSError, ValueError):
                return None
        known = _COMMIT.fullmatch(revision) and (self._cached / "snapshots" / revision).is_dir()
        return revision if known else None

    def _known_from(self, here: list[str]) -> set[str] | None:
        """The files of the model that is asked for, if those in a local snapshot, `here`, tell; else None."""
        wanted = self.source.file
        if wanted is not None:
            try:
                parts = find_parts(self.label, here, wanted) if wanted.endswith(".gguf") else [wanted]
            except CheckpointError:
                return None
            whole = set(parts) <= set(here) and (wanted.endswith(".gguf") or "config.json" in here)
            return set(here) if whole else None
        if "config.json" not in here:
            return None
        safe = any(name.startswith("model") and ".safetensors" in name for name in here)
        single = "model.safetensors" if safe else "pytorch_model.bin"
        index = f"{single}.index.json"
        if index not in here:
            return set(here) if single in here else None
        try:  # a shard that is not here is asked for only once a tensor in it is
            content = json.loads((self._snapshot / self.source.folder / index).read_text(encoding="utf-8"))
            return {*here, *map(str, content["weight_map"].values())}
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return None

    def _list(self) -> Listing:
        if self._listing is None:
            self._listing = self._ask(self.commit)
        return self._listing

    def _ask(self, revision: str) -> Listing:
        """What the repository holds: from the cache, else over the network and into the cache."""
        key = f"hf://{self.source.repo}@{revision}"
        path = cache.lookup(key)
        listing = None if path is None else Listing.from_json(path.read_bytes())
        if listing is not None:
            return listing
        if is_offline():
            raise SourceError(
                f"{self.source.repo} at revision {revision!r} is in no cache, and HF_HUB_OFFLINE is set",
                f"unset HF_HUB_OFFLINE and load the block once, or fetch it first (hf download {self.source.repo})",
            )
        listing = request_listing(self.source.repo, revision)
        with cache.scratch_dir("hub") as scratch:
            for name in {revision, listing.commit}:
                content = json.dumps(asdict(listing)).encode()
                cache.store_chunks(f"hf://{self.source.repo}@{name}", [content], scratch)
        return listing


def in_safetensors(place: HubFolder) -> HubFolder:
    """`place`, or the Hub's own conversion of it, where its main has only torch files that are not here yet.

    Which revision that is, is asked once and kept, as a branch's commit is.
    """
    names, source = place.names(), place.source
    if source.revision != "main" or any(name.endswith((".safetensors", ".gguf")) for name in names):
        return place
    torches = [name for name in names if name.endswith(WHOLE)]
    if not torches or any(place.at_hand(name) for name in torches):
        return place
    key = f"hf://{source.repo}@main#safetensors"
    kept = cache.lookup(key)
    if kept is not None:
        revision = kept.read_text(encoding="utf-8")
    elif is_offline():
        return place
    else:
        try:
            revision = request_converted(source.repo) or ""
        except SourceError:  # a mirror that keeps no discussions
            return place
        with cache.scratch_dir("hub") as scratch:
            cache.store_chunks(key, [revision.encode()], scratch)
    return HubFolder(replace(source, revision=revision)) if revision else place


def warn_of_licence(place: HubFolder, licence: Any) -> None:
    """One notice where the weights' licence is known and is not one of the open ones."""
    if isinstance(licence, str) and not _OPEN.fullmatch(licence):
        warnings.warn(
            f"the weights of {place.source.repo} are under the licence {licence!r}, which may restrict what you do "
            f"with them and with models that hold them; read it at {endpoint()}/{place.source.repo}",
            stacklevel=5,  # whoever called load_block
        )
