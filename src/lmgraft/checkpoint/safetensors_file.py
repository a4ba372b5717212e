"""Hugging Face folders: config.json, and safetensors in one file or in shards with an index.

Headers are read at opening; tensors by their own byte range when asked for.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lmgraft.errors import CheckpointError, SourceError

_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1}


class SafetensorsCheckpoint:
    """An open folder or single file; see `lmgraft.checkpoint.source.Checkpoint`.

    Raises:
        SourceError: If config.json or the weights are missing.
        CheckpointError: If a file is damaged or a shard is missing.
    """

    style: Literal["hf"] = "hf"
    licence: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        folder = path if path.is_dir() else path.parent
        self.config = _read_config(folder)
        self._headers: dict[str, tuple[Path, tuple[int, ...], str]] = {}
        for file, promised in _weight_files(path).items():
            found = self._read_header(file)
            absent = sorted(promised - found)
            if absent:
                raise CheckpointError(
                    f"{file} lacks {len(absent)} tensors that its index promises, first {absent[0]}",
                    "download the model again",
                )

    def _read_header(self, file: Path) -> set[str]:
        try:
            with safe_open(file, framework="pt") as opened:
                found = set(opened.keys())
                for name in found:
                    view = opened.get_slice(name)
                    self._headers[name] = (file, tuple(view.get_shape()), view.get_dtype())
        except SafetensorError as error:
            raise CheckpointError(f"{file} is cut short or damaged ({error})", "download the file again") from None
        return found

    def names(self) -> Collection[str]:
        return self._headers.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._headers[name][1]

    def nbytes(self, name: str) -> int:
        _, shape, dtype = self._headers[name]
        size = _WIDTHS.get(dtype, 1)
        for axis in shape:
            size *= axis
        return size

    def dtype(self, name: str) -> str:
        return self._headers[name][2]

    def read(self, name: str) -> Tensor:
        """Read one tensor in the file's own dtype."""
        file, _, dtype = self._headers[name]
        if dtype not in ("F64", "F32", "F16", "BF16"):
            raise CheckpointError(
                f"{name} in {file} is stored as {dtype}: quantised safetensors are not read",
                "use the model's unquantised weights, or a GGUF file",
            )
        with safe_open(file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(
            f"{folder} has no config.json", "the model's config.json must lie beside its weights"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{file} is not readable JSON ({error})", "download it again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} holds no JSON object", "download it again")
    return config


def _weight_files(path: Path) -> dict[Path, set[str]]:
    """Weight files and the tensor names that an index promises for each."""
    if path.is_file():
        return {path: set()}
    index = path / "model.safetensors.index.json"
    if not index.exists():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise SourceError(f"{path} holds no .safetensors file", "give the folder with the weights")
        return {file: set() for file in files}
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[Path, set[str]] = {}
        for name, shard in weight_map.items():
            if Path(shard).name != shard or shard in ("", ".."):
                raise CheckpointError(f"{index} points outside its folder: {shard!r}", "do not use this file")
            shards.setdefault(path / shard, set()).add(name)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{index} is not a weight index ({error!r})", "download it again") from None
    for shard in shards:
        if not shard.exists():
            raise CheckpointError(f"{shard.name} is missing from {path}", "download the missing shard")
    return shards
