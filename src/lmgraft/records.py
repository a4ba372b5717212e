"""What is written down: files that are whole or absent, and what a run needs to be repeated.

This room knows paths, JSON and version numbers; it knows no model and no data set.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from filelock import FileLock, Timeout

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


def read_json(path: Path, upgrade: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Read JSON from `path`.

    Args:
        path: The file.
        upgrade: Given every object in it, innermost first; what it returns stands in its place.

    Raises:
        RunError: If the file is missing or is not whole JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), object_hook=upgrade)
    except FileNotFoundError:
        raise RunError(f"{path} is missing", "check the folder's name") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not readable JSON ({error})", "delete it and run again") from None


class HeldError(RunError):
    """Another process holds the lock."""


@contextmanager
def only_one(file: Path, what: str, *, wait: float = 0) -> Iterator[None]:
    """Hold `file`'s lock: one process at a time is at `what`. The file stays behind.

    Where the file system has no locks everyone gets in.

    Args:
        file: The lock's file; made, with its folder, where it is not there.
        what: For errors, as in "another process is at the study in runs/controls".
        wait: Seconds to wait for another process; -1 waits for as long as it takes.

    Raises:
        HeldError: If another process holds the lock for longer.
        RunError: If there can be no folder for it.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunError(f"{file.parent} cannot be a folder: a file is in the way", "choose another --out") from None
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise HeldError(f"another process is at {what}", "wait for it, or stop it") from None
    except (OSError, NotImplementedError) as error:  # the latter is filelock's word for ENOSYS
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()


_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class UnfitError(ValueError):
    """A value of JSON that is not of the type that it is read as."""


def read_as(kind: Any, value: Any, where: str) -> Any:
    """A value of JSON as an annotated type: dataclasses, and tuples and keys other than strings, which JSON lacks.

    Args:
        kind: The type, with whatever is nested in it.
        value: As `read_json` gives it.
        where: What `value` is called in errors.

    Raises:
        UnfitError: If the value, a key or a field does not fit, or a field is missing or unknown.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _as_one_of(inner, value, where)
    if origin is Literal:
        return _checked(value in inner, value, where)
    if is_dataclass(kind):
        return _as_record(kind, value, where)
    if origin is dict:
        return {
            _as_key(inner[0], k, where): read_as(inner[1], v, f"{where}.{k}")
            for k, v in _checked(isinstance(value, dict), value, where).items()
        }
    if origin in (list, tuple):
        rows = _checked(isinstance(value, list), value, where)
        if origin is list or inner[-1] is Ellipsis:
            return origin(read_as(inner[0], v, f"{where}[{i}]") for i, v in enumerate(rows))
        _checked(len(rows) == len(inner), value, where)
        return tuple(read_as(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(inner, rows, strict=True)))
    if kind in (int, float):
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        return _checked(is_number, value, where, f", which is no {'whole ' if kind is int else ''}number")
    return _checked(isinstance(value, kind), value, where)


def _as_one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    for kind in kinds:
        try:
            if kind is not NoneType:
                return read_as(kind, value, where)
        except UnfitError:
            continue
    raise UnfitError(f"{where} is {_short(value)}")


def _as_record(kind: Any, value: Any, where: str) -> Any:
    _checked(isinstance(value, dict), value, where)
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)}
    for name in sorted(value.keys() - names):
        raise UnfitError(f"{where} has {name!r}, which this version does not know")
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    for name in sorted(needed - value.keys()):
        raise UnfitError(f"{where} has no {name!r}")
    return kind(**{name: read_as(hints[name], given, f"{where}.{name}") for name, given in value.items()})


def _as_key(kind: Any, key: str, where: str) -> Any:
    try:
        return kind(key)
    except ValueError:
        raise UnfitError(f"{where} has the key {key!r}") from None


def _checked(fits: bool, value: Any, where: str, why: str = "") -> Any:
    if not fits:
        raise UnfitError(f"{where} is {_short(value)}{why}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
