"""What a family file must supply, and the table of families.

A family is chosen by what the file says it is (`model_type`, or GGUF's architecture), never by
a repository's name. Adding one means adding a file and a row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lmgraft.block.config import BlockConfig
from lmgraft.checkpoint import NameMap
from lmgraft.errors import BlockError
from lmgraft.registry import Registry, suggest


def all_alike(config: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """No field of a layer differs from those of another."""
    return {}


def one_kind(config: Mapping[str, Any], layer: int) -> str:
    """The same word for every layer."""
    return ""


def unchanged(tensors: dict[str, Tensor], config: BlockConfig) -> dict[str, Tensor]:
    """The inverse of a conversion that changes no values."""
    return tensors


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to read one LLM architecture from each file style."""

    config_from: Mapping[str, Callable[[Mapping[str, Any], Collection[str]], BlockConfig]]
    """File style -> fields from config.json (or GGUF metadata) and tensor names."""
    num_layers_key: Mapping[str, str]
    """File style -> key of the number of layers."""
    names: Mapping[str, NameMap]
    """File style -> name map."""
    variants: Mapping[str, Mapping[str, NameMap]] = field(default_factory=dict)
    """File style -> tensor name after the layer's prefix -> the map where such a tensor is there."""
    restore: Mapping[str, Callable[[dict[str, Tensor], BlockConfig], dict[str, Tensor]]] = field(default_factory=dict)
    """File style -> inverse of what its converter did to the values."""
    layer_fields: Callable[[Mapping[str, Any], int], dict[str, Any]] = all_alike
    """Those fields of a layer that depend on its number; raises a BlockError for a layer that no block can be."""
    kind: Callable[[Mapping[str, Any], int], str] = one_kind
    """What a layer is, in a word or two, where layers differ."""
    experts: bool = False
    """Whether its MLPs are mixtures of experts."""
    verified: str = ""
    """What the parity test covers, for the table in the docs."""

    def names_in(self, style: str, present: Collection[str], layer: int) -> NameMap:
        """The name map that fits a file's `layer`."""
        for tensor, names in self.variants.get(style, {}).items():
            if names.root(present, layer) + names.layer_prefix.format(layer=layer) + tensor in present:
                return names
        return self.names[style]


def _row(module: str, attribute: str = "FAMILY") -> str:
    return f"lmgraft.block.families.{module}:{attribute}"


FAMILIES = Registry(
    "LLM family",
    {
        "llama": _row("llama"),
        "mistral": _row("llama", "MISTRAL"),
        "smollm3": _row("llama", "SMOLLM3"),
        "granite": _row("granite"),
        "qwen2": _row("qwen"),
        "qwen3": _row("qwen", "QWEN3"),
        "gemma": _row("gemma"),
        "gemma2": _row("gemma", "GEMMA2"),
        "gemma3_text": _row("gemma", "GEMMA3"),
        "gemma3": _row("gemma", "GEMMA3"),
        "phi": _row("phi"),
        "phi2": _row("phi"),
        "phi3": _row("phi3"),
        "olmo2": _row("olmo2"),
        "olmo3": _row("olmo2", "OLMO3"),
        "cohere2": _row("cohere2"),
        "mixtral": _row("experts", "MIXTRAL"),
        "qwen3_moe": _row("experts", "QWEN3_MOE"),
        "olmoe": _row("experts", "OLMOE"),
        "gpt_oss": _row("gpt_oss"),
        "deepseek_v2": _row("deepseek"),
        "deepseek_v3": _row("deepseek", "V3"),
        "glm4_moe": _row("deepseek", "GLM4_MOE"),
        "qwen3_5_text": _row("qwen_gated"),
        "qwen3_5_moe_text": _row("qwen_gated", "MOE"),
        "qwen3_next": _row("qwen_gated", "NEXT"),
        "gemma4_text": _row("gemma4"),
        "stablelm": _row("stablelm"),
        "gpt2": _row("gpt2"),
        "opt": _row("opt"),
        "gpt_neox": _row("gpt_neox"),
        "gptneox": _row("gpt_neox"),
        "gptj": _row("gptj"),
        "falcon": _row("falcon"),
        "bloom": _row("bloom"),
        "mpt": _row("mpt"),
    },
)
"""`model_type`, or GGUF architecture where it differs -> the family."""

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_TEXT = "text_config"
# LLaVA's text_config leaves out what is transformers' default; the shapes in the file are held against it.
_DEFAULTS = {
    "llama": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
}
_SAME_LAYERS = {
    f"qwen{version}_vl{part}": f"qwen{version[0]}" for version in ("2", "2_5", "3") for part in ("", "_text")
}


def find_family(style: str, config: Mapping[str, Any]) -> tuple[str, Family]:
    """The family of a file, by its own word.

    Raises:
        BlockError: If the file names none, or one that is not supported.
    """
    if style == "meta":  # Meta's params.json names no architecture: it is always LLaMA's
        return "llama", FAMILIES.load("llama")
    key = "model_type" if style == "hf" else "general.architecture"
    name = _family_name(config, key)
    if not isinstance(name, str):
        raise BlockError(f"the file does not say what it is: {key} is {name!r}", "use a language model's own files")
    if name not in FAMILIES:
        refuse_own_code(name, config)
        raise BlockError(f"the LLM family {name!r} is not supported in this version", suggest(name, FAMILIES.names()))
    family: Family = FAMILIES.load(name)
    return name, family


def refuse_own_code(name: str, config: Mapping[str, Any]) -> None:
    """Raise a BlockError where a model that nobody here knows brings its own code."""
    if config.get("auto_map"):
        raise BlockError(
            f"the LLM family {name!r} comes with code of its own (auto_map in its config.json), which is never run",
            "use a model of a family in docs/families.md, or one that transformers knows without trust_remote_code",
        )


def _family_name(config: Mapping[str, Any], key: str) -> Any:
    """What the file, or where it is a composite (LLaVA, Mistral 3, ...) its language part, says that it is."""
    name = config.get(key)
    if not isinstance(name, str) or name in FAMILIES:
        return name
    name = language_part(config).get(key, name)
    return _SAME_LAYERS.get(name, name) if isinstance(name, str) else name


def is_native(style: str, config: Mapping[str, Any]) -> bool:
    """Whether lmgraft's own code computes the layers of a file: a family of its own, with experts where it has any."""
    name = _family_name(config, "model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        return False
    family: Family = FAMILIES.load(name)
    has_experts = any(_count_of(language_part(config).get(key)) > 1 for key in _EXPERTS)
    return family.experts == has_experts


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a multimodal config that describes the language model, where there is one."""
    text = config.get(_TEXT)
    if not isinstance(text, dict):
        return config
    defaults = _DEFAULTS.get(str(text.get("model_type")), {})
    return defaults | text if "hidden_size" in defaults | text else config


def _count_of(value: Any) -> int:
    return value if isinstance(value, int) else 0


def require(config: Mapping[str, Any], key: str) -> Any:
    """`config[key]`, or an error that names the key."""
    if config.get(key) is None:
        raise BlockError(f"the model's config lacks {key!r}", "its config.json or GGUF metadata is incomplete")
    return config[key]


def count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """`config[key]` as a positive whole number; `default` where it is absent or null."""
    value = require(config, key) if default is None else config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BlockError(f"the model's config says {key} = {value!r}", "a positive whole number is needed")
    return value


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """`config[key]` as a number; `default` where it is absent or null."""
    value = config.get(key)
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    checked: float = _checked(key, value, fits, default, "a number")
    return checked


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """`config[key]` as true or false; `default` where it is absent or null."""
    value = config.get(key)
    checked: bool = _checked(key, value, isinstance(value, bool), default, "true or false")
    return checked


def _checked(key: str, value: Any, fits: bool, default: Any, what: str) -> Any:
    if value is None:
        return default
    if not fits:
        raise BlockError(f"the model's config says {key} = {value!r}", f"{what} is needed")
    return value


_ACTIVATIONS = {
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
}


def activation(config: Mapping[str, Any], key: str, default: str) -> str:
    """`config[key]` as a name in `ACTIVATIONS`, which checks it."""
    value = config.get(key) or default
    return _ACTIVATIONS.get(value, value) if isinstance(value, str) else value


def refuse(config: Mapping[str, Any], key: str, allowed: tuple[Any, ...], what: str) -> None:
    """Refuse a setting that no block here can reproduce.

    Raises:
        BlockError: If `config[key]` is set and none of `allowed`.
    """
    if config.get(key) is not None and config[key] not in allowed:
        raise BlockError(f"{key} = {config[key]!r}: {what} is not supported", "use another model of this family")
