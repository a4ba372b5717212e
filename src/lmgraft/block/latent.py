"""Attention whose keys and values are made from one narrow latent of each token (MLA, DeepSeek-V2, arXiv 2405.04434).

    c = norm(W_k u), r = the rest of W_k u       latent (kv_rank) and shared key (shared_key_dim) of a token u
    q^T k  =  q1^T (U_k c) + q2^T r  =  (U_k^T q1)^T c + q2^T r
    sum_t p_t U_v c_t  =  U_v sum_t p_t c_t

So no key or value of any head is ever formed: with their heads' U_k taken into the queries and U_v behind the
sums, all heads attend to the same keys [c, r] and values c. That is the exact form of few reads, and takes
about as long as the other where all tokens are read. Without positions r is not rotated.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lmgraft.block.config import BlockConfig
from lmgraft.block.parts import Attention, Norm, projection

_LATENT_EPS = 1e-6
"""Of the latents' norms, whatever a config says of the others."""


class LatentAttention(Attention):
    """As `Attention`, for a config with `kv_rank`: to `graft/forms`, one key/value head of width kv_rank + shared."""

    def __init__(self, config: BlockConfig, tensors: Mapping[str, Tensor], scale: float | None) -> None:
        super().__init__(config, tensors, scale)
        self.num_kv_heads, self.rank, self.shared = 1, config.kv_rank, config.shared_key_dim
        self.k_norm = Norm("rms", _LATENT_EPS, tensors["attention.k_norm.weight"])
        self.k_up, self.v_up = projection(tensors, "attention.k_up"), projection(tensors, "attention.v_up")
        self.q_up = projection(tensors, "attention.q_up") if config.q_rank else None
        if config.q_rank:
            self.q_norm = Norm("rms", _LATENT_EPS, tensors["attention.q_norm.weight"])

    def split_queries(self, q: Tensor) -> Tensor:
        """Queries or their latents (B, R, .) -> (B, N, R, kv_rank + shared), as they meet the latents of keys."""
        if self.q_up is not None:
            q = self.q_up(self.q_norm(q))
        own, shared = torch.split(self._by_head(q, self.head_dim), [self.head_dim - self.shared, self.shared], -1)
        absorbed = self.k_up.by_group(own.flatten(1, 2), self.num_heads, transposed=False)
        heads = torch.cat([absorbed.view(*own.shape[:3], -1), shared], -1)
        return heads.transpose(0, 1)

    def split_keys(self, k: Tensor) -> Tensor:
        """(B, T, kv_rank + shared) -> (B, 1, T, kv_rank + shared), the latent normed."""
        latent, shared = torch.split(k, [self.rank, self.shared], -1)
        return torch.cat([self.k_norm(latent), shared], -1).unsqueeze(1)

    def values_in(self, k: Tensor) -> Tensor:
        """The latents (B, 1, T, kv_rank)."""
        return k[..., : self.rank]

    def mix(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """Mean latents (B, N, R, kv_rank): all heads' queries are rows of one head."""
        rows = q.flatten(1, 2).unsqueeze(1)
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=visible, scale=self.scale).view(*q.shape[:3], -1)

    def output(self, context: Tensor, alone: Tensor | None) -> Tensor:
        """Mean latents of all heads (B, N, R, kv_rank) -> (B, R, D)."""
        batch, heads, reads, _ = context.shape
        by_head = context.transpose(0, 1).reshape(heads, batch * reads, -1)
        values = self.v_up.by_group(by_head, heads, transposed=True).view(heads, batch, reads, -1)
        return super().output(values.transpose(0, 1), alone)

    def _by_head(self, x: Tensor, width: int) -> Tensor:
        """(B, R, N x H) -> (N, B, R, H)."""
        return x.view(*x.shape[:2], self.num_heads, width).movedim(2, 0)
