"""transformers' ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP vision encoders, described as hosts.

Nothing of transformers is imported: the models at hand bring their classes. Its encoders return
`last_hidden_state`, all tokens; only some of its classifiers read less. It records hidden states by
forward hooks that the first call asking for them installs, so the graft goes before any hook there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.backbones.own_path import is_own
from lmgraft.contracts import Host, MeanOf, Reads, TokenLayout, unseen_keys
from lmgraft.errors import HostError

_ENCODERS = ("vision_model", "vit", "deit", "dinov2", "dinov2_with_registers")
"""Where the encoder lies in a model that wraps one; an encoder is a module with `embeddings`."""
_PREFIX = ("cls_token", "class_embedding", "distillation_token")
"""Single tokens before the patches, as attributes of `embeddings`."""
_UNDECAYED = (*_PREFIX, "register_tokens", "mask_token", "position_embedding")
"""Beginnings of the names in `embeddings` that timm's lists exempt from weight decay."""
_STEM = ("embeddings", "pre_layrnorm")
"""What lies before the first layer in an encoder; spelt so by CLIP."""
_LAYERS = ("layers", "encoder.layers", "encoder.layer", "model.layer", "layer")
"""Where the layers lie in an encoder, in one version of transformers or another."""


def describe(model: nn.Module) -> Host:
    """An encoder, or one with something on top that still returns all tokens: all are read."""
    path, encoder = _encoder(model)
    layers = next((name for name in _LAYERS if isinstance(_module(encoder, name), nn.ModuleList)), None)
    if layers is None:
        raise HostError(
            f"{type(encoder).__qualname__} has no list of layers that lmgraft knows", "name one with at='dotted.path'"
        )
    config: Any = encoder.config
    count = len(_module(encoder, layers))
    prefix = f"{path}." if path else ""
    tokens = [name for name, _ in encoder.embeddings.named_parameters() if name.startswith(_UNDECAYED)]
    return Host(
        embed_dim=config.hidden_size,
        layers=tuple(f"{prefix}{layers}.{i}" for i in range(count)),
        embedding_paths=tuple(prefix + name for name in _STEM if hasattr(encoder, name)),
        no_weight_decay=tuple(f"{prefix}embeddings.{name}" for name in tokens),
        layout=TokenLayout(
            num_prefix_tokens=sum(hasattr(encoder.embeddings, name) for name in _PREFIX)
            + getattr(config, "num_register_tokens", 0),
            grid=tuple(s // p for s, p in zip(_pair(config.image_size), _pair(config.patch_size), strict=True)),
        ),
        mapper_init="trunc_normal",
        padding_mask=padding_of_mask,
        run_before_existing_hooks=True,
    )


def describe_vit_classifier(model: nn.Module) -> Host:
    """ViTForImageClassification and DeiT's: the classifier reads the class token behind the encoder's norm."""
    return _classifier(model, reads_of_vit_classifier, head_of_vit_classifier)


def describe_dinov2_classifier(model: nn.Module) -> Host:
    """Dinov2ForImageClassification, with registers or without: it reads the class token and, behind a
    norm, all patches."""
    return _classifier(model, None, head_of_dinov2_classifier)


def describe_clip_classifier(model: nn.Module) -> Host:
    """CLIPForImageClassification: the mean over the patches, without a norm."""
    return _classifier(model, reads_of_clip_classifier, head_of_clip_classifier)


def _classifier(model: nn.Module, reads: Callable[..., Reads] | None, head: Callable[[Any, Tensor], Any]) -> Host:
    host = describe(model)
    host = host if reads is None else replace(host, reads=reads)
    return replace(host, head_from_tokens=head) if _is_as_written(model) else host


def asks_hidden_states(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call wants `hidden_states`; one with many positional arguments is taken to."""
    asked = kwargs.get("output_hidden_states")
    if asked is None:
        configs = (model.config, _encoder(model)[1].config)
        asked = any(getattr(config, "output_hidden_states", False) for config in configs)
    return bool(asked) or len(args) > 2


def padding_of_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Tokens that no query sees by the mask that transformers makes for its layers.

    Raises:
        HostError: If the mask is no tensor, as those of flex attention.
    """
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise HostError(f"an attention mask of type {type(mask).__name__}", 'use attn_implementation="sdpa"')
    # (B, T), of flash attention: 1 for a token that is there.
    return ~mask.bool() if mask.dim() == 2 else unseen_keys(mask)


def reads_of_vit_classifier(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Token 0, unless the call wants hidden states."""
    return None if asks_hidden_states(model, args, kwargs) or not _is_as_written(model) else 0


def reads_of_clip_classifier(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """The mean of all but token 0, unless the call wants hidden states; what the encoder makes of token 0 is
    thrown away."""
    return None if asks_hidden_states(model, args, kwargs) or not _is_as_written(model) else MeanOf(slice(1, None))


def head_of_vit_classifier(model: Any, tokens: Tensor) -> Any:
    """Norm, class token, classifier."""
    return _output(model, _encoder(model)[1].layernorm(tokens)[:, 0])


def head_of_dinov2_classifier(model: Any, tokens: Tensor) -> Any:
    """Norm; class token and mean of the patches; classifier."""
    encoder = _encoder(model)[1]
    normed = encoder.layernorm(tokens)
    patches = normed[:, 1 + getattr(encoder.config, "num_register_tokens", 0) :]
    return _output(model, normed[:, 0], patches.mean(1))


def head_of_clip_classifier(model: Any, tokens: Tensor) -> Any:
    """Mean of the patches, classifier."""
    return _output(model, tokens[:, 1:].mean(1))


def _output(model: Any, *pooled: Tensor) -> Any:
    from transformers.modeling_outputs import ImageClassifierOutput

    return ImageClassifierOutput(logits=model.classifier(torch.cat(pooled, dim=1)))


def _encoder(model: Any) -> tuple[str, Any]:
    """Path and module of the encoder in `model`, which may be the encoder itself."""
    for path in ("", *_ENCODERS):
        encoder = getattr(model, path, None) if path else model
        if isinstance(encoder, nn.Module) and hasattr(encoder, "embeddings"):
            return path, encoder
    raise HostError(f"{type(model).__qualname__} has no vision encoder that lmgraft knows", "name a layer with at=")


def _module(model: nn.Module, path: str) -> Any:
    module: Any = model
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _is_as_written(model: nn.Module) -> bool:
    """Whether model and encoder run transformers' own `forward`."""
    for module in (model, _encoder(model)[1]):
        library = next((c for c in type(module).__mro__ if c.__module__.startswith("transformers.models.")), None)
        if library is None or not is_own(module, library, ("forward",)):
            return False
    return True


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
