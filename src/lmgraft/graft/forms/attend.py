"""Attention of a layer over tokens that are given as an affine map of y (see `affine.py`).

Keys and values are formed, K = fold(y), or absorbed: q^T (W A y) = (A^T W^T q)^T y, and
sum_t p_t (W A y_t) = W A (sum_t p_t y_t). Absorbed from right to left, D x C products are made
for each query and nothing for each token; behind a ready fold even those are narrow. In the wide
space A is the identity and y the normed input itself.

Terms that are the same for all keys of a query do not change its softmax, and weights sum to one,
so a value's constant passes through unchanged. A sink takes part of the weights: neither holds beside one.

Scores and weighted sums of y are float32 or wider: they are small, and rounding them would cost
more than all the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmgraft.block.parts import Attention, Projection
from lmgraft.graft.forms.affine import Affine, Fold


def constant_key_matters(attention: Attention) -> bool:
    """Whether a term common to all keys changes anything: nonlinear functions or a sink's score follow it.

    A bias that is trained is kept as well: its gradient is zero, and DDP waits for it.
    """
    bias = attention.k.bias
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():
        return True
    linear = attention.softcap is None and attention.clip is None and attention.qk_norm == "none"
    return not linear or attention.sink_bias is not None or attention.v is None  # a latent is normed


def absorbed_scores(
    attention: Attention, q: Tensor, y: Tensor, key: Projection | Fold, map_: Affine | None = None
) -> Tensor:
    """q k^T (B, N, R, T) without forming keys; raw, as `Attention.weights` takes them.

    Args:
        q: (B, N, R, H).
        y: (B, T, C), float32 or wider.
        key: The key projection, or its fold.
        map_: What lies between y and the projection; None behind a fold and in the wide space.
    """
    batch, heads, reads, width = q.shape
    q = _by_group(q, attention.num_kv_heads)
    absorbed = key.by_group(q, attention.num_kv_heads, transposed=False)
    constant = None
    if constant_key_matters(attention):
        if map_ is not None and map_.shift is not None:
            constant = absorbed @ map_.shift.to(absorbed.dtype)
        if key.bias is not None:
            own = (q * key.bias.view(-1, 1, width).to(q.dtype)).sum(-1)
            constant = own if constant is None else constant + own
    if map_ is not None:
        absorbed = torch.matmul(absorbed, _like(map_.matrix, absorbed))
    absorbed = _by_sample(absorbed, batch, heads, reads)
    with torch.autocast(y.device.type, enabled=False):
        scores = torch.bmm(absorbed.flatten(1, 2).to(y.dtype), y.transpose(1, 2))
        scores = scores.view(batch, heads, reads, -1)
        if constant is None:
            return scores
        return scores + _by_sample(constant.unsqueeze(-1), batch, heads, reads).to(y.dtype)


def absorbed_context(
    attention: Attention, weights: Tensor, y: Tensor, value: Projection | Fold, map_: Affine | None, dtype: torch.dtype
) -> Tensor:
    """Contexts (B, N, R, H) of `weights` (B, N, R, T), without forming values."""
    batch, heads, reads, tokens = weights.shape
    with torch.autocast(y.device.type, enabled=False):
        mean = torch.bmm(weights.reshape(batch, heads * reads, tokens).to(y.dtype), y).view(batch, heads, reads, -1)
    mean = _by_group(mean.to(dtype), attention.num_kv_heads)
    total: Tensor | float = 1.0
    if attention.sink_bias is not None:
        total = _by_group(weights.sum(-1, keepdim=True).to(dtype), attention.num_kv_heads)
    if map_ is not None:
        mean = torch.matmul(mean, _like(map_.matrix, mean).T)
        if map_.shift is not None:
            mean = mean + total * map_.shift.to(mean.dtype)
    width = attention.head_dim
    context = value.by_group(mean, attention.num_kv_heads, transposed=True)
    if value.bias is not None:
        context = context + total * value.bias.view(-1, 1, width).to(context.dtype)
    return _by_sample(context, batch, heads, reads)


def formed_scores(q: Tensor, k: Tensor) -> Tensor:
    """q k^T (B, N, R, T) of q (B, N, R, H) and k (B, M, T, H)."""
    batch, heads, reads, width = q.shape
    return (q.reshape(batch, k.shape[1], -1, width) @ k.transpose(-1, -2)).view(batch, heads, reads, -1)


def formed_context(weights: Tensor, v: Tensor) -> Tensor:
    """(B, N, R, H) of weights (B, N, R, T) and v (B, M, T, H)."""
    batch, heads, reads, tokens = weights.shape
    return (weights.reshape(batch, v.shape[1], -1, tokens).to(v.dtype) @ v).view(batch, heads, reads, -1)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(B, N, R, .) -> (M, B N/M R, .): all that one key/value head serves."""
    batch, heads, reads, width = x.shape
    return x.reshape(batch, groups, heads // groups * reads, width).transpose(0, 1).reshape(groups, -1, width)


def _by_sample(x: Tensor, batch: int, heads: int, reads: int) -> Tensor:
    """The inverse of `_by_group`."""
    return x.view(x.shape[0], batch, heads // x.shape[0], reads, -1).transpose(0, 1).reshape(batch, heads, reads, -1)


def _like(matrix: Tensor, x: Tensor) -> Tensor:
    return matrix if torch.is_autocast_enabled(x.device.type) else matrix.to(x.dtype)
