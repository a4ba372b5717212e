"""`lmgraft cache ls | verify | rm`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from lmgraft.checkpoint import cache_admin
from lmgraft.checkpoint.cache import cache_dir
from lmgraft.cli.command import Command, word
from lmgraft.errors import SourceError


@dataclass(frozen=True, kw_only=True)
class Cache(Command):
    """List, check or remove what has been fetched. LMGRAFT_CACHE moves the cache.

    ls: sources, their bytes, when they were fetched, and where they lie. verify: hash everything again and remove
    what is damaged (exit status 1 if there was any). rm: remove one source, or everything.
    """

    examples = """examples:
  lmgraft cache ls
  lmgraft cache verify                   # damage is removed, and fetched again when it is next needed
  lmgraft cache rm huggyllama/llama-7b   # also makes its branches be looked up again
  lmgraft cache rm --all"""
    action: Literal["ls", "verify", "rm"] = word()
    """What to do."""
    source: str | None = word(default=None)
    """What rm removes: a source as ls shows it, a known name, owner/name, or a data set."""
    all: bool = False
    """With rm: empty the cache."""
    json: bool = False
    """With ls: print JSON."""

    def run(self) -> int:
        if self.action == "ls":
            return _ls(self.json)
        if self.action == "verify":
            return _verify()
        if self.all == (self.source is not None):
            raise SourceError("rm needs one source, or --all", "see the sources with: lmgraft cache ls")
        freed = cache_admin.remove_all() if self.source is None else cache_admin.remove(self.source)
        print(f"{_size(freed)} removed from {cache_dir()}")
        return 0


COMMAND = Cache


def _ls(as_json: bool) -> int:
    found, total = cache_admin.entries(), cache_admin.total_bytes()
    if as_json:
        content = {"path": str(cache_dir()), "total_bytes": total, "entries": [asdict(entry) for entry in found]}
        print(json.dumps(content, indent=2))
        return 0
    for entry in found:
        pieces = f", {entry.pieces} pieces" if entry.pieces > 1 else ""
        print(f"{entry.source}\n    {_size(entry.nbytes)}{pieces}, fetched {entry.fetched}, {entry.path}")
    print(f"{_size(total)} in all, in {cache_dir()}")
    return 0


def _verify() -> int:
    damages = cache_admin.verify()
    for damage in damages:
        print(f"damaged: {damage.source}\n    {damage.problem}; removed")
    print(f"{len(damages)} damaged" if damages else f"all of {cache_dir()} is whole")
    return 1 if damages else 0


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB" if nbytes >= 1 << 20 else f"{nbytes:,} bytes"
