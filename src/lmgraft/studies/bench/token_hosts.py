"""Rows of `hosts.HOSTS`: two encoders that timm does not have, in the shapes of VideoMAE-S and Point-BERT.

Their cost is that of the published ones: the same tokens, widths, layers and heads. Finding the
neighbours that make a point group is left out, since it is done before the encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lmgraft.studies.bench.hosts import BenchHost, classified


class VideoHost(nn.Module):
    """(B, 3, frames, H, W) -> logits: tubes of 2 x 16 x 16, the mean of all tokens, then a norm."""

    def __init__(
        self,
        *,
        frames: int = 16,
        image_size: int = 224,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_classes: int = 400,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.input_shape = (3, frames, image_size, image_size)
        self.patch_embed = nn.Conv3d(3, embed_dim, (2, 16, 16), (2, 16, 16))
        self.pos_embed = nn.Parameter(torch.randn(1, frames // 2 * (image_size // 16) ** 2, embed_dim) * 0.02)
        self.blocks = _blocks(embed_dim, depth, num_heads)
        self.fc_norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        out: Tensor = self.head(self.fc_norm(self.blocks(tokens).mean(1)))
        return out


class PointHost(nn.Module):
    """(B, groups, points, 3) -> logits: a small PointNet a group, class token first.

    The head reads the class token and the maximum over the groups' tokens.
    """

    def __init__(
        self,
        *,
        groups: int = 64,
        points: int = 32,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_classes: int = 40,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.input_shape = (groups, points, 3)
        self.point = nn.Sequential(nn.Linear(3, 128), nn.ReLU(), nn.Linear(128, 256))
        self.group = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, embed_dim))
        self.position = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, embed_dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim) * 0.02)
        self.blocks = _blocks(embed_dim, depth, num_heads)
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(2 * embed_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        centre = x.mean(2)
        points = self.point(x - centre.unsqueeze(2))
        of_group = points.amax(2, keepdim=True).expand_as(points)
        tokens = self.group(torch.cat([of_group, points], dim=-1)).amax(2) + self.position(centre)
        tokens = self.norm(self.blocks(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), tokens], dim=1)))
        out: Tensor = self.head(torch.cat([tokens[:, 0], tokens[:, 1:].amax(1)], dim=-1))
        return out


def _blocks(embed_dim: int, depth: int, num_heads: int) -> nn.Sequential:
    return nn.Sequential(*(Block(embed_dim, num_heads, qkv_bias=True) for _ in range(depth)))


def video(**shape: int) -> BenchHost:
    """The head reads the mean of all tokens."""
    return _host(VideoHost(**shape), reads="mean :")


def points(**shape: int) -> BenchHost:
    """The head reads every token."""
    return _host(PointHost(**shape), reads=None)


def _host(model: Any, reads: str | None) -> BenchHost:
    depth = len(model.blocks)
    return BenchHost(
        model=model,
        draw=classified(model.input_shape, model.head.out_features),
        depth=depth,
        graft={"at": f"blocks.{depth - 1}", "reads": reads, "host_spec": {"embed_dim": model.embed_dim}},
    )
