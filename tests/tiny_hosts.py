"""Every kind of host at a size of milliseconds, seeded, with heads that are not zero. Not a test file itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.beit import Beit
from timm.models.coat import CoaT
from timm.models.convnext import ConvNeXt
from timm.models.crossvit import CrossVit
from timm.models.eva import Eva
from timm.models.hrnet import HighResolutionNet
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.pit import PoolingVisionTransformer
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.tnt import TNT
from timm.models.twins import Twins
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from lmgraft.backbones.timm_frames import FrameEncoder
from lmgraft.backbones.video_mae import VideoMAE
from lmgraft.contracts import MeanOf, Reads
from lmgraft.versions import numbers
from tiny import make_vit, of_timm, randomise_

PATCHES = {"img_size": 32, "patch_size": 8, "num_classes": 7}
VIT = PATCHES | {"embed_dim": 48, "depth": 3, "num_heads": 3}
SWIN = {"img_size": (32, 48), "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2)}
HF = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A host and what its adapter should say."""

    make: Callable[[], nn.Module]
    reads: Reads = None
    prefix: int = 1
    """Class and register tokens, before the patches of a grid or a map."""
    grid: tuple[int, ...] = (4, 4)
    size: tuple[int, ...] = (32, 32)
    """Height and width of images, of clips the frames before them: not square where the host allows it, to notice rows
    taken for columns."""
    axes: str = "tokens"
    width: int = 48
    layers: int = 3
    rest: bool = True
    timm: bool = True
    samples: int = 1
    """Samples of the block that one item makes: the frames of a clip, where each is encoded by itself."""
    part: int = 0
    """Which entry of a tuple or list the tokens are."""
    prefix_apart: bool = False
    """Layers return a map and the prefix tokens."""
    knows_grid: bool = True
    checkpoints: bool = True
    """timm's own gradient checkpointing is supported."""
    groups: bool = True
    """By timm's own groups a graft belongs to the head."""
    intermediates: bool = True
    """forward_intermediates gives what is behind the tail."""

    @property
    def tokens(self) -> int:
        return self.prefix + math.prod(self.grid)


def hf(name: str, classifier: bool = True, **options: Any) -> nn.Module:
    """One of transformers' models by the name of its class, from a config alone."""
    transformers: Any = pytest.importorskip("transformers")
    kind = name.replace("Vision", "").split("Model")[0].split("For")[0]
    if kind in ("CLIP", "Siglip"):
        projection = {"projection_dim": 24} if kind == "CLIP" else {}
        config = getattr(transformers, f"{kind}VisionConfig")(**HF, **projection, **options)
        if classifier:
            config = getattr(transformers, f"{kind}Config")(vision_config=config.to_dict(), num_labels=7)
    else:
        config = getattr(transformers, f"{kind}Config")(**(HF | options), **({"num_labels": 7} if classifier else {}))
    model: nn.Module = getattr(transformers, name)(config)
    return model


def _eva(**options: Any) -> Eva:
    return Eva(**(VIT | {"use_abs_pos_emb": False, "use_rot_pos_emb": True} | options))


def _dinov3(**options: Any) -> nn.Module:
    model: nn.Module = timm.create_model("vit_small_patch16_dinov3", **(VIT | {"num_heads": 3} | options))
    return model


def _resnet(**options: Any) -> ResNet:
    return ResNet(BasicBlock, (1, 1, 1, 2), channels=(16, 16, 24, 48), num_classes=7, **options)


def _convnext(**options: Any) -> ConvNeXt:
    return ConvNeXt(depths=(1, 1, 1, 2), dims=(8, 16, 24, 48), num_classes=7, **options)


def _efficientnet() -> nn.Module:
    model: nn.Module = timm.create_model("test_efficientnet", num_classes=7)
    return model


def _torchvision() -> VisionTransformer:
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=3, hidden_dim=48, mlp_dim=96, num_classes=7
    )


def _mvitv2(**options: Any) -> MultiScaleVit:
    strides = {"stride_q": ((1, 1), (2, 2), (2, 2)), "stride_kv_adaptive": (2, 2)}
    config = MultiScaleVitCfg(depths=(1, 1, 2), embed_dim=(16, 32, 48), num_heads=(1, 2, 3), **strides, **options)
    return MultiScaleVit(config, img_size=32, num_classes=7)


def _twins(**options: Any) -> Twins:
    shape = {"embed_dims": (16, 32, 48), "num_heads": (1, 2, 3), "mlp_ratios": (2, 2, 2), "sr_ratios": (2, 2, 1)}
    return Twins(img_size=(32, 64), depths=(1, 2, 2), num_classes=7, **shape, **options)


def _pit(**options: Any) -> PoolingVisionTransformer:
    stages = {"base_dims": (8, 8, 16), "heads": (1, 3, 3), "depth": (1, 1, 2)}
    return PoolingVisionTransformer(img_size=(40, 64), num_classes=7, **stages, **options)


def _tnt(**options: Any) -> TNT:
    shape = {"embed_dim": 48, "inner_dim": 8, "depth": 3, "num_heads_inner": 2, "num_heads_outer": 3}
    return TNT(img_size=(32, 48), patch_size=8, num_classes=7, **shape, **options)


def _crossvit(**options: Any) -> CrossVit:
    shape = {"patch_size": (4, 8), "embed_dim": (24, 48), "num_heads": (2, 3), "depth": ((1, 2, 0), (1, 1, 0))}
    return CrossVit(img_size=(32, 48), num_classes=7, **shape, **options)


def _coat(**options: Any) -> CoaT:
    widths = {"embed_dims": (24, 48, 48, 48), "num_heads": 8, "mlp_ratios": (2, 2, 2, 2)}
    return CoaT(img_size=(64, 96), patch_size=4, serial_depths=(1, 1, 1, 2), num_classes=7, **widths, **options)


class SmallHead(HighResolutionNet):
    """HRNet whose head is as wide as the other hosts, and not 2048."""

    def _make_head(self, pre_stage_channels: list[int], **options: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
        self.num_features, self.head_channels = 48, [4] * 4
        wider = [self._make_layer(Bottleneck, channels, 4, 1) for channels in pre_stage_channels]
        down = [nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)) for _ in range(3)]
        final = nn.Sequential(nn.Conv2d(16, 48, 1), nn.BatchNorm2d(48), nn.ReLU(inplace=True))
        return nn.ModuleList(wider), nn.ModuleList(down), final


def _hrnet(**options: Any) -> HighResolutionNet:
    def stage(kind: str, *channels: int) -> dict[str, Any]:
        shape = {"num_modules": 1, "num_branches": len(channels), "num_blocks": (1,) * len(channels)}
        return shape | {"block_type": kind, "num_channels": channels, "fuse_method": "SUM"}

    stages = [stage("BOTTLENECK", 8), *(stage("BASIC", *(8, 12, 16, 20)[:n]) for n in (2, 3, 4))]
    config = {f"stage{i + 1}": found for i, found in enumerate(stages)}
    return SmallHead({"stem_width": 8} | config, num_classes=7, **options)


def _efficientvim() -> nn.Module:
    shape = {"embed_dim": (16, 32, 48), "depths": (1, 1, 2), "state_dim": (9, 9, 4)}
    model: nn.Module = of_timm("models.efficientvim.EfficientViM")(num_classes=7, **shape)
    return model


def _mobilenetv5() -> nn.Module:
    cls = of_timm("models.mobilenetv5.MobileNetV5")
    blocks = decode_arch_def([["er_r1_k3_s2_e2_c8"], ["uir_r1_a3_k3_s2_e2_c16"], ["uir_r1_a0_k3_s2_e2_c24"]])
    return cls(blocks, num_classes=7, stem_size=8, num_features=48, msfa_output_resolution=2)


def tower(kind: str, name: str, **options: Any) -> nn.Module:
    """A tower of a vision language model in timm: `kind` is deepseek, qwen3 or gemma4, `name` Encoder or Classifier."""
    cls = of_timm(f"models.{kind}_vit.{kind.capitalize()}Vit{name}")
    size = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    if kind == "gemma4":
        size |= {"head_dim": 16, "intermediate_size": 96, "position_embedding_size": 16}
    else:
        size |= {"mlp_ratio": 2.0}
    model: nn.Module = cls(**size, **options)
    return model


def make_videomae(**options: Any) -> VideoMAE:
    shape = {"img_size": (16, 24), "num_frames": 4, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    return VideoMAE(**(shape | {"num_classes": 7} | options))


def make_frames() -> FrameEncoder:
    return FrameEncoder(make_vit())


TOWER = {"prefix": 0, "groups": False, "grid": (4, 6), "size": (32, 48)}
NO_TIMM = {"timm": False, "rest": False}
MAP = {"axes": "NCHW", "prefix": 0, "layers": 4, "grid": (2, 3), "size": (64, 96)}
BRANCH = {"part": -1, "rest": False, "checkpoints": False}
NHWC = {"axes": "NHWC", "prefix": 0, "layers": 2, "width": 32, "grid": (4, 6), "size": (32, 48)}
ROWS: dict[str, Row] = {
    "vit": Row(make=make_vit, reads=0),
    "vit_clip": Row(make=lambda: make_vit("vit_base_patch32_clip_224"), reads=0),
    "vit_registers_avg": Row(
        make=lambda: make_vit(reg_tokens=4, global_pool="avg"), reads=MeanOf(slice(5, None)), prefix=5
    ),
    "vit_dinov2": Row(make=lambda: make_vit("vit_small_patch14_reg4_dinov2"), reads=0, prefix=5),
    "vit_siglip": Row(make=lambda: make_vit("vit_base_patch16_siglip_224"), prefix=0),
    "deit_distilled": Row(make=lambda: make_vit("deit_tiny_distilled_patch16_224"), reads=(0, 1), prefix=2),
    "eva_avg": Row(make=_eva, reads=MeanOf(slice(1, None))),
    "eva_token": Row(make=lambda: _eva(global_pool="token"), reads=0),
    "eva_norm_avg": Row(make=lambda: _eva(use_fc_norm=False)),
    "eva_mixed_rope": Row(make=lambda: _eva(rope_type="mixed", embed_dim=48), reads=MeanOf(slice(1, None))),
    "eva_map": Row(make=lambda: _eva(global_pool="map")),
    "dinov3": Row(make=_dinov3, prefix=5),
    "dinov3_token": Row(make=lambda: _dinov3(global_pool="token"), reads=0, prefix=5),
    "beit_avg": Row(make=lambda: Beit(**VIT, use_rel_pos_bias=True), reads=MeanOf(slice(1, None))),
    "beit_token": Row(
        make=lambda: Beit(**VIT, use_shared_rel_pos_bias=True, global_pool="token", init_values=0.5), reads=0
    ),
    "beit_norm_avg": Row(make=lambda: Beit(**VIT, use_fc_norm=False)),
    "swin": Row(make=lambda: SwinTransformer(**SWIN, num_classes=7), **NHWC),
    "swin_v2": Row(make=lambda: SwinTransformerV2(**SWIN, num_classes=7), **NHWC),
    "resnet": Row(make=_resnet, reads=MeanOf(), **MAP),
    "resnet_max": Row(make=lambda: _resnet(global_pool="max"), **MAP),
    "convnext": Row(make=_convnext, reads=MeanOf(), **MAP),
    "convnext_mlp": Row(make=lambda: _convnext(head_hidden_size=20), reads=MeanOf(), **MAP),
    "convnext_norm_first": Row(make=lambda: _convnext(head_norm_first=True), **MAP),
    "efficientnet": Row(make=_efficientnet, **(MAP | {"width": 64, "layers": 5})),
    "mvitv2": Row(make=_mvitv2, prefix=0, grid=(2, 2)),
    "mvitv2_token": Row(make=lambda: _mvitv2(use_cls_token=True, use_abs_pos=True), reads=0, grid=(2, 2)),
    "twins": Row(make=_twins, prefix=0, grid=(2, 4), size=(32, 64), checkpoints=False),
    "pit": Row(make=_pit, reads=0, grid=(1, 2), size=(40, 64), prefix_apart=True, checkpoints=False, groups=False),
    "pit_distilled": Row(
        make=lambda: _pit(distilled=True),
        reads=(0, 1),
        prefix=2,
        grid=(1, 2),
        size=(40, 64),
        prefix_apart=True,
        checkpoints=False,
        groups=False,
    ),
    "tnt": Row(make=_tnt, reads=0, part=1, grid=(4, 6), size=(32, 48)),
    "crossvit": Row(make=_crossvit, reads=0, **BRANCH, grid=(4, 6), size=(32, 48), layers=2),
    "coat": Row(make=lambda: _coat(parallel_depth=2), reads=0, **BRANCH, grid=(2, 3), size=(64, 96), layers=6),
    "coat_lite": Row(make=_coat, reads=0, **(BRANCH | {"rest": True}), grid=(2, 3), size=(64, 96), layers=4),
    "hrnet": Row(
        make=_hrnet,
        reads=MeanOf(),
        **(MAP | BRANCH | {"rest": True, "layers": 5, "intermediates": False}),
    ),
    "mobilenetv5": Row(
        make=_mobilenetv5,
        reads=MeanOf(),
        **(MAP | {"grid": (2, 2), "checkpoints": False, "intermediates": False}),
    ),
    "efficientvim": Row(make=_efficientvim, **(MAP | {"layers": 3, "rest": False, "grid": (2, 2), "size": (128, 128)})),
    "deepseek": Row(make=lambda: tower("deepseek", "Classifier", num_classes=7), **TOWER),
    "qwen3": Row(make=lambda: tower("qwen3", "Classifier", num_classes=7), reads=MeanOf(), **TOWER),
    "qwen3_merge": Row(
        make=lambda: tower("qwen3", "Classifier", num_classes=7, encoder_pool="merge", out_features=40),
        **(TOWER | {"rest": False}),
    ),
    "gemma4": Row(
        make=lambda: tower("gemma4", "Classifier", num_classes=7), reads=MeanOf(), **(TOWER | {"knows_grid": False})
    ),
    "torchvision": Row(make=_torchvision, reads=0, timm=False),
    "videomae": Row(make=make_videomae, reads=MeanOf(), prefix=0, grid=(2, 2, 3), size=(4, 16, 24), timm=False),
    "frames": Row(make=make_frames, reads=0, samples=3, size=(3, 32, 32), **NO_TIMM),
    "hf_vit": Row(make=lambda: hf("ViTModel", False), **NO_TIMM),
    "hf_vit_classifier": Row(make=lambda: hf("ViTForImageClassification"), reads=0, timm=False),
    "hf_deit": Row(make=lambda: hf("DeiTModel", False), prefix=2, **NO_TIMM),
    "hf_deit_classifier": Row(make=lambda: hf("DeiTForImageClassification"), reads=0, prefix=2, timm=False),
    "hf_dinov2": Row(make=lambda: hf("Dinov2Model", False), **NO_TIMM),
    "hf_dinov2_classifier": Row(make=lambda: hf("Dinov2ForImageClassification"), timm=False),
    "hf_dinov2_registers": Row(make=lambda: hf("Dinov2WithRegistersModel", False), prefix=5, **NO_TIMM),
    "hf_registers_classifier": Row(make=lambda: hf("Dinov2WithRegistersForImageClassification"), prefix=5, timm=False),
    "hf_dinov3": Row(make=lambda: hf("DINOv3ViTModel", False, num_register_tokens=4), prefix=5, **NO_TIMM),
    "hf_siglip": Row(make=lambda: hf("SiglipVisionModel", False), prefix=0, **NO_TIMM),
    "hf_siglip_classifier": Row(make=lambda: hf("SiglipForImageClassification"), prefix=0, **NO_TIMM),
    "hf_clip": Row(make=lambda: hf("CLIPVisionModel", False), **NO_TIMM),
    "hf_clip_projection": Row(make=lambda: hf("CLIPVisionModelWithProjection", False), **NO_TIMM),
    "hf_clip_classifier": Row(make=lambda: hf("CLIPForImageClassification"), reads=MeanOf(slice(1, None)), timm=False),
}


OLD_TIMM = numbers(timm.__version__) < (1, 0, 31)
"""Whether timm is older than that of requirements/constraints.txt."""


def make_host(name: str) -> nn.Module:
    """The host of a row in eval mode, its weights and running statistics random.

    A test of what an older timm than that of requirements/constraints.txt cannot make is skipped.
    """
    torch.manual_seed(5)
    try:
        model = randomise_(ROWS[name].make(), seed=5)
    except (TypeError, RuntimeError) as error:
        if not OLD_TIMM:
            raise
        pytest.skip(f"timm {timm.__version__} is older than {name}: {error}")
    generator = torch.Generator().manual_seed(6)
    for key, buffer in model.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            noise = torch.rand(buffer.shape, generator=generator)
            buffer.copy_(noise if key.endswith("mean") else 0.5 + noise)
    return model.eval()


def pictures(name: str, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images (B, 3, H, W), or clips (B, 3, T, H, W), of a row's size."""
    return torch.randn(batch, 3, *ROWS[name].size, generator=torch.Generator().manual_seed(11)).to(dtype)


def tensors_of(output: Any) -> list[Tensor]:
    """Floating tensors of a model's output, whatever its kind."""
    leaves = torch.utils._pytree.tree_leaves(dict(output) if hasattr(output, "to_tuple") else output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
