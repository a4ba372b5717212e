"""The model of questions about rooms as a host of grafts: its layers, and where its tokens lie in a room."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmgraft.backbones.scene_parts import padding_of_call
from lmgraft.backbones.scene_qa.model import SceneQA, objects_first
from lmgraft.backbones.scene_qa.vote_net import Proposals, shares_of_proposals
from lmgraft.contracts import Host, TokenLayout
from lmgraft.geometry.points import take_points


def describe(model: SceneQA) -> Host:
    """The tail lies behind the last layer that a question guides; each token is a proposal that is an object."""
    stacks = {name: len(getattr(model, name)) for name in ("by_situation", "by_question")}
    embeds = [name for name in ("object_embed", "input_embed") if getattr(model, name) is not None]
    return Host(
        embed_dim=model.embed_dim,
        layers=tuple(f"{name}.{i}" for name, count in stacks.items() for i in range(count)),
        embedding_paths=("detector", "text", *embeds, "situation_layers", "question_layers"),
        layout=TokenLayout(places=places, parts=parts, shares=token_shares),
        padding_mask=padding_of_call,
        varying=({}, {1: "situation"}, {1: "question"}, {}),
        not_exported="its LSTM and its choice of centres among points are made for PyTorch",
    )


def places(model: Any, args: tuple[Any, ...]) -> Tensor:
    """Where the tokens' objects are, (B, T, 3) in metres; NaN for what is no object."""
    proposals = _evaluated(model, args[0])
    order, padded = objects_first(proposals.is_object)
    return take_points(proposals.centres, order).masked_fill(padded[..., None], torch.nan)


def parts(model: Any, args: tuple[Any, ...]) -> Tensor:
    """Where the seeds lie whose votes a token is made of, (B, T, K, 3) in metres; NaN for what is no object."""
    proposals = _evaluated(model, args[0])
    order, padded = objects_first(proposals.is_object)
    gathered = take_points(proposals.gathered, order)
    return take_points(proposals.seeds, gathered).masked_fill(padded[..., None, None], torch.nan)


def token_shares(model: Any, args: tuple[Any, ...], truth: Tensor) -> Tensor:
    """Which share of each token's seeds a truth per point (B, N) is of: (B, T), NaN for what is no object."""
    proposals = _evaluated(model, args[0])
    order, padded = objects_first(proposals.is_object)
    return shares_of_proposals(proposals, truth).gather(1, order).masked_fill(padded, torch.nan)


@torch.no_grad()
def _evaluated(model: Any, points: Tensor) -> Proposals:
    training = model.training
    try:
        proposals: Proposals = model.eval().propose(points)
    finally:
        model.train(training)
    return proposals
