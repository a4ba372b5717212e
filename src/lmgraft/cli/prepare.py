"""`lmgraft prepare NAME`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lmgraft.registry import PREPARERS

_ABOUT = "Fetch or make a data set once, before any training: into lmgraft's cache, where recipes look, or a folder."
_EXAMPLE = "example:  lmgraft prepare fashion-mnist --out data/fashion"


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="lmgraft prepare", description=_ABOUT, epilog=_EXAMPLE, allow_abbrev=False)
    parser.add_argument("name", help=f"one of: {', '.join(PREPARERS.names())}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for it (default: the cache)")
    arguments = parser.parse_args(argv)
    place: Path = PREPARERS.find(arguments.name)(arguments.out)
    print(f"{arguments.name} is in {place}")
    return 0
