"""Encoders to graft, by name: any timm VisionTransformer, optionally @image size, and two shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.contracts import Host, count_tokens
from lmgraft.errors import HostError
from lmgraft.graft.hosts import find_host
from lmgraft.registry import FACTORIES, load_object


@dataclass(frozen=True, kw_only=True)
class HostShape:
    """How to build an encoder and where to graft it."""

    target: str
    """A timm model's name, or "package.module:class" of a module with `input_shape` and `num_tokens`."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    at: str = "tail"
    reads: str | None = None
    """As `GraftConfig.reads`, where no adapter says what the head reads."""


_OURS = "lmgraft.studies.bench.token_hosts"
HOSTS = {
    "videomae-like": HostShape(target=f"{_OURS}:VideoHost", at="blocks.11", reads="mean :"),
    "point-bert-like": HostShape(target=f"{_OURS}:PointHost", at="blocks.11"),
}
"""Encoders that are no timm model."""

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


def find_shape(name: str) -> HostShape:
    """The shape that `name` stands for.

    Raises:
        HostError: If the image size behind "@" is no number.
    """
    if name in HOSTS:
        return HOSTS[name]
    base, _, size = full_name(name).partition("@")
    if not size:
        return HostShape(target=base)
    if not size.isdecimal():
        raise HostError(f"{name!r}: {size!r} is no image size", f"for instance {base}@224")
    return HostShape(target=base, kwargs={"img_size": int(size)})


def build(name: str, *, device: str = "cpu", seed: int = 0) -> nn.Module:
    """The encoder, untrained; equal names and seeds give equal weights.

    Raises:
        HostError: If timm knows no such model.
    """
    shape = find_shape(name)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        if ":" in shape.target:
            made: nn.Module = load_object(shape.target)(**shape.kwargs)
            return made
        create: Callable[[str, dict[str, Any]], nn.Module] = FACTORIES.load("timm")
        return create(shape.target, dict(shape.kwargs))


def graft_options(name: str, model: nn.Module) -> dict[str, Any]:
    """Where in `model` the block goes, as arguments of `lmgraft.graft`."""
    shape = find_shape(name)
    if shape.at == "tail":
        return {}
    return {"at": shape.at, "reads": shape.reads, "host_spec": {"embed_dim": model.embed_dim}}


def input_shape(model: nn.Module) -> tuple[int, ...]:
    """Sizes of one sample, without the batch.

    Raises:
        HostError: If the model does not say.
    """
    own = getattr(model, "input_shape", None)
    if isinstance(own, tuple):
        return own
    embed: Any = getattr(model, "patch_embed", None)
    size, weight = getattr(embed, "img_size", None), getattr(getattr(embed, "proj", None), "weight", None)
    if size is None or weight is None:
        raise HostError(
            f"{type(model).__qualname__} does not say what it takes in",
            "give a timm VisionTransformer, or one of: " + ", ".join(HOSTS),
        )
    return (int(weight.shape[1]), *(int(side) for side in size))


def draw_batch(model: nn.Module, batch: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Random samples and labels for `model`."""
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn((batch, *input_shape(model)), generator=generator)
    labels = torch.randint(0, _classes(model), (batch,), generator=generator)
    return samples.to(device), labels.to(device)


def facts(name: str) -> HostFacts:
    """Shapes of the encoder, from a copy without weights.

    Raises:
        HostError: As `build`, or if its tokens are not known.
    """
    model: Any = build(name, device="meta")
    host: Host | None = find_host(model)
    tokens = getattr(model, "num_tokens", None)
    if tokens is None and host is not None and host.layout.grid is not None:
        tokens = host.layout.num_prefix_tokens + host.layout.grid[0] * host.layout.grid[1]
    if tokens is None:
        raise HostError(f"how many tokens {name!r} has is not known", "give a timm VisionTransformer")
    return HostFacts(
        embed_dim=model.embed_dim,
        depth=len(model.blocks),
        tokens=tokens,
        reads=count_tokens(tokens, None if host is None else host.reads(model, (), {})),
        params=sum(p.numel() for p in model.parameters()),
        numbers_in=int(torch.Size(input_shape(model)).numel()),
    )


def _classes(model: nn.Module) -> int:
    head: Any = getattr(model, "head", None)
    return int(getattr(head, "out_features", 1))
