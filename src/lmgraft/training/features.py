"""Training on stored tokens of a frozen encoder: it runs once, mappers and head run many times.

Knows the graft and the host's description, no data set and no task.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.checkpoint.digest import json_digest
from lmgraft.contracts import map_axes, to_tokens
from lmgraft.data.features import FeatureSet, Storage, Stored, store_features
from lmgraft.data.items import whole_batch
from lmgraft.data.labelled import LabelledBatch, LabelledSet
from lmgraft.data.loader import Draw, Fault
from lmgraft.errors import RecipeError
from lmgraft.graft import find_graft, find_grafts
from lmgraft.graft.hosts import locate

_HEADS = ("get_classifier", "classifier", "heads", "head", "fc")
_PER_CALL = 64  # items the encoder sees at a time


class OnTokens(nn.Module):
    """A model from the tokens of its last encoder layer on: (B, T, V) -> logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._host, self._point = _tail(model)

    def forward(self, tokens: Tensor) -> Tensor:
        inserted = find_graft(self.model)
        if inserted is not None:
            tokens = inserted(tokens, reads=self._host.reads(self.model, (), {}))
        assert self._host.head_from_tokens is not None
        out: Tensor = self._host.head_from_tokens(self.model, tokens)
        return out


def freeze_encoder(model: nn.Module) -> nn.Module:
    """Leave only the graft's own tensors and the classifier trainable; returns `model`.

    Raises:
        RecipeError: If the classifier cannot be told.
    """
    trained = {id(p) for p in _head(model).parameters()}
    for inserted in find_grafts(model).values():
        trained |= {id(p) for p in inserted.parameters() if p.requires_grad}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    return model


def encode(model: nn.Module, inputs: Tensor) -> Tensor:
    """Tokens (B, T, V) behind the last encoder layer, before any graft; what follows is not run."""
    host, point = _tail(model)
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tokens = host.output.take(output)
        axes = map_axes(tokens, host.axes, host.embed_dim)
        assert axes is not None, "the graft would have refused it"
        caught.append(to_tokens(tokens, axes))
        raise _Caught

    handle = model.get_submodule(point.module).register_forward_hook(catch, prepend=True)
    try:
        with torch.no_grad():
            model(inputs)
    except _Caught:
        pass  # the tokens are in `caught`
    finally:
        handle.remove()
    return caught[0]


class _Caught(Exception):  # noqa: N818 - not an error: it ends the forward pass
    pass


def store_split(
    model: nn.Module,
    items: LabelledSet,
    *,
    views: int,
    dtype: Storage,
    identity: dict[str, Any],
    device: torch.device,
    threads: int = 1,
    report: Callable[[Sequence[Fault]], None] = lambda _: None,
) -> tuple[FeatureSet, list[Stored]]:
    """The tokens of one split, all its views, from the cache or computed now.

    Args:
        items: Draw (epoch v, sample) is view v of a sample.
        identity: Names data, transform, encoder and split.
        threads: How many batches are read at a time.
        report: Called with files that could not be read, now or when the tokens were computed.
    """
    model.eval().to(device)
    first = whole_batch(items.__getitems__([Draw(0, 0)]))[0]
    shape = (len(items), *encode(model, first.inputs.to(device)).shape[1:])
    stored = []
    for view in range(views):

        def read(first: int, stop: int, view: int = view) -> tuple[LabelledBatch, tuple[Fault, ...]]:
            return whole_batch(items.__getitems__([Draw(view, sample) for sample in range(first, stop)]))

        def compute(first: int, stop: int, read: Any = read) -> tuple[LabelledBatch, tuple[Fault, ...]]:
            starts = range(first, stop, _PER_CALL)
            parts: list[LabelledBatch] = []
            faults: list[Fault] = []
            with ThreadPoolExecutor(threads) as pool:
                for batch, unreadable in pool.map(lambda start: read(start, min(start + _PER_CALL, stop)), starts):
                    faults += unreadable
                    tokens = encode(model, batch.inputs.to(device)).cpu().to(getattr(torch, dtype))
                    parts.append(batch._replace(inputs=tokens))
            whole = LabelledBatch(*(torch.cat(part) for part in zip(*parts, strict=True)))
            return whole, tuple(dict.fromkeys(faults))

        stored.append(store_features(identity | {"view": view}, shape, dtype, compute, _say(identity["split"]), report))
    return FeatureSet(stored, items.groups), stored


def encoder_digest(model: nn.Module) -> str:
    """Identity of everything but the graft and the classifier: names, shapes and values."""
    apart = {id(p) for module in (_head(model), *find_grafts(model).values()) for p in module.parameters()}
    digests = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in apart:
            values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            digests[name] = [list(tensor.shape), hashlib.sha256(values.data).hexdigest()]
    return json_digest({"class": type(model).__qualname__, "tensors": digests})


def _tail(model: nn.Module) -> tuple[Any, Any]:
    inserted = find_graft(model)
    if inserted is None:
        host, point = locate(model, "tail", None)
    else:
        host, point = inserted.host, locate(model, inserted.config.at, inserted.host_spec)[1]
    if not point.last or host.head_from_tokens is None:
        raise RecipeError(
            f"features.cached needs a graft at the tail of a host whose head lmgraft can run by itself; "
            f"{type(model).__name__} at {getattr(point, 'module', '?')} is none",
            "leave features.cached out, or see docs/hosts.md",
        )
    return host, point


def _head(model: nn.Module) -> nn.Module:
    for name in _HEADS:
        found = getattr(model, name, None)
        found = found() if name == "get_classifier" and callable(found) else found
        if isinstance(found, nn.Module) and any(True for _ in found.parameters()):
            return found
    raise RecipeError(
        f"{type(model).__name__} has no classifier with weights", "features.cached trains mappers and the classifier"
    )


def _say(split: str) -> Callable[[int, int, float], None]:
    last = [time.monotonic()]

    def say(done: int, total: int, seconds: float) -> None:
        if time.monotonic() - last[0] > 5 or done == total:
            last[0] = time.monotonic()
            rate = done / max(seconds, 1e-9)
            sys.stderr.write(f"[features] {split}: {done}/{total} items, {rate:.0f} a second\n")

    return say
