"""One small model of each of timm's model modules, and the table of them in docs/timm.md. Not a test file itself.

`python tests/timm_modules.py table` prints the table, to be pasted between the marks; with `all` or names of modules
each model is grafted, run forward and backward, and ungrafted.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

import lmgraft
from lmgraft.contracts import Host, MeanOf, map_axes
from lmgraft.graft.hosts import find_host
from tiny import random_block

VERSION = "1.0.31"
"""The version of timm that the table is of."""

VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3}
TOWER = VIT | {"img_size": 96, "embed_dim": 48}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", VIT),
    "byoanet": ("halonet_h1", {}),
    "byobnet": ("test_byobnet", {}),
    "cait": ("cait_xxs24_224", {"depth": 2}),
    "coat": ("coat_tiny", {"serial_depths": (1, 1, 1, 1), "parallel_depth": 2, "img_size": 64}),
    "convit": ("convit_tiny", {"depth": 3, "local_up_to_layer": 2}),
    "convmixer": ("convmixer_768_32", {}),
    "convnext": ("test_convnext", {}),
    "cpubone": ("cpubone_nano", {}),
    "crossvit": ("crossvit_tiny_240", {"depth": ((1, 1, 0), (1, 1, 0))}),
    "csatv2": ("csatv2", {}),
    "cspnet": ("cs3darknet_focus_s", {}),
    "cspnext": ("cspnext_tiny", {}),
    "davit": ("davit_tiny", {"depths": (1, 1), "embed_dims": (24, 48), "num_heads": (2, 4)}),
    "deepseek_vit": ("deepseek_vit_412m", TOWER | {"img_size": 84}),
    "deit": ("deit_tiny_distilled_patch16_224", VIT),
    "densenet": ("densenet121", {"block_config": (1, 1, 1, 1)}),
    "dla": ("dla46x_c", {}),
    "dpn": ("dpn48b", {}),
    "edgenext": ("edgenext_xx_small", {}),
    "efficientformer": ("efficientformer_l1", {}),
    "efficientformer_v2": ("efficientformerv2_s0", {}),
    "efficientnet": ("test_efficientnet", {}),
    "efficientvim": ("efficientvim_m1", {"depths": (1, 1, 1), "embed_dim": (24, 32, 48)}),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "efficientvit_msra": ("efficientvit_m0", {}),
    "eva": ("eva02_tiny_patch14_224", VIT),
    "fasternet": ("fasternet_t0", {}),
    "fastvit": ("fastvit_t8", {}),
    "focalnet": ("focalnet_tiny_srf", {}),
    "gcvit": ("gcvit_xxtiny", {}),
    "gemma4_vit": (
        "gemma4_vit_167m",
        TOWER | {"head_dim": 16, "intermediate_size": 64, "position_embedding_size": 64},
    ),
    "ghostnet": ("ghostnet_050", {}),
    "hardcorenas": ("hardcorenas_a", {}),
    "hgnet": ("hgnetv2_b0", {}),
    "hiera": ("hiera_tiny_224", {"embed_dim": 24, "stages": (1, 1, 1, 1)}),
    "hieradet_sam2": ("sam2_hiera_tiny", {"embed_dim": 24, "num_heads": 1, "stages": (1, 1, 1, 1)}),
    "hrnet": ("hrnet_w18_small", {}),
    "iformer": ("iformer_t", {}),
    "inception_next": ("inception_next_atto", {}),
    "inception_resnet_v2": ("inception_resnet_v2", {}),
    "inception_v3": ("inception_v3", {}),
    "inception_v4": ("inception_v4", {}),
    "lcnetv2": ("lcnetv2_small", {}),
    "levit": ("levit_128s", {}),
    "lowformer": ("lowformer_b0", {}),
    "mambaout": ("test_mambaout", {}),
    "maxxvit": ("test_coatnet", {}),
    "metaformer": ("poolformer_s12", {}),
    "mlp_mixer": ("gmlp_ti16_224", {}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "mobilenetv5": ("mobilenetv5_base", {"channel_multiplier": 0.1}),
    "mobilevit": ("mobilevit_xxs", {}),
    "mvitv2": ("mvitv2_tiny", {}),
    "naflexvit": ("naflexvit_base_patch16_gap", VIT),
    "nasnet": ("nasnetalarge", {}),
    "nest": ("nest_tiny", {}),
    "nextvit": ("nextvit_small", {}),
    "nfnet": ("test_nfnet", {}),
    "pit": ("pit_ti_224", {"depth": (1, 1, 1)}),
    "pnasnet": ("pnasnet5large", {}),
    "pvt_v2": ("pvt_v2_b0", {}),
    "qwen3_vit": ("qwen3_vit_88m", TOWER),
    "rdnet": ("rdnet_tiny", {}),
    "regnet": ("regnetx_002", {}),
    "repghost": ("repghostnet_050", {}),
    "repvit": ("repvit_m1", {}),
    "res2net": ("res2net50_14w_8s", {"layers": (1, 1, 1, 1)}),
    "resnest": ("resnest14d", {}),
    "resnet": ("test_resnet", {}),
    "resnetv2": ("resnetv2_18", {"layers": (1, 1, 1, 1)}),
    "rexnet": ("rexnet_100", {}),
    "selecsls": ("selecsls42", {}),
    "senet": ("legacy_seresnet18", {"layers": (1, 1, 1, 1)}),
    "sequencer": ("sequencer2d_s", {"layers": (1, 1, 1, 1)}),
    "shvit": ("shvit_s1", {}),
    "sknet": ("skresnet18", {"layers": (1, 1, 1, 1)}),
    "starnet": ("starnet_s050", {}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2)}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", {"embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2)}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {"embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2)}),
    "tiny_vit": ("tiny_vit_5m_224", {}),
    "tnt": ("tnt_s_legacy_patch16_224", {"depth": 2}),
    "tresnet": ("tresnet_m", {"layers": (1, 1, 1, 1)}),
    "twins": ("twins_svt_small", {"depths": (2, 2, 2, 1)}),
    "vgg": ("vgg11", {}),
    "visformer": ("visformer_tiny", {}),
    "vision_transformer": ("test_vit", {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", VIT),
    "vision_transformer_relpos": ("test_vit_relpos", {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", VIT | {"global_attn_indexes": (1,), "num_heads": 3}),
    "vitamin": ("vitamin_small_224", {}),
    "volo": ("volo_d1_224", {}),
    "vovnet": ("ese_vovnet19b_slim_dw", {}),
    "xception": ("legacy_xception", {}),
    "xception_aligned": ("xception41p", {}),
    "xcit": ("xcit_nano_12_p8_224", {"depth": 2}),
}
"""Module of `timm.models` -> a model of it and arguments that make it smaller."""


PAST = {
    "coat": "class tokens of the scales before",
    "crossvit": "class token of the branch of small patches",
    "efficientvim": "hidden states of all stages",
}
"""What else the head reads, which passes the graft by at the tail."""


def make(module: str, device: str = "cpu") -> nn.Module:
    """Create the model of a module, in eval mode, with random weights; on "meta" it has none."""
    name, kwargs = SMALL[module]
    torch.manual_seed(0)
    with warnings.catch_warnings(), torch.device(device):
        warnings.simplefilter("ignore")
        model: nn.Module = timm.create_model(name, num_classes=7, **kwargs)
    if device == "cpu":
        for parameter in (p for p in model.parameters() if not p.any()):
            nn.init.normal_(parameter, std=0.02)  # a head of zeros hides what it reads
    return model.eval()


def images_for(model: Any, module: str, device: str = "cpu") -> Tensor:
    """Two images (2, 3, H, W) in [0, 1], of the size that the model was built for."""
    side = SMALL[module][1].get("img_size", model.default_cfg["input_size"][-1])
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)).to(device)


@torch.no_grad()
def row_of(module: str) -> str:
    """The line of the table for a module, from its model without weights."""
    model: Any = make(module, "meta")
    host, outputs = find_host(model), []
    assert host is not None, module
    last = model.get_submodule(host.layers[-1])
    last.register_forward_hook(lambda *call: outputs.append(host.output.take(call[-1])))
    model(images_for(model, module, "meta"))
    (tokens,) = outputs
    axes = map_axes(tokens, host.axes, host.embed_dim)
    assert axes is not None, (module, tokens.shape)
    prefix = host.layout.num_prefix_tokens
    lies = {"tokens": "(B, T, V)", "NHWC": "map (B, H, W, V)", "NCHW": "map (B, V, H, W)"}[axes]
    lies += f", {prefix} before the patches" if prefix else ""
    cells = [
        f"`{module}`",
        f"`{SMALL[module][0]}`",
        f"`{host.layers[-1]}`",
        lies,
        "the mean" if isinstance(reads := host.reads(model, (), {}), MeanOf) else WORDS[reads],
        "yes" if host.head_from_tokens is not None else "no",
        PAST.get(module, ""),
    ]
    return f"| {' | '.join(cells)} |"


WORDS: dict[Any, str] = {None: "all", 0: "0", (0, 1): "0 and 1"}
HEADER = [
    "| module | for instance | tail: behind | what lies there | the head reads | `rest` | and past the graft |",
    "|---|---|---|---|---|---|---|",
]


def table() -> str:
    """The table of docs/timm.md."""
    return "\n".join([*HEADER, *(row_of(module) for module in SMALL)])


class Trial(NamedTuple):
    """What became of a graft at the tail of a model."""

    undone: bool
    """Whether the output after `ungraft` is that of before, bit for bit."""
    trained: bool
    """Whether both mappers got a gradient."""
    past: bool
    """Whether the output depends on the images when what lies at the tail is held fixed."""


def trial(module: str) -> Trial:
    """Graft, run forward and backward, and ungraft the model of a module, on the CPU."""
    model: Any = make(module)
    x, host = images_for(model, module), find_host(model)
    assert host is not None
    with torch.no_grad():
        plain = model(x)
        past = _passes_by(model, host, x)
    lmgraft.graft(model, random_block())
    mappers = [model.graft.mapper_in.weight, model.graft.mapper_out.weight]
    gradients = torch.autograd.grad(model(x).square().sum(), mappers)
    with torch.no_grad():
        undone = torch.equal(lmgraft.ungraft(model)(x), plain)
    return Trial(undone, all(bool(g.any()) for g in gradients), past)


def _passes_by(model: Any, host: Host, x: Tensor) -> bool:
    held: list[Any] = []

    def hold(module: nn.Module, args: Any, output: Any) -> Any:
        held.append(host.output.take(output).clone())
        return host.output.put(output, held[0])

    handle = model.get_submodule(host.layers[-1]).register_forward_hook(hold)
    same = torch.equal(model(x), model(x.flip(0, 2)))
    handle.remove()
    return not same


if __name__ == "__main__":
    asked = sys.argv[1:]
    if asked == ["table"]:
        sys.stdout.write(table() + "\n")
    else:
        for module in SMALL if asked == ["all"] else asked:
            sys.stdout.write(f"{module} {trial(module)}\n")
