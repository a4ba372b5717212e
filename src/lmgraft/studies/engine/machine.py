"""What a machine of a cluster must have; asked there by code that is sent to it, which imports nothing of lmgraft."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a machine must have."""

    versions: dict[str, str]
    marker: Path
    """A file in the study's folder that only a machine that sees this very folder can read."""

    def unmet(self) -> str | None:
        """What is wrong with this machine; None for nothing."""
        for package, wanted in self.versions.items():
            try:
                there = metadata.version(package)
            except metadata.PackageNotFoundError:
                return f"it has no {package}, the study's machine {wanted}"
            if there != wanted:
                return f"it has {package} {there}, the study's machine {wanted}"
        try:
            self.marker.read_bytes()
            with TemporaryFile(dir=self.marker.parent):
                return None
        except OSError as error:
            return f"it cannot read and write in the study's folder: {error.strerror} ({self.marker.parent})"
