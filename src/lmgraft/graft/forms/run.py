"""The mapper and the frozen block on tokens, as planned; `dense` beside it is the reference.

            narrow space                               wide space
    x --- y = x n --- keys, values -+         x - W1 - h - norm - keys, values -+
    |                               |                  |                        |
    +-- read tokens: W1, norm, q -- attention - o ...  +-- read tokens: q ------+ ...

Only the first layer of a stack sees a linear image of narrow tokens, and only the last may leave
tokens unread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from lmgraft.block import FrozenBlock
from lmgraft.block.block import Layer
from lmgraft.block.parts import Attention, Projection, at_least_float32, see
from lmgraft.contracts import Tokens, take_tokens
from lmgraft.graft.forms.affine import Affine, Fold, affine, fold, narrow_tokens
from lmgraft.graft.forms.attend import (
    absorbed_context,
    absorbed_scores,
    constant_key_matters,
    formed_context,
    formed_scores,
)
from lmgraft.graft.forms.cache import Folds
from lmgraft.graft.forms.problem import LayerPlan


def dense(
    mapper: nn.Module, block: FrozenBlock, x: Tensor, mask: Tensor | None, reads: Tokens
) -> tuple[Tensor, Tensor]:
    """As published: the whole block on every token; then the read ones are taken.

    Returns:
        The block's output and its input W1 x, both (B, R, D).
    """
    h = mapper(x)
    return take_tokens(block(h, mask), reads), take_tokens(h, reads)


def planned(
    mapper: nn.Module,
    block: FrozenBlock,
    x: Tensor,
    mask: Tensor | None,
    reads: Tokens,
    plans: Sequence[LayerPlan],
    folds: Folds | None,
    mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same numbers by `plans`, one for each layer.

    Args:
        folds: What the first layer's plan needs, if it is narrow.
        mean: Return the means over the read tokens, (B, 1, D), computed as early as that is exact.
    """
    first, *others = cast("list[Layer]", list(block.layers))
    visible, fully_padded = see(mask)
    ends = [None] * len(others) + [reads]
    early = mean and mean_comes_early(block)
    means = [False] * len(others) + [early]
    if plans[0].space == "narrow":
        assert folds is not None
        linear = cast(nn.Linear, mapper)
        y = narrow_tokens(x, linear, folds.map)
        inputs = mapper(take_tokens(x, ends[0]))
        keys = _Keys(y, take_tokens(y, ends[0]), folds, visible, fully_padded)
        h = _layer(first, plans[0], inputs, None, keys, means[0])
    else:
        h = mapper(x)
        inputs = take_tokens(h, reads)
        h = _wide_layer(first, plans[0], h, ends[0], (visible, fully_padded), means[0])
    for layer, plan, end, last in zip(others, plans[1:], ends[1:], means[1:], strict=True):
        h = _wide_layer(layer, plan, h, end, (visible, fully_padded), last)
    out: Tensor = block.final_norm(h)
    inputs = take_tokens(inputs, reads) if others and plans[0].space == "narrow" else inputs
    if not mean:
        return out, inputs
    return out if early else out.mean(1, keepdim=True), inputs.mean(1, keepdim=True)


def mean_comes_early(block: FrozenBlock) -> bool:
    """Whether a mean over the read tokens may be taken inside the last layer: no norm follows."""
    return (
        not block.tokenwise and isinstance(block.final_norm, nn.Identity) and cast(Layer, block.layers[-1]).ends_linear
    )


def is_watched(modules: Iterable[nn.Module]) -> bool:
    """Whether somebody's hook would miss a call of one of `modules` that a form does not make."""
    for m in modules:  # noqa: SIM110 - a generator costs a call for each
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            return True
    return False


def make_folds(mapper: nn.Linear, layer: Layer, names: frozenset[str]) -> Folds:
    """The affine map of `mapper` into `layer`, and the folds of its projections `names`."""
    map_ = affine(mapper, layer.attention_norm)
    inputs = layer.attention.inputs()
    return Folds(map_, {name: fold(map_, inputs[name]) for name in sorted(names & inputs.keys())})


class _Keys(NamedTuple):
    """What attention sees of the tokens."""

    y: Tensor
    """(B, T, C): all of them, narrow or normed."""
    y_read: Tensor
    """Rows of y that are read."""
    folds: Folds | None
    """In narrow space, what lies between y and the projections."""
    visible: Tensor | None
    fully_padded: Tensor | None
    """Both as `see` gives them."""


def _wide_layer(
    layer: Layer,
    plan: LayerPlan,
    h: Tensor,
    reads: Tokens,
    seen: tuple[Tensor | None, Tensor | None],
    mean: bool,
) -> Tensor:
    u = layer.attention_norm(h)
    read = take_tokens(u, reads)
    return _layer(layer, plan, take_tokens(h, reads), read, _Keys(u, read, None, *seen), mean)


def _layer(layer: Layer, plan: LayerPlan, h: Tensor, u: Tensor | None, keys: _Keys, mean: bool) -> Tensor:
    """One layer from its read inputs h (B, R, D).

    Args:
        u: Normed h; computed when needed if None.
        keys: What attention sees of all tokens.
        mean: See `planned`.
    """
    attention = layer.attention
    if u is None and (layer.reuses_normed or attention.q_gate is not None or plan.query == "projected"):
        u = layer.attention_norm(h)
    if plan.query == "folded":
        assert keys.folds is not None
        q = _through(keys.folds.projections["q"], keys.y_read, h.dtype)
    else:
        q = attention.q(u)
    context = attention.gated(_attend(attention, plan, attention.split_queries(q), keys, h.dtype), u)
    if mean and layer.parallel != "none":
        context = context.mean(2, keepdim=True)
    return layer.finish(h, u, attention.output(context, keys.fully_padded), mean)


def _attend(attention: Attention, plan: LayerPlan, q: Tensor, keys: _Keys, dtype: torch.dtype) -> Tensor:
    y, folds, visible = keys.y, keys.folds, keys.visible

    def source(name: str, side: str) -> tuple[Projection | Fold, Affine | None]:
        if side in ("folded", "absorbed_fold"):
            assert folds is not None
            return folds.projections[name], None
        return getattr(attention, name), None if folds is None else folds.map

    key, key_map = source("k", plan.key)
    k = v = None
    if plan.key in ("formed", "folded"):
        bias = constant_key_matters(attention) or plan.key == "formed"
        k = attention.split_keys(_through(key, y, dtype, bias))
    if attention.v is None:
        assert k is not None
        return attention.mix(q, k, attention.values_in(k), visible)
    value, value_map = source("v", plan.value)
    if plan.value in ("formed", "folded"):
        v = attention.split_values(_through(value, y, dtype))
    if k is not None and v is not None:
        return attention.mix(q, k, v, visible)
    wide = at_least_float32(y)
    scores = absorbed_scores(attention, q, wide, key, key_map) if k is None else formed_scores(q, k)
    weights = attention.weights(scores, visible)
    if v is not None:
        return formed_context(weights, v)
    return absorbed_context(attention, weights, wide, value, value_map, q.dtype)


def _through(projection: Projection | Fold, y: Tensor, dtype: torch.dtype, bias: bool = True) -> Tensor:
    if isinstance(projection, Projection):
        out: Tensor = projection(y)
        return out
    constant = projection.bias.to(dtype) if bias and projection.bias is not None else None
    return nn.functional.linear(y.to(dtype), projection.weight.to(dtype), constant)
