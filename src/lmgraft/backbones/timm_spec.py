"""How timm made a model: enough to make it again, found from the model itself and tried out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

_RATES = re.compile(r"drop|training|grad_checkpointing|fused_attn|freeze|Drop")
"""In names of modules, classes and attributes that only training or speed depend on."""


def find_spec(model: nn.Module, added: Iterable[str] = ()) -> dict[str, Any] | None:
    """{"factory", "name", "kwargs"} for `model` as it is now; None where timm does not make the like of it from them.

    Tried on the meta device: names and shapes of all tensors, and all modules with what they say of themselves.

    Args:
        model: Made by `timm.create_model`, perhaps changed since.
        added: Paths of modules that timm did not make, such as a graft.
    """
    added = tuple(added)
    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture")
    if not isinstance(name, str) or not timm.is_model(name):
        return None
    ours = _anatomy(model, added)
    for kwargs in _guesses(model, config):
        made = _made(name, json.dumps(kwargs))
        if made is not None:
            return {"factory": "timm", "name": name, "kwargs": kwargs} if made == ours else None
    return None


@cache
def _made(name: str, kwargs: str) -> list[tuple[str, ...]] | None:
    """The anatomy of what timm makes; None if it takes no such arguments."""
    for device in ("meta", "cpu"):  # bridge: until timm 1.0.23 is the oldest, whose rates of drop path are numbers
        refused = suppress(TypeError, ValueError, RuntimeError, AssertionError)
        with refused, torch.random.fork_rng(devices=()), torch.device(device):
            return _anatomy(timm.create_model(name, pretrained=False, **json.loads(kwargs)))
    return None


def _guesses(model: nn.Module, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Arguments that a model's attributes speak for, from what every model takes to what few do."""
    kwargs: dict[str, Any] = {}
    if isinstance(getattr(model, "num_classes", None), int):
        kwargs["num_classes"] = model.num_classes
    chans = _in_chans(model, config)
    if chans is not None:
        kwargs["in_chans"] = chans
    guesses = [kwargs]
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is not None:
        guesses.insert(0, kwargs | {"img_size": [int(side) for side in size]})
    pool = getattr(model, "global_pool", None)
    if isinstance(pool, str):
        guesses = [guess | {"global_pool": pool} for guess in guesses] + guesses
    return guesses


def _in_chans(model: nn.Module, config: dict[str, Any]) -> int | None:
    first = config.get("first_conv") or ""
    try:
        conv = model.get_submodule(first if isinstance(first, str) else first[0])
    except AttributeError:
        return None
    return getattr(conv, "in_channels", None)


def _is_below(name: str, added: tuple[str, ...]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in added)


def _anatomy(model: nn.Module, added: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Each module with its class, tensors' shapes and plain attributes, but for what only training depends on."""
    return [
        (path, type(module).__name__, _plain(module), *(f"{n} {tuple(t.shape)}" for n, t in _tensors(module)))
        for path, module in model.named_modules()
        if not (_is_below(path, added) or _RATES.search(path) or _RATES.search(type(module).__name__))
    ]


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _plain(module: nn.Module) -> str:
    values = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and not (name.startswith("_") or _RATES.search(name))
    }
    return f"{values} {module.extra_repr()}"
