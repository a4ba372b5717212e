"""A checkpoint whose quantised weights are seen, and read, as the weights they stand for."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lmgraft.checkpoint.base import Checkpoint
from lmgraft.checkpoint.places import CHUNK
from lmgraft.checkpoint.quantised.awq import AWQ
from lmgraft.checkpoint.quantised.bitsandbytes import EIGHT_BITS, FOUR_BITS
from lmgraft.checkpoint.quantised.compressed import COMPRESSED
from lmgraft.checkpoint.quantised.form import Format, Stored
from lmgraft.checkpoint.quantised.gptq import GPTQ
from lmgraft.checkpoint.quantised.mxfp4 import MXFP4
from lmgraft.checkpoint.quantised.scaled import SCALED
from lmgraft.errors import CheckpointError

FORMATS: tuple[Format, ...] = (FOUR_BITS, EIGHT_BITS, AWQ, GPTQ, COMPRESSED, SCALED, MXFP4)
"""In the order in which they are looked for."""
_METHODS = ("bitsandbytes", "gptq", "auto-round", "awq", "fp8", "fbgemm_fp8", "compressed-tensors", "mxfp4", "modelopt")
_OF_ACTIVATIONS = re.compile(r".*\.(input|output|activation|q|k|v|prob)_(global_)?(scale|zero_point)(_inv|_ub)?")


@dataclass(frozen=True)
class _Weight:
    format: Format
    stem: str
    """What stands before the endings."""
    endings: tuple[str, ...]


def quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """`quantization_config`, of the model or of its language part; empty if there is none."""
    for part in (config, config.get("text_config")):
        settings = part.get("quantization_config") if isinstance(part, Mapping) else None
        if isinstance(settings, dict):
            return settings
    return {}


def with_quantised(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` itself, or seen through `QuantisedCheckpoint` where it holds quantised weights.

    Raises:
        CheckpointError: If it says that it is quantised in a way that is not read.
    """
    settings = quantisation(checkpoint.config)
    method = settings.get("quant_method")
    if method is not None and method not in _METHODS:
        raise CheckpointError(
            f"{checkpoint.label} is quantised by {method!r}, which is not read",
            f"use the model that it was made from, or a GGUF file of it; of quantised files {', '.join(_METHODS)} "
            "are read",
        )
    weights = _find(checkpoint.names(), str(method))
    return QuantisedCheckpoint(checkpoint, weights, settings) if weights else checkpoint


def _find(names: Collection[str], method: str) -> dict[str, _Weight]:
    """The weights that several stored tensors make up, by their names."""
    present, weights, used = set(names), {}, set[str]()
    for form in FORMATS:
        if form.methods and method not in form.methods:
            continue
        for name in present:
            if name.endswith(form.main) and name not in used:
                stem = name.removesuffix(form.main)
                beside = [ending for ending in form.beside if stem + ending in present]
                if beside:
                    weights[stem + form.weight] = _Weight(form, stem, (form.main, *beside))
                    used |= {name, *(stem + ending for ending in beside)}
    return weights


class QuantisedCheckpoint:
    """Quantised weights by the names and shapes they stand for; see `lmgraft.checkpoint.base.Checkpoint`.

    All else is read as it is; scales of activations are not there.
    """

    style: Literal["hf"] = "hf"

    def __init__(self, stored: Checkpoint, weights: Mapping[str, _Weight], settings: Mapping[str, Any]) -> None:
        self.label, self.config, self.licence = stored.label, stored.config, stored.licence
        self._stored, self._weights, self._settings = stored, weights, settings
        parts = {weight.stem + ending for weight in weights.values() for ending in weight.endings}
        plain = {name for name in stored.names() if name not in parts and not _OF_ACTIVATIONS.fullmatch(name)}
        self._names = plain | weights.keys()
        self._of: dict[str, Stored] = {}

    def _parts(self, name: str) -> list[str]:
        """The stored tensors that a tensor is made of."""
        weight = self._weights.get(name)
        return [name] if weight is None else [weight.stem + ending for ending in weight.endings]

    def _described(self, name: str) -> Stored:
        if name not in self._of:
            weight, stored = self._weights[name], self._stored
            self._of[name] = Stored(
                name=f"{name} in {self.label}, {weight.format.title}",
                shapes={ending: stored.shape(weight.stem + ending) for ending in weight.endings},
                dtypes={ending: stored.dtype(weight.stem + ending) for ending in weight.endings},
                settings=self._settings,
                read=lambda ending: stored.read(weight.stem + ending),
            )
        return self._of[name]

    def names(self) -> Collection[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight as float.

        Raises:
            CheckpointError: If what it is made of does not fit together.
        """
        if name not in self._weights:
            return self._stored.shape(name)
        weight, described = self._weights[name], self._described(name)
        absent = [e for e in weight.format.needs if e not in described.shapes]
        if absent:
            raise described.damaged(f"its {absent[0]} is missing")
        if len(described.shapes[weight.format.main]) < weight.format.dims:
            raise described.damaged(f"{weight.format.main} has shape {described.shapes[weight.format.main]}")
        return weight.format.shape(described)

    def nbytes(self, name: str) -> int:
        return sum(self._stored.nbytes(part) for part in self._parts(name))

    def dtype(self, name: str) -> str:
        weight = self._weights.get(name)
        stored = self._stored.dtype(self._parts(name)[0])
        return stored if weight is None else f"{weight.format.title} {stored}"

    def to_fetch(self, name: str) -> int:
        """Bytes of a tensor that neither lie on this machine nor in the cache."""
        return sum(map(self._stored.to_fetch, self._parts(name)))

    def is_padding(self, name: str) -> bool:
        """Whether `name` is a bias of zeros, which some quantisers add to every layer."""
        weight = name.removesuffix(".bias") + ".weight"
        return name.endswith(".bias") and weight in self._weights and not self._stored.read(name).any()

    def read(self, name: str) -> Tensor:
        """Read one tensor; a quantised one comes as float32, made a few rows at a time."""
        if name not in self._weights:
            return self._stored.read(name)
        shape, described, form = self.shape(name), self._described(name), self._weights[name].format
        parts = {ending: described.read(ending) for ending in described.shapes}
        weight = torch.empty(shape, dtype=torch.float32)
        rows = CHUNK // 4 // max(1, math.prod(shape[1:])) // form.step * form.step
        step = max(form.step, rows)
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            weight[start:stop] = form.rows(described, parts, start, stop)
        return weight
