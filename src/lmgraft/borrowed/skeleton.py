"""A model of transformers without any weights, and the layers in it.

The model is built on the meta device exactly as `from_pretrained` builds it: shapes and names, no memory.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, initialization
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from lmgraft.block.family import refuse_own_code
from lmgraft.errors import BlockError
from lmgraft.registry import suggest

_LEFT_OUT = ("quantization_config", "auto_map")
"""Keys of config.json that say nothing about how a layer computes."""


@dataclass(frozen=True)
class Tower:
    """One sequence of layers in a model."""

    path: str
    """Of the `nn.ModuleList`, as in `named_modules()`."""
    layers: nn.ModuleList


@dataclass(frozen=True)
class Skeleton:
    """A model on the meta device, and the layers in it that a block may come from."""

    model: PreTrainedModel
    tower: Tower

    @property
    def config(self) -> PreTrainedConfig:
        """Of the submodel that the tower belongs to."""
        return self.owner.config

    @property
    def owner(self) -> PreTrainedModel:
        """The innermost model around the tower."""
        parts = self.tower.path.split(".")
        around = [self.model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]
        return next(m for m in reversed(around) if isinstance(m, PreTrainedModel))

    def layer(self, index: int) -> nn.Module:
        return self.tower.layers[index]

    def tensors(self, index: int) -> dict[str, Tensor]:
        """What a layer is made of, by names in it: its state without what `left_out` names."""
        out = self.left_out(index)
        return {name: t for name, t in self.layer(index).state_dict().items() if not name.startswith(out)}

    def left_out(self, index: int) -> tuple[str, ...]:
        """What names of a layer's attention to an encoder's tokens begin with; a block has no such tokens."""
        layer = self.layer(index)
        if "encoder_hidden_states" not in inspect.signature(type(layer).forward).parameters:
            return ()
        return tuple(f"{path}." for path, module in layer.named_modules() if path and _attends_to_encoder(path, module))

    def prefix(self, index: int) -> str:
        """What the names of a layer's tensors begin with in the model."""
        return f"{self.tower.path}.{index}."


def _attends_to_encoder(path: str, module: nn.Module) -> bool:
    """Whether a part of a layer is cross-attention or its norm, by the names that transformers has for them."""
    names = ("encoder_attn", "crossattention", "cross_attn", "ln_cross_attn")
    return path.rpartition(".")[2].startswith(names) or type(module).__name__.endswith("CrossAttention")


def build(values: Mapping[str, Any], tower: str | None) -> Skeleton:
    """The model that a config.json describes, without weights.

    Args:
        values: config.json.
        tower: Which tower; None takes the only one, or the language model's.

    Raises:
        BlockError: If transformers does not know the model, or the tower is not there or not the only one.
    """
    name = values.get("model_type")
    if not isinstance(name, str) or name not in CONFIG_MAPPING:
        refuse_own_code(str(name), values)
        raise BlockError(
            f"transformers {transformers.__version__} knows no model_type {name!r}",
            f"update transformers. {suggest(str(name), CONFIG_MAPPING.keys())}".rstrip(),
        )
    config_class = CONFIG_MAPPING[name]
    try:
        read = config_class._decode_special_floats({k: v for k, v in values.items() if k not in _LEFT_OUT})
        config = config_class.from_dict(read)
        model = _on_meta(_model_class(values, config), config)
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, StrictDataclassError) as error:
        raise BlockError(
            f"transformers {transformers.__version__} cannot build the {name!r} that config.json describes: {error}",
            "check config.json against the model's own, or try another version of transformers",
        ) from None
    return Skeleton(model, choose_tower(model, tower))


def _is_model(known: Any) -> bool:
    return isinstance(known, type) and issubclass(known, PreTrainedModel)


def _model_class(values: Mapping[str, Any], config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that wrote the file, by the file's own word, so that its names are that class's."""
    for name in values.get("architectures") or ():
        known: Any = getattr(transformers, name, None) if isinstance(name, str) else None
        if not _is_model(known):
            continue
        if isinstance(config, known.config_class):  # an edited config may name another model's class
            found: type[PreTrainedModel] = known
            return found
    for table in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING):
        if type(config) in table:
            model_class: Any = table[type(config)]
            return cast("type[PreTrainedModel]", model_class[0] if isinstance(model_class, tuple) else model_class)
    raise BlockError(f"transformers has no model for {type(config).__name__}", "its config.json names no architecture")


def _on_meta(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    # Eager attention takes any mask that is added to the scores, and its softmax in float32.
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    with ExitStack() as stack:
        stack.enter_context(torch.device("meta"))
        stack.enter_context(initialization.meta_device_safe_creation_ops())
        stack.enter_context(initialization.no_tie_weights())
        model = model_class(config)
    model.train(False)
    return model


def towers(model: nn.Module) -> list[Tower]:
    """The sequences of layers in a model: lists of modules, none inside a layer of another."""
    lists = [
        Tower(path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and _are_layers(module)
    ]
    return [t for t in lists if not any(t.path.startswith(f"{other.path}.") for other in lists)]


def _are_layers(modules: nn.ModuleList) -> bool:
    """Whether these are layers, and not the heads, stages or embeddings of one: whole modules that mix and map."""
    return all(sum(1 for _ in m.named_parameters()) >= 3 and any(True for _ in m.children()) for m in modules)


def choose_tower(model: PreTrainedModel, tower: str | None) -> Tower:
    """The tower of this name: its path, or a part of the path that no other tower has.

    Raises:
        BlockError: If there is none, or several; it names them all.
    """
    known = towers(model)
    listed = ", ".join(f"{t.path} ({len(t.layers)} layers)" for t in known)
    if not known:
        raise BlockError(f"{type(model).__name__} has no sequence of layers", "use another model")
    if tower is None:
        decoder = _decoder_of(model)
        inside = [t for t in known if decoder is not None and any(m is t.layers for m in decoder.modules())]
        fits = known if len(known) == 1 else inside
        if len(fits) == 1:
            return fits[0]
        raise BlockError(f"{type(model).__name__} holds {len(known)} towers: {listed}", "name one with tower=")
    by_path = [t for t in known if t.path == tower]
    by_part = [t for t in known if re.search(rf"(^|\.){re.escape(tower)}", t.path)]
    exact = [t for t in known if tower in t.path.split(".")]
    for fits in (by_path, exact, by_part):
        if len(fits) == 1:
            return fits[0]
    what = f"{len(by_part)} towers" if by_part else "no tower"
    raise BlockError(f"tower={tower!r} names {what} of {type(model).__name__}", f"it has {listed}")


def _decoder_of(model: PreTrainedModel) -> nn.Module | None:
    """The language model inside a composite; None where there is none, or encoder and decoder are equals."""
    if getattr(model.config, "is_encoder_decoder", False) or not model.can_generate():
        return None
    found = model.get_decoder()
    return found if isinstance(found, nn.Module) and found is not model else None


def fill_buffers(skeleton: Skeleton, layer: nn.Module) -> None:
    """Give the buffers of `layer` that no file holds their values, as transformers does after loading."""
    for module in layer.modules():
        computed = module._non_persistent_buffers_set
        buffers = {n: b for n, b in module._buffers.items() if b is not None and b.is_meta and n in computed}
        module._buffers |= {n: torch.empty_like(b, device="cpu") for n, b in buffers.items()}
        if buffers:
            with torch.no_grad():
                skeleton.owner._init_weights(module)
