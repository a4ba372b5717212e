"""METER (Dou et al., arXiv 2111.02387): images and texts, encoded apart and fused by co-attention, and as a host.

Parameters of fusion and heads have the names of the published code; the towers are transformers' and timm's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.backbones.meter_towers import check_tokenizer, make_text, make_vision
from lmgraft.backbones.meter_weights import load_meter, load_towers
from lmgraft.backbones.own_path import is_own
from lmgraft.backbones.refusals import at_least_one, construct, one_of, shares
from lmgraft.contracts import Host, MeanOf, Reads, TokenLayout
from lmgraft.errors import HostError

MATCH_COLUMNS = ("rank", "no_match", "match")
"""What the columns of `Meter.match` are: the score that ranks, and the two logits of image-text matching."""
_EPS = 1e-12  # of the published fusion's norms: what transformers' RobertaConfig has where nothing is said
_UNSEEN = -1e4  # added to scores of padded words, as published; a text of padding alone gives no NaN
_TEXT, _IMAGE = 0, 1
"""Token types."""

_CLIP = {
    "factory": "clip",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
_TINY = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES: dict[str, dict[str, Any]] = {
    "meter": {"vision": {**_CLIP, "patch_size": 32}, "text": _ROBERTA},
    "meter_clip16": {"vision": {**_CLIP, "patch_size": 16}, "text": _ROBERTA},
    "meter_tiny": {
        "vision": {"factory": "clip", "patch_size": 16} | _TINY,
        "text": {"model_type": "bert"} | _TINY,
        "fusion_dim": 64,
        "fusion_layers": 2,
        "fusion_heads": 4,
    },
}
"""Name -> arguments of `Meter`. The published ones are CLIP ViT-B/32 and B/16 with roberta-base."""
_PUBLISHED_TEXT = "FacebookAI/roberta-base"
PUBLISHED = {
    "meter": {"vision": "openai/clip-vit-base-patch32", "text": _PUBLISHED_TEXT},
    "meter_clip16": {"vision": "openai/clip-vit-base-patch16", "text": _PUBLISHED_TEXT},
}
"""Name -> the Hub repositories of its towers' pretrained weights."""


class Attention(nn.Module):
    """Tokens (B, T, V) attend to a source (B, S, V); their sum with what comes of it is normed."""

    def __init__(self, dim: int, num_heads: int, drop_rate: float) -> None:
        super().__init__()
        self.num_heads, self.drop_rate = num_heads, drop_rate
        self.self = nn.ModuleDict({name: nn.Linear(dim, dim) for name in ("query", "key", "value")})
        self.output = Output(dim, dim, drop_rate)

    def forward(self, x: Tensor, source: Tensor, unseen: Tensor | None) -> Tensor:
        q, k, v = (
            self.self[name](tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for name, tokens in (("query", x), ("key", source), ("value", source))
        )
        dropout = self.drop_rate if self.training else 0.0
        scores = None if unseen is None else unseen.to(q.dtype)
        heads = F.scaled_dot_product_attention(q, k, v, scores, dropout)
        out: Tensor = self.output(heads.transpose(1, 2).flatten(2), x)
        return out


class Output(nn.Module):
    """The end of a branch: a linear map, dropout, and the norm of the sum with what the branch began from."""

    def __init__(self, width: int, dim: int, drop_rate: float) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(width, dim), nn.LayerNorm(dim, eps=_EPS)
        self.dropout = nn.Dropout(drop_rate)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dropout(self.dense(hidden)) + x)
        return out


class CrossLayer(nn.Module):
    """One fusion layer of one stream: attention to itself, to the other stream, and a feed-forward net."""

    def __init__(self, dim: int, num_heads: int, hidden: int, drop_rate: float) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads, drop_rate)
        self.crossattention = Attention(dim, num_heads, drop_rate)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(dim, hidden)})
        self.output = Output(hidden, dim, drop_rate)

    def forward(self, x: Tensor, other: Tensor, unseen: Tensor | None, unseen_other: Tensor | None) -> Tensor:
        """Tokens (B, T, V) of this stream; the other's (B, S, V); what is added to scores, None where all is seen."""
        x = self.attention(x, x, unseen)
        x = self.crossattention(x, other, unseen_other)
        out: Tensor = self.output(F.gelu(self.intermediate["dense"](x)), x)
        return out


class Pooler(nn.Module):
    """A linear map and tanh of one token (B, V)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)

    def forward(self, token: Tensor) -> Tensor:
        return torch.tanh(self.dense(token))


class Meter(nn.Module):
    """Images (B, 3, H, W), questions or captions (B, L) and their mask -> logits or scores.

    Args:
        vision: Words of the vision tower: `factory` ("clip" or "timm") and what that takes (`meter_towers`).
        text: Words of the text tower: `name` of a configuration, or `model_type`, and its fields; or only the name.
        head: "vqa" gives logits of answers, "matching" the columns `MATCH_COLUMNS` of each pair. As published,
            `rank_output` works on the fused 2V features and begins as the row of "match" in `itm_score`, which is
            frozen then; without a pre-trained file both are random.
        num_classes: Answers; of no account in "matching".
        img_size: Pixels a side, or height and width.
        max_text_len: Tokens of the longest text.
        text_vocab: `vocab_size`, `pad_token_id` and the name (`tokenizer`) of the data's tokenizer.
        fusion_dim, fusion_layers, fusion_heads, mlp_ratio: Of the fusion.
        drop_rate: Dropout in the fusion, of attention too; the towers have their own.
        init_std: Of the first weights of fusion and heads. At the published width of 768 METER's 0.02 gives a linear
            map a gain of 0.55; a narrow fusion needs more for as much, or its branches say next to nothing for long.

    Raises:
        HostError: If an argument does not fit.
    """

    def __init__(
        self,
        *,
        vision: Mapping[str, Any],
        text: Mapping[str, Any] | str,
        head: Literal["vqa", "matching"] = "vqa",
        num_classes: int = 3129,
        img_size: int | tuple[int, int] = 224,
        max_text_len: int = 50,
        text_vocab: Mapping[str, Any] | None = None,
        fusion_dim: int = 768,
        fusion_layers: int = 6,
        fusion_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.1,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        one_of("head", head, ("vqa", "matching"))
        at_least_one(fusion_dim=fusion_dim, fusion_layers=fusion_layers, fusion_heads=fusion_heads)
        at_least_one(num_classes=num_classes, max_text_len=max_text_len)
        shares(drop_rate=drop_rate)
        if fusion_dim % fusion_heads:
            raise HostError(
                f"{fusion_layers} fusion layers of {fusion_dim} in {fusion_heads} heads cannot be made",
                "change fusion_dim, fusion_layers or fusion_heads in backbone.kwargs",
            )
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.embed_dim, self.head, self.max_text_len = fusion_dim, head, max_text_len
        self.vision = make_vision(vision, (height, width))
        self.text = make_text(words_of(text), text_vocab, max_text_len)
        config: Any = self.text.config
        self.cross_modal_text_transform = nn.Linear(config.hidden_size, fusion_dim)
        self.cross_modal_image_transform = nn.Linear(self.vision.embed_dim, fusion_dim)
        self.token_type_embeddings = nn.Embedding(2, fusion_dim)
        layer = partial(CrossLayer, fusion_dim, fusion_heads, int(fusion_dim * mlp_ratio), drop_rate)
        self.cross_modal_image_layers = nn.ModuleList(layer() for _ in range(fusion_layers))
        self.cross_modal_text_layers = nn.ModuleList(layer() for _ in range(fusion_layers))
        self.cross_modal_image_pooler, self.cross_modal_text_pooler = Pooler(fusion_dim), Pooler(fusion_dim)
        pooled = 2 * fusion_dim
        if head == "vqa":
            self.vqa_classifier = nn.Sequential(
                nn.Linear(pooled, pooled), nn.LayerNorm(pooled), nn.GELU(), nn.Linear(pooled, num_classes)
            )
        else:
            self.itm_score = nn.ModuleDict({"fc": nn.Linear(pooled, 2)})
            self.rank_output = nn.Linear(pooled, 1)
        for name, module in self.named_children():
            if name not in ("vision", "text"):
                module.apply(partial(_draw, std=init_std))
        if head == "matching":
            self.rank_output.load_state_dict({name: t[1:] for name, t in self.itm_score["fc"].state_dict().items()})
            self.itm_score.requires_grad_(False)

    def encode_image(self, images: Tensor) -> Tensor:
        """Image tokens (B, T, V) before fusion, of images (B, 3, H, W).

        Raises:
            HostError: If the images are of another size than the model was made for.
        """
        tokens: Tensor = self.cross_modal_image_transform(self.vision(images))
        return tokens + self.token_type_embeddings.weight[_IMAGE]

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Text tokens (B, L, V) before fusion, of ids (B, L) and a mask that is 1 for words and 0 for padding.

        Raises:
            HostError: If the texts are longer than `max_text_len`.
        """
        if input_ids.shape[-1] > self.max_text_len:
            raise HostError(
                f"texts of {input_ids.shape[-1]} tokens, and this model takes {self.max_text_len}",
                "cut the texts, or raise max_text_len",
            )
        encoded = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        tokens: Tensor = self.cross_modal_text_transform(encoded)
        return tokens + self.token_type_embeddings.weight[_TEXT]

    def fuse(self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Fused features (B, 2V), the text's first, of encoded tokens and the texts' mask (B, L).

        Both streams of a layer read what the layer before gave. A graft computes here all tokens: only a call of the
        model, which takes encoded tokens too, says that the pooler reads one.
        """
        unseen = (1 - attention_mask[:, None, None, :].to(text_tokens.dtype)) * _UNSEEN
        text, image = text_tokens, image_tokens
        for text_layer, image_layer in zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True):
            text, image = text_layer(text, image, unseen, None), image_layer(image, text, None, unseen)
        read = image[:, 0] if self.vision.layout.num_prefix_tokens else image.mean(1)
        return torch.cat([self.cross_modal_text_pooler(text[:, 0]), self.cross_modal_image_pooler(read)], -1)

    def match(self, pooled: Tensor) -> Tensor:
        """Columns `MATCH_COLUMNS` (B, 3) from what `fuse` returns (B, 2V)."""
        return torch.cat([self.rank_output(pooled), self.itm_score["fc"](pooled)], -1)

    def forward(self, images: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, num_classes) of answers, or the columns (B, 3) of `match`.

        Args:
            images: (B, 3, H, W); or their tokens (B, T, V) by `encode_image`.
            input_ids: (B, L), or K texts of each image (B, K, L), which is encoded once; or their tokens by
                `encode_text`, with V behind L.
            attention_mask: (B, L) or (B, K, L), 1 for words and 0 for padding.

        Returns:
            Of K texts of each image (B, K, num_classes) or (B, K, 3).

        Raises:
            HostError: If the three do not belong together.
        """
        texts, mask = input_ids, attention_mask
        if mask.dim() not in (2, 3) or texts.shape[: mask.dim()] != mask.shape or len(images) != len(mask):
            raise HostError(
                f"images {tuple(images.shape)}, texts {tuple(texts.shape)} and a mask {tuple(mask.shape)}",
                "METER takes as many texts (B, L), or (B, K, L), as images (B, 3, H, W), and a mask like the texts",
            )
        items = mask.shape[:-1]
        image_tokens = images if images.dim() == 3 else self.encode_image(images)
        if mask.dim() == 3:
            image_tokens = image_tokens.repeat_interleave(mask.shape[1], 0)
            texts, mask = texts.flatten(0, 1), mask.flatten(0, 1)
        text_tokens = texts if texts.is_floating_point() else self.encode_text(texts, mask)
        pooled = self.fuse(image_tokens, text_tokens, mask)
        out: Tensor = self.vqa_classifier(pooled) if self.head == "vqa" else self.match(pooled)
        return out.view(*items, -1)


def _draw(module: nn.Module, std: float) -> None:
    """METER's first weights; norms begin as torch's."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def words_of(tower: Mapping[str, Any] | str) -> dict[str, Any]:
    """The words of a tower; a text alone is its name."""
    return {"name": tower} if isinstance(tower, str) else dict(tower)


def describe(model: Meter) -> Host:
    """The image stream of the fusion; "head" lies before its linear map to the fusion's width.

    The texts' stream has layers of its own beside these, so that the layers have no one order for `optim.layer_decay`
    (`optim.rates` are METER's way): `embedding_paths` is empty.
    """
    layout, layers = model.vision.layout, len(model.cross_modal_image_layers)
    return Host(
        embed_dim=model.embed_dim,
        layers=tuple(f"cross_modal_image_layers.{i}" for i in range(layers)),
        first="cross_modal_image_transform",
        widths=(model.vision.embed_dim, *[model.embed_dim] * layers),
        layout=TokenLayout(num_prefix_tokens=layout.num_prefix_tokens, grid=layout.grid),
        mapper_init="trunc_normal",  # METER's normal of 0.02; cut at 100 times that
        reads=reads_of_pooler,
    )


def reads_of_pooler(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """The class token, or the mean of a tower that has none, as the image pooler reads it."""
    if not is_own(model, Meter, ("forward", "fuse", "match")):
        return None
    return 0 if model.vision.layout.num_prefix_tokens else MeanOf()


def create(name: str, kwargs: dict[str, Any]) -> Meter:
    """Make a METER; the factory `meter`. Without `pretrained` nothing is fetched but configurations that are named.

    Args:
        name: One of `SIZES`.
        kwargs: Those of `Meter`. `vision` and `text` are added to those of the size, or stand in their place where
            they say `factory`, `name` or `model_type`. `pretrained`: a file or folder of METER's weights; true for
            both towers' own, or {vision: ..., text: ...} with true or a file, a folder or a Hub repository each.

    Raises:
        HostError: If the name or an argument is unknown, or weights do not fit.
        LmgraftError: If weights cannot be read.
    """
    if name not in SIZES:
        raise HostError(f"there is no METER {name!r}", f"backbone.name is one of {', '.join(SIZES)}")
    options = SIZES[name] | kwargs
    pretrained = options.pop("pretrained", None) or {}
    for tower in ("vision", "text"):
        options[tower] = _words(tower, SIZES[name][tower], options[tower])
    sources = _sources(name, {"vision": True, "text": True} if pretrained is True else pretrained, options)
    if "text" in sources or isinstance(pretrained, str):
        check_tokenizer(options.get("text_vocab"), sources.get("text", str(pretrained)))
    model = construct(Meter, "Meter", options)
    if isinstance(pretrained, str):
        load_meter(model, pretrained)
    load_towers(model, options, sources)
    return model


def _words(tower: str, usual: Mapping[str, Any], given: Mapping[str, Any] | str) -> dict[str, Any]:
    words = words_of(given)
    if "pretrained" in words:
        raise HostError(
            f"backbone.kwargs.{tower} says pretrained",
            f"say it in backbone.kwargs.pretrained: {{{tower}: {words['pretrained']}}}",
        )
    return words if {"factory", "name", "model_type"} & words.keys() else {**usual, **words}


def _sources(name: str, pretrained: Any, options: Mapping[str, Any]) -> dict[str, str]:
    """Tower -> where its weights come from; none for METER's weights as a whole."""
    if isinstance(pretrained, str):
        return {}
    if not isinstance(pretrained, Mapping) or not pretrained.keys() <= {"vision", "text"}:
        raise HostError(
            f"backbone.kwargs.pretrained={pretrained!r} names no weights",
            "give true, a file or folder of METER's weights, or {vision: ..., text: ...}",
        )
    sources: dict[str, str] = {}
    for tower, source in pretrained.items():
        is_published = SIZES[name][tower].items() <= options[tower].items()
        usual = PUBLISHED.get(name, {}).get(tower) if is_published else None
        place = options[tower].get("name", usual) if source is True else source
        if source and not isinstance(place, str):
            raise HostError(
                f"backbone.kwargs.pretrained.{tower}={source!r}, and the tower has no name to load from",
                f"give a file, a folder or a Hub repository, or backbone.kwargs.{tower}.name",
            )
        if source:
            sources[tower] = place
    return sources
