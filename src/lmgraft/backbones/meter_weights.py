"""Weights for METER: of its whole, as its published code saves it, and of each of its towers.

Names of files are translated by tables of patterns; position embeddings are fitted to another size of images.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmgraft.backbones.meter_towers import make_timm
from lmgraft.backbones.weights import load_weights, open_weights
from lmgraft.checkpoint.base import Checkpoint

_CLIP = (
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
"""CLIP's own names, which METER keeps -> transformers', which the vision tower has."""
_TEXT = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))
"""What the first BERT files call the parts of a norm -> its names now."""
_VISION_PLACE = re.compile(r"(module\.)?(visual\.|(vision_model\.)+)")
_UNUSED = re.compile(
    r"(vision\.model\.|text\.)?(pooler\.|(.*\.)?(position_ids|token_type_ids)$|proj$|visual_projection\.)"
    r"|(mlm_score|nlvr2_classifier|snli_classifier|lm_head|cls|classifier)\."
)
"""Poolers that nothing reads, buffers, projections and heads of other tasks."""
_HEADS = ("vqa_classifier.", "itm_score.", "rank_output.")
_POSITIONS = "embeddings.position_embedding.weight"


def load_meter(model: Any, source: str) -> None:
    """Load a file of METER's code, pre-trained or fine-tuned, or of a Meter, into a Meter.

    A head that the file has not, or for another number of answers, is left as it is, and a note to stderr says so.
    `rank_output` of a file that has none is the row of "match" in its `itm_score`, as in METER.

    Raises:
        HostError: If tensors are missing, unknown or of another shape.
        LmgraftError: If the file cannot be read.
    """
    wanted, tensors = model.state_dict(), meter_tensors(open_weights(source))
    _fit_positions(tensors, f"vision.model.{_POSITIONS}", wanted)
    for part in ("weight", "bias"):
        if f"itm_score.fc.{part}" in tensors:
            tensors.setdefault(f"rank_output.{part}", tensors[f"itm_score.fc.{part}"][1:])
    tensors = {name: t for name, t in tensors.items() if name in wanted or not name.startswith(_HEADS)}
    kept = load_weights(model, tensors, source, lambda name: name.startswith(_HEADS))
    if kept:
        sys.stderr.write(f"note: {source} gives no {' and no '.join(kept)} of this shape; they start anew\n")


def meter_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What a Meter uses of a file of METER's code, by a Meter's names."""
    return _read(checkpoint, {name: meter_name(name) for name in checkpoint.names()})


def meter_name(name: str) -> str | None:
    """A Meter's name for a tensor of METER's code; None for what it has no use for."""
    name = name.removeprefix("module.").replace("text_transformer.", "text.", 1)
    if name.startswith("vit_model."):  # beside `visual` lie remains of CLIP's text encoder
        inner = name.removeprefix("vit_model.visual.")
        return None if inner == name else f"vision.model.{_renamed(inner, _CLIP)}"
    return name


def load_clip(tower: Any, words: Mapping[str, Any], source: str) -> None:
    """Load a CLIP, whole or its vision transformer, by transformers' names or its own, but for the last layer.

    Raises:
        HostError: If tensors are missing, unknown or of another shape.
        LmgraftError: If the source cannot be read.
    """
    checkpoint, wanted = open_weights(source), tower.model.state_dict()
    places = _below(checkpoint.names(), _VISION_PLACE)
    last = f"encoder.layers.{tower.model.config.num_hidden_layers}."
    names = {name: _renamed(inner, _CLIP) for name, inner in places.items()}
    tensors = _read(checkpoint, {name: None if clip.startswith(last) else clip for name, clip in names.items()})
    _fit_positions(tensors, _POSITIONS, wanted)
    load_weights(tower.model, tensors, source, _none)


def load_timm(tower: Any, words: Mapping[str, Any], source: str) -> None:
    """Load what timm has for the model of this name, or a file that timm reads.

    Raises:
        HostError: If the weights cannot be had or do not fit.
    """
    file = {} if source == words["name"] else {"pretrained_cfg_overlay": {"file": source}}
    tower.load_state_dict(make_timm({**words, **file, "pretrained": True}, tower.img_size).state_dict())


def load_text(tower: Any, words: Mapping[str, Any], source: str) -> None:
    """Load a text encoder of transformers, with a head on top or without.

    Raises:
        HostError: If tensors are missing, unknown or of another shape.
        LmgraftError: If the source cannot be read.
    """
    checkpoint = open_weights(source)
    places = _below(checkpoint.names(), re.compile(rf"(module\.)?{re.escape(tower.base_model_prefix)}\."))
    tensors = _read(checkpoint, {name: _renamed(inner, _TEXT) for name, inner in places.items()})
    load_weights(tower, tensors, source, _none)


def _none(name: str) -> bool:
    return False


def _below(names: Iterable[str], place: re.Pattern[str]) -> dict[str, str]:
    """Names below a place -> what they are there; where nothing lies below it, all names as they are."""
    names = list(names)
    inner = {name: name[match.end() :] for name in names if (match := place.match(name))}
    return inner or {name: name for name in names}


def _renamed(name: str, table: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def _read(checkpoint: Checkpoint, names: Mapping[str, str | None]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their new names, but for unused ones; stacked queries, keys and values apart."""
    tensors: dict[str, Tensor] = {}
    for name, new in names.items():
        if new is None or _UNUSED.match(new):
            continue
        place, is_stacked, part = new.partition("in_proj_")
        if is_stacked:
            for letter, piece in zip("qkv", checkpoint.read(name).chunk(3), strict=True):
                tensors[f"{place}{letter}_proj.{part}"] = piece
        else:
            tensors[new] = checkpoint.read(name)
    return tensors


def _fit_positions(tensors: dict[str, Tensor], name: str, wanted: Mapping[str, Tensor]) -> None:
    if name in tensors and name in wanted:
        tensors[name] = fit_positions(tensors[name], len(wanted[name]))


def fit_positions(table: Tensor, rows: int) -> Tensor:
    """Position embeddings (1 + g g, V) of a class token and a square grid for another grid, bicubically: (rows, V).

    What is no such table, or is asked for no square, is returned as it is.
    """
    old, new = math.isqrt(max(len(table) - 1, 0)), math.isqrt(rows - 1)
    if table.dim() != 2 or len(table) == rows or old * old != len(table) - 1 or new * new != rows - 1:
        return table
    grid = table[1:].T.reshape(1, -1, old, old).float()
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], grid[0].flatten(1).T.to(table.dtype)])


LOADERS: dict[str, Callable[[Any, Mapping[str, Any], str], None]] = {
    "clip": load_clip,
    "timm": load_timm,
    "text": load_text,
}
"""`vision.factory`, or "text" -> the function that loads a source into the tower that was made of such words."""


def load_towers(model: Any, words: Mapping[str, Mapping[str, Any]], sources: Mapping[str, str]) -> None:
    """Load each tower's weights.

    Args:
        model: A Meter.
        words: "vision" and "text" -> the words that they were made of.
        sources: The same -> a file, a folder or a Hub repository.

    Raises:
        HostError: If weights do not fit.
        LmgraftError: If they cannot be read.
    """
    for tower, source in sources.items():
        kind = "text" if tower == "text" else words[tower].get("factory", "clip")
        LOADERS[kind](getattr(model, tower), {k: v for k, v in words[tower].items() if k != "factory"}, source)
