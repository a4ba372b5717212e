"""This module describes timm's encoders whose layers are several modules, or return several things, as hosts.

Their stages lie in lists that are not called (Twins, PiT, CoaT, EfficientViM), or return more than their
tokens: a size (MViTv2), pixels of patches (TNT), class tokens apart from a map (PiT), a state (EfficientViM),
one entry for each branch (CrossViT, CoaT, HRNet); or the head joins several of them (HRNet, MobileNetV5). Of
several branches the graft takes the last: the widest, with the fewest tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models.coat import CoaT
from timm.models.crossvit import CrossVit
from timm.models.hrnet import HighResolutionNet, block_types_dict
from timm.models.mvitv2 import MultiScaleVit
from timm.models.pit import PoolingVisionTransformer
from timm.models.tnt import TNT
from timm.models.twins import Twins
from torch import Tensor

from lmgraft.backbones.own_path import TIMM_PATH, is_own, timm_class
from lmgraft.backbones.timm_maps import averages, describe_any, head_of_resnet
from lmgraft.backbones.timm_vit import norm_and_head, reads_of_global_pool
from lmgraft.contracts import Entry, Host, MeanOf, Reads, TokenLayout, sizes

LAST_BRANCH = Entry(-1)


def describe_mvitv2(model: MultiScaleVit) -> Host:
    """Describe MViTv2: some variants have a class token, and a norm comes before the pooling."""
    stages = [stage.blocks for stage in model.stages]
    return Host(
        embed_dim=stages[-1][-1].dim_out,
        layers=tuple(f"stages.{i}" for i in range(len(stages))),
        widths=(stages[0][0].dim, *(blocks[-1].dim_out for blocks in stages)),
        layout=TokenLayout(num_prefix_tokens=model.num_prefix_tokens, grid=tuple(model.stages[-1].feat_size)),
        mapper_init="trunc_normal",
        reads=reads_of_mvitv2,
        head_from_tokens=norm_and_head if is_own(model, MultiScaleVit, TIMM_PATH) else None,
    )


def reads_of_mvitv2(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return what `global_pool` reads, where the methods are timm's own."""
    own = is_own(model, MultiScaleVit, TIMM_PATH)
    return reads_of_global_pool(model, model.num_prefix_tokens) if own else None


def describe_twins(model: Twins) -> Host:
    """Describe Twins, PCPVT and SVT: positions come by a convolution behind the first block of each stage."""
    depths = [len(blocks) for blocks in model.blocks]
    patches = model.patch_embeds[-1]
    return Host(
        embed_dim=model.num_features,
        layers=tuple(f"blocks.{i}.{n - 1}" if n > 1 else f"pos_block.{i}" for i, n in enumerate(depths)),
        first="blocks.0.0",
        widths=(model.embed_dims[0], *model.embed_dims[: len(depths)]),
        layout=TokenLayout(grid=(patches.H, patches.W)),
        mapper_init="trunc_normal",
        reads=reads_of_twins,
        head_from_tokens=norm_and_head if is_own(model, Twins, TIMM_PATH) else None,
    )


def reads_of_twins(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return what `global_pool` reads, where the methods are timm's own."""
    return reads_of_global_pool(model, 0) if is_own(model, Twins, TIMM_PATH) else None


@dataclass(frozen=True)
class MapAndClassTokens:
    """Tokens as a pair of a map (B, V, H, W) and the class tokens (B, P, V) that were computed with it."""

    def take(self, output: Any) -> Any:
        """Return the class tokens and then the places of the map, as tokens (B, P + H·W, V)."""
        features, prefix = output
        return torch.cat([prefix, features.flatten(2).transpose(1, 2)], dim=1)

    def put(self, output: Any, tokens: Tensor) -> Any:
        """Return the pair made of `tokens`; with a map of height 1 where some tokens only are read."""
        features, prefix = output
        places = tokens[:, prefix.shape[1] :].transpose(1, 2)
        is_whole = sizes(places)[2] == sizes(features[0, 0].flatten())[0]
        size = features.shape if is_whole else (*places.shape[:2], 1, places.shape[2])
        return places.reshape(size), tokens[:, : prefix.shape[1]]


def describe_pit(model: PoolingVisionTransformer) -> Host:
    """Describe PiT: the head reads the class token alone, or the class and distillation tokens."""
    stages = model.transformers
    height, width = model.patch_embed.grid_size
    for _ in range(len(stages) - 1):  # a convolution of stride 2 and kernel 3, padded by 1
        height, width = (height + 1) // 2, (width + 1) // 2
    widths = [dim * heads for dim, heads in zip(model.base_dims, model.heads, strict=True)][: len(stages)]
    return Host(
        embed_dim=widths[-1],
        layers=tuple(f"transformers.{i}" for i in range(len(stages))),
        first="transformers.0.blocks.0",
        embedding_paths=("patch_embed", "pos_embed", "cls_token"),
        widths=(widths[0], *widths),
        output=MapAndClassTokens(),
        layout=TokenLayout(num_prefix_tokens=model.num_tokens, grid=(height, width)),
        reads=reads_of_pit,
        head_from_tokens=head_of_pit if is_own(model, PoolingVisionTransformer, TIMM_PATH) else None,
    )


def reads_of_pit(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return the class tokens: the map behind the last stage is dropped."""
    if not is_own(model, PoolingVisionTransformer, TIMM_PATH):
        return None
    return 0 if model.num_tokens == 1 else tuple(range(model.num_tokens))


def head_of_pit(model: Any, tokens: Tensor) -> Any:
    """Run the norm and the head on the class tokens."""
    return model.forward_head(model.norm(tokens[:, : model.num_tokens]))


def describe_tnt(model: TNT) -> Host:
    """Describe TNT: blocks return the pixels of each patch, and class token and patches, which the graft takes."""
    return Host(
        embed_dim=model.embed_dim,
        layers=tuple(f"blocks.{i}" for i in range(len(model.blocks))),
        first="pos_drop",
        output=Entry(1),
        layout=TokenLayout(num_prefix_tokens=_prefix_of_tnt(model), grid=tuple(model.pixel_embed.grid_size)),
        mapper_init="trunc_normal",
        reads=reads_of_tnt,
        head_from_tokens=norm_and_head if is_own(model, TNT, TIMM_PATH) else None,
    )


def reads_of_tnt(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return what `global_pool` reads, where the methods are timm's own."""
    return reads_of_global_pool(model, _prefix_of_tnt(model)) if is_own(model, TNT, TIMM_PATH) else None


def _prefix_of_tnt(model: Any) -> int:
    return getattr(model, "num_prefix_tokens", 1)  # bridge: until timm 1.0.16 is the oldest


def describe_crossvit(model: CrossVit) -> Host:
    """Describe CrossViT by its last branch, of large patches; the head reads the other's class token too."""
    rows, columns = model.img_size_scaled[-1]
    patch_height, patch_width = model.patch_embed[-1].patch_size
    return Host(
        embed_dim=model.embed_dim[-1],
        layers=tuple(f"blocks.{i}" for i in range(len(model.blocks))),
        first=f"blocks.0.blocks.{model.num_branches - 1}.0",
        output=LAST_BRANCH,
        layout=TokenLayout(num_prefix_tokens=1, grid=(rows // patch_height, columns // patch_width)),
        mapper_init="trunc_normal",
        reads=reads_of_crossvit,
    )


def reads_of_crossvit(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return the branch's class token; with "avg", every token: a norm comes before the mean."""
    return 0 if is_own(model, CrossVit, TIMM_PATH) and model.global_pool == "token" else None


def describe_coat(model: CoaT) -> Host:
    """Describe CoaT and CoaT-Lite: four stages in series, then CoaT's blocks over all scales, by the last scale."""
    serial = [i for i in range(1, 5) if getattr(model, f"serial_blocks{i}") is not None]
    layers = [f"serial_blocks{i}.{len(getattr(model, f'serial_blocks{i}')) - 1}" for i in serial]
    parallel = [f"parallel_blocks.{i}" for i in range(len(model.parallel_blocks or ()))]
    widths = [model.embed_dims[i - 1] for i in serial]
    is_lite = not parallel and len(serial) == 4 and not model.return_interm_layers
    return Host(
        embed_dim=widths[-1],
        layers=(*layers, *parallel),
        first="serial_blocks1.0",
        widths=(widths[0], *widths, *[widths[-1]] * len(parallel)),
        output=LAST_BRANCH,
        layout=TokenLayout(num_prefix_tokens=1, grid=tuple(getattr(model, f"patch_embed{serial[-1]}").grid_size)),
        mapper_init="trunc_normal",
        reads=reads_of_coat,
        head_from_tokens=head_of_coat_lite if is_lite and is_own(model, CoaT, TIMM_PATH) else None,
    )


def reads_of_coat(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return the scale's class token, unless a mean behind a norm, or the maps of all scales, are asked for."""
    reads_token = model.global_pool == "token" and not model.return_interm_layers
    return 0 if reads_token and is_own(model, CoaT, TIMM_PATH) else None


def head_of_coat_lite(model: Any, tokens: Tensor) -> Any:
    """Run the norm of the last scale and the head."""
    return model.forward_head(model.norm4(tokens))


def describe_hrnet(model: HighResolutionNet) -> Host:
    """Describe HRNet: its tail is the map in which the head joins all branches, and stages go by the last branch.

    A model without that head (`head="incre"`, pruned ones) ends with its last stage.
    """
    configs = [getattr(model, f"stage{i}_cfg") for i in range(1, 5)]
    widths = [cfg["num_channels"][-1] * block_types_dict[cfg["block_type"]].expansion for cfg in configs]
    has_head = getattr(model, "final_layer", None) is not None
    return Host(
        embed_dim=model.num_features if has_head else widths[-1],
        layers=("layer1", *(f"stage{i}" for i in range(2, 5)), *(["final_layer"] if has_head else [])),
        widths=(model.conv2.out_channels, *widths, *([model.num_features] if has_head else [])),
        axes="NCHW",
        output=LAST_BRANCH,
        reads=reads_of_hrnet,
        head_from_tokens=head_of_resnet if has_head and is_own(model, HighResolutionNet, TIMM_PATH) else None,
    )


def reads_of_hrnet(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return the mean, where a head joins the branches and its pooling is one."""
    joins = getattr(model, "final_layer", None) is not None and averages(model.global_pool)
    return MeanOf() if joins and is_own(model, HighResolutionNet, TIMM_PATH) else None


def describe_mobilenetv5(model: Any) -> Host | None:
    """Describe MobileNetV5: its tail is the map that joins the last stages, where it has one, pooled right behind."""
    host = describe_any(model)
    if host is None or model.msfa is None:
        return host
    cls = timm_class(model, "MobileNetV5", "MobileNetV5Encoder")
    is_classifier = cls.__name__ == "MobileNetV5" and is_own(model, cls, TIMM_PATH)
    return replace(
        host,
        embed_dim=model.msfa.out_channels,
        layers=(*host.layers, "msfa"),
        widths=(model.conv_stem.conv.out_channels, *host.widths[1:], model.msfa.out_channels),
        axes="NCHW",
        reads=reads_of_mobilenetv5,
        head_from_tokens=head_of_resnet if is_classifier else None,
    )


def reads_of_mobilenetv5(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return the mean, where a pooling that is one comes right behind the joined map."""
    cls = timm_class(model, "MobileNetV5", "MobileNetV5Encoder")
    pools = cls.__name__ == "MobileNetV5" and model.msfa is not None and averages(model.global_pool)
    return MeanOf() if pools and is_own(model, cls, TIMM_PATH) else None


def describe_efficientvim(model: Any) -> Host:
    """Describe EfficientViM by its maps; the head reads the hidden states of all stages too.

    Those of the last block are computed inside it, before the graft.
    """
    return Host(
        embed_dim=model.embed_dim[-1],
        layers=tuple(f"stages.{i}.blocks.{len(stage.blocks) - 1}" for i, stage in enumerate(model.stages)),
        first="stages.0.blocks.0",
        widths=(model.embed_dim[0], *model.embed_dim),
        axes="NCHW",
        mapper_init="trunc_normal",
    )
