"""torchvision's VisionTransformer described as a host; and torchvision's factory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import Encoder, VisionTransformer

from lmgraft.backbones.own_path import is_own
from lmgraft.backbones.refusals import construct, in_words
from lmgraft.contracts import Host, Reads, TokenLayout
from lmgraft.errors import HostError


def create(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """`torchvision.models.get_model` in timm's words: `num_classes`, `img_size`, `in_chans`, `pretrained`.

    A pretrained model of another number of classes gets a new head, if it is a VisionTransformer.

    Raises:
        HostError: If torchvision knows no such model or refuses the arguments; if pretrained weights
            cannot be fetched or do not fit.
    """
    options = dict(kwargs)
    if options.pop("in_chans", 3) != 3:
        raise HostError(f"torchvision's {name!r} takes images of 3 channels", "use a timm or transformers backbone")
    if name not in torchvision.models.list_models(module=torchvision.models):
        near = [n for n in torchvision.models.list_models(module=torchvision.models) if n.startswith(name[:3])]
        raise HostError(f"torchvision has no classifier {name!r}", f"for instance {', '.join(near)}" if near else "")
    pretrained, classes = options.pop("pretrained", False), options.pop("num_classes", 1000)
    if name.startswith("vit_"):
        options["image_size"] = options.pop("img_size", 224)
    else:
        options.pop("img_size", None)
    options |= {"weights": "DEFAULT"} if pretrained else {"num_classes": classes}
    if pretrained:
        remedy = (
            "--backbone.kwargs.pretrained false trains from scratch; a file of your own is found in "
            "hub/checkpoints under the folder that TORCH_HOME names"
        )
        with in_words(f"no pretrained weights of torchvision's {name!r}", remedy, pretrained=True):
            model = _made(name, options, pretrained=True)
    else:
        model = _made(name, options, pretrained=False)
    if pretrained and classes != 1000:
        if not isinstance(model, VisionTransformer):
            raise HostError(f"the pretrained {name!r} has 1000 classes, not {classes}", "use a ViT, or timm")
        model.heads.head = nn.Linear(model.heads.head.in_features, classes)
    return model


def _made(name: str, options: dict[str, Any], pretrained: bool) -> nn.Module:
    make = partial(torchvision.models.get_model, name)
    model: nn.Module = construct(make, f"torchvision's {name!r}", options, (RuntimeError,) if pretrained else ())
    return model


def describe(model: VisionTransformer) -> Host:
    """Class token first, and the head reads nothing else."""
    side = model.image_size // model.patch_size
    own = is_own(model, VisionTransformer, ("forward",)) and is_own(model.encoder, Encoder, ("forward",))
    return Host(
        embed_dim=model.hidden_dim,
        layers=tuple(f"encoder.layers.{name}" for name, _ in model.encoder.layers.named_children()),
        embedding_paths=("conv_proj", "class_token", "encoder.pos_embedding"),
        no_weight_decay=("class_token", "encoder.pos_embedding"),
        layout=TokenLayout(num_prefix_tokens=1, grid=(side, side)),
        reads=reads_class_token,
        head_from_tokens=norm_and_head if own else None,
    )


def reads_class_token(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Token 0, as `forward` is written."""
    own = is_own(model, VisionTransformer, ("forward",)) and is_own(model.encoder, Encoder, ("forward",))
    return 0 if own else None


def norm_and_head(model: Any, tokens: Tensor) -> Any:
    """What `forward` does behind the last encoder layer."""
    return model.heads(model.encoder.ln(tokens)[:, 0])
