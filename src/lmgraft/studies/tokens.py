"""The tokens of an encoder at places where a block could go, as calls of the encoder make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.contracts import GraftPoint, Host, MeanOf, Reads, map_axes, take_reads, to_tokens
from lmgraft.errors import HostError

Places = Mapping[str, tuple[Host, GraftPoint]]
"""Name -> the host as it is at a place, and that place."""


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Tokens of some items at one place."""

    x: Tensor
    """(N, T, V); zeros where padded."""
    padded: Tensor | None = None
    """(N, T) bool, True = padded; None where no token is."""
    reads: Reads = None
    """Which of them the head reads; None for all, also where other layers follow."""

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, items: slice) -> TokenBatch:
        reads = self.reads
        return TokenBatch(
            x=self.x[items],
            padded=None if self.padded is None else self.padded[items],
            reads=reads[items] if isinstance(reads, Tensor) and reads.dim() == 2 else reads,
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> TokenBatch:
        padded = None if self.padded is None else self.padded.to(device)
        reads = self.reads.to(device) if isinstance(self.reads, Tensor) else self.reads
        return TokenBatch(x=self.x.to(device, dtype), padded=padded, reads=reads)

    def unpadded(self, x: Tensor, every: int) -> Tensor:
        """Of `x` (N, T, C), each `every`-th token of each item (M, C), not counting those that are padded."""
        if self.padded is None:
            return x[:, ::every].flatten(0, 1)
        seen = ~self.padded
        return x[seen & ((seen.cumsum(1) - 1) % every == 0)]


@torch.no_grad()
def tokens_at(model: nn.Module, places: Places, inputs: tuple[Any, ...], asked: Reads = None) -> dict[str, TokenBatch]:
    """Tokens at each place of a plain encoder, in the one call `model(*inputs)`.

    Args:
        asked: What is read at places that only the head follows; None asks the host.

    Raises:
        HostError: If what passes there is no tokens, as a graft would say.
    """
    caught: dict[str, TokenBatch] = {}

    def catch(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any) -> None:
        host, point = places[name]
        first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        x: Any = host.output.take(output[0]) if output else first
        axes = map_axes(x, host.axes, host.embed_dim) if isinstance(x, Tensor) else None
        if axes is None:
            raise HostError(f"at {name!r} of {type(model).__name__} no tokens {host.embed_dim} wide pass")
        x, padded = to_tokens(x, axes), host.padding_mask(module, args, kwargs)
        if padded is not None:
            padded = padded.expand(x.shape[:2])
            x = x.masked_fill(padded.unsqueeze(-1), 0)
        reads = asked if asked is not None else host.reads(model, inputs, {})
        caught[name] = TokenBatch(x=x, padded=padded, reads=reads if point.last else None)

    handles = []
    for name, (_, point) in places.items():
        module = model.get_submodule(point.module)
        before = point.when == "before"
        register: Any = module.register_forward_pre_hook if before else module.register_forward_hook
        handles.append(register(partial(catch, name), with_kwargs=True))
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    if missed := places.keys() - caught.keys():
        raise HostError(f"a call of {type(model).__name__} passes {sorted(missed)[0]!r} by", "choose another place")
    return caught


def joined(parts: Sequence[TokenBatch]) -> TokenBatch:
    """The tokens of several batches one behind the other; shorter ones are padded.

    Raises:
        HostError: If the heads of two batches read another number of tokens.
    """
    longest = max(part.x.shape[1] for part in parts)
    room = [longest - part.x.shape[1] for part in parts]
    padded = None
    if any(room) or any(part.padded is not None for part in parts):
        marks = [torch.zeros_like(p.x[..., 0], dtype=torch.bool) if p.padded is None else p.padded for p in parts]
        padded = torch.cat([F.pad(mark, (0, more), value=True) for mark, more in zip(marks, room, strict=True)])
    x = torch.cat([F.pad(part.x, (0, 0, 0, more)) for part, more in zip(parts, room, strict=True)])
    return TokenBatch(x=x, padded=padded, reads=_joined_reads(parts, lengths_differ=any(room)))


def _joined_reads(parts: Sequence[TokenBatch], lengths_differ: bool) -> Reads:
    every = [part.reads for part in parts]
    alike = not any(isinstance(reads, Tensor) for reads in every) and all(reads == every[0] for reads in every)
    if alike and (every[0] is None or not lengths_differ):
        return every[0]
    if not any(reads is None or isinstance(reads, MeanOf) for reads in every):
        places = [torch.arange(p.x.shape[1], device=p.x.device).expand(p.x.shape[:2])[..., None] for p in parts]
        index = [take_reads(place, p.reads).squeeze(-1) for place, p in zip(places, parts, strict=True)]
        if len({rows.shape[1] for rows in index}) == 1:
            return torch.cat(index)
    raise HostError("what the head reads is not the same number of tokens in every batch", "let it read all: reads=':'")
