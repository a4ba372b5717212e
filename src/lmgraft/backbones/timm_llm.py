"""This module describes timm's vision towers of multimodal LLMs as hosts: DeepSeek's, Qwen3's and Gemma 4's.

Each comes as an encoder, which ends in the projector that feeds its LLM, in a mean, or in its tokens; and as
a classifier around such an encoder. Blocks give tokens (B, T, V) row by row; DeepSeek's and Qwen3's encoders
fold them to (B, H, W, V) only behind the last one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lmgraft.backbones.own_path import TIMM_PATH, is_own, timm_class
from lmgraft.contracts import Host, MeanOf, Reads, TokenLayout, unseen_keys

_ENCODERS = ("DeepseekVitEncoder", "Qwen3VitEncoder", "Gemma4VitEncoder")
_CLASSIFIERS = ("DeepseekVitClassifier", "Qwen3VitClassifier", "Gemma4VitClassifier")


def describe_encoder(model: Any) -> Host:
    """Describe an encoder by itself."""
    return _host(model, model, "")


def describe_classifier(model: Any) -> Host:
    """Describe a classifier around an encoder, with a projector in between or without."""
    return _host(model, model.encoder, "encoder.")


def _host(model: Any, encoder: Any, prefix: str) -> Host:
    grid = getattr(encoder.patch_embed, "grid_size", None)
    return Host(
        embed_dim=encoder.embed_dim,
        layers=tuple(f"{prefix}blocks.{i}" for i in range(len(encoder.blocks))),
        layout=TokenLayout(num_prefix_tokens=0, grid=None if grid is None else tuple(grid)),
        mapper_init="trunc_normal",
        reads=reads_of_mean,
        padding_mask=padding_of_mask,
        head_from_tokens=norm_and_head if prefix and _is_own(model) and encoder.global_pool in ("", "none") else None,
    )


def _is_own(model: Any) -> bool:
    """Return whether the methods of a model, and of the encoder in it, are those that timm wrote for them."""
    cls = timm_class(model, *_ENCODERS, *_CLASSIFIERS)
    inner = not hasattr(model, "encoder") or _is_own(model.encoder)
    return inner and is_own(model, cls, TIMM_PATH)


def reads_of_mean(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return the mean, where it is taken of the tokens as the blocks give them.

    Not behind DeepSeek's norm, not behind a projector, and not where Gemma's mean may leave padded patches out.
    """
    if is_padded(args, kwargs):
        return None
    encoder = getattr(model, "encoder", model)
    means = model.global_pool == "avg" and (encoder is model or encoder.global_pool in ("", "none"))
    normed = not isinstance(getattr(encoder, "norm", None), nn.Identity | None)
    return MeanOf() if means and not normed and _is_own(model) else None


def is_padded(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call of the model gives more than images."""
    return len(args) + len(kwargs) > 1 or not all(isinstance(x, Tensor) for x in (*args, *kwargs.values()))


def padding_of_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the patches that nobody may see by Gemma's `attn_mask`; checkpointing passes it by position."""
    return unseen_keys(args[3] if len(args) > 3 else kwargs.get("attn_mask"))


def norm_and_head(model: Any, tokens: Tensor) -> Any:
    """Run the encoder's norm, where it has one, and the head."""
    norm = getattr(model.encoder, "norm", None)
    return model.forward_head(tokens if norm is None else norm(tokens))
