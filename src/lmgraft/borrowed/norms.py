"""Norms of transformers' models: which of lmgraft's kinds one is, found by running it."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmgraft.block.config import NormKind
from lmgraft.block.parts import Norm
from lmgraft.borrowed.skeleton import Skeleton

_EPS = ("eps", "variance_epsilon", "epsilon", "norm_eps")
_FINAL = re.compile(r"norm|^ln|^layer_?norm", re.IGNORECASE)
_OTHER = re.compile(r"emb|pre_|^pre|input|^norm1|in_norm", re.IGNORECASE)


@dataclass(frozen=True)
class NormTraits:
    """What `block.parts.Norm` needs to compute the same."""

    kind: NormKind
    eps: float
    has_bias: bool


def traits_of(module: nn.Module, dim: int) -> NormTraits | None:
    """The traits of a norm `dim` wide; None for what is none, or none of lmgraft's kinds."""
    names = {name for name, _ in module.named_parameters()}
    eps = next((float(v) for n in _EPS if isinstance(v := getattr(module, n, None), int | float)), None)
    if not names <= {"weight", "bias"} or "weight" not in names or eps is None:
        return None
    x = torch.randn(3, 5, dim, generator=torch.Generator().manual_seed(0)) * 2 + 0.5
    gain = torch.full((dim,), 0.7)
    given = _run(module, x, gain)
    if given is None:
        return None
    kinds: tuple[NormKind, ...] = ("rms", "rms_plus_one", "layer")
    for kind in kinds:
        ours = Norm(kind, eps, gain, torch.zeros(dim) if "bias" in names else None)(x)
        if given.shape == ours.shape and torch.allclose(given, ours, atol=1e-5):
            return NormTraits(kind, eps, "bias" in names)
    return None


def is_minus_one(module: nn.Module) -> bool:
    """Whether a norm's gain is stored as its distance from one: with gains of zero it gives something."""
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 1 or "norm" not in type(module).__name__.lower():
        return False
    given = _run(module, torch.randn(2, 3, weight.shape[0]), torch.zeros(weight.shape[0]))
    return given is not None and bool(given.abs().max() > 1e-3)


@torch.no_grad()
def _run(module: nn.Module, x: Tensor, gain: Tensor) -> Tensor | None:
    """A norm of these gains and no shift on `x`; None where it cannot be run so."""
    try:
        real = copy.deepcopy(module).to_empty(device="cpu").float()
        for name, parameter in real.named_parameters():
            parameter.copy_(gain if name == "weight" else torch.zeros_like(parameter))
        out = real(x)
    except (TypeError, RuntimeError, ValueError, AttributeError):
        return None
    return out if isinstance(out, Tensor) else None


def final_norm_of(skeleton: Skeleton, dim: int) -> tuple[str, NormTraits] | None:
    """Path and traits of the norm behind the layers; None where the model has none."""
    parts = skeleton.tower.path.split(".")
    for depth in range(len(parts) - 1, max(len(parts) - 3, -1), -1):
        around = ".".join(parts[:depth])
        children = skeleton.model.get_submodule(around).named_children()
        found = [
            (f"{around}.{name}" if around else name, traits)
            for name, child in children
            if _FINAL.search(name) and not _OTHER.search(name) and (traits := traits_of(child, dim)) is not None
        ]
        if found:
            return found[-1]
    return None


def inner_norm_of(layer: nn.Module, dim: int) -> NormTraits | None:
    """Traits of a norm inside a layer, for a model without one behind its layers."""
    inside = (traits_of(m, dim) for m in layer.modules() if "norm" in type(m).__name__.lower())
    return next((traits for traits in inside if traits is not None), None)
