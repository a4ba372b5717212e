"""Models that only wrap another: what is grafted, saved and exported is the one inside."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lmgraft.errors import HostError


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of torch.compile's, DataParallel's, DDP's, averaged models', PEFT's and timm's feature getters.

    Its tensors have names of their own there.
    """
    *_, inner = _layers(model)
    return inner


def inside(model: nn.Module) -> nn.Module:
    """As `unwrapped`, to be changed.

    Raises:
        HostError: If the wrapper knows the parameters it was made with, or the model would run a graft as a layer.
    """
    layers = list(_layers(model))
    inner = layers[-1]
    if any(isinstance(wrapper, DistributedDataParallel) for wrapper in layers):
        raise HostError(
            "DistributedDataParallel averages the gradients of those parameters alone that it was made with",
            "graft, or ungraft, the model before you wrap it",
        )
    if isinstance(inner, nn.Sequential | nn.ModuleDict | nn.ModuleList):
        what = f"{type(inner).__name__}, which runs all that it holds, would run the graft as one more layer"
        if hasattr(inner, "feature_info"):
            raise HostError(what, "make it by timm.create_model(..., features_only=True, feature_cls='getter')")
        raise HostError(what, "wrap it in a module of your own")
    return inner


def inner_path(wrapper: nn.Module, model: nn.Module, at: str | int) -> str | int:
    """`at` as `model` has it, where it was given as a path in its `wrapper`."""
    if not isinstance(at, str) or wrapper is model:
        return at
    prefix = next(path for path, module in wrapper.named_modules() if module is model)
    return at.removeprefix(f"{prefix}.")


def forget_compiled() -> None:
    """Have models compiled again: what torch.compile made of one sees no hook that came or went later."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


_OF_PEFT = {"base_layer", "original_module", "modules_to_save"}


def refuse_tuned(model: nn.Module, grafts: Collection[str]) -> None:
    """Refuse to save grafts whose own parts PEFT has wrapped: no one who loads them could put them together.

    Raises:
        HostError: Naming the first such tensor.
    """
    tuned = (name for name in model.state_dict() if name.startswith(tuple(f"{at}." for at in grafts)))
    if first := next((name for name in tuned if not _OF_PEFT.isdisjoint(name.split("."))), None):
        raise HostError(
            f"PEFT has changed the graft itself ({first})",
            "merge before you save: model = model.merge_and_unload(); or let PEFT wrap the encoder before you graft it",
        )


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """`model`, and what lies in it as the only thing it is there for, outermost first."""
    inner: nn.Module | None = model
    while inner is not None:
        yield inner
        inner = _wrapped(inner)


def _wrapped(model: nn.Module) -> nn.Module | None:
    peft: Any = model
    if hasattr(peft, "get_base_model"):
        base: nn.Module = peft.get_base_model()
        return base
    children = model._modules
    if "_orig_mod" in children or list(children) == ["module"]:
        return next(iter(children.values()))
    return children["model"] if list(children) == ["model"] and hasattr(model, "feature_info") else None
