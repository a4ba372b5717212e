"""The encoder of VideoMAE (Tong et al., arXiv 2203.12602): a ViT on tubelets, which reads the mean of its tokens.

Its parameters have the names of the published code, so that files of that code load as they are; transformers' names
are translated. Outputs equal those of both.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

from lmgraft.backbones.own_path import is_own
from lmgraft.backbones.refusals import at_least_one, construct, shares
from lmgraft.backbones.weights import load_weights, open_weights
from lmgraft.checkpoint.base import Checkpoint
from lmgraft.contracts import Host, MeanOf, Reads, TokenLayout
from lmgraft.errors import HostError

_EPS = 1e-6
SIZES: dict[str, dict[str, int]] = {
    "videomae_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "videomae_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "videomae_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "videomae_huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
"""Name -> width, depth and heads; all cut a clip into tubelets of 2 frames and 16 x 16 pixels."""


class PatchEmbed(nn.Module):
    """Tubelets (B, C, T, H, W) -> tokens (B, N, V): time outermost, then rows, then columns."""

    def __init__(self, img_size: tuple[int, int, int], tubelet: tuple[int, int, int], in_chans: int, dim: int) -> None:
        super().__init__()
        self.img_size, self.tubelet = img_size, tubelet
        self.grid = tuple(size // part for size, part in zip(img_size, tubelet, strict=True))
        self.proj = nn.Conv3d(in_chans, dim, kernel_size=tubelet, stride=tubelet)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class Attention(nn.Module):
    """Self-attention whose queries and values have a bias, and whose keys have none."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        batch, tokens, dim = x.shape
        qkv = F.linear(x, self.qkv.weight, bias).view(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """One encoder layer, normed before each branch."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=_EPS), Attention(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=_EPS), Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class VideoMAE(nn.Module):
    """Clips (B, C, T, H, W) -> logits (B, num_classes).

    Args:
        img_size: Height and width of a frame.
        num_frames: T.
        tubelet_size: Frames of a tubelet.
        patch_size: Pixels a side of a tubelet.
        drop_path_rate: Of the last layer; earlier ones have less, the first none.
        drop_rate: Dropout before the head.
        init_scale: Factor on the head's first weights, so that a fine-tuning starts from nearly equal logits.
    """

    def __init__(
        self,
        *,
        num_classes: int = 174,
        img_size: int | tuple[int, int] = 224,
        num_frames: int = 16,
        in_chans: int = 3,
        tubelet_size: int = 2,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        init_scale: float = 0.001,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        at_least_one(num_frames=num_frames, tubelet_size=tubelet_size, patch_size=patch_size, in_chans=in_chans)
        at_least_one(embed_dim=embed_dim, depth=depth, num_heads=num_heads, num_classes=num_classes)
        shares(drop_path_rate=drop_path_rate, drop_rate=drop_rate)
        clip, tubelet = (num_frames, height, width), (tubelet_size, patch_size, patch_size)
        if any(size % part for size, part in zip(clip, tubelet, strict=True)) or embed_dim % num_heads:
            raise HostError(
                f"clips of {clip} frames and pixels do not fall into tubelets of {tubelet}, or a width of {embed_dim} "
                f"into {num_heads} heads",
                "change data.frames and data.img_size, or backbone.kwargs",
            )
        self.embed_dim, self.num_classes, self.num_heads = embed_dim, num_classes, num_heads
        self.patch_embed = PatchEmbed(clip, tubelet, in_chans, embed_dim)
        tokens = self.patch_embed.grid[0] * self.patch_embed.grid[1] * self.patch_embed.grid[2]
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos(tokens, embed_dim), persistent=False)
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, rate) for rate in rates)
        self.fc_norm, self.fc_dropout = nn.LayerNorm(embed_dim, eps=_EPS), nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.head.weight.mul_(init_scale)

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens (B, N, V) behind the last layer.

        Raises:
            HostError: If the clips are of another size than the model was made for.
        """
        if tuple(x.shape[2:]) != self.patch_embed.img_size:
            takes = ", ".join(map(str, self.patch_embed.img_size))
            raise HostError(
                f"clips {tuple(x.shape)}, and this VideoMAE takes (B, C, {takes})",
                "give num_frames and img_size of the data: positions are counted by tubelet",
            )
        x = self.patch_embed(x)
        x = x + self.pos_embed.to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return x

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Logits from tokens: their mean, normed, through the head."""
        logits: Tensor = self.head(self.fc_dropout(self.fc_norm(tokens.mean(1))))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def sincos(tokens: int, dim: int) -> Tensor:
    """(1, tokens, dim): sines and cosines in turn of a token's number, as in "Attention is all you need"."""
    rates = 10000.0 ** (-(torch.arange(dim, dtype=torch.float64) // 2) * 2 / dim)
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * rates
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles.float()[None]


def describe(model: VideoMAE) -> Host:
    """No class token; the head reads the mean of all tokens."""
    return Host(
        embed_dim=model.embed_dim,
        layers=tuple(f"blocks.{i}" for i in range(len(model.blocks))),
        embedding_paths=("patch_embed",),
        layout=TokenLayout(grid=model.patch_embed.grid, places=places),
        reads=reads_mean,
        head_from_tokens=head_from_tokens if is_own(model, VideoMAE, _PATH) else None,
    )


_PATH = ("forward", "forward_features", "forward_head")


def reads_mean(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """The mean, as `forward_head` is written."""
    return MeanOf() if is_own(model, VideoMAE, _PATH) else None


def head_from_tokens(model: Any, tokens: Tensor) -> Any:
    """What `forward` does behind the last layer."""
    return model.forward_head(tokens)


def places(model: nn.Module, args: tuple[Any, ...]) -> Tensor:
    """(B, N, 3): the middle of each tubelet as number of frame, row and column of pixels, counted from 0."""
    embed: Any = model.patch_embed
    axes = [(torch.arange(n) + 0.5) * part - 0.5 for n, part in zip(embed.grid, embed.tubelet, strict=True)]
    middles = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
    return middles.to(args[0].device).expand(len(args[0]), -1, -1)


def create(name: str, kwargs: dict[str, Any]) -> VideoMAE:
    """A VideoMAE by name; `pretrained` is a file of its published code or of transformers, a folder, or a Hub name.

    Raises:
        HostError: If there is no such size, an argument is unknown, or the weights do not fit.
        LmgraftError: If the weights cannot be read.
    """
    if name not in SIZES:
        raise HostError(f"there is no VideoMAE {name!r}", f"one of {', '.join(SIZES)}")
    options = SIZES[name] | kwargs
    source = options.pop("pretrained", False)
    model = construct(VideoMAE, "VideoMAE", options)
    if source:
        load_pretrained(model, str(source), heads_chosen="num_heads" in kwargs)
    return model


def load_pretrained(model: VideoMAE, source: str, heads_chosen: bool = False) -> None:
    """Load weights of VideoMAE's code or of transformers; a head of other classes is left as it is, and said.

    Args:
        heads_chosen: Whether the number of heads was asked for. transformers' files of the small size say 16, with
            which it computes something else than VideoMAE trained, whose small models have 6.

    Raises:
        HostError: If tensors are missing, unknown or of another shape, or the file says another number of heads.
    """
    checkpoint = open_weights(source)
    stated = checkpoint.config.get("num_attention_heads", model.num_heads)
    if stated != model.num_heads and not heads_chosen:
        raise HostError(
            f"config.json of {source} says {stated} heads, this model has {model.num_heads}",
            f"give backbone.kwargs.num_heads: {model.num_heads} computes as VideoMAE trained it, {stated} as "
            "transformers runs this file",
        )
    kept = load_weights(model, read_tensors(checkpoint), source, lambda name: name.startswith(("head.", "fc_norm.")))
    if kept:
        sys.stderr.write(f"note: {source} gives no {' and no '.join(kept)} of this shape; they start anew\n")


_PREFIXES = re.compile(r"^(module\.|backbone\.|encoder\.(?!layer\.)|videomae\.)+")
_UNUSED = re.compile(
    r"(decoder|encoder_to_decoder|mask_token|pos_embed|embeddings\.position_embeddings|norm\.|layernorm\.)"
)
"""What only pre-training or a class token needs, and positions, which are computed."""
_RENAMED = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.attention\.([qkv])_bias$", r".attn.\1_bias"),
    (r"\.attention\.attention\.(q)uery\.|\.attention\.attention\.(k)ey\.|\.attention\.attention\.(v)alue\.", None),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^classifier\.", "head."),
)
"""transformers' names -> VideoMAE's."""


def own_name(name: str) -> str | None:
    """The encoder's own name for a tensor of a file; None for what it has no use for.

    Of transformers' separate projections: attn.q.weight, attn.q_bias and their like.
    """
    name = _PREFIXES.sub("", name)
    if _UNUSED.match(name):
        return None
    for pattern, own in _RENAMED:
        name = re.sub(pattern, own if own is not None else lambda m: f".attn.{next(filter(None, m.groups()))}.", name)
    return re.sub(r"\.attn\.([qv])\.bias$", r".attn.\1_bias", name)


def read_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All tensors that the encoder uses, by its own names; queries, keys and values stacked."""
    tensors = {own: checkpoint.read(name) for name in checkpoint.names() if (own := own_name(name)) is not None}
    return _stacked(tensors)


def _stacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With attn.q, attn.k and attn.v as the one matrix of VideoMAE."""
    stacked = {name: tensor for name, tensor in tensors.items() if not re.search(r"\.attn\.[qkv]\.weight$", name)}
    for name in tensors:
        if name.endswith(".attn.q.weight"):
            parts = [name.replace(".q.weight", f".{letter}.weight") for letter in "qkv"]
            if all(part in tensors for part in parts):
                stacked[name.replace(".q.weight", ".qkv.weight")] = torch.cat([tensors[part] for part in parts])
    return stacked
