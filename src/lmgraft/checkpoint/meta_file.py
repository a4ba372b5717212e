"""Meta's own files: `params.json` and `consolidated.NN.pth`, one for each model-parallel rank.

Each rank holds a slice of every matrix: rows where a projection's outputs were split, columns
where its inputs were. Norms are whole in each.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lmgraft.checkpoint.places import Place
from lmgraft.checkpoint.safetensors_file import read_json
from lmgraft.checkpoint.torch_file import TorchFile
from lmgraft.errors import CheckpointError

PARAMS = "params.json"
MLP_DIM = "mlp_dim"
_PART = re.compile(r"consolidated\.(\d{2})\.pth")
_COLUMNS = re.compile(r".*\.(wo|w2)\.weight")
_ROWS = re.compile(r"(.*\.(wq|wk|wv|w1|w3)|output)\.(weight|bias)")
_UP = re.compile(r"layers\.\d+\.feed_forward\.w1\.weight")


def find_ranks(place: Place) -> list[str]:
    """The names of the ranks' files, in order; empty if there is none.

    Raises:
        CheckpointError: If one is missing.
    """
    files = sorted(name for name in place.names() if _PART.fullmatch(name))
    expected = [f"consolidated.{rank:02d}.pth" for rank in range(len(files))]
    if files != expected:
        absent = sorted(set(expected) - set(files))[0]
        raise CheckpointError(f"{place.label} lacks {absent}", "download all of the model's consolidated files")
    return files


class MetaCheckpoint:
    """An open model as Meta publishes it; see `lmgraft.checkpoint.source.Checkpoint`.

    `config` is params.json and, under `mlp_dim`, the MLP's width as the weights have it:
    params.json gives it only through factors, which not every release states.

    Raises:
        CheckpointError: If a file is damaged, or the ranks do not fit each other.
    """

    style: Literal["meta"] = "meta"

    def __init__(self, place: Place) -> None:
        self.label = place.label
        self.licence: str | None = None
        self.config: dict[str, Any] = read_json(place, PARAMS)
        self._ranks = [TorchFile(place.open(name)) for name in find_ranks(place)]
        first = self._ranks[0]
        for rank in self._ranks[1:]:
            odd = sorted(first.records.keys() ^ rank.records.keys())
            odd += [n for n, t in first.records.items() if n in rank.records and rank.records[n].shape != t.shape]
            if odd:
                raise CheckpointError(
                    f"{rank.source.label} is no rank of the same model: {odd[0]} differs", "download the model again"
                )
        wide = next((name for name in first.records if _UP.fullmatch(name)), None)
        if wide is not None and len(self.shape(wide)) == 2:
            self.config[MLP_DIM] = self.shape(wide)[0]

    def _split_axis(self, name: str) -> int | None:
        """The axis along which the ranks hold slices, or None if each holds all."""
        shape = tuple(self._ranks[0].records[name].shape)
        if len(self._ranks) == 1:
            return None
        if len(shape) == 2 and name == "tok_embeddings.weight":  # split by width until LLaMA 3, then by words
            return 0 if shape[1] == self.config.get("dim") else 1
        if len(shape) == 2 and _COLUMNS.fullmatch(name):
            return 1
        return 0 if shape and _ROWS.fullmatch(name) else None

    def _holders(self, name: str) -> Sequence[TorchFile]:
        return self._ranks if self._split_axis(name) is not None else self._ranks[:1]

    def names(self) -> Collection[str]:
        return self._ranks[0].records.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        shape, axis = list(self._ranks[0].records[name].shape), self._split_axis(name)
        if axis is not None:
            shape[axis] *= len(self._ranks)
        return tuple(shape)

    def nbytes(self, name: str) -> int:
        return sum(rank.nbytes(name) for rank in self._holders(name))

    def to_fetch(self, name: str) -> int:
        """Nothing: torch files come whole."""
        return 0

    def dtype(self, name: str) -> str:
        return self._ranks[0].dtype(name)

    def read(self, name: str) -> Tensor:
        """Read one tensor in the file's own dtype, its slices put together."""
        axis = self._split_axis(name)
        if axis is None:
            return self._ranks[0].read(name)
        whole = torch.empty(self.shape(name), dtype=self._ranks[0].records[name].dtype)
        for rank, slot in zip(self._ranks, whole.chunk(len(self._ranks), axis), strict=True):
            slot.copy_(rank.read(name))
        return whole
