"""Packages of data that are the same file for every machine, and the commands that fetch them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lmgraft.checkpoint.digest import file_digest
from lmgraft.errors import DataError

_TIMEOUT = 1800  # seconds for one call


@dataclass(frozen=True)
class PinnedPackage:
    """One version of a package."""

    name: str
    version: str
    sha256: str
    nbytes: int
    kind: ClassVar[str]
    """Whose packages these are."""

    def __str__(self) -> str:
        return f"{self.kind} package {self.name} {self.version}, SHA-256 {self.sha256}"

    def check(self, file: Path, remedy: str) -> Path:
        """The file, if it is exactly this package's.

        Raises:
            DataError: If it is another; with `remedy`.
        """
        digest = file_digest(file)
        if digest != self.sha256:
            raise DataError(
                f"{file} is not what it should be: SHA-256 {digest[:16]}..., not {self.sha256[:16]}...", remedy
            )
        return file


def call(command: list[str], folder: Path) -> None:
    """Run a command in a folder; what it writes is kept for `reason`."""
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT)


def reason(error: Exception) -> str:
    """Why a call failed, in one line."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in (error.stderr or "").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"{error.cmd[0]} ended with status {error.returncode}"
    return str(error)
