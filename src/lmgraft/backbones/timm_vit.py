"""timm's VisionTransformer and its family, described as hosts; and timm's factory.

Imported on demand through the tables in `lmgraft.registry`; knows timm, not the graft.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lmgraft.contracts import Host, MeanOf, Reads, TokenLayout
from lmgraft.errors import HostError


def create(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """`timm.create_model`, with an error that names near misses.

    Raises:
        HostError: If timm knows no such model or refuses the arguments.
    """
    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:6]
        raise HostError(f"timm has no model {name!r}", f"for instance {', '.join(near)}" if near else "")
    try:
        model: nn.Module = timm.create_model(name, **kwargs)
    except TypeError as error:
        raise HostError(
            f"timm.create_model({name!r}) refused its arguments: {error}", "check backbone.kwargs"
        ) from None
    return model


def describe(model: VisionTransformer) -> Host:
    """A plain VisionTransformer: class token first unless it has none, head by global_pool."""
    return Host(
        embed_dim=model.embed_dim,
        layers=tuple(f"blocks.{i}" for i in range(len(model.blocks))),
        layout=TokenLayout(num_prefix_tokens=model.num_prefix_tokens, grid=tuple(model.patch_embed.grid_size)),
        mapper_init="trunc_normal",
        reads=reads_of_pooling,
    )


def describe_distilled(model: VisionTransformerDistilled) -> Host:
    """DeiT's distilled variant: class and distillation token first, both read."""
    plain = describe(model)
    return Host(
        embed_dim=plain.embed_dim,
        layers=plain.layers,
        layout=plain.layout,
        mapper_init=plain.mapper_init,
        reads=reads_of_distilled,
    )


_HEAD_PATH = ("forward", "forward_features", "forward_head", "pool")


def _head_is(model: nn.Module, cls: type[Any]) -> bool:
    """Whether the way from tokens to logits is `cls`'s own, not a subclass's or an instance's."""
    for name in _HEAD_PATH:
        if getattr(type(model), name) is not getattr(cls, name) or name in model.__dict__:
            return False
    return True


def reads_of_pooling(model: Any) -> Reads:
    """The class token under `global_pool="token"`; the mean of the patch tokens where the head averages
    before its own norm; anything else may read every token."""
    if not _head_is(model, VisionTransformer) or model.attn_pool is not None:
        return None
    if model.global_pool == "token":
        return 0
    if model.global_pool == "avg" and isinstance(model.norm, nn.Identity):
        return MeanOf(slice(0 if model.pool_include_prefix else model.num_prefix_tokens, None))
    return None


def reads_of_distilled(model: nn.Module) -> Reads:
    """Class and distillation token, whatever global_pool says: that head ignores it."""
    return (0, 1) if _head_is(model, VisionTransformerDistilled) else None
