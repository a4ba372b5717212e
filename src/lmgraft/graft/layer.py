"""The graft itself: tokens -> W1 -> frozen block -> W2 -> tokens (paper, Section 3).

Knows the block and the width of the host's tokens, not the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.block import FrozenBlock
from lmgraft.contracts import Host, Reads, take_tokens
from lmgraft.graft.config import GraftConfig
from lmgraft.graft.reads import ReadState

NAME = "graft"
"""Attribute of the host under which the graft lies, and prefix of its tensors in `state_dict()`."""


class GraftLayer(nn.Module):
    """W2 · block(W1 x), with the residual that the config asks for.

    Trained: `mapper_in.weight` (D, V), `mapper_out.weight` (V, D), and `gate` when gated.
    Frozen: everything in `block`.
    """

    def __init__(
        self,
        block: FrozenBlock,
        host: Host,
        config: GraftConfig,
        host_spec: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.host = host
        self.host_spec = dict(host_spec) if host_spec else None
        self.mapper_in = nn.Linear(host.embed_dim, block.config.dim, bias=False)
        self.block = block
        self.mapper_out = nn.Linear(block.config.dim, host.embed_dim, bias=False)
        if (config.mapper_init or host.mapper_init) == "trunc_normal":
            nn.init.trunc_normal_(self.mapper_in.weight, std=0.02)
            nn.init.trunc_normal_(self.mapper_out.weight, std=0.02)
        self.gate = nn.Parameter(torch.zeros(())) if config.residual == "gated" else None
        self.read_state = ReadState()

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, *, reads: Reads = None) -> Tensor:
        """(B, T, V) -> (B, T, V), or (B, R, V) for `reads`; the dtype of `x` is kept."""
        h = self.mapper_in(x)
        if self.config.form == "dense":
            y = take_tokens(self.block(h, key_padding_mask), reads)
        else:
            y = self.block(h, key_padding_mask, reads=reads)
        if self.config.residual == "in":
            y = y + take_tokens(h, reads)
        out: Tensor = self.mapper_out(y).to(x.dtype)
        if self.gate is not None:
            out = self.gate * out
        return take_tokens(x, reads) + out if self.config.residual in ("out", "gated") else out


def find_graft(model: nn.Module) -> GraftLayer | None:
    """The graft of `model`, if it has one."""
    found = getattr(model, NAME, None)
    return found if isinstance(found, GraftLayer) else None
