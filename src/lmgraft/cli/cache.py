"""`lmgraft cache ls | verify | rm`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from lmgraft.checkpoint import cache_admin
from lmgraft.checkpoint.cache import cache_dir
from lmgraft.errors import SourceError

_EXAMPLES = """examples:
  lmgraft cache ls
  lmgraft cache verify                   # damage is removed, and fetched again when it is next needed
  lmgraft cache rm huggyllama/llama-7b   # also makes its branches be looked up again
  lmgraft cache rm --all
"""


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lmgraft cache",
        description="List, check or remove what has been fetched. LMGRAFT_CACHE moves the cache.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    ls = commands.add_parser("ls", help="sources, their bytes, when they were fetched, and where they lie")
    ls.add_argument("--json", action="store_true", help="print JSON")
    commands.add_parser("verify", help="hash everything anew; remove what is damaged (exit status 1 if there was any)")
    rm = commands.add_parser("rm", help="remove one source, or everything")
    rm.add_argument("source", nargs="?", help="a source as ls shows it, a known name, owner/name, or a data set")
    rm.add_argument("--all", action="store_true", help="empty the cache")
    arguments = parser.parse_args(argv)
    if arguments.command == "ls":
        return _ls(arguments.json)
    if arguments.command == "verify":
        return _verify()
    if arguments.all == (arguments.source is not None):
        raise SourceError("rm needs one source, or --all", "see the sources with: lmgraft cache ls")
    freed = cache_admin.remove_all() if arguments.all else cache_admin.remove(arguments.source)
    print(f"{_size(freed)} removed from {cache_dir()}")
    return 0


def _ls(as_json: bool) -> int:
    found, total = cache_admin.entries(), cache_admin.total_bytes()
    if as_json:
        said = {"path": str(cache_dir()), "total_bytes": total, "entries": [asdict(entry) for entry in found]}
        print(json.dumps(said, indent=2))
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
