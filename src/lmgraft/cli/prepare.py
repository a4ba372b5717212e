"""`lmgraft prepare NAME`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lmgraft.cli.command import Command, option, word
from lmgraft.registry import PREPARERS


@dataclass(frozen=True, kw_only=True)
class Prepare(Command):
    """Fetch or make a data set once, before any training: into lmgraft's cache, where recipes look, or a folder."""

    examples = (
        f"data sets: {', '.join(PREPARERS.names())}\n\nexample:  lmgraft prepare fashion-mnist --out data/fashion"
    )
    name: str = word()
    """The data set."""
    out: Path | None = option(None, metavar="DIR")
    """Folder for it (default: the cache)."""

    def run(self) -> int:
        place: Path = PREPARERS.find(self.name)(self.out)
        print(f"{self.name} is in {place}")
        return 0


COMMAND = Prepare
