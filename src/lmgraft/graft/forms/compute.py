"""What computes block(W1 x) in a call of a graft: the plan, the folds that are kept, the rounded twin, the traces.

`GraftLayer` is the wiring around it. All that outlives a call lies here, and copies start without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from lmgraft.block import FrozenBlock
from lmgraft.block.block import Layer
from lmgraft.block.config import BlockConfig
from lmgraft.block.lora import LoraProjection
from lmgraft.block.parts import Norm
from lmgraft.contracts import MeanOf, Reads, count_tokens, is_traced, sizes, take_reads, take_tokens
from lmgraft.graft.config import GraftConfig
from lmgraft.graft.forms.affine import constant_in_traces
from lmgraft.graft.forms.approximation import Approximation
from lmgraft.graft.forms.cache import FoldCache, Folds, packed
from lmgraft.graft.forms.plan import layer_plans, plans_for_tracing
from lmgraft.graft.forms.problem import PLANS, LayerPlan, Problem
from lmgraft.graft.forms.run import dense, is_watched, make_folds, mean_comes_early, planned

_READABLE = LayerPlan()
_FEW = 16  # tokens that are read as one is, by the plans for traces


class Wired(Protocol):
    """The graft, as far as its computation depends on it."""

    mapper_in: nn.Linear
    block: FrozenBlock
    config: GraftConfig
    training: bool

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...


class Compute:
    """The exact forms of one graft, and which of them a call takes.

    Args:
        config: Of the block.
        layers: How many the block has.
        width: V, of the tokens.
    """

    def __init__(self, config: BlockConfig, layers: int, width: int) -> None:
        self._shape = (config, layers, width)
        self.fold_cache = FoldCache()
        self.approximation = Approximation()
        self.baked: Folds | None = None
        """Folds that are constants for a while; see `lmgraft.baked`."""
        self._trained = _Trained()

    def __deepcopy__(self, memo: object) -> Compute:
        return Compute(*self._shape)

    def __reduce__(self) -> tuple[type[Compute], tuple[BlockConfig, int, int]]:
        return Compute, self._shape

    def __call__(self, graft: Wired, x: Tensor, mask: Tensor | None, reads: Reads = None) -> tuple[Tensor, Tensor]:
        """block(W1 x) and W1 x of the tokens that are read, (B, R, D) each; of a mean, (B, 1, D).

        `mask` is as a block of lmgraft's own layers takes it.
        """
        mapper, form = graft.mapper_in, graft.config.form
        block = self.approximation.block(graft, graft.block, x)
        tokens, mean = (reads.tokens, True) if isinstance(reads, MeanOf) else (reads, False)
        if form == "dense":
            y, h = dense(mapper, block, x, mask, tokens)
        elif block.tokenwise:
            h = mapper(take_tokens(x, tokens))  # nothing mixes tokens: the others are not needed
            y = block(h)
        else:
            plans = self.plan(graft, x, reads)
            if any(plan != _READABLE for plan in plans):
                return planned(mapper, block, x, mask, tokens, plans, self._folds(graft, plans[0]), mean)
            wide = mapper(x)
            y, h = block(wide, mask, reads=tokens), take_tokens(wide, tokens)
        return (take_reads(y, MeanOf()), take_reads(h, MeanOf())) if mean else (y, h)

    def plan(self, graft: Wired, x: Tensor, reads: Reads = None) -> tuple[LayerPlan, ...]:
        """How each layer of the block would be computed for this input, as things stand now."""
        if not folds_apply(graft):
            return (_READABLE,) * len(graft.block.layers)
        if is_traced():
            many = isinstance(reads, Tensor) and sizes(reads)[-1] > _FEW
            read_all = many or reads is None or isinstance(reads, MeanOf | slice)
            grad = _is_trained(graft.mapper_in) or (torch.is_grad_enabled() and x.requires_grad)
            ready = self._constants(graft) is not None
            form, layers = graft.config.form, range(len(graft.block.layers))
            return tuple([PLANS[self._traced_plan(i, read_all, grad, ready, form)] for i in layers])
        return layer_plans(self.problem(graft, x, reads), len(graft.block.layers), graft.config.form)

    def problem(self, graft: Wired, x: Tensor, reads: Reads = None) -> Problem:
        """The whole block as the planner sees it for this input, as things stand now."""
        mapper = graft.mapper_in
        has_bias = getattr(mapper, "bias", None) is not None
        return Problem(
            config=graft.block.config,
            batch=x.shape[0],
            tokens=x.shape[1],
            reads=count_tokens(x.shape[1], reads),
            narrow=x.shape[2] + has_bias,
            mean_early=isinstance(reads, MeanOf) and mean_comes_early(graft.block),
            mapper_bias=has_bias,
            x_grad=torch.is_grad_enabled() and x.requires_grad,
            mapper_grad=_is_trained(mapper),
            folds_ready=self._constants(graft) is not None or self._may_keep_folds(graft),
            itemsize=2 if torch.is_autocast_enabled(x.device.type) else x.element_size(),
            device=x.device.type,
            **self._trained.of(graft.block).now(),
        )

    def bake(self, graft: Wired) -> None:
        """Make folds of today's weights, and take them for constants until `baked` is None again."""
        if folds_apply(graft) and graft.config.form != "dense":
            with torch.no_grad():
                self.baked = packed(make_folds(graft.mapper_in, _first(graft), frozenset("qkv")))

    def trains(self, block: FrozenBlock) -> bool:
        """Whether any parameter of the block requires a gradient now; cheap enough for every forward."""
        return self._trained.any_of(block)

    def clear(self) -> None:
        """Forget what belongs to weights, modes and places as they were."""
        self.fold_cache.clear()
        self._trained = _Trained()

    @constant_in_traces  # a search is not to be traced
    def _traced_plan(self, layer: int, read_all: bool, grad: bool, ready: bool, form: str) -> int:
        """Index in `PLANS`: of constants a trace takes numbers, but no objects."""
        plans = plans_for_tracing(*self._shape, form, read_all=read_all, grad=grad, ready=ready)
        return PLANS.index(plans[layer])

    def _folds(self, graft: Wired, plan: LayerPlan) -> Folds | None:
        if plan.space == "wide":
            return None
        constants = self._constants(graft)
        if constants is not None:
            return constants
        layer = _first(graft)
        if not self._may_keep_folds(graft):
            return make_folds(graft.mapper_in, layer, frozenset(plan.folds()))
        compared = [*_own(graft.mapper_in), *_own(layer.attention_norm)]
        sampled: list[Tensor] = []
        for projection in layer.attention.inputs().values():
            for tensor in _own(projection):
                (compared if tensor.requires_grad else sampled).append(tensor)
        return self.fold_cache.get(compared, sampled, lambda: make_folds(graft.mapper_in, layer, frozenset("qkv")))

    def _constants(self, graft: Wired) -> Folds | None:
        """What `bake` made, unless a gradient is wanted that would have to pass through it."""
        wanted = self.baked is not None and torch.is_grad_enabled() and _any_trained(_folded(graft))
        return None if wanted else self.baked

    def _may_keep_folds(self, graft: Wired) -> bool:
        if is_traced() or graft.block.tokenwise or graft.block.opaque:
            return False
        if not _any_trained(_folded(graft)):
            return True
        # In training W1 changes at every step, also where autograd is off for a while (reentrant checkpointing).
        if torch.is_grad_enabled() or graft.training:
            return False
        attention = _first(graft).attention
        # Too large to be compared in full, and whoever trains may write any of it.
        return not _any_trained([projection.weight for projection in attention.inputs().values()])


def folds_apply(graft: Wired) -> bool:
    """Whether tokens are mixed, W1 is linear, and nobody watches a module that planned forms do not call."""
    if type(graft.mapper_in) is not nn.Linear or graft.block.tokenwise or graft.block.opaque:
        return False
    passed_by: list[nn.Module] = [graft.mapper_in, graft.block]
    for layer in cast("list[Layer]", graft.block.layers):
        passed_by += [layer, layer.attention_norm, layer.attention, *layer.attention.children()]
    return not is_watched(passed_by)


def _first(graft: Wired) -> Layer:
    return cast(Layer, graft.block.layers[0])


def _folded(graft: Wired) -> list[Tensor]:
    """Every tensor that folds are made of."""
    layer = _first(graft)
    modules = (graft.mapper_in, layer.attention_norm, *layer.attention.inputs().values())
    return [p for module in modules for p in module._parameters.values() if p is not None]


def _own(module: nn.Module) -> list[Tensor]:
    return [p for p in module._parameters.values() if p is not None]


def _any_trained(tensors: list[Tensor]) -> bool:
    return any([t.requires_grad for t in tensors])  # noqa: C419 - a generator costs a call for each


def _is_trained(module: nn.Module) -> bool:
    """Whether a gradient is wanted now of a tensor of `module`."""
    return torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())


@dataclass(frozen=True)
class TrainedParts:
    """Which tensors of a block are trained. One trained matrix counts as all of them."""

    block: bool = False
    norms: bool = False
    low_rank: bool = False
    lora: tuple[str, ...] = ()
    lora_rank: int = 0

    def now(self) -> dict[str, Any]:
        """As fields of `Problem`: no gradient is wanted where autograd is off."""
        grad = torch.is_grad_enabled()
        return {
            "block_grad": grad and self.block,
            "norm_grad": grad and self.norms,
            "lora_grad": grad and self.low_rank,
            "lora": self.lora,
            "lora_rank": self.lora_rank,
        }


def trained_parts(block: FrozenBlock) -> TrainedParts:
    """What of `block` is trained, by `requires_grad` as it is now."""
    trained: set[type] = set()
    low_rank: dict[str, int] = {}
    for name, module in block.named_modules():
        tensors = _own(module)
        if isinstance(module, LoraProjection):
            low_rank[name.rpartition(".")[2]] = module.lora_a.shape[0]
            tensors = [module.lora_a, module.lora_b]
        if _any_trained(tensors):
            trained.add(type(module))
    return TrainedParts(
        block=bool(trained - {Norm, LoraProjection}),
        norms=Norm in trained,
        low_rank=LoraProjection in trained,
        lora=tuple(sorted(low_rank)),
        lora_rank=max(low_rank.values(), default=0),
    )


class _Trained:
    """`trained_parts` of a block, asked again only when a flag has changed. It counts for costs, not for numbers."""

    def __init__(self) -> None:
        self._modules: list[nn.Module] | None = None
        self._flags: list[bool] = []
        self._parts = TrainedParts()

    def any_of(self, block: FrozenBlock) -> bool:
        """Whether anything of the block is trained."""
        self.of(block)
        return any(self._flags)

    def of(self, block: FrozenBlock) -> TrainedParts:
        if self._modules is None:
            self._modules = [module for module in block.modules() if module._parameters]
            self._flags = []
        flags = [p.requires_grad for module in self._modules for p in module._parameters.values() if p is not None]
        if flags != self._flags or not flags:
            self._flags, self._parts = flags, trained_parts(block)
        return self._parts
