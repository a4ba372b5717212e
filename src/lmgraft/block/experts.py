"""Mixtures of experts: a router that chooses, and the MLPs that it chooses from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from lmgraft.block.config import BlockConfig
from lmgraft.block.frozen import FrozenModule
from lmgraft.block.parts import MLP, GatedUnit, Projection, at_least_float32, projection
from lmgraft.block.products import linear
from lmgraft.contracts import is_jit_traced


class Router(Projection):
    """Which experts each token takes, and with what shares; computed in float32 or wider."""

    def __init__(self, config: BlockConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors["mlp.router.weight"], tensors.get("mlp.router.bias"))
        bias = tensors.get("mlp.router.choice_bias")
        self.choice_bias = None if bias is None else Parameter(bias, requires_grad=False)
        self.scores, self.shares, self.scale = config.router_scores, config.router_shares, config.shares_scale
        self.chosen, self.groups, self.best = config.experts_per_token, config.expert_groups, config.groups_per_token

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(n, D) -> shares and numbers of experts, (n, K) each."""
        logits = at_least_float32(super().forward(tokens))
        scores = logits.softmax(-1) if self.scores == "softmax" else logits.sigmoid()
        wanted = scores if self.choice_bias is None else scores + self.choice_bias.to(scores.dtype)
        if self.groups > 1:
            wanted = self._in_best_groups(wanted)
        experts = wanted.topk(self.chosen, dim=-1).indices
        shares = scores.gather(-1, experts)
        if self.shares == "chosen":
            shares = shares / (shares.sum(-1, keepdim=True) + torch.finfo(shares.dtype).tiny)
        return shares * self.scale, experts

    def _in_best_groups(self, wanted: Tensor) -> Tensor:
        """Scores (n, E), minus infinity outside the best groups: those of the best expert, or of the best two."""
        grouped = wanted.view(len(wanted), self.groups, -1)
        counted = 1 if self.scores == "softmax" else min(2, grouped.shape[-1])
        best = grouped.topk(counted, dim=-1).values.sum(-1).topk(self.best, dim=-1).indices
        outside = torch.ones(grouped.shape[:-1], dtype=torch.bool, device=wanted.device).scatter(-1, best, False)
        return grouped.masked_fill(outside.unsqueeze(-1), float("-inf")).view_as(wanted)


class Experts(GatedUnit):
    """A mixture of gated MLPs: each token goes through those that a router chooses for it, and no others.

    An MLP is a function of each token by itself, so only tokens that are read are routed; an expert
    that none of them chose is not touched, and a 16-bit one is widened when it is.
    """

    def __init__(self, config: BlockConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(config)
        self.router = Router(config, tensors)
        self.gate, self.up, self.down = (_Stack(tensors, f"mlp.{name}") for name in ("gate", "up", "down"))
        self.shared = MLP(config, tensors, "mlp.shared") if config.shared_mlp_dim else None
        self.shared_gate = projection(tensors, "mlp.shared_gate") if config.shared_gate else None

    def forward(self, x: Tensor, mean: bool = False) -> Tensor:
        """(B, R, D) -> (B, R, D), or the mean over R, (B, 1, D)."""
        tokens = x.reshape(-1, x.shape[-1])
        shares, experts = self.router(tokens)
        out = torch.zeros_like(tokens)
        # A trace is of other inputs too.
        called = range(self.gate.weight.shape[0]) if is_jit_traced() else sorted(set(experts.flatten().tolist()))
        for expert in called:
            rows, place = torch.where(experts == expert)
            inner = tokens[rows]
            made = self.down(self.inner(self.gate(inner, expert), self.up(inner, expert)), expert)
            out = out.index_add(0, rows, (made * shares[rows, place, None]).to(out.dtype))
        out = out.reshape(x.shape)
        if self.shared is not None:
            beside = self.shared(x)
            out = out + (beside if self.shared_gate is None else beside * torch.sigmoid(self.shared_gate(x)))
        return out.mean(1, keepdim=True) if mean else out


class _Stack(FrozenModule):
    """One matrix for each expert: weight (E, out, in), bias (E, out)."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        bias = tensors.get(f"{name}.bias")
        self.weight = Parameter(tensors[f"{name}.weight"], requires_grad=False)
        self.bias = None if bias is None else Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor, expert: int) -> Tensor:
        return linear(x, self.weight[expert], None if self.bias is None else self.bias[expert])
