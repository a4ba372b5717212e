"""Finished runs of a study in one file, a line each: <out>/runs.jsonl.

It holds what a study reads of a run, which the weights are not among, so that a study's folder can be moved, committed
and gone on with elsewhere: `unpack` gives the runs their folders back.
"""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmgraft import records
from lmgraft.errors import RunError
from lmgraft.studies.engine.runs import KEPT, Run
from lmgraft.training.items import read_arrays, write_arrays

FILE = "runs.jsonl"


def pack(out: Path, cells: Iterable[Run]) -> None:
    """Add the finished runs among `cells` to runs.jsonl; written only where one is new or has changed.

    Raises:
        RunError: If the file there, or a file of a run, is damaged.
    """
    held = _read(out)
    packed = dict(held)
    for cell in cells:
        if cell.finished:
            packed[cell.folder.relative_to(out / "runs").as_posix()] = _packed(cell.folder)
    if packed != held:
        lines = (json.dumps({"run": name, "files": files}) + "\n" for name, files in sorted(packed.items()))
        records.write_text(out / FILE, "".join(lines))


def unpack(out: Path) -> None:
    """Write the runs of runs.jsonl as folders, all or none, where there is no folder of runs.

    Where there is one nothing is added: a run that was deleted, to be trained again, stays deleted.

    Raises:
        RunError: If runs.jsonl is damaged.
    """
    held = _read(out)
    if not held or (out / "runs").exists():
        return
    part = out / "runs.part"
    shutil.rmtree(part, ignore_errors=True)
    for run, files in held.items():
        for name, content in files.items():
            _write(part / run / name, content)
    part.rename(out / "runs")


@contextmanager
def unpacked(out: Path) -> Iterator[Path]:
    """Inside, a folder with the runs that `unpack` would write into this one, which is left as it is."""
    if not (out / FILE).exists() or (out / "runs").exists():
        yield out
        return
    with TemporaryDirectory() as scratch:
        shutil.copyfile(out / FILE, Path(scratch) / FILE)
        unpack(Path(scratch))
        yield Path(scratch)


def _packed(folder: Path) -> dict[str, Any]:
    paths = [folder / name for name in KEPT] + sorted(folder.glob("test_items.*.npz"))
    paths += sorted((folder / "logs" / "csv").glob("version_*/metrics.csv"))
    return {path.relative_to(folder).as_posix(): _content(path) for path in paths if path.exists()}


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return records.read_json(path)
    if path.suffix == ".npz":
        return {name: _encoded(column) for name, column in read_arrays(path).items()}
    return path.read_text(encoding="utf-8")


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        write_arrays(path, {name: _decoded(column, path) for name, column in content.items()})
    elif path.suffix == ".json":
        records.write_json(path, content)
    else:
        records.write_text(path, content)


def _encoded(column: NDArray[Any]) -> dict[str, Any]:
    content = base64.b64encode(zlib.compress(np.ascontiguousarray(column).tobytes(), 9)).decode("ascii")
    return {"dtype": column.dtype.str, "shape": list(column.shape), "zlib": content}


def _decoded(column: Mapping[str, Any], path: Path) -> NDArray[Any]:
    try:
        dtype = np.dtype(column["dtype"])
        if dtype.kind not in "biuf":
            raise ValueError(f"numbers of type {dtype}")
        values = np.frombuffer(zlib.decompress(base64.b64decode(column["zlib"])), dtype)
        return values.reshape(column["shape"])
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise RunError(f"{path} cannot be made from {FILE}: damaged ({error})", "fetch that file again") from None


def _read(out: Path) -> dict[str, dict[str, Any]]:
    file = out / FILE
    if not file.exists():
        return {}
    runs = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            run = json.loads(line)
            name, files = run["run"], run["files"]
            if not _is_inside(name) or not all(_is_inside(path) for path in files):
                raise ValueError("a path leads out of the folder")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{file}, line {number}, is damaged ({error})", "put the file back as it was") from None
        runs[name] = files
    return runs


def _is_inside(path: str) -> bool:
    return not path.startswith("/") and ".." not in Path(path).parts
