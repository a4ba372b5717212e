"""Fusion of objects and texts as MCAN (Yu et al., arXiv 1906.10770) has it, and its pooling.

A sample of which nothing is seen (a room without objects, a question without a situation) gets zero attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.block.parts import see

_EPS = 1e-6
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}
"""SQA3D's and ScanQA's code has the first, MCAN's own the second."""


class Norm(nn.Module):
    """MCAN's own norm: by the standard deviation over V - 1, to which eps is added."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        # A vector's norm has a gradient at 0, unlike std.
        deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / (x.shape[-1] - 1) ** 0.5
        out: Tensor = self.weight * centred / (deviation + _EPS) + self.bias
        return out


class Attention(nn.Module):
    """Tokens (B, T, V) attend to a source (B, S, V) by several heads; zero for samples whose source is all padding."""

    def __init__(self, dim: int, num_heads: int, drop_rate: float) -> None:
        super().__init__()
        self.num_heads, self.drop_rate = num_heads, drop_rate
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, source: Tensor, padded: Tensor) -> Tensor:
        q, k, v = (
            part(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part, tokens in ((self.q, x), (self.k, source), (self.v, source))
        )
        visible, alone = see(padded)
        assert visible is not None
        assert alone is not None
        if source is not x:  # a mask for each query: who looks for attention among tokens passes such a call over
            visible = visible.expand(-1, -1, x.shape[1], -1)
        heads = F.scaled_dot_product_attention(q, k, v, visible, self.drop_rate if self.training else 0.0)
        out: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return out.masked_fill(alone[:, 0], 0.0)


class SelfLayer(nn.Module):
    """MCAN's SA: tokens attend to themselves, then a feed-forward net; each is added and normed."""

    def __init__(self, dim: int, num_heads: int, drop_rate: float, activation: str) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(dim, num_heads, drop_rate), Norm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), ACTIVATIONS[activation](), nn.Dropout(drop_rate), nn.Linear(4 * dim, dim)
        )
        self.norm2, self.dropout = Norm(dim), nn.Dropout(drop_rate)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, x, padded)))
        out: Tensor = self.norm2(x + self.dropout(self.mlp(x)))
        return out


class GuidedLayer(SelfLayer):
    """MCAN's SGA: the same, and between the two the tokens attend to a guide, here a text."""

    def __init__(self, dim: int, num_heads: int, drop_rate: float, activation: str) -> None:
        super().__init__(dim, num_heads, drop_rate, activation)
        self.guided, self.norm_guided = Attention(dim, num_heads, drop_rate), Norm(dim)

    def forward(  # type: ignore[override] # it is called with a guide
        self, x: Tensor, padded: Tensor, guide: Tensor, guide_padded: Tensor
    ) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, x, padded)))
        x = self.norm_guided(x + self.dropout(self.guided(x, guide, guide_padded)))
        out: Tensor = self.norm2(x + self.dropout(self.mlp(x)))
        return out


class AttFlat(nn.Module):
    """Tokens (B, T, V) to one vector (B, out): their mean by learnt weights, mapped; zero where all is padding."""

    def __init__(self, dim: int, hidden: int, out: int, drop_rate: float, activation: str) -> None:
        super().__init__()
        self.scores = nn.Sequential(
            nn.Linear(dim, hidden), ACTIVATIONS[activation](), nn.Dropout(drop_rate), nn.Linear(hidden, 1)
        )
        self.out = nn.Linear(dim, out)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        alone = padded.all(1, keepdim=True)
        scores = self.scores(x).squeeze(-1).masked_fill(padded & ~alone, -torch.inf)
        pooled: Tensor = self.out((scores.softmax(1).unsqueeze(-1) * x).sum(1))
        return pooled.masked_fill(alone, 0.0)
