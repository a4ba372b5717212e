"""`save_pretrained` and `load_pretrained`: trained tensors, and a reference to the block.

    out/model.safetensors   host and mappers, tens of MB
    out/lmgraft.json        graft config, the block's provenance and digest, how to build the host

The block itself is not saved: loading fetches it again and refuses one of another digest. Where more
than the mappers was trained (`train_block`), those tensors of the block are saved, and laid over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmgraft import records
from lmgraft.block import FrozenBlock, load_block
from lmgraft.errors import BlockError, CheckpointError, HostError
from lmgraft.graft.config import GraftConfig
from lmgraft.graft.controls import apply_control
from lmgraft.graft.insert import insert, ungraft
from lmgraft.graft.layer import NAME, GraftLayer, find_graft, require_graft
from lmgraft.registry import FACTORIES, suggest

_TENSORS, _RECORD, _FORMAT = "model.safetensors", "lmgraft.json", 1
_NEEDED: dict[str, set[str]] = {
    "graft": set(),
    "block": {"source", "revision", "layers", "final_norm", "control", "tensors", "digest"},
    "host": {"class", "spec"},
}


_WIRING = ("at", "reads", "residual", "read_token", "train_block", "lora_rank", "lora_alpha", "lora_targets")
"""Choices without which saved tensors would not fit, or would compute something else."""


def save_pretrained(model: nn.Module, path: str | Path) -> Path:
    """Save a grafted model's trained tensors and a verified reference to its block.

    Raises:
        HostError: If `model` is not grafted.
    """
    model = unwrapped(model)
    inserted = require_graft(model)
    folder = Path(path)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    with records.atomic_path(folder / _TENSORS) as temporary:
        save_file(_without_aliases(state), str(temporary), metadata={"format": "pt"})
    records.write_json(
        folder / _RECORD,
        {
            "format": _FORMAT,
            "graft": inserted.config.to_dict(),
            "block": inserted.block.provenance.to_dict(),
            "host": {"class": _class_path(model), "spec": inserted.host_spec},
        },
    )
    return folder


def load_pretrained(
    path: str | Path, model: nn.Module | None = None, llm: str | FrozenBlock | None = None
) -> nn.Module:
    """Load what `save_pretrained` wrote.

    Args:
        path: The folder.
        model: The host, plain or grafted, changed in place; None builds the recorded one.
        llm: A moved copy of the block's source, or the block; None uses the recorded source.

    Returns:
        The grafted model in eval mode. If anything fails, `model` is as it was.

    Raises:
        CheckpointError: If the folder is incomplete, damaged, or does not fit the model.
        BlockError: If the block's digest is not the recorded one.
        HostError: If `model` is None and no way to build it was recorded.
    """
    folder = Path(path)
    record = _read_record(folder)
    state = _read_state(folder)
    config = GraftConfig.from_dict(record["graft"])
    if model is None:
        model = _build_host(folder, record["host"])
    inserted = find_graft(model)
    was_plain = inserted is None
    if inserted is None:
        block = _recorded_block(record["block"], config, llm)
        insert(model, config, block, host_spec=record["host"]["spec"])
        inserted = require_graft(model)
        inserted.config = replace(config, llm=inserted.config.llm)
    else:
        verify_block(inserted.block, record["block"])
        _verify_wiring(inserted, config, folder)
    try:
        _load_state(model, state, folder)
    except CheckpointError:
        if was_plain:
            ungraft(model)
        raise
    return model.eval()


def verify_block(block: FrozenBlock, recorded: Mapping[str, Any]) -> None:
    """Refuse a block that is not the recorded one.

    Raises:
        BlockError: Naming the first tensors that differ.
    """
    found = block.provenance
    if found.digest == recorded["digest"]:
        return
    theirs = dict(recorded["tensors"])
    differing = sorted(n for n in theirs.keys() | found.tensors.keys() if theirs.get(n) != found.tensors.get(n))
    what = f"{len(differing)} of {len(theirs)} tensors differ, first {differing[0]}" if differing else "config differs"
    raise BlockError(
        f"this is another block than the one it was trained with: {what} "
        f"(digest {found.digest[:12]}, recorded {recorded['digest'][:12]})",
        f"give the recorded block: {recorded['source']}, layers {recorded['layers']}",
    )


def _verify_wiring(inserted: GraftLayer, config: GraftConfig, folder: Path) -> None:
    """Refuse a grafted model whose tensors would fit and which computes something else."""

    def place(at: str | int) -> Any:
        point = inserted.host.point(at)
        return at if point is None else (point.module, point.when)

    own = inserted.config
    same = {name: getattr(own, name) == getattr(config, name) for name in _WIRING}
    same["at"] = place(own.at) == place(config.at)
    if own.train_block == config.train_block != "lora":
        same = {name: equal for name, equal in same.items() if not name.startswith("lora_")}
    differing = [
        f"{n}={getattr(own, n)!r} ({getattr(config, n)!r} when saved)" for n, equal in same.items() if not equal
    ]
    if differing:
        raise CheckpointError(
            f"{folder} does not fit this model: it is grafted with {', '.join(differing)}",
            "give the model without a graft: it is then grafted as recorded",
        )


def _recorded_block(recorded: Mapping[str, Any], config: GraftConfig, llm: str | FrozenBlock | None) -> FrozenBlock:
    if isinstance(llm, FrozenBlock):
        block = llm
    else:
        block = load_block(
            llm or recorded["source"],
            tuple(recorded["layers"]),
            final_norm=recorded["final_norm"],
            revision=None if llm else recorded["revision"],
        )
        if recorded["control"] is not None:
            block = apply_control(block, recorded["control"])
    verify_block(block, recorded)
    return block


def _read_record(folder: Path) -> dict[str, Any]:
    record = records.read_json(folder / _RECORD)
    if not isinstance(record, dict):
        raise CheckpointError(f"{folder / _RECORD} is no record of a saved graft", "save the model again")
    if record.get("format") != _FORMAT:
        raise CheckpointError(f"{folder / _RECORD} has format {record.get('format')!r}", "update lmgraft")
    for part, keys in _NEEDED.items():
        value = record.get(part)
        absent = sorted(keys - value.keys()) if isinstance(value, dict) else [""]
        if absent:
            raise CheckpointError(f"{folder / _RECORD} lacks {part}.{absent[0]}".rstrip("."), "save the model again")
    return record


def _read_state(folder: Path) -> dict[str, Tensor]:
    file = folder / _TENSORS
    try:
        state: dict[str, Tensor] = load_file(str(file))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing", "save the model again") from None
    except SafetensorError as error:
        raise CheckpointError(f"{file} is cut short or damaged ({error})", "save or copy it again") from None
    return state


def _load_state(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    own = model.state_dict()
    aliases = set(own) - set(_without_aliases(own))
    problems = [f"missing {n}" for n in own if n not in state and n not in aliases]
    problems += [f"unknown {n}" for n in state if n not in own]
    problems += [
        f"{n} has shape {tuple(t.shape)}, the model {tuple(own[n].shape)}"
        for n, t in state.items()
        if n in own and own[n].shape != t.shape
    ]
    if problems:
        shown = problems[:12] + ([f"and {len(problems) - 12} more"] if len(problems) > 12 else [])
        raise CheckpointError(
            f"{folder} does not fit this model:\n    " + "\n    ".join(shown),
            "build the model exactly as it was when it was saved (name, num_classes, img_size, ...)",
        )
    model.load_state_dict(state, strict=not aliases)


def _without_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One name for each storage: tied tensors are saved once (safetensors refuses aliases)."""
    kept: dict[str, Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        kept[name] = tensor.contiguous()
    return kept


def _build_host(folder: Path, host: Mapping[str, Any]) -> nn.Module:
    spec = host["spec"] or {}
    factory = spec.get("factory", "timm" if "name" in spec else None)
    if factory is None:
        raise HostError(
            f"{folder} does not say how to build its host ({host['class']})",
            "pass it: load_pretrained(path, model=...), or give host_spec= to graft() before saving",
        )
    if factory not in FACTORIES:
        raise HostError(f"{folder} names the factory {factory!r}", suggest(factory, FACTORIES.names()))
    if not isinstance(spec.get("name"), str):
        raise HostError(
            f"{folder} names no model for the factory {factory!r}", "pass it: load_pretrained(path, model=...)"
        )
    built: nn.Module = FACTORIES.load(factory)(spec["name"], dict(spec.get("kwargs") or {}))
    if _class_path(built) != host["class"]:
        raise HostError(f"{spec['name']!r} built a {_class_path(built)}, recorded is {host['class']}", "pass model=")
    return built


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of torch.compile and DDP: tensors are saved under its own names."""
    while NAME not in model._modules:
        inner = model._modules.get("_orig_mod", model._modules.get("module"))
        if inner is None:
            break
        model = inner
    return model


def _class_path(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"
