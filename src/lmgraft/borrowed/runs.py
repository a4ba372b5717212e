"""A run folder of lmgraft -> its trained encoder as a checkpoint of timm."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from lmgraft.checkpoint.torch_file import load_archive
from lmgraft.errors import SourceError

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


class RunCheckpoint:
    """The encoder that a run trained: its best epoch, by names as timm has them. A `checkpoint.Checkpoint`.

    Raises:
        SourceError: If the run has no checkpoint, or its encoder is none of timm's.
    """

    licence: str | None = None
    style: Literal["hf"] = "hf"

    def __init__(self, folder: Path) -> None:
        self.label = str(folder)
        recipe = yaml.safe_load((folder / "config.yaml").read_text())
        backbone = recipe.get("backbone", {}) if isinstance(recipe, dict) else {}
        if backbone.get("factory") != "timm":
            raise SourceError(f"the encoder of {folder} is none of timm's", "use a run whose backbone.factory is timm")
        arguments = {k: v for k, v in (backbone.get("kwargs") or {}).items() if k != "pretrained"}
        self.config: dict[str, Any] = {"architecture": backbone["name"], "model_args": arguments}
        file = folder / "checkpoints" / "best.ckpt"
        if not file.is_file():
            raise SourceError(f"{file} is missing", "finish the run first: lmgraft train ... --resume")
        content = load_archive(file, mmap=True)
        tensors: dict[str, Tensor] = content["state_dict"]
        roots = {name.partition("blocks.")[0] for name in tensors if ".blocks." in f".{name}"}
        if len(roots) != 1:
            raise SourceError(f"{file} holds {len(roots)} encoders with blocks", "use a run of one vision transformer")
        (root,) = roots
        self._tensors = {n.removeprefix(root): t for n, t in tensors.items() if n.startswith(root)}

    def names(self) -> Collection[str]:
        return self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def to_fetch(self, name: str) -> int:
        """Nothing: a run's folder lies on this machine."""
        return 0

    def nbytes(self, name: str) -> int:
        return self._tensors[name].nbytes

    def dtype(self, name: str) -> str:
        return _DTYPES.get(self._tensors[name].dtype, str(self._tensors[name].dtype))

    def read(self, name: str) -> Tensor:
        return self._tensors[name].clone()


def open_run(source: str) -> RunCheckpoint:
    """Open the run in the folder `source`."""
    return RunCheckpoint(Path(source))
