"""`save_pretrained` and `load_pretrained`: trained tensors, and a reference to the block.

    out/model.safetensors   host and mappers, tens of MB; graft.safetensors where the host is transformers' own
    out/lmgraft.json        graft config, the block's provenance and digest, how to build the host

The block itself is not saved: loading fetches it again and refuses one of another digest. Where more
than the mappers was trained (`train_block`), those tensors of the block are saved, and laid over it.

Format 1 is the record of one graft that lies at `model.graft`, and is still what such a model gets. Format 2
has a list of such records, each with the path of its graft: several grafts, or grafts of encoders inside the
model. Format 3 has no graft: what a run without one trained.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmgraft import records
from lmgraft.block import FrozenBlock, load_block
from lmgraft.block.opaque import MODULE
from lmgraft.errors import BlockError, CheckpointError, HostError, SourceError, first_line
from lmgraft.graft.config import GraftConfig
from lmgraft.graft.controls import apply_control
from lmgraft.graft.insert import insert, ungraft
from lmgraft.graft.layer import NAME, GraftLayer, find_grafts, require_grafts
from lmgraft.graft.wrappers import inside, refuse_tuned, unwrapped
from lmgraft.registry import FACTORIES, SPECS, suggest

_TENSORS, _RECORD = "model.safetensors", "lmgraft.json"
_NOT_FOR_TRANSFORMERS = "graft.safetensors"
"""The tensors' file of transformers' own classes, whose `from_pretrained` would take a `model.safetensors` and leave
what the graft trained out."""
_PATH = re.compile(rf"([^.]+\.)*{NAME}(_\d+)?")
_NEEDED: dict[str, set[str]] = {
    "graft": set(),
    "block": {"source", "revision", "layers", "final_norm", "control", "tensors", "digest"},
    "host": {"class", "spec"},
}


_WIRING = (
    "at",
    "reads",
    "residual",
    "read_token",
    "budget",
    "budget_rule",
    "train_block",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
)
"""Choices without which saved tensors would not fit, or would compute something else."""


def save_pretrained(model: nn.Module, path: str | Path) -> Path:
    """Save the trained tensors of a model with grafts, and a verified reference to each block.

    What is known of the host is saved too: `host_spec`, or else what timm made it from. Where neither is known a
    line says that loading will need the model.

    Args:
        model: Grafted, or a model that holds grafted encoders.
        path: The folder; files in it are replaced.

    Raises:
        HostError: If `model` is not grafted, or PEFT has wrapped parts of its graft.
    """
    require_grafts(unwrapped(model))
    return save_model(model, path)


def save_model(
    model: nn.Module,
    path: str | Path,
    host_spec: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """As `save_pretrained`, also of a model without a graft.

    Args:
        host_spec: How a model without a graft is made; as `graft` takes it.
        about: Plain data to keep beside it, such as names of classes and preprocessing; `read_about` gives it back.
    """
    model = unwrapped(model)
    grafts = find_grafts(model)
    folder = Path(path)
    refuse_tuned(model, grafts)
    empty = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if empty:
        raise CheckpointError(
            f"{len(empty)} tensors, first {empty[0]}, lie on the meta device, where they have no values",
            "load the weights before you save: load_state_dict(..., assign=True)",
        )
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    file = _NOT_FOR_TRANSFORMERS if _is_transformers(model) else _TENSORS
    with records.atomic_path(folder / file) as temporary:
        save_file(_without_aliases(state), str(temporary), metadata={"format": "pt"})
    rows = {
        at: {
            "graft": inserted.config.to_dict(),
            "block": inserted.block.provenance.to_dict(),
            "host": {"class": _class_path(_host_of(model, at)), "spec": _spec_of(model, at, inserted.host_spec)},
        }
        for at, inserted in grafts.items()
    }
    record: dict[str, Any]
    if list(rows) == [NAME]:
        record = {"format": 1, **rows[NAME]}
    elif rows:
        record = {"format": 2, "grafts": [{"path": at, **row} for at, row in rows.items()]}
    else:
        spec = _spec_of(model, NAME, None if host_spec is None else dict(host_spec))
        record = {"format": 3, "host": {"class": _class_path(model), "spec": spec}}
    hosts = [row["host"] for at, row in rows.items() if "." not in at] or [record.get("host") or {}]
    if not any("name" in (host.get("spec") or {}) for host in hosts):
        sys.stderr.write(
            f"note: {folder} does not say how to build {type(model).__name__}: load it with load_pretrained(path, "
            "model=...), or give host_spec= to graft()\n"
        )
    record |= {} if file == _TENSORS else {"tensors": file}
    records.write_json(folder / _RECORD, record | ({} if about is None else {"about": dict(about)}))
    return folder


def _is_transformers(model: nn.Module) -> bool:
    return any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__)


def read_about(path: str | Path) -> dict[str, Any]:
    """What `save_model` was given as `about`: of a run, its categories and preprocessing; else empty."""
    record = records.read_json(_folder_of(path) / _RECORD)
    return dict(record.get("about") or {}) if isinstance(record, dict) else {}


_ON_HUB = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")


def _folder_of(path: str | Path) -> Path:
    """The folder of a saved model: itself, `model` in a run's folder, or fetched from the Hub.

    Raises:
        SourceError: If a Hub repository cannot be fetched.
    """
    folder = Path(path).expanduser()
    if not (folder / _RECORD).exists() and (folder / "model" / _RECORD).exists():
        return folder / "model"
    on_hub = _ON_HUB.fullmatch(str(path))
    if folder.exists() or on_hub is None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(on_hub[1], revision=on_hub[2], allow_patterns=[_RECORD, _TENSORS, _NOT_FOR_TRANSFORMERS])
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise SourceError(
            f"{path} is no folder here, and cannot be fetched from the Hub: {first_line(error)}",
            "give a folder that save_pretrained wrote, a run's folder, or owner/name[@revision] of the Hub",
        ) from None


def _spec_of(model: nn.Module, at: str, given: dict[str, Any] | None) -> dict[str, Any] | None:
    """How the host of the graft at `at` is made: as was said, or as its library knows."""
    host, start = _host_of(model, at), at.rpartition(".")[0]
    library = type(host).__module__.partition(".")[0]
    if "name" in (given or {}) or library not in SPECS:
        return given
    added = [path.removeprefix(f"{start}.") for path in find_grafts(model) if path.startswith(start)]
    found: dict[str, Any] | None = SPECS.load(library)(host, added)
    return given if found is None else {**found, **(given or {})}


def load_pretrained(
    path: str | Path,
    model: nn.Module | None = None,
    llm: str | FrozenBlock | Mapping[str, str | FrozenBlock] | None = None,
) -> nn.Module:
    """Load what `save_pretrained` wrote.

    Args:
        path: The folder, a run's folder, or owner/name[@revision] of the Hub.
        model: The host, plain or grafted, changed in place; None builds the recorded one.
        llm: A moved copy of the block's source, or the block; None uses the recorded source. By path of the
            graft where several grafts have several blocks.

    Returns:
        The grafted model in eval mode. If anything fails, `model` is as it was.

    Raises:
        CheckpointError: If the folder is incomplete, damaged, or does not fit the model.
        BlockError: If a block's digest is not the recorded one.
        HostError: If `model` is None and no way to build it was recorded.
    """
    folder = _folder_of(path)
    record = _read_record(folder)
    rows = {} if record["format"] == 3 else _read_grafts(record, folder / _RECORD)
    state = _read_state(folder / (_NOT_FOR_TRANSFORMERS if "tensors" in record else _TENSORS))
    configs = {at: GraftConfig.from_dict(row["graft"]) for at, row in rows.items()}
    if model is None:
        hosts = [row["host"] for at, row in rows.items() if "." not in at] if rows else [record["host"]]
        model = _build_host(folder, hosts)
    wrapper, model = model, unwrapped(model)
    grafts = find_grafts(model)
    if grafts and grafts.keys() != rows.keys():
        raise CheckpointError(
            f"{folder} does not fit this model: it is grafted at {', '.join(grafts)} ({', '.join(rows)} when saved)",
            "give the model without a graft: it is then grafted as recorded",
        )
    for at, inserted in grafts.items():
        verify_block(inserted.block, rows[at]["block"])
        _verify_wiring(inserted, configs[at], folder)
    try:
        if rows and not grafts:
            _insert_recorded(inside(wrapper), rows, configs, llm)
        _load_state(model, state, folder)
    except BaseException:
        if not grafts and find_grafts(model):
            ungraft(model)
        raise
    return wrapper.eval()


def _insert_recorded(
    model: nn.Module,
    rows: Mapping[str, dict[str, Any]],
    configs: Mapping[str, GraftConfig],
    llm: str | FrozenBlock | Mapping[str, str | FrozenBlock] | None,
) -> None:
    """Graft `model` as it was; a frozen block that several grafts share is loaded once."""
    blocks: dict[tuple[str, str | None], FrozenBlock] = {}
    for at, row in rows.items():
        given = llm.get(at) if isinstance(llm, Mapping) else llm
        key = row["block"]["digest"], configs[at].dtype
        block = blocks.get(key) or _recorded_block(row["block"], given)
        if block.provenance.trained is None:
            blocks[key] = block
        host = _host_of(model, at)
        insert(host, configs[at], block, host_spec=row["host"]["spec"], name=at.rpartition(".")[2])
        inserted = find_grafts(model)[at]
        inserted.config = replace(configs[at], llm=inserted.config.llm)


def _host_of(model: nn.Module, at: str) -> nn.Module:
    """The module in which the graft at path `at` lies.

    Raises:
        CheckpointError: If `model` has none of that path.
    """
    try:
        return model.get_submodule(at.rpartition(".")[0])
    except AttributeError:
        raise CheckpointError(
            f"{type(model).__qualname__} has no {at.rpartition('.')[0]!r}, where a graft was saved",
            "build the model exactly as it was when it was saved",
        ) from None


def verify_block(block: FrozenBlock, recorded: Mapping[str, Any]) -> None:
    """Refuse a block that is not the recorded one.

    Raises:
        BlockError: Naming the first tensors that differ.
    """
    actual = block.provenance
    if actual.digest == recorded["digest"]:
        return
    expected = dict(recorded["tensors"])
    differing = sorted(n for n in expected.keys() | actual.tensors.keys() if expected.get(n) != actual.tensors.get(n))
    what = "config differs"
    if differing:
        what = f"{len(differing)} of {len(expected)} tensors differ, first {differing[0]}"
    raise BlockError(
        f"this is another block than the one it was trained with: {what} "
        f"(digest {actual.digest[:12]}, recorded {recorded['digest'][:12]})",
        f"give the recorded block: {recorded['source']}, layers {recorded['layers']}",
    )


def _verify_wiring(inserted: GraftLayer, config: GraftConfig, folder: Path) -> None:
    """Refuse a grafted model whose tensors would fit and which computes something else."""

    now = inserted.config
    same = {name: getattr(now, name) == getattr(config, name) for name in _WIRING}
    same["at"] = inserted.place() == inserted.place(config.at)
    if now.train_block == config.train_block != "lora":
        same = {name: equal for name, equal in same.items() if not name.startswith("lora_")}
    differing = [
        f"{n}={getattr(now, n)!r} ({getattr(config, n)!r} when saved)" for n, equal in same.items() if not equal
    ]
    if differing:
        raise CheckpointError(
            f"{folder} does not fit this model: it is grafted with {', '.join(differing)}",
            "give the model without a graft: it is then grafted as recorded",
        )


def _recorded_block(recorded: Mapping[str, Any], llm: str | FrozenBlock | None) -> FrozenBlock:
    if isinstance(llm, FrozenBlock):
        block = llm
    elif llm is None and str(recorded["source"]).startswith(MODULE):
        raise BlockError(
            f"the block was a {recorded['source']}, which lies in no file",
            "give it: load_pretrained(path, model=..., llm=lmgraft.block.block_of(module))",
        )
    else:
        block = load_block(
            llm or recorded["source"],
            tuple(recorded["layers"]),
            final_norm=recorded["final_norm"],
            revision=None if llm else recorded["revision"],
            tower=recorded.get("tower"),
            order=recorded.get("order", "none"),
        )
        if recorded["control"] is not None:
            block = apply_control(block, recorded["control"])
    verify_block(block, recorded)
    return block


def _read_record(folder: Path) -> dict[str, Any]:
    file = folder / _RECORD
    record = records.read_json(file)
    if not isinstance(record, dict):
        raise CheckpointError(f"{file} is no record of a saved graft", "save the model again")
    if record.get("format") not in (1, 2, 3):
        raise CheckpointError(f"{file} has format {record.get('format')!r}", "update lmgraft")
    if record["format"] == 3 and not isinstance(record.get("host"), dict):
        raise CheckpointError(f"{file} lacks host", "save the model again")
    return record


def _read_grafts(record: Mapping[str, Any], file: Path) -> dict[str, dict[str, Any]]:
    """The records of the grafts by their paths in the model."""
    listed = [{**record, "path": NAME}] if record["format"] == 1 else record.get("grafts")
    if not isinstance(listed, list) or not listed:
        raise CheckpointError(f"{file} lacks grafts", "save the model again")
    rows: dict[str, dict[str, Any]] = {}
    for row in listed:
        path = row.get("path") if isinstance(row, dict) else None
        if not isinstance(path, str) or path in rows or not _PATH.fullmatch(path):
            raise CheckpointError(f"{file} has a graft without a path, or two of one path", "save the model again")
        for part, keys in _NEEDED.items():
            value = row.get(part)
            absent = sorted(keys - value.keys()) if isinstance(value, dict) else [""]
            if absent:
                raise CheckpointError(f"{file} lacks {part}.{absent[0]}".rstrip("."), "save the model again")
        rows[path] = row
    return rows


def _read_state(file: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(str(file))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing", "save the model again") from None
    except SafetensorError as error:
        raise CheckpointError(f"{file} is cut short or damaged ({error})", "save or copy it again") from None
    return state


def _load_state(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    wanted = model.state_dict()
    thawed = {
        name: parameter
        for at, inserted in find_grafts(model).items()
        for part, parameter in inserted.block.named_parameters()
        if (name := f"{at}.block.{part}") in state and name not in wanted
    }
    wanted |= thawed
    aliases = set(wanted) - set(_without_aliases(wanted))
    empty = {name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta}
    problems = [f"{n} lies on the meta device, and is in no file" for n in sorted(empty - state.keys())]
    problems += [f"missing {n}" for n in wanted if n not in state and n not in aliases]
    problems += [f"unknown {n}" for n in state if n not in wanted]
    problems += [
        f"{n} has shape {tuple(t.shape)}, the model {tuple(wanted[n].shape)}"
        for n, t in state.items()
        if n in wanted and wanted[n].shape != t.shape
    ]
    if problems:
        shwanted = problems[:12] + ([f"and {len(problems) - 12} more"] if len(problems) > 12 else [])
        raise CheckpointError(
            f"{folder} does not fit this model:\n    " + "\n    ".join(shwanted),
            "build the model exactly as it was when it was saved (name, num_classes, img_size, ...)",
        )
    for parameter in thawed.values():  # trained though nobody asked for it, and saved; its storage may be another's too
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(True)
    model.load_state_dict(state, strict=not aliases, assign=bool(empty))


def _without_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One name for each storage: tied tensors are saved once (safetensors refuses aliases)."""
    kept: dict[str, Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and not tensor.is_meta and key in seen:
            continue
        seen.add(key)
        kept[name] = tensor.contiguous()
    return kept


def _build_host(folder: Path, outside: Sequence[dict[str, Any]]) -> nn.Module:
    """The host anew, from the records of hosts that are the model itself and not one inside."""
    if not outside:
        raise HostError(
            f"{folder} does not say how to build the model around its grafts",
            "pass it: load_pretrained(path, model=...)",
        )
    host = next((h for h in outside if "name" in (h["spec"] or {})), outside[0])
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


def _class_path(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"
