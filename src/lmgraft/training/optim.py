"""AdamW or Adam in parameter groups; rates and decays by module; the learning rate that a batch size is meant for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from lmgraft.contracts import Host
from lmgraft.errors import RecipeError
from lmgraft.graft import GraftLayer
from lmgraft.graft.hosts import find_host
from lmgraft.registry import suggest
from lmgraft.training.config import OptimConfig

try:
    from timm.optim import auto_group_layers, param_groups_layer_decay, param_groups_weight_decay
except ImportError:  # bridge: until timm 1.0.12 is the oldest
    from timm.optim.optim_factory import _layer_map as auto_group_layers
    from timm.optim.optim_factory import param_groups_layer_decay, param_groups_weight_decay

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or Adam over what is trained; frozen tensors are in no group.

    Raises:
        RecipeError: As `parameter_groups`.
    """
    groups = parameter_groups(model, config)
    return _OPTIMIZERS[config.optimizer](groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """What is trained, in groups of one learning rate and one weight decay.

    Groups keep their factor on the rate as `lr_scale` where it is not 1 for all.

    Raises:
        RecipeError: If layer_decay is given and the model's layers are not known, a pattern of rates or decays
            matches nothing, or two of them contradict each other.
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
    groups = list(_by_patterns(model, groups, config))
    for group in groups:
        if "lr_scale" in group:
            group["lr"] = config.lr * group["lr_scale"]
    return groups


def _with_layers(model: nn.Module, layer_decay: float) -> Any:
    """Return what timm's grouping by layers asks of a model: timm's own layers if it has them, or the host's."""
    host = None if hasattr(model, "group_matcher") else find_host(model)
    if hasattr(model, "group_matcher") or (hasattr(model, "pretrained_cfg") and not (host and host.embedding_paths)):
        return _TimmLayers(model)
    if host is None or not host.embedding_paths:
        raise RecipeError(
            f"optim.layer_decay={layer_decay}: the layers of {type(model).__qualname__} are not known",
            "set it to null, or take a host of docs/hosts.md",
        )
    return _HostLayers(model, host)


class _TimmLayers:
    """A timm model's parameters by timm's own layers; the graft goes with the last, wherever its name would lead."""

    def __init__(self, model: nn.Module) -> None:
        self.named_parameters = model.named_parameters
        grafts = [module for module in model.modules() if isinstance(module, GraftLayer)]
        added = {id(p) for graft in grafts for p in graft.parameters()}
        timm_only: Any = SimpleNamespace(
            named_parameters=lambda: [(n, p) for n, p in model.named_parameters() if id(p) not in added],
            pretrained_cfg=getattr(model, "pretrained_cfg", {}),
        )
        matcher: Any = getattr(model, "group_matcher", None)
        if matcher is None:
            self._layers = auto_group_layers(timm_only)
        else:
            self._layers = group_parameters(timm_only, matcher(coarse=False), reverse=True)
        self._last = max(self._layers.values())

    def group_matcher(self, coarse: bool) -> Callable[[str], int]:
        return lambda name: self._layers.get(name, self._last)


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


def _by_patterns(model: nn.Module, groups: list[dict[str, Any]], config: OptimConfig) -> Iterator[dict[str, Any]]:
    """Each group without what a pattern matches, then what it takes out of it."""
    rates, decays = _with_mappers(model, config), config.decays
    _check_patterns(model, {"rates": config.rates, "decays": decays})
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        parts: dict[tuple[float | None, float | None], list[nn.Parameter]] = {(None, None): []}
        for p in group["params"]:
            factors = (_factor(names[id(p)], "rates", rates), _factor(names[id(p)], "decays", decays))
            parts.setdefault(factors, []).append(p)
        for (rate, decay), params in parts.items():
            part = group | {"params": params}
            if rate is not None:
                part["lr_scale"] = group.get("lr_scale", 1.0) * rate
            if decay is not None:
                part["weight_decay"] = config.weight_decay * decay
            if params:
                yield part


def _with_mappers(model: nn.Module, config: OptimConfig) -> dict[str, float]:
    """The rates, and mapper_lr as a row of them for each graft."""
    if config.mapper_lr == 1:
        return config.rates
    patterns = [f"{path}.mapper_*" for path, module in model.named_modules() if isinstance(module, GraftLayer)]
    for pattern in patterns:
        if pattern in config.rates:
            raise RecipeError(
                f"optim.mapper_lr={config.mapper_lr} and optim.rates: {pattern!r} are the same setting",
                "set optim.mapper_lr to 1",
            )
    return config.rates | dict.fromkeys(patterns, config.mapper_lr)


_WILDCARD = re.compile(r"\[[^]]*\]|[*?]")


def _factor(name: str, key: str, table: Mapping[str, float]) -> float | None:
    """The factor of a parameter by the most specific pattern that matches it or a module around it."""
    dots = [place for place, letter in enumerate(name) if letter == "."]
    paths = [name, *(name[:dot] for dot in dots)]
    weights = {
        pattern: len(_WILDCARD.sub("", pattern))
        for pattern in table
        if any(fnmatchcase(path, pattern) for path in paths)
    }
    best = [pattern for pattern in weights if weights[pattern] == max(weights.values())]
    if len({table[pattern] for pattern in best}) > 1:
        raise RecipeError(
            f"optim.{key}: {' and '.join(map(repr, best))} match {name} equally well",
            "name it more closely in one of them",
        )
    return table[best[0]] if best else None


def _check_patterns(model: nn.Module, tables: Mapping[str, Mapping[str, float]]) -> None:
    names = {name for name, _ in [*model.named_modules(), *model.named_parameters()] if name}
    grafted = any(isinstance(module, GraftLayer) for module in model.modules())
    for key, table in tables.items():
        for pattern in table:
            if any(fnmatchcase(name, pattern) for name in names):
                continue
            if not grafted and "graft" in pattern.split("."):
                continue  # the plain arm of a recipe
            wanted = _WILDCARD.sub("", pattern).strip(".")
            raise RecipeError(
                f"optim.{key}: {pattern!r} matches no module or parameter of {type(model).__qualname__}",
                suggest(wanted, names) or suggest(wanted, (name for name, _ in model.named_children())),
            )
