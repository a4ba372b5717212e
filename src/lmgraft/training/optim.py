"""AdamW in parameter groups; the learning rate that a batch size is meant for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from lmgraft.contracts import Host
from lmgraft.errors import RecipeError
from lmgraft.graft import find_grafts
from lmgraft.graft.hosts import find_host


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 1e-3
    """Peak learning rate; for the batch size as given, unless lr_per says otherwise."""
    lr_per: int | None = None
    """Batch size that lr is meant for: lr is multiplied by the images of one step (batch size times
    processes times train.accumulate) / lr_per. DeiT: lr 5e-4 per 512."""
    weight_decay: float = 0.05
    """Decoupled weight decay; none on vectors, biases, class tokens and positions: what the model's
    no_weight_decay() or its host names."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    schedule: Literal["step", "epoch"] = "step"
    """step: a rate for each step, warm-up from lr / warm-up steps. epoch: DeiT's, one rate for each
    epoch, warm-up from warmup_lr, epochs 0 and 1 alike."""
    warmup: float = 0.05
    """Share of all steps in which the rate rises linearly to its peak."""
    warmup_epochs: int | None = None
    """The same in epochs; wins over warmup."""
    warmup_lr: float = 1e-6
    """Rate at the beginning of the warm-up, where the schedule is by epoch; not multiplied by lr_per's factor."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine; not multiplied by lr_per's factor."""
    layer_decay: float | None = None
    """Factor by which each earlier encoder layer learns slower: the head and the graft at the full rate, the
    last layer at the factor, the embeddings slowest. timm's models group themselves. None for one rate."""
    mapper_lr: float = 1.0
    """Factor on the rate of the graft's mappers, whatever else applies (the paper's METER runs: 10)."""

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "mapper_lr"):
            if getattr(self, name) <= 0:
                raise RecipeError(f"optim.{name}={getattr(self, name)} must be positive")
        for name in ("warmup_lr", "min_lr", "weight_decay"):
            if getattr(self, name) < 0:
                raise RecipeError(f"optim.{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.warmup < 1:
            raise RecipeError(f"optim.warmup={self.warmup} is a share of all steps, from 0 to below 1")
        if self.warmup_epochs is not None and self.warmup_epochs < 0:
            raise RecipeError(f"optim.warmup_epochs={self.warmup_epochs} must not be negative")
        if self.lr_per is not None and self.lr_per < 1:
            raise RecipeError(f"optim.lr_per={self.lr_per} is a batch size, at least 1")

    def for_batch(self, images: int) -> OptimConfig:
        """With the peak rate that a step of so many images, over all processes, takes; lr_per is spent."""
        if self.lr_per is None:
            return self
        return replace(self, lr=self.lr * images / self.lr_per, lr_per=None)


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over what is trained; frozen tensors are in no group.

    Groups keep their factor on the rate as `lr_scale` where it is not 1 for all.

    Raises:
        RecipeError: If layer_decay is given and the model's layers are not known.
    """
    host = None if hasattr(model, "no_weight_decay") else find_host(model)
    exempt: Any = getattr(model, "no_weight_decay", lambda: () if host is None else host.no_weight_decay)()
    if config.layer_decay is None:
        groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=exempt)
    else:
        layered: Any = _with_layers(model, config.layer_decay)
        groups = param_groups_layer_decay(
            layered, config.weight_decay, no_weight_decay_list=exempt, layer_decay=config.layer_decay
        )
    if config.mapper_lr != 1:
        groups = _mappers_apart(model, groups, config.mapper_lr)
    for group in groups:
        if "lr_scale" in group:
            group["lr"] = config.lr * group["lr_scale"]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps)


def _with_layers(model: nn.Module, layer_decay: float) -> Any:
    """What timm's grouping by layers asks: the model itself if it can say, or the host's layers."""
    if hasattr(model, "group_matcher") or hasattr(model, "pretrained_cfg"):
        return model
    host = find_host(model)
    if host is None or not host.embedding_paths:
        raise RecipeError(
            f"optim.layer_decay={layer_decay}: the layers of {type(model).__qualname__} are not known",
            "set it to null, or take a host of docs/hosts.md",
        )
    return _HostLayers(model, host)


class _HostLayers:
    """A host's parameters: the stem first, then layer by layer, then all that comes behind, with the graft."""

    def __init__(self, model: nn.Module, host: Host) -> None:
        self.named_parameters = model.named_parameters
        self._places = [host.embedding_paths, *((layer,) for layer in host.layers)]

    def group_matcher(self, coarse: bool) -> Callable[[str], int]:
        return self._index

    def _index(self, name: str) -> int:
        for index, paths in enumerate(self._places):
            if any(name == path or name.startswith(f"{path}.") for path in paths):
                return index
        return len(self._places)


def _mappers_apart(model: nn.Module, groups: list[dict[str, Any]], factor: float) -> list[dict[str, Any]]:
    grafts = find_grafts(model).values()
    if not grafts:
        return groups  # the plain arm of a recipe with mappers
    mappers = {id(p) for g in grafts for mapper in (g.mapper_in, g.mapper_out) for p in mapper.parameters()}
    split = []
    for group in groups:
        scale = group.get("lr_scale", 1.0)
        inside = [p for p in group["params"] if id(p) in mappers]
        outside = [p for p in group["params"] if id(p) not in mappers]
        if outside:
            split.append(group | {"params": outside})
        if inside:
            split.append(group | {"params": inside, "lr_scale": scale * factor})
    return split
