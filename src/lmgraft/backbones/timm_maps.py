"""This module describes timm's Swin, ResNet, ConvNeXt, EfficientNet, and any other timm model with stages, as hosts.

Their layers are stages, whose widths differ. The places of a feature map are the tokens, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from timm.layers import SelectAdaptivePool2d
from timm.layers.adaptive_avgmax_pool import FastAdaptiveAvgPool
from timm.layers.classifier import ClassifierHead, NormMlpClassifierHead
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from lmgraft.backbones.own_path import TIMM_PATH, is_own
from lmgraft.backbones.timm_vit import padding_of_mask
from lmgraft.contracts import Axes, Host, MeanOf, Reads, TokenLayout, reads_everything
from lmgraft.errors import HostError

Head = Callable[[Any, Tensor], Any]


def describe_swin(model: SwinTransformer | SwinTransformerV2) -> Host:
    """Describe Swin, both versions: its maps are (B, H, W, V), and a norm comes before the pooling."""
    cls = SwinTransformerV2 if isinstance(model, SwinTransformerV2) else SwinTransformer
    stages = [f"layers.{i}" for i in range(len(model.layers))]
    widths = [info["num_chs"] for info in model.feature_info]
    return _stages(
        model,
        cls,
        stages,
        [widths[0], *widths],
        axes="NHWC",
        mapper_init="trunc_normal",
        head=head_of_swin,
    )


def describe_resnet(model: ResNet) -> Host:
    """Describe ResNet and its kin: maps (B, V, H, W) are pooled right behind the last stage."""
    infos = model.feature_info[-4:]
    widths = [model.feature_info[0]["num_chs"], *(info["num_chs"] for info in infos)]
    stages = [f"layer{i}" for i in range(1, 5)]
    return _stages(model, ResNet, stages, widths, reads=reads_of_resnet, head=head_of_resnet)


def describe_convnext(model: ConvNeXt) -> Host:
    """Describe ConvNeXt: maps (B, V, H, W) are pooled, then normed, unless `head_norm_first`."""
    widths = [info["num_chs"] for info in model.feature_info]
    return _stages(
        model,
        ConvNeXt,
        [f"stages.{i}" for i in range(len(model.stages))],
        [widths[0], *widths],
        mapper_init="trunc_normal",
        reads=reads_of_convnext,
        head=head_of_convnext,
    )


def describe_efficientnet(model: EfficientNet) -> Host:
    """Describe EfficientNet: behind its last map (B, V, H, W) come a 1 x 1 convolution, norm and activation."""
    widths = [model.conv_stem.out_channels, *(info["num_chs"] for info in model.feature_info)]
    stages = [info["module"] for info in model.feature_info]
    return _stages(model, EfficientNet, stages, widths, head=head_of_efficientnet)


def describe_any(model: Any) -> Host | None:
    """Describe any timm model that says in `feature_info` where its stages end: every token may be read.

    Stages give tokens or maps, as they come. The width before the first stage is not known, so there is no "head".
    None if the model does not say it.
    """
    infos = getattr(model, "feature_info", None)
    if not isinstance(infos, list) or not hasattr(model, "forward_features"):
        return None
    modules = dict(model.named_modules())
    known = [info for info in infos if info.get("module") in modules and "num_chs" in info]
    if not known or known[-1] is not infos[-1]:
        return None
    axes: Axes = "NHWC" if getattr(model, "output_fmt", "NCHW") == "NHWC" else "any"
    return _stages(
        model, type(model), [info["module"] for info in known], [None, *(i["num_chs"] for i in known)], axes=axes
    )


def describe_late_class_token(model: Any) -> Host | None:
    """Describe CaiT and XCiT: stages hold patches alone, and the class token comes in the attention behind them."""
    host = describe_any(model)
    return None if host is None else replace(host, layout=TokenLayout())


def _stages(
    model: nn.Module,
    cls: type[Any],
    stages: list[str],
    widths: list[int | None],
    *,
    axes: Axes = "NCHW",
    mapper_init: Any = "default",
    reads: Callable[..., Reads] = reads_everything,
    head: Head | None = None,
) -> Host:
    own = is_own(model, cls, TIMM_PATH)
    width = widths[-1]
    assert width is not None
    return Host(
        embed_dim=width,
        layers=tuple(_end(model, stage, -1) for stage in stages),
        first=_end(model, stages[0], 0),
        widths=tuple(widths),
        axes=axes,
        layout=TokenLayout(num_prefix_tokens=getattr(model, "num_prefix_tokens", 0)),
        mapper_init=mapper_init,
        reads=reads,
        padding_mask=padding_of_mask,
        head_from_tokens=head if own else None,
    )


def _end(model: nn.Module, stage: str, index: int) -> str:
    """Return the path of the first (0) or last (-1) child of a plain Sequential, as deep as they go.

    Checkpointing (`checkpoint_seq(..., flatten=True)`) calls the children and passes their stage by.
    """
    module = model.get_submodule(stage)
    while isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and len(module):
        name = list(module._modules)[index]
        stage, module = f"{stage}.{name}", module[index]
    return stage


def averages(pool: Any) -> bool:
    """Return whether `pool` is timm's mean over all places."""
    inner = getattr(pool, "pool", None)
    mean = type(pool) is SelectAdaptivePool2d and type(inner) in (nn.AdaptiveAvgPool2d, FastAdaptiveAvgPool)
    size = getattr(inner, "output_size", 1)
    return mean and size in (1, (1, 1))


def reads_of_resnet(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return the mean, where the global pooling is one."""
    return MeanOf() if is_own(model, ResNet, TIMM_PATH) and averages(model.global_pool) else None


def reads_of_convnext(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return the mean, where the head pools before it norms."""
    if not is_own(model, ConvNeXt, TIMM_PATH) or not isinstance(model.norm_pre, nn.Identity):
        return None
    pools_first = type(model.head) in (NormMlpClassifierHead, ClassifierHead)
    return MeanOf() if pools_first and averages(model.head.global_pool) else None


def head_of_swin(model: Any, tokens: Tensor) -> Any:
    """Run the norm and the head, which pools all places, so that one long row will do."""
    return model.forward_head(model.norm(_as_row(tokens, "NHWC", model.head.global_pool)))


def head_of_resnet(model: Any, tokens: Tensor) -> Any:
    """Run the pooling and the classifier."""
    return model.forward_head(_as_row(tokens, "NCHW", model.global_pool))


def head_of_convnext(model: Any, tokens: Tensor) -> Any:
    """Run the norm, if it comes before the pooling, and the head."""
    return model.forward_head(model.norm_pre(_as_row(tokens, "NCHW", model.head.global_pool)))


def head_of_efficientnet(model: Any, tokens: Tensor) -> Any:
    """Run the 1 x 1 convolution, norm and activation, and the head."""
    return model.forward_head(model.bn2(model.conv_head(_as_row(tokens, "NCHW", model.global_pool))))


def _as_row(tokens: Tensor, axes: Axes, pool: Any) -> Tensor:
    """Return tokens (B, T, V) as a map of height 1.

    Raises:
        HostError: If the head does not pool: its output would have another shape.
    """
    if not getattr(pool, "pool_type", ""):
        raise HostError("a head without pooling gives a map, whose height is not known here", "give it global_pool")
    return tokens.unsqueeze(1) if axes == "NHWC" else tokens.transpose(1, 2).unsqueeze(2)
