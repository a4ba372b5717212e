"""What may stand where a block stands and has no layers: a function of each token by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.block.block import FrozenBlock, Provenance, check_input
from lmgraft.block.config import BlockConfig
from lmgraft.block.frozen import FrozenModule
from lmgraft.block.parts import Norm
from lmgraft.block.trained import train_all
from lmgraft.checkpoint.digest import json_digest
from lmgraft.contracts import Tokens, take_tokens

Tokenwise = Literal["mlp", "linear"]
_NORM_EPS = 1e-5
"""torch's LayerNorm's own; the paper names none."""


class TokenwiseBlock(FrozenBlock):
    """A stand-in between the mappers that mixes no tokens: a token that is not read costs nothing.

    mlp      LayerNorm(GELU(x)), gains and shifts trained: the paper's "+MLP"
    linear   x

    Args:
        kind: Which of the two.
        config: Of the block that it stands for: its width counts, nothing else.
        provenance: Of that block, with the control; the digest is filled in here.
    """

    def __init__(self, kind: Tokenwise, config: BlockConfig, provenance: Provenance) -> None:
        FrozenModule.__init__(self)
        self.config, self.kind = config, kind
        self.layers = nn.ModuleList()
        self.final_norm = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        trained: Mapping[str, str] | None = None
        if kind == "mlp":
            self.norm = Norm("layer", _NORM_EPS, torch.ones(config.dim), torch.zeros(config.dim))
            train_all(self.norm)
            trained = {"kind": "all"}
        digest = json_digest({"tokenwise": kind, "dim": config.dim})
        self.provenance = replace(provenance, tensors={}, digest=digest, trained=trained)
        self.eval()

    @property
    def tokenwise(self) -> bool:
        return True

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, *, reads: Tokens = None) -> Tensor:
        """(B, T, D) -> (B, R, D): the rows of `reads`, all rows for None."""
        check_input(x, self.config.dim)
        read = take_tokens(x, reads)
        out: Tensor = self.norm(F.gelu(read)) if self.kind == "mlp" else read
        return out
