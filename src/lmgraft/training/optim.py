"""AdamW or Adam in parameter groups; rates and decays by module; the learning rate that a batch size is meant for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import Any, Literal

import torch
from timm.models import group_parameters
from timm.optim import auto_group_layers, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from lmgraft.contracts import Host
from lmgraft.errors import RecipeError
from lmgraft.graft import GraftLayer
from lmgraft.graft.hosts import find_host
from lmgraft.registry import suggest

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser, its rates by module, and their schedule."""

    optimizer: Literal["adamw", "adam"] = "adamw"
    """adamw: decoupled weight decay. adam: weight decay is added to the gradient (L2), as in torch.optim.Adam."""
    lr: float = 1e-3
    """Peak learning rate; for the batch size as given, unless lr_per says otherwise."""
    lr_per: int | None = None
    """Batch size that lr is meant for: lr is multiplied by the items of one step (batch size times
    processes times train.accumulate) / lr_per. DeiT: lr 5e-4 per 512."""
    lr_per_scales_all: bool = False
    """Multiply min_lr and warmup_lr by lr_per's factor too (VideoMAE); DeiT multiplies lr alone."""
    weight_decay: float = 0.05
    """Weight decay; none on vectors, biases, class tokens and positions: what the model's
    no_weight_decay() or its host names."""
    decays: dict[str, float] = field(default_factory=dict)
    """Factors on weight_decay by module or parameter, as in rates, in place of that rule: 0 exempts matrices
    too, 1 decays vectors too."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    schedule: Literal["step", "epoch", "linear", "drops", "constant"] = "step"
    """step: a warm-up from lr / warm-up steps, then a cosine to min_lr, with a rate for each step. linear: a straight
    line to min_lr instead. drops: lr times drop_factor at each of drop_epochs or drop_steps. constant: lr.
    epoch: DeiT's cosine, one rate for each epoch, warm-up from warmup_lr, epochs 0 and 1 alike."""
    decay_epochs: int | None = None
    """Epochs in which the rate falls to min_lr, where that is not the whole run (Point-BERT: 300 of 301)."""
    drop_epochs: list[int] = field(default_factory=list)
    """Epochs, counted from 0, from whose first step on the rate is drop_factor times what it was."""
    drop_steps: list[int] = field(default_factory=list)
    """The same in steps, in place of drop_epochs."""
    drop_factor: float = 0.1
    """Factor of each drop (mmTransformer: 0.25; SQA3D: 0.1)."""
    warmup: float = 0.05
    """Share of all steps in which the rate rises linearly to its peak."""
    warmup_epochs: int | None = None
    """The same in epochs; wins over warmup."""
    warmup_steps: int | None = None
    """The same in steps; wins over warmup."""
    warmup_rise: Literal["from_first", "from_zero", "zero_to_peak"] = "from_first"
    """Rate at step s of w warm-up steps, where the schedule is not by epoch. from_first: lr (s + 1) / w.
    from_zero: lr s / w (METER). zero_to_peak: lr s / (w - 1), the last one at the peak (VideoMAE)."""
    warmup_lr: float = 1e-6
    """Rate at the beginning of the warm-up, where the schedule is by epoch; not multiplied by lr_per's factor."""
    min_lr: float = 1e-5
    """Learning rate at the end of cosine or line; not multiplied by lr_per's factor."""
    layer_decay: float | None = None
    """Factor by which each earlier encoder layer learns slower: the head and the graft at the full rate, the
    last layer at the factor, the embeddings slowest. timm's models group themselves. None for one rate."""
    rates: dict[str, float] = field(default_factory=dict)
    """Factors on the rate by module or parameter, on top of layer_decay: {head: 50, fusion.*: 5}. Keys are names with
    wildcards, where * stands for dots too; of several keys that match, that with most other characters holds."""
    mapper_lr: float = 1.0
    """Short for graft.mapper_* in rates (the paper's METER runs: 10)."""

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "mapper_lr", "drop_factor"):
            if getattr(self, name) <= 0:
                raise RecipeError(f"optim.{name}={getattr(self, name)} must be positive")
        for name in ("warmup_lr", "min_lr", "weight_decay", "warmup_epochs", "warmup_steps"):
            if (getattr(self, name) or 0) < 0:
                raise RecipeError(f"optim.{name}={getattr(self, name)} must not be negative")
        for name in ("lr_per", "decay_epochs"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RecipeError(f"optim.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.warmup < 1:
            raise RecipeError(f"optim.warmup={self.warmup} is a share of all steps, from 0 to below 1")
        for pattern, factor in self.rates.items():
            if factor <= 0:
                raise RecipeError(f"optim.rates: {pattern!r}: {factor} must be positive", "a model freezes what it has")
        for pattern, factor in self.decays.items():
            if factor < 0:
                raise RecipeError(f"optim.decays: {pattern!r}: {factor} must not be negative")
        self._check_schedule()

    def _check_schedule(self) -> None:
        for one, other in (("warmup_epochs", "warmup_steps"), ("drop_epochs", "drop_steps")):
            if getattr(self, one) not in (None, []) and getattr(self, other) not in (None, []):
                raise RecipeError(f"optim.{one} and optim.{other} are both given", "leave out one of them")
        for name in ("drop_epochs", "drop_steps"):
            if any(drop < 1 for drop in getattr(self, name)):
                raise RecipeError(f"optim.{name}={getattr(self, name)}: a drop comes at 1 or later")
        drops = self.drop_epochs or self.drop_steps
        if bool(drops) != (self.schedule == "drops"):
            raise RecipeError(
                f"optim.schedule={self.schedule} and drops at {drops} do not go together",
                "schedule: drops needs optim.drop_epochs or optim.drop_steps, the others have neither",
            )
        if self.schedule == "epoch" and (self.warmup_steps is not None or self.warmup_rise != "from_first"):
            raise RecipeError(
                "optim.schedule=epoch warms up by epochs, from optim.warmup_lr",
                "leave out optim.warmup_steps and optim.warmup_rise",
            )
        if self.schedule == "linear" and self.min_lr > self.lr:
            raise RecipeError(
                f"optim.schedule=linear would rise from optim.lr={self.lr} to optim.min_lr={self.min_lr}",
                "give optim.min_lr, for instance 0",
            )

    def for_batch(self, items: int) -> OptimConfig:
        """With the peak rate that a step of so many items, over all processes, takes; lr_per is spent."""
        if self.lr_per is None:
            return self
        scaled = ("lr", "min_lr", "warmup_lr") if self.lr_per_scales_all else ("lr",)
        rates: dict[str, Any] = {name: getattr(self, name) * items / self.lr_per for name in scaled}
        return replace(self, lr_per=None, **rates)


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
