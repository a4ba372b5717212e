"""The two encoders that METER fuses, each from words of a recipe: one of images, one of texts.

Made from configurations alone; `meter_weights.py` loads what is pretrained. Code from the Hub is never run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.backbones.refusals import in_seconds, in_words
from lmgraft.backbones.timm_vit import create as create_timm
from lmgraft.checkpoint.text_folders import text_source
from lmgraft.contracts import TokenLayout
from lmgraft.errors import HostError
from lmgraft.registry import find_adapter, suggest
from lmgraft.versions import optional

_ASKER = "backbone.factory=meter"
_REMEDY = "a repository that can be reached, a folder with config.json, or fields of a configuration"


class VisionTower(nn.Module):
    """An image encoder and which of its tokens are fused: images (B, 3, H, W) -> (B, T, V).

    Args:
        model: The encoder.
        tokens: From the encoder and images to tokens; a module-level function.
        img_size: Height and width of the images.
        embed_dim: V.
        layout: How the tokens lie.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: Callable[[Any, Tensor], Tensor],
        img_size: tuple[int, int],
        embed_dim: int,
        layout: TokenLayout,
    ) -> None:
        super().__init__()
        self.model, self.tokens = model, tokens
        self.img_size, self.embed_dim, self.layout = img_size, embed_dim, layout

    def forward(self, images: Tensor) -> Tensor:
        """Tokens of images.

        Raises:
            HostError: If the images are of another size.
        """
        if tuple(images.shape[2:]) != self.img_size:
            raise HostError(
                f"images {tuple(images.shape)}, and this model takes (B, C, {self.img_size[0]}, {self.img_size[1]})",
                "give img_size of the data: positions are counted by patch",
            )
        return self.tokens(self.model, images)


def make_vision(words: Mapping[str, Any], img_size: tuple[int, int]) -> VisionTower:
    """The vision tower.

    Args:
        words: `factory`, a name in `VISION`, "clip" if there is none; the rest goes to that row.
        img_size: Height and width of the images.

    Raises:
        HostError: If there is no such factory, or it refuses its words.
    """
    given = dict(words)
    factory = given.pop("factory", "clip")
    if factory not in VISION:
        raise HostError(f"backbone.kwargs.vision.factory={factory!r} makes no vision tower", suggest(factory, VISION))
    return VISION[factory](given, img_size)


def make_clip(words: Mapping[str, Any], img_size: tuple[int, int]) -> VisionTower:
    """CLIP's vision transformer without its last layer, its final norm on all tokens and no projection.

    Args:
        words: `name`, a Hub repository or folder whose config.json is taken; else, or besides, fields of transformers'
            CLIPVisionConfig. `num_hidden_layers` counts the last layer too.
        img_size: Square, in whole patches.
    """
    transformers = optional("transformers", "transformers", _ASKER)
    fields = dict(words)
    name = fields.pop("name", None)
    config = transformers.CLIPVisionConfig() if name is None else _config_of(name)
    config = getattr(config, "vision_config", config)
    if not isinstance(config, transformers.CLIPVisionConfig):
        raise HostError(f"{name!r} is of model_type {config.model_type!r}", "give a CLIP, or vision.factory timm")
    _set(config, fields, "vision")
    size, patch = img_size[0], config.patch_size
    if img_size != (size, size) or size % patch:
        raise HostError(
            f"images of {img_size[0]} x {img_size[1]} pixels are no square of CLIP's patches of {patch}",
            "change data.img_size, or patch_size in backbone.kwargs.vision",
        )
    config.image_size = size
    config.num_hidden_layers -= 1
    with in_words("CLIP's vision transformer cannot be made", "check backbone.kwargs.vision", pretrained=False):
        model = transformers.CLIPVisionModel(config)
    layout = TokenLayout(num_prefix_tokens=1, grid=(size // patch, size // patch))
    return VisionTower(model, clip_tokens, img_size, config.hidden_size, layout)


def clip_tokens(model: Any, images: Tensor) -> Tensor:
    """All tokens of CLIP's layers behind the norm that CLIP itself has for the class token."""
    tokens: Tensor = model.post_layernorm(model(pixel_values=images).last_hidden_state)
    return tokens


def make_timm(words: Mapping[str, Any], img_size: tuple[int, int]) -> VisionTower:
    """Any of timm's vision transformers, whole: all its tokens behind its norm.

    Args:
        words: `name`, and other arguments of `timm.create_model`.
        img_size: Height and width of the images.
    """
    arguments: dict[str, Any] = {"num_classes": 0, "global_pool": "", "img_size": img_size} | dict(words)
    name = arguments.pop("name", None)
    if name is None:
        raise HostError("backbone.kwargs.vision has no name", "vision: {factory: timm, name: vit_tiny_patch16_224}")
    model = create_timm(name, arguments)
    adapter = find_adapter(model)
    host = None if adapter is None else adapter(model)
    if host is None or host.axes != "tokens":
        raise HostError(f"timm's {name!r} gives no tokens (B, T, V) to be fused", "take a vision transformer")
    return VisionTower(model, timm_tokens, img_size, host.embed_dim, host.layout)


def timm_tokens(model: Any, images: Tensor) -> Tensor:
    """What timm calls the features of a model."""
    tokens: Tensor = model.forward_features(images)
    return tokens


VISION: dict[str, Callable[[Mapping[str, Any], tuple[int, int]], VisionTower]] = {"clip": make_clip, "timm": make_timm}
"""What `vision.factory` says -> the function that makes the tower of its words and the size of images."""


def make_text(words: Mapping[str, Any], vocab: Mapping[str, Any] | None, max_text_len: int) -> nn.Module:
    """The text tower: any encoder of transformers, without its pooler, which nothing reads.

    Args:
        words: `name`, a Hub repository or folder whose config.json is taken, or `model_type`; and fields of that
            configuration.
        vocab: `vocab_size` and `pad_token_id` of the data's tokenizer; where neither `name` nor `words` say these, the
            tower is made with them.
        max_text_len: Tokens of the longest text.

    Raises:
        HostError: If there is no such encoder, a field is unknown, or tokenizer or texts do not fit the tower.
    """
    transformers = optional("transformers", "transformers", _ASKER)
    fields, needed = dict(words), {name: value for name, value in (vocab or {}).items() if name != "tokenizer"}
    name, kind = fields.pop("name", None), fields.pop("model_type", None)
    if (name is None) == (kind is None):
        raise HostError(
            "backbone.kwargs.text names no encoder, or two", "give name or model_type: text: {model_type: bert, ...}"
        )
    if kind is not None and kind not in transformers.CONFIG_MAPPING:
        raise HostError(f"transformers has no model_type {kind!r}", suggest(kind, transformers.CONFIG_MAPPING.keys()))
    config = _config_of(name) if name else transformers.AutoConfig.for_model(kind)
    if config.is_encoder_decoder or type(config) not in transformers.MODEL_FOR_MASKED_LM_MAPPING:
        raise HostError(
            f"{name or kind!r} is no encoder that reads a text both ways", "take BERT, RoBERTa, MiniLM, ..."
        )
    _set(config, fields if name else needed | fields, "text")
    _check_vocab(name or kind, config, needed)
    with in_words(f"{name or kind!r} cannot be made", "check backbone.kwargs.text", pretrained=False):
        tower: Any = transformers.AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    if hasattr(tower, "pooler"):
        tower.pooler = None
    # RoBERTa and its kind count positions from behind that of padding.
    skipped = getattr(getattr(tower, "embeddings", None), "padding_idx", -1) + 1
    positions = getattr(config, "max_position_embeddings", max_text_len + skipped) - skipped
    if max_text_len > positions:
        raise HostError(
            f"texts of {max_text_len} tokens, and the text encoder {name or kind!r} has {positions} positions",
            "lower max_text_len, or take another encoder",
        )
    made: nn.Module = tower
    return made


def _check_vocab(name: str, config: Any, needed: Mapping[str, int]) -> None:
    """Refuse a tokenizer that does not belong to the encoder.

    Raises:
        HostError: Naming both.
    """
    remedy = "take the tokenizer of this encoder, or leave vocab_size and pad_token_id out of backbone.kwargs.text"
    words, padding = needed.get("vocab_size", 0), needed.get("pad_token_id", config.pad_token_id)
    if words > config.vocab_size:
        raise HostError(
            f"the data's tokenizer has {words} words, the text encoder {name!r} embeds {config.vocab_size}", remedy
        )
    if padding != config.pad_token_id:
        raise HostError(
            f"the data's tokenizer pads with {padding}, the text encoder {name!r} with {config.pad_token_id}", remedy
        )


def check_tokenizer(vocab: Mapping[str, Any] | None, source: str) -> None:
    """Refuse words that the data number anew for a pretrained encoder, and say where another tokenizer is taken.

    Args:
        vocab: The data's tokenizer: its `tokenizer` is the name.
        source: Where the encoder's weights come from.

    Raises:
        HostError: If the data's tokenizer is made of the training texts.
    """
    tokenizer = (vocab or {}).get("tokenizer", source)
    if tokenizer == "words":
        raise HostError(
            f"the text encoder is pretrained ({source}), and data.tokenizer=words numbers words in an order of its own",
            f"give the encoder's tokenizer: data.tokenizer={source}",
        )
    if tokenizer != source:
        sys.stderr.write(
            f"note: data.tokenizer={tokenizer}, the text encoder is {source}: both must number words alike\n"
        )


def _config_of(name: str) -> Any:
    from transformers import AutoConfig

    with in_words(f"there is no configuration {name!r}", f"give {_REMEDY}", pretrained=False), in_seconds(name):
        return AutoConfig.from_pretrained(text_source(name), trust_remote_code=False)


def _set(config: Any, fields: Mapping[str, Any], tower: str) -> None:
    unknown = sorted(field for field in fields if not hasattr(config, field))
    if unknown:
        raise HostError(
            f"{type(config).__name__} has no {', '.join(unknown)}",
            f"check backbone.kwargs.{tower}; weights are asked for by backbone.kwargs.pretrained"
            if "pretrained" in unknown
            else f"check backbone.kwargs.{tower}",
        )
    for field, value in fields.items():
        setattr(config, field, value)
