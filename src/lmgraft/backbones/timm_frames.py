"""Any of timm's image models on the frames of a clip, each by itself; the clip's logits are their mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lmgraft.backbones.own_path import is_own
from lmgraft.backbones.timm_vit import create as create_timm
from lmgraft.contracts import Host, Reads
from lmgraft.errors import HostError
from lmgraft.registry import find_adapter

_BEFORE_BLOCKS = ("patch_embed", "cls_token", "reg_token", "dist_token", "pos_embed", "norm_pre")
"""What timm's transformers have before their first layer."""


class FrameEncoder(nn.Module):
    """Clips (B, C, T, H, W) -> the mean over T of an image model's outputs.

    What happens between frames is not seen: a clip and its reverse in time are one to it.

    Args:
        encoder: (B, C, H, W) -> (B, num_classes).
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.encoder(x.transpose(1, 2).flatten(0, 1))
        return out.view(x.shape[0], x.shape[2], -1).mean(1)


def create(name: str, kwargs: dict[str, Any]) -> FrameEncoder:
    """timm's model of this name on frames; `num_frames` is taken and not needed.

    Raises:
        HostError: As timm's own factory.
    """
    return FrameEncoder(create_timm(name, {key: value for key, value in kwargs.items() if key != "num_frames"}))


def describe(model: FrameEncoder) -> Host:
    """The image model's description, its paths below `encoder`; a sample of the block is a frame.

    Raises:
        HostError: If lmgraft has no adapter for the image model.
    """
    host = _host(model.encoder)
    if host is None:
        raise HostError(
            f"{type(model.encoder).__qualname__} is no image encoder that lmgraft knows", "see docs/hosts.md"
        )
    exempt = getattr(model.encoder, "no_weight_decay", lambda: host.no_weight_decay)()
    before = host.embedding_paths or tuple(name for name in _BEFORE_BLOCKS if hasattr(model.encoder, name))
    return replace(
        host,
        layers=tuple(f"encoder.{path}" for path in host.layers),
        first=None if host.first is None else f"encoder.{host.first}",
        embedding_paths=tuple(f"encoder.{path}" for path in before),
        no_weight_decay=tuple(sorted(f"encoder.{name}" for name in exempt)),
        reads=reads_of_frames,
        head_from_tokens=None,
    )


def reads_of_frames(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """What the image model's head reads of each frame."""
    host = _host(model.encoder)
    own = host is not None and is_own(model, FrameEncoder, ("forward",))
    return host.reads(model.encoder, args, kwargs) if host is not None and own else None


def _host(encoder: nn.Module) -> Host | None:
    adapter = find_adapter(encoder)
    return None if adapter is None else adapter(encoder)
