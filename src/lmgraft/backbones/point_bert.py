"""Point-BERT (Yu et al., arXiv 2111.14819) as its fine-tuning uses it, in plain PyTorch, and as a host.

Parameters have the names of the released files, so that those load as they are; without one they begin as torch's do.
Groups of neighbouring points become tokens; positions of their centres are added before every layer; the head reads
the class token and the maximum over all others, or the class token alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from lmgraft.backbones.own_path import is_own
from lmgraft.backbones.point_bert_weights import load_released
from lmgraft.backbones.refusals import at_least_one, construct, one_of, shares
from lmgraft.contracts import Host, Reads, TokenLayout
from lmgraft.errors import HostError
from lmgraft.geometry.points import group_index, group_points

_POS_HIDDEN, _HEAD_HIDDEN = 128, 256


class Pointwise(nn.Conv1d):
    """A convolution of width one over rows (N, C): as a matrix product it takes two thirds of the time on CPUs."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight.squeeze(2), self.bias)


class JoinMaximum(Pointwise):
    """Points (B, G, K, C), each beside its group's maximum, to rows (B G K, out)."""

    def forward(self, points: Tensor) -> Tensor:
        of_maximum, of_point = self.weight.squeeze(2).chunk(2, 1)
        whole = F.linear(points.amax(2, keepdim=True), of_maximum)  # one vector a group is multiplied once, not K times
        return (F.linear(points, of_point, self.bias) + whole).flatten(0, 2)


class MiniPointNet(nn.Module):
    """One vector for each group of points.

    Args:
        out: Width of the vector.
        hidden: Widths of the first and the joined features.
    """

    def __init__(self, out: int = 256, hidden: tuple[int, int] = (128, 256)) -> None:
        super().__init__()
        first, local = hidden
        self.first_conv = nn.Sequential(
            Pointwise(3, first), nn.BatchNorm1d(first), nn.ReLU(inplace=True), Pointwise(first, local)
        )
        self.second_conv = nn.Sequential(
            JoinMaximum(2 * local, 2 * local),
            nn.BatchNorm1d(2 * local),
            nn.ReLU(inplace=True),
            Pointwise(2 * local, out),
        )

    def forward(self, groups: Tensor) -> Tensor:
        """Groups (B, G, K, 3) to tokens (B, G, out)."""
        shape = groups.shape[:3]
        points = self.first_conv(groups.flatten(0, 2)).view(*shape, -1)
        tokens: Tensor = self.second_conv(points).view(*shape, -1).amax(2)
        return tokens


class Layers(nn.Module):
    """The encoder's layers, before each of which the positions are added again."""

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_ratio: float, drop_path_rate: float) -> None:
        super().__init__()
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio, qkv_bias=False, drop_path=rate, norm_layer=nn.LayerNorm) for rate in rates
        )

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x + positions)
        return x


class PointBert(nn.Module):
    """Point-BERT with a classification head: (B, N, 3) points to (B, num_classes) logits.

    Args:
        num_classes: Released files have 40, also for ScanObjectNN's 15.
        embed_dim, depth, num_heads, mlp_ratio: Of the transformer.
        drop_path_rate: Of its last layer; it rises linearly from 0.
        num_groups: Tokens besides the class token: 64 for 1,024 points, 256 for 4,096, 512 for 8,192.
        group_size: Points of a group.
        encoder_dims: Width of a group's vector.
        point_widths: Hidden widths of the mini-PointNet.
        head: "all" reads the class token and the maximum over the others, as published; "cls" the class token alone,
            which lets a graft compute one token in place of all.
        skip_near_origin: Choose centres as pointnet2's CUDA kernel does, which passes over points near the origin.
    """

    def __init__(
        self,
        num_classes: int = 40,
        *,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.1,
        num_groups: int = 64,
        group_size: int = 32,
        encoder_dims: int = 256,
        point_widths: tuple[int, int] = (128, 256),
        head: Literal["all", "cls"] = "all",
        skip_near_origin: bool = False,
    ) -> None:
        super().__init__()
        one_of("head", head, ("all", "cls"))
        at_least_one(embed_dim=embed_dim, depth=depth, num_heads=num_heads, num_classes=num_classes)
        at_least_one(num_groups=num_groups, group_size=group_size, encoder_dims=encoder_dims)
        shares(drop_path_rate=drop_path_rate)
        self.embed_dim, self.num_groups, self.group_size = embed_dim, num_groups, group_size
        self.head, self.skip_near_origin = head, skip_near_origin
        first, local = point_widths
        self.encoder = MiniPointNet(encoder_dims, (first, local))
        self.reduce_dim = nn.Linear(encoder_dims, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.cls_pos = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Sequential(nn.Linear(3, _POS_HIDDEN), nn.GELU(), nn.Linear(_POS_HIDDEN, embed_dim))
        self.blocks = Layers(embed_dim, depth, num_heads, mlp_ratio, drop_path_rate)
        self.norm = nn.LayerNorm(embed_dim)
        self.cls_head_finetune = nn.Sequential(
            nn.Linear(embed_dim * (2 if head == "all" else 1), _HEAD_HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(_HEAD_HIDDEN, num_classes),
        )

    def groups(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Groups (B, G, K, 3) and their centres (B, G, 3) of points (B, N, 3).

        Raises:
            HostError: If these are no such points, or too few of them.
        """
        if points.dim() != 3 or points.shape[2] != 3:
            raise HostError(f"Point-BERT takes points (B, N, 3), not {tuple(points.shape)}")
        needed = max(self.num_groups, self.group_size)
        if points.shape[1] < needed:
            raise HostError(
                f"clouds of {points.shape[1]} points: {self.num_groups} groups of {self.group_size} need {needed}",
                "raise data.points, or lower num_groups or group_size in backbone.kwargs",
            )
        return group_points(points, self.num_groups, self.group_size, skip_near_origin=self.skip_near_origin)

    def forward_features(self, points: Tensor) -> Tensor:
        """Tokens (B, 1 + G, V) behind the last layer, not normed."""
        groups, centres = self.groups(points)
        tokens = self.reduce_dim(self.encoder(groups))
        batch = len(points)
        x = torch.cat([self.cls_token.expand(batch, -1, -1), tokens], 1)
        positions = torch.cat([self.cls_pos.expand(batch, -1, -1), self.pos_embed(centres)], 1)
        features: Tensor = self.blocks(x, positions)
        return features

    def forward_head(self, x: Tensor) -> Tensor:
        """Logits from tokens (B, T, V) behind the last layer."""
        x = self.norm(x)
        read = torch.cat([x[:, 0], x[:, 1:].amax(1)], -1) if self.head == "all" else x[:, 0]
        logits: Tensor = self.cls_head_finetune(read)
        return logits

    def forward(self, points: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(points))


def create(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """Make a Point-BERT; the factory `point_bert`.

    Args:
        name: "point_bert".
        kwargs: Those of `PointBert`; `pretrained: true` loads `weights`, the path of a released file.

    Raises:
        HostError: If the name or an argument is unknown, or weights do not fit.
    """
    if name != "point_bert":
        raise HostError(f"there is no point encoder {name!r}", "backbone.name is point_bert")
    arguments = dict(kwargs)
    pretrained, weights = arguments.pop("pretrained", False), arguments.pop("weights", None)
    if pretrained and weights is None:
        raise HostError(
            "backbone.kwargs.pretrained needs a file",
            "give backbone.kwargs.weights, or --backbone.kwargs.pretrained false",
        )
    model = construct(PointBert, "PointBert", arguments)
    if pretrained:
        load_released(model, Path(weights).expanduser())
    return model


def describe(model: PointBert) -> Host:
    """Describe a Point-BERT: the class token is first; the others lie at the centres of their groups."""
    return Host(
        embed_dim=model.embed_dim,
        layers=tuple(f"blocks.blocks.{i}" for i in range(len(model.blocks.blocks))),
        embedding_paths=("encoder", "reduce_dim", "cls_token", "cls_pos", "pos_embed"),
        no_weight_decay=("cls_token",),
        layout=TokenLayout(num_prefix_tokens=1, places=places, shares=token_shares),
        reads=reads_of_head,
        head_from_tokens=head_from_tokens if is_own(model, PointBert, ("forward", "forward_head")) else None,
    )


def head_from_tokens(model: PointBert, tokens: Tensor) -> Tensor:
    """Run what comes behind the last layer."""
    return model.forward_head(tokens)


def reads_of_head(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return the class token where the head reads it alone; a maximum needs every token."""
    return 0 if model.head == "cls" and is_own(model, PointBert, ("forward", "forward_head")) else None


def places(model: Any, args: tuple[Any, ...]) -> Tensor:
    """Return the centres of the groups (B, 1 + G, 3); NaN for the class token, which lies nowhere."""
    _, centres = model.groups(args[0])
    return torch.cat([centres.new_full((len(centres), 1, 3), torch.nan), centres], 1)


def token_shares(model: Any, args: tuple[Any, ...], truth: Tensor) -> Tensor:
    """The share of each token's points that a truth per point is of: (B, 1 + G), NaN for the class token.

    Args:
        args: Of the model's call: points (B, N, 3).
        truth: (B, N) bool, or a weight for each point.
    """
    index = group_index(args[0], model.num_groups, model.group_size, skip_near_origin=model.skip_near_origin)
    shares = truth.float().gather(1, index.flatten(1)).reshape(index.shape).mean(-1)
    return torch.cat([shares.new_full((len(shares), 1), torch.nan), shares], 1)
