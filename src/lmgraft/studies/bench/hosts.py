"""Encoders to graft, as a table: name -> what makes the encoder and feeds a step of it.

A row is all that a new encoder needs; other names are recipes', which hold a slash, or timm's, optionally @image size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.backbones.inputs import input_shape
from lmgraft.contracts import count_tokens
from lmgraft.errors import HostError
from lmgraft.graft.config import parse_reads
from lmgraft.graft.hosts import find_host, locate
from lmgraft.registry import FACTORIES, Registry, load_object
from lmgraft.studies.tokens import tokens_at

Draw = Callable[[int, str], tuple[tuple[Any, ...], Callable[[Any], Tensor]]]
"""From a batch size and a device: inputs of the model, and the loss of what it returns for them."""


@dataclass(frozen=True, kw_only=True)
class BenchHost:
    """An encoder, untrained, and how a step of it is fed."""

    model: nn.Module
    draw: Draw
    depth: int
    """Encoder layers."""
    graft: Mapping[str, Any] = field(default_factory=dict)
    """Where the block goes, as arguments of `lmgraft.graft`; behind the last layer by default."""


_TOKEN_HOSTS = "lmgraft.studies.bench.token_hosts"
HOSTS = Registry(
    "encoder of the benchmark",
    {"videomae-like": f"{_TOKEN_HOSTS}:video", "point-bert-like": f"{_TOKEN_HOSTS}:points"},
)
"""Encoders that are no timm model: functions without arguments that return a `BenchHost`."""

SHORT = {"vit-t": "vit_tiny_patch16_224", "vit-s": "vit_small_patch16_224", "vit-b": "vit_base_patch16_224"}


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """What an encoder's cost depends on."""

    embed_dim: int
    depth: int
    tokens: int
    reads: int
    """Tokens that the head reads."""
    params: int
    numbers_in: int
    """Numbers in one sample."""


def full_name(name: str) -> str:
    """`name` with a short name written out: "vit-s@448" is "vit_small_patch16_224@448"."""
    base, at, size = name.partition("@")
    return SHORT.get(base, base) + at + size


def build(name: str, *, device: str = "cpu", seed: int = 0) -> BenchHost:
    """The encoder, untrained; equal names and seeds give equal weights.

    Raises:
        HostError: If timm knows no such model, or the image size behind "@" is no number.
        LmgraftError: If a recipe's encoder or data cannot be had.
    """
    if _is_recipe(name):
        of_recipe: BenchHost = load_object("lmgraft.studies.bench.recipe_hosts:recipe_host")(name)
        of_recipe.model.to(device)
        return of_recipe
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        host: BenchHost = HOSTS.load(name)() if name in HOSTS else _timm(full_name(name))
        return host


def _is_recipe(name: str) -> bool:
    """Whether it is a recipe's name or path; timm's own names with a slash have a colon before it."""
    return name.endswith((".yaml", ".yml")) or ("/" in name and ":" not in name)


def _timm(name: str) -> BenchHost:
    base, _, size = name.partition("@")
    if size and not size.isdecimal():
        raise HostError(f"{name!r}: {size!r} is no image size", f"for instance {base}@224")
    model = FACTORIES.load("timm")(base, {"img_size": int(size)} if size else {})
    host = find_host(model)
    if host is None or host.layout.grid is None:
        others = ", ".join(HOSTS.names())
        raise HostError(f"{name} has no grid of patches", f"give a timm VisionTransformer, or one of: {others}")
    return BenchHost(model=model, draw=image_draw(model), depth=len(host.layers))


def image_draw(model: nn.Module) -> Draw:
    """Images for a classifier that says itself what it takes in.

    Raises:
        HostError: If it does not.
    """
    return classified(input_shape(model), int(getattr(getattr(model, "head", None), "out_features", 1)))


def classified(shape: tuple[int, ...], num_classes: int) -> Draw:
    """Random samples of this shape, and the cross-entropy with random classes."""

    def draw(batch: int, device: str) -> tuple[tuple[Tensor], Callable[[Tensor], Tensor]]:
        generator = torch.Generator().manual_seed(1)
        samples = torch.randn((batch, *shape), generator=generator).to(device)
        labels = torch.randint(0, num_classes, (batch,), generator=generator).to(device)
        return (samples,), lambda out: F.cross_entropy(out, labels)

    return draw


def facts(name: str) -> HostFacts:
    """Shapes of the encoder, from a call of a copy without weights; a recipe's is called with weights, on its items.

    Raises:
        HostError: As `build`.
    """
    device = "cpu" if _is_recipe(name) else "meta"
    host = build(name, device=device)
    at = host.graft.get("at", "tail")
    place = locate(host.model, at, host.graft.get("host_spec"))
    inputs, _ = host.draw(1, device)
    tokens = tokens_at(host.model.eval(), {at: place}, inputs)[at]
    asked = parse_reads(host.graft.get("reads"))
    return HostFacts(
        embed_dim=place[0].embed_dim,
        depth=host.depth,
        tokens=tokens.x.shape[1],
        reads=count_tokens(tokens.x.shape[1], tokens.reads if asked is None else asked),
        params=sum(p.numel() for p in host.model.parameters()),
        numbers_in=sum(x.numel() for x in inputs),
    )
