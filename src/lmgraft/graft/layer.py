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
from lmgraft.contracts import Host, Reads, count_tokens, take_tokens
from lmgraft.graft.config import GraftConfig
from lmgraft.graft.forms.cache import FoldCache, Folds
from lmgraft.graft.forms.plan import LayerPlan, Problem, choose
from lmgraft.graft.forms.run import dense, make_folds, planned
from lmgraft.graft.reads import ReadState

NAME = "graft"
"""Attribute of the host under which the graft lies, and prefix of its tensors in `state_dict()`."""

_READABLE = LayerPlan()
_TRACED_SHAPE = torch.Size((32, 197))
"""While a compiler traces, sizes may be symbols: the plan is made for this batch and token count, once."""


class GraftLayer(nn.Module):
    """W2 · block(W1 x), with the residual that the config asks for.

    Trained: `mapper_in.weight` (D, V), `mapper_out.weight` (V, D), `gate` when gated, and
    `read_token` (V,) where the config asks for one. Frozen: everything in `block`.
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
        self.read_state = ReadState()
        self.fold_cache = FoldCache()
        self.baked: Folds | None = None
        self._traced_plans = {
            (reads_all, grad, ready): self._plans(
                _TRACED_SHAPE, _TRACED_SHAPE[1] if reads_all else 1, grad, grad, ready, "cpu", 4
            )
            for reads_all in (False, True)
            for grad in (False, True)
            for ready in (False, True)
        }

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, *, reads: Reads = None) -> Tensor:
        """(B, T, V) -> (B, T, V), or (B, R, V) for `reads`; the dtype of `x` is kept.

        With a read token, the block is computed for that token alone, and every token gets its output.
        """
        if self.read_token is None:
            out = self._through_block(x, key_padding_mask, reads)
        else:
            token = self.read_token.to(x.dtype).expand(x.shape[0], 1, -1)
            mask = key_padding_mask
            if mask is not None:
                mask = torch.cat([mask, mask.new_zeros(mask.shape[0], 1)], dim=1)
            out = self._through_block(torch.cat([x, token], dim=1), mask, x.shape[1])
            out = out.expand(-1, count_tokens(x.shape[1], reads), -1)
        if self.gate is not None:
            out = self.gate * out
        return take_tokens(x, reads) + out if self.config.residual in ("out", "gated") else out

    def plan(self, x: Tensor, reads: Reads = None) -> tuple[LayerPlan, ...]:
        """How each layer of the block would be computed for this input, as things stand now."""
        trained = torch.is_grad_enabled() and self.mapper_in.weight.requires_grad
        x_grad = torch.is_grad_enabled() and x.requires_grad
        if not self._folds_apply():
            return (_READABLE,) * len(self.block.layers)
        ready = self.baked is not None or self._may_keep_folds()
        if torch.compiler.is_compiling():
            return self._traced_plans[reads is None, trained or x_grad, self.baked is not None]
        size = 2 if torch.is_autocast_enabled(x.device.type) else x.element_size()
        reads_count = count_tokens(x.shape[1], reads)
        return self._plans(x.shape, reads_count, x_grad, trained, ready, x.device.type, size)

    def problems(
        self, shape: torch.Size, reads: int, x_grad: bool, mapper_grad: bool, ready: bool, device: str, size: int
    ) -> list[Problem]:
        """The block's layers as the planner sees them."""
        batch, tokens = shape[:2]
        mapper_bias = getattr(self.mapper_in, "bias", None) is not None
        last = len(self.block.layers) - 1
        block_grad = torch.is_grad_enabled() and self._block_is_trained()
        return [
            Problem(
                config=self.block.config,
                batch=batch,
                tokens=tokens,
                reads=reads if i == last else tokens,
                narrow=self.host.embed_dim + mapper_bias if i == 0 else None,
                mapper_bias=mapper_bias and i == 0,
                x_grad=x_grad or (i > 0 and (mapper_grad or block_grad)),
                mapper_grad=mapper_grad and i == 0,
                block_grad=block_grad,
                folds_ready=ready and i == 0,
                itemsize=size,
                device=device,
            )
            for i in range(last + 1)
        ]

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
        super()._load_from_state_dict(*args, **kwargs)

    def _through_block(self, x: Tensor, mask: Tensor | None, reads: Reads) -> Tensor:
        if self.config.form == "dense":
            y, h = dense(self.mapper_in, self.block, x, mask, reads)
        else:
            plans = self.plan(x, reads)
            if all(plan == _READABLE for plan in plans):
                wide = self.mapper_in(x)
                y, h = self.block(wide, mask, reads=reads), take_tokens(wide, reads)
            else:
                y, h = planned(self.mapper_in, self.block, x, mask, reads, plans, self._folds(plans[0]))
        if self.config.residual == "in":
            y = y + h
        out: Tensor = self.mapper_out(y).to(x.dtype)
        return out

    def _plans(
        self, shape: torch.Size, reads: int, x_grad: bool, mapper_grad: bool, ready: bool, device: str, size: int
    ) -> tuple[LayerPlan, ...]:
        problems = self.problems(shape, reads, x_grad, mapper_grad, ready, device, size)
        return tuple(choose(problem, self.config.form) for problem in problems)

    def _folds(self, plan: LayerPlan) -> Folds | None:
        if plan.space == "wide":
            return None
        layer = self._first_layer()
        if self.baked is not None:
            return self.baked
        if not self._may_keep_folds():
            return make_folds(self.mapper_in, layer, frozenset(plan.folds()))
        a, norm = layer.attention, layer.attention_norm
        everything = [tensor for projection in (a.q, a.k, a.v) for tensor in projection.parameters()]
        trained = [*self.mapper_in.parameters(), *norm.parameters()]
        names = frozenset("qkv")
        return self.fold_cache.get(names, trained, everything, lambda: make_folds(self.mapper_in, layer, names))

    def _may_keep_folds(self) -> bool:
        if torch.compiler.is_compiling() or self._block_is_trained():
            return False
        return not (torch.is_grad_enabled() and any(p.requires_grad for p in self.mapper_in.parameters()))

    def _block_is_trained(self) -> bool:
        return any(p.requires_grad for p in self.block.parameters())

    def _folds_apply(self) -> bool:
        """Whether W1 is linear and nobody watches a module that planned forms do not call."""
        if type(self.mapper_in) is not nn.Linear:
            return False
        passed_by = [self.mapper_in, self.block]
        for layer in self.block.layers:
            attention = cast(Layer, layer).attention
            passed_by += [layer, attention, cast(Layer, layer).attention_norm, *attention.children()]
        return not any(_is_watched(module) for module in passed_by)

    def _first_layer(self) -> Layer:
        return cast(Layer, self.block.layers[0])


@contextmanager
def baked(model: nn.Module) -> Iterator[None]:
    """Inside, folds are constants: for exporting or compiling a model whose weights stay as they are.

    Weights must not change inside, and gradients do not reach W1 through the folds.
    """
    inserted = find_graft(model)
    if inserted is None or not inserted._folds_apply() or inserted.config.form == "dense":
        yield
        return
    with torch.no_grad():
        inserted.baked = make_folds(inserted.mapper_in, inserted._first_layer(), frozenset("qkv"))
    try:
        yield
    finally:
        inserted.baked = None


def find_graft(model: nn.Module) -> GraftLayer | None:
    """The graft of `model`, if it has one."""
    found = getattr(model, NAME, None)
    return found if isinstance(found, GraftLayer) else None


def _is_watched(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
