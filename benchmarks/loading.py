"""What loading one layer costs: seconds, bytes read, memory. Prints a Markdown table, writes JSON.

    python benchmarks/loading.py --out loading.json

Each number is the median of fresh processes, after one that warms the file cache. Memory is the
peak of anonymous memory over what the process had after `import lmgraft`. The files are sparse
(see big_files.py): 160 GiB in name, at most 4 GiB on disk at a time, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 1 << 20
WAYS = ("load_block", "torch.load", "torch.load(mmap)")


def _status(name: str, file: str) -> tuple[int, int]:
    """A number out of /proc/self/<file>, and how many bytes it took to read."""
    text = Path(f"/proc/self/{file}").read_text(encoding="ascii")
    found = re.search(rf"^{name}:\s*(\d+)", text, re.MULTILINE)
    return (int(found[1]) if found else 0), len(text)


class Watch:
    """Samples anonymous memory every 5 ms while it is open."""

    def __enter__(self) -> Watch:
        self._stop = threading.Event()
        self.own = 0  # bytes that the sampling itself read
        self.before = self.peak = _status("RssAnon", "status")[0]
        self._rchar = _status("rchar", "io")[0]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._begin = time.perf_counter()
        return self

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            found, count = _status("RssAnon", "status")
            self.peak = max(self.peak, found)
            self.own += count

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._begin
        self._stop.set()
        self._thread.join()
        self.rchar = _status("rchar", "io")[0] - self._rchar - self.own


def measure(way: str, source: str) -> dict[str, float]:
    """In this process: import first, then load once."""
    import torch

    import lmgraft
    from lmgraft.checkpoint.places import LocalFile

    counted = 0
    original = LocalFile.read_into

    def read_into(self: LocalFile, offset: int, buffer: memoryview) -> None:
        nonlocal counted
        counted += len(buffer)
        original(self, offset, buffer)

    LocalFile.read_into = read_into  # type: ignore[method-assign]

    def whole(**options: Any) -> dict[str, Any]:
        path = Path(source) / "consolidated.00.pth"
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu", **options)
        last = max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
        return {name: t.clone() for name, t in state.items() if name.startswith(f"layers.{last}.")}

    ways: dict[str, Callable[[], object]] = {
        "load_block": lambda: lmgraft.load_block(source, -1),
        "torch.load": whole,
        "torch.load(mmap)": lambda: whole(mmap=True),
    }
    with Watch() as watch:
        kept = ways[way]()
    del kept
    return {
        "seconds": watch.seconds,
        "bytes_counted": counted,
        "bytes_rchar": watch.rchar,
        "peak_anonymous_bytes": (watch.peak - watch.before) * 1024,
    }


def _in_fresh_process(way: str, source: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", way, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def run(names: list[str], runs: int, folder: Path | None) -> list[dict[str, Any]]:
    """All cases, one after another; each one's files are removed before the next."""
    from big_files import CASES

    rows: list[dict[str, Any]] = []
    for name in names:
        case = CASES[name]
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            source = case.write(Path(temporary))
            files = [source] if source.is_file() else [p for p in source.iterdir() if p.is_file()]
            size = sum(p.stat().st_size for p in files)
            layer = case.anatomy.layer_params * (18 / 32 if name == "7b-gguf" else 2)
            for way in WAYS if name == "8-layers" else WAYS[:1]:
                _in_fresh_process(way, source)
                found = [_in_fresh_process(way, source) for _ in range(runs)]
                row: dict[str, Any] = {key: statistics.median(one[key] for one in found) for key in found[0]}
                row["seconds_all"] = [one["seconds"] for one in found]
                target = case.anatomy.layer_params * case.width
                rows.append({"case": case.title, "way": way, "file_bytes": size, "layer_bytes": layer} | row)
                rows[-1]["layer_bytes_loaded"] = target
                sys.stdout.write(to_markdown(rows[-1:], header=len(rows) == 1))
                sys.stdout.flush()
    return rows


def to_markdown(rows: list[dict[str, Any]], header: bool = True) -> str:
    """The table, in MiB."""
    lines = []
    if header:
        lines += ["| file | GiB | way | seconds | layer in the file, MiB | read, MiB | layer loaded, MiB | peak, MiB |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
    for r in rows:
        cells = (
            r["case"],
            f"{r['file_bytes'] / (1 << 30):.1f}",
            f"`{r['way']}`",
            f"{r['seconds']:.2f}",
            f"{r['layer_bytes'] / MIB:.1f}",
            "mapped" if "mmap" in r["way"] else f"{max(r['bytes_counted'], r['bytes_rchar']) / MIB:.1f}",
            f"{r['layer_bytes_loaded'] / MIB:.1f}",
            f"{r['peak_anonymous_bytes'] / MIB:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["7b-safetensors", "7b-consolidated", "7b-gguf", "70b-safetensors", "8-layers"]
    parser.add_argument("--cases", nargs="+", choices=names, default=names, help="which files; default all")
    parser.add_argument("--runs", type=int, default=3, help="measured processes a case; default 3")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--folder", type=Path, help="where the temporary files go; default the system's place")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "SOURCE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        sys.stdout.write(json.dumps(measure(*arguments.measure)) + "\n")
        return
    rows = run(arguments.cases, arguments.runs, arguments.folder)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
