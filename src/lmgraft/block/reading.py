"""The tensors of one layer of a file -> those of a block, each narrowed before much of it is held."""

from __future__ import annotations

import torch
from torch import Tensor

from lmgraft.block.config import BlockConfig
from lmgraft.block.family import Family, unchanged
from lmgraft.block.layout import canonical_parts, file_shapes, is_copied, rows_of
from lmgraft.checkpoint import Checkpoint, cache, tensor_digest
from lmgraft.checkpoint.digest import Stack
from lmgraft.checkpoint.memory import Step
from lmgraft.checkpoint.names import find_tensors, read_finite


class LayerReader:
    """Where the tensors of one layer are in a file.

    Raises:
        CheckpointError: If they do not fit the config.
    """

    def __init__(self, checkpoint: Checkpoint, family: Family, config: BlockConfig, layer: int) -> None:
        self.checkpoint, self.config = checkpoint, config
        self.names = family.names_in(checkpoint.style, checkpoint.names(), layer)
        self.undo = family.restore.get(checkpoint.style, unchanged)
        root = self.names.root(checkpoint.names(), layer)
        self.prefix = root + self.names.layer_prefix.format(layer=layer)
        found = find_tensors(checkpoint, self.names, layer, file_shapes(self.names, config))
        self.rows = {n: [found.pop(row) for row in rows] for n, rows in rows_of(self.names, config).items()}
        self.whole = found

    def steps(self) -> list[Step]:
        """What is held at the same time while they are read; stacks come last, when all else is narrowed."""
        steps = [Step((there,), copied=is_copied(self.names, name)) for name, there in self.whole.items()]
        return steps + [Step((there,), copied=True) for rows in self.rows.values() for there in rows]

    def read(self, dtype: torch.dtype | None) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Canonical tensors of the layer in `dtype`, and the digests of the values that the file holds.

        Raises:
            CheckpointError: If they hold NaN or infinity.
        """
        there = [*self.whole.values(), *(name for rows in self.rows.values() for name in rows)]
        what = f"{self.prefix.rstrip('.')} of {self.checkpoint.label}"
        cache.announce(what, sum(map(self.checkpoint.to_fetch, there)))
        made: dict[str, tuple[Tensor, str]] = {}
        for name, whole in self.whole.items():
            tensor = read_finite(self.checkpoint, whole)
            by_expert = tensor.dim() == 3 and is_copied(self.names, name)
            made |= self._stacked(name, tensor, dtype) if by_expert else self._plain(name, tensor, dtype)
        for name, rows in self.rows.items():
            stack = Stack(self.config.tensor_shapes()[name], dtype)
            for row in rows:
                stack.add(read_finite(self.checkpoint, row))
            made[name] = stack.finished()
        return {n: tensor for n, (tensor, _) in made.items()}, {n: digest for n, (_, digest) in made.items()}

    def _plain(self, name: str, tensor: Tensor, dtype: torch.dtype | None) -> dict[str, tuple[Tensor, str]]:
        made = {}
        for part, values in canonical_parts(self.names, name, tensor, self.config).items():
            values = self.undo({part: values.contiguous()}, self.config)[part]
            made[part] = values.to(dtype or values.dtype), tensor_digest(values)
        return made

    def _stacked(self, name: str, tensor: Tensor, dtype: torch.dtype | None) -> dict[str, tuple[Tensor, str]]:
        """Experts in one tensor, laid out anew one after the other."""
        made = {}
        for part, values in canonical_parts(self.names, name, tensor, self.config).items():
            stack = Stack(values.shape, dtype)
            for expert in values:
                stack.add(expert)
            made[part] = stack.finished()
        return made
