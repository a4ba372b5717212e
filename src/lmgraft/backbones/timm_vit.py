"""This module describes timm's VisionTransformer, EVA (with DINOv3) and BEiT as hosts, and holds timm's factory.

It is imported on demand through the tables in `lmgraft.registry`; it knows timm, not the graft.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lmgraft.backbones.own_path import TIMM_PATH, is_own
from lmgraft.backbones.refusals import construct, in_seconds, in_words
from lmgraft.contracts import Host, MeanOf, Reads, TokenLayout, unseen_keys
from lmgraft.errors import HostError


def create(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """Call `timm.create_model`, with an error that names near misses.

    Raises:
        HostError: If timm knows no such model or refuses the arguments; if pretrained weights cannot be
            fetched or do not fit.
    """
    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:6]
        raise HostError(f"timm has no model {name!r}", f"for instance {', '.join(near)}" if near else "")
    if not kwargs.get("pretrained"):
        return _made(name, kwargs)
    remedy = (
        "--backbone.kwargs.pretrained false trains from scratch (recipe image/photos_scratch); a file of your own "
        "is read with pretrained_cfg_overlay: {file: PATH} in backbone.kwargs"
    )
    file = (kwargs.get("pretrained_cfg_overlay") or {}).get("file", name)
    with in_words(f"no pretrained weights of timm's {name!r}", remedy, pretrained=True), in_seconds(str(file)):
        return _made(name, kwargs)


def _made(name: str, kwargs: dict[str, Any]) -> nn.Module:
    of_weights = (ValueError, RuntimeError) if kwargs.get("pretrained") else ()
    make = partial(timm.create_model, name)
    model: nn.Module = construct(make, f"timm.create_model({name!r})", kwargs, of_weights)
    return model


def describe(model: VisionTransformer) -> Host:
    """Describe a plain VisionTransformer: the class token is first, if any, and the head reads by global_pool."""
    return _blocks_of(model, VisionTransformer, reads_of_pooling)


def describe_distilled(model: VisionTransformerDistilled) -> Host:
    """Describe DeiT's distilled variant: class and distillation token come first; both are read."""
    return _blocks_of(model, VisionTransformerDistilled, reads_of_distilled)


def describe_eva(model: Eva) -> Host:
    """Describe EVA, EVA-02 and timm's DINOv3: rotary positions reach layers as `rope=`, which the graft ignores."""
    return _blocks_of(model, Eva, reads_of_eva)


def describe_beit(model: Beit) -> Host:
    """Describe BEiT: it always has a class token; relative positions come as `shared_rel_pos_bias=`."""
    return _blocks_of(model, Beit, reads_of_beit)


def _blocks_of(model: Any, cls: type[Any], reads: Any) -> Host:
    grid = model.patch_embed.grid_size
    own = is_own(model, cls, ("forward", "forward_features"))
    return Host(
        embed_dim=model.embed_dim,
        layers=tuple(f"blocks.{i}" for i in range(len(model.blocks))),
        layout=TokenLayout(num_prefix_tokens=model.num_prefix_tokens, grid=None if grid is None else tuple(grid)),
        mapper_init="trunc_normal",
        reads=reads,
        padding_mask=padding_of_mask,
        head_from_tokens=norm_and_head if own else None,
    )


def norm_and_head(model: Any, tokens: Tensor) -> Any:
    """Run what timm's `forward` does behind the last encoder layer."""
    return model.forward_head(model.norm(tokens))


def padding_of_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the tokens that nobody may attend to under timm's `attn_mask=`."""
    return unseen_keys(kwargs.get("attn_mask"))


_HEAD_PATH = (*TIMM_PATH, "pool")


def reads_of_pooling(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return what `global_pool` reads; with attention pooling, or a method that is not timm's, every token."""
    if not is_own(model, VisionTransformer, _HEAD_PATH) or model.attn_pool is not None:
        return None
    with_prefix = getattr(model, "pool_include_prefix", False)  # bridge: until timm 1.0.16 is the oldest
    return reads_of_global_pool(model, 0 if with_prefix else model.num_prefix_tokens)


def reads_of_distilled(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return class and distillation token, whatever global_pool says: that head ignores it."""
    return (0, 1) if is_own(model, VisionTransformerDistilled, _HEAD_PATH) else None


def reads_of_eva(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return the same as `reads_of_pooling`; prefix tokens are never part of the mean."""
    attends = getattr(model, "attn_pool", None) is not None  # bridge: until timm 1.0.16 is the oldest
    if attends or not is_own(model, Eva, _HEAD_PATH):
        return None
    return reads_of_global_pool(model, model.num_prefix_tokens)


def reads_of_beit(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return the same as `reads_of_pooling`; the head's pooling lies in `forward_head`."""
    return reads_of_global_pool(model, model.num_prefix_tokens) if is_own(model, Beit, TIMM_PATH) else None


def reads_of_global_pool(model: Any, first: int) -> Reads:
    """Return the class token under "token", the mean from token `first` on under "avg" where no norm comes before it.

    Anything else may read every token: None.
    """
    if model.global_pool == "token":
        return 0
    if model.global_pool == "avg" and isinstance(model.norm, nn.Identity):
        return MeanOf(slice(first, None))
    return None
