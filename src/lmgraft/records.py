"""What is written down: files that are whole or absent, and what a run needs to be repeated.

This room knows paths, JSON and version numbers; it knows no model and no data set.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from lmgraft.errors import RunError


@contextmanager
def temporary_file(folder: Path, name: str) -> Iterator[Path]:
    """An empty hidden file in `folder`; removed at the end unless `commit` renamed it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(path)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def commit(temporary: Path, path: Path) -> None:
    """Flush `temporary` to disk and rename it to `path`: the old file or the new, never half."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)  # mkstemp makes files only the owner can read
    os.replace(temporary, path)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` only if the body succeeds."""
    path = Path(path)
    with temporary_file(path.parent, path.name) as temporary:
        yield temporary
        commit(temporary, path)


def sweep_temporaries(folder: Path) -> None:
    """Remove what an `atomic_path` left in `folder` when its process was killed."""
    for leftover in Path(folder).glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON from `path`.

    Raises:
        RunError: If the file is missing or is not whole JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing", "check the folder's name") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not readable JSON ({error})", "delete it and run again") from None


@contextmanager
def locked(file: Path, *, wait: bool) -> Iterator[bool]:
    """Hold `file`'s lock; yields False where another process holds it and `wait` is False.

    Where the file system has no locks everyone gets in.

    Raises:
        RunError: If there can be no folder for it.
    """
    from filelock import FileLock, Timeout

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunError(f"{file.parent} cannot be a folder: a file is in the way", "choose another --out") from None
    lock, free = FileLock(file, timeout=-1 if wait else 0), True
    try:
        with suppress(NotImplementedError):  # no locks here
            lock.acquire()
    except Timeout:
        free = False
    try:
        yield free
    finally:
        lock.release()


def git_commit(file: Path) -> str | None:
    """The commit of the checkout that tracks `file`, "-dirty" if changed; None if none does."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    try:
        git("ls-files", "--error-unmatch", file.name)  # not some checkout around a virtual environment
        changed = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "HEAD").strip() + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def command() -> list[str]:
    """This process's command line; the program by its name, as its folder is nobody else's concern."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return [name, *sys.argv[1:]]


_RECORDED = ("lmgraft", "torch", "pytorch-lightning", "numpy", "gguf", "safetensors")


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Versions, platform and commit: what a reader needs to repeat a run.

    Args:
        packages: Distributions that matter beside lmgraft's own.
    """
    versions: dict[str, str | None] = {}
    for name in dict.fromkeys((*_RECORDED, *packages)):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpu_count": os.cpu_count(),
        "git_commit": git_commit(Path(__file__)),
    }
