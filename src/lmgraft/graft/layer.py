"""The graft itself: tokens -> W1 -> frozen block -> W2 -> tokens (paper, Section 3).

Knows the block and the width of the host's tokens, not the host. Which form computes it is
decided in `forms`; every form gives the numbers of the dense one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lmgraft.block import FrozenBlock
from lmgraft.block.block import Layer
from lmgraft.contracts import Host, MeanOf, Reads, count_tokens, take_tokens
from lmgraft.errors import HostError
from lmgraft.graft.config import GraftConfig
from lmgraft.graft.forms.approximation import Approximation
from lmgraft.graft.forms.cache import FoldCache, Folds, packed
from lmgraft.graft.forms.plan import choose, layer_problems, plans_for_tracing
from lmgraft.graft.forms.problem import LayerPlan, Problem
from lmgraft.graft.forms.run import dense, is_watched, make_folds, mean_comes_early, planned
from lmgraft.graft.reads import ReadState
from lmgraft.graft.trained import prepared, trained_parts

NAME = "graft"
"""Attribute of the host under which the graft lies, and prefix of its tensors in `state_dict()`."""

_READABLE = LayerPlan()


class GraftLayer(nn.Module):
    """W2 · block(W1 x), with the residual that the config asks for.

    Trained: `mapper_in.weight` (D, V), `mapper_out.weight` (V, D), `gate` when gated, and
    `read_token` (V,) where the config asks for one. Frozen: everything in `block`, unless
    `train_block` says otherwise: then `block` is a copy of the one that was given.

    Raises:
        BlockError: If the block is trained in another way than the config asks for.
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
        self.read_token = nn.Parameter(torch.empty(host.embed_dim)) if config.read_token else None
        if self.read_token is not None:
            nn.init.trunc_normal_(self.read_token, std=0.02)
        # Last, since LoRA draws: whatever of the block is trained, the mappers start alike.
        self.block, self.config = prepared(block, config)
        self.read_state = ReadState()
        self.fold_cache = FoldCache()
        self.approximation = Approximation()
        self.baked: Folds | None = None
        self._traced_plans = plans_for_tracing(block.config, len(block.layers), host.embed_dim, config.form)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, *, reads: Reads = None) -> Tensor:
        """(B, T, V) -> (B, T, V), or (B, R, V) for `reads`; the dtype of `x` is kept.

        With a read token, the block is computed for that token alone, and every token gets its output.
        Where only a mean is read, every token gets the mean: (B, T, V).
        """
        if isinstance(reads, MeanOf):
            if self.config.form == "dense" or self.read_token is not None:
                reads = None
            else:
                out = self._residual(x, self._through_block(x, key_padding_mask, reads), reads)
                return out.expand(-1, x.shape[1], -1)
        if self.read_token is None:
            out = self._through_block(x, key_padding_mask, reads)
        else:
            token = self.read_token.to(x.dtype).expand(x.shape[0], 1, -1)
            mask = key_padding_mask
            if mask is not None:
                mask = torch.cat([mask, mask.new_zeros(mask.shape[0], 1)], dim=1)
            out = self._through_block(torch.cat([x, token], dim=1), mask, x.shape[1])
            out = out.expand(-1, count_tokens(x.shape[1], reads), -1)
        return self._residual(x, out, reads)

    def plan(self, x: Tensor, reads: Reads = None) -> tuple[LayerPlan, ...]:
        """How each layer of the block would be computed for this input, as things stand now."""
        if not self._folds_apply():
            return (_READABLE,) * len(self.block.layers)
        if torch.compiler.is_compiling():
            read_all = reads is None or isinstance(reads, MeanOf)
            grad = self._mapper_is_trained() or (torch.is_grad_enabled() and x.requires_grad)
            return self._traced_plans[read_all, grad, self._constants() is not None]
        return tuple(choose(problem, self.config.form) for problem in self.problems(x, reads))

    def problems(self, x: Tensor, reads: Reads = None) -> list[Problem]:
        """The block's layers as the planner sees them for this input, as things stand now."""
        has_bias = getattr(self.mapper_in, "bias", None) is not None
        whole = Problem(
            config=self.block.config,
            batch=x.shape[0],
            tokens=x.shape[1],
            reads=count_tokens(x.shape[1], reads),
            narrow=x.shape[2] + has_bias,
            mean_early=isinstance(reads, MeanOf) and mean_comes_early(self.block),
            mapper_bias=has_bias,
            x_grad=torch.is_grad_enabled() and x.requires_grad,
            mapper_grad=self._mapper_is_trained(),
            **trained_parts(self.block),
            folds_ready=self._constants() is not None or self._may_keep_folds(),
            itemsize=2 if torch.is_autocast_enabled(x.device.type) else x.element_size(),
            device=x.device.type,
        )
        return layer_problems(whole, len(self.block.layers))

    def train(self, mode: bool = True) -> GraftLayer:
        if mode != self.training:
            self.fold_cache.clear()
        super().train(mode)
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.fold_cache.clear()
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.fold_cache.clear()
        self.approximation.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def _residual(self, x: Tensor, out: Tensor, reads: Reads) -> Tensor:
        if self.gate is not None:
            out = self.gate * out
        if self.config.residual not in ("out", "gated"):
            return out
        if isinstance(reads, MeanOf):
            return take_tokens(x, reads.tokens).mean(1, keepdim=True) + out
        return take_tokens(x, reads) + out

    def _through_block(self, x: Tensor, mask: Tensor | None, reads: Reads) -> Tensor:
        tokens, mean = (reads.tokens, True) if isinstance(reads, MeanOf) else (reads, False)
        block = self.approximation.block(self, self.block, x)
        plans = () if self.config.form == "dense" else self.plan(x, reads)
        if self.block.tokenwise and self.config.form != "dense":
            h = self.mapper_in(take_tokens(x, tokens))  # nothing mixes tokens: the others are not needed
            y = block(h)
            y, h = (y.mean(1, keepdim=True), h.mean(1, keepdim=True)) if mean else (y, h)
        elif not plans:
            y, h = dense(self.mapper_in, block, x, mask, tokens)
        elif all(plan == _READABLE for plan in plans):
            wide = self.mapper_in(x)
            y, h = block(wide, mask, reads=tokens), take_tokens(wide, tokens)
            y, h = (y.mean(1, keepdim=True), h.mean(1, keepdim=True)) if mean else (y, h)
        else:
            y, h = planned(self.mapper_in, block, x, mask, tokens, plans, self._folds(plans[0]), mean)
        if self.config.residual == "in":
            y = y + h
        out: Tensor = self.mapper_out(y).to(x.dtype)
        return out

    def _folds(self, plan: LayerPlan) -> Folds | None:
        if plan.space == "wide":
            return None
        layer = self._first_layer()
        constants = self._constants()
        if constants is not None:
            return constants
        if not self._may_keep_folds():
            return make_folds(self.mapper_in, layer, frozenset(plan.folds()))
        a, norm = layer.attention, layer.attention_norm
        own = [tensor for projection in (a.q, a.k, a.v) for tensor in projection.parameters()]
        trained = [*self.mapper_in.parameters(), *norm.parameters(), *(p for p in own if p.requires_grad)]
        frozen = [p for p in own if not p.requires_grad]
        return self.fold_cache.get(trained, frozen, lambda: make_folds(self.mapper_in, layer, frozenset("qkv")))

    def _constants(self) -> Folds | None:
        """What `baked` made, unless a gradient is wanted that would have to pass through it."""
        return None if self._mapper_is_trained() or self._block_is_trained() else self.baked

    def _may_keep_folds(self) -> bool:
        if self.block.tokenwise or torch.compiler.is_compiling():
            return False
        if self._block_is_trained() or self._mapper_is_trained():
            return False
        attention = self._first_layer().attention
        if any(p.weight.requires_grad for p in (attention.q, attention.k, attention.v)):
            return False  # too large to be compared in full, and whoever trains may write any of it
        # In training W1 changes at every step, also where autograd is off for a while (reentrant checkpointing).
        return not (self.training and any(p.requires_grad for p in (*self.mapper_in.parameters(), *self._in_folds())))

    def _in_folds(self) -> Iterator[nn.Parameter]:
        layer = self._first_layer()
        for module in (layer.attention_norm, layer.attention.q, layer.attention.k, layer.attention.v):
            yield from module.parameters()

    def _mapper_is_trained(self) -> bool:
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.mapper_in.parameters())

    def _block_is_trained(self) -> bool:
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.block.parameters())

    def _folds_apply(self) -> bool:
        """Whether tokens are mixed, W1 is linear, and nobody watches a module that planned forms do not call."""
        if type(self.mapper_in) is not nn.Linear or self.block.tokenwise:
            return False
        passed_by = [self.mapper_in, self.block]
        for layer in self.block.layers:
            attention = cast(Layer, layer).attention
            passed_by += [layer, attention, cast(Layer, layer).attention_norm, *attention.children()]
        return not any(is_watched(module) for module in passed_by)

    def _first_layer(self) -> Layer:
        return cast(Layer, self.block.layers[0])


@contextmanager
def baked(model: nn.Module) -> Iterator[None]:
    """Inside, folds are constants: for exporting or compiling a model whose weights stay as they are.

    Weights must not change inside. Where gradients are wanted of W1 or of the block, folds are made
    anew as always: freeze W1 or use `torch.no_grad()`.
    """
    inserted = find_graft(model)
    if inserted is None or not inserted._folds_apply() or inserted.config.form == "dense":
        yield
        return
    with torch.no_grad():
        inserted.baked = packed(make_folds(inserted.mapper_in, inserted._first_layer(), frozenset("qkv")))
    try:
        yield
    finally:
        inserted.baked = None


def find_graft(model: nn.Module) -> GraftLayer | None:
    """The graft of `model`, if it has one."""
    found = getattr(model, NAME, None)
    return found if isinstance(found, GraftLayer) else None


def require_graft(model: nn.Module) -> GraftLayer:
    inserted = find_graft(model)
    if inserted is None:
        raise HostError(f"this model has no {NAME!r}: it is not grafted", "call lmgraft.graft(model, ...) first")
    return inserted
