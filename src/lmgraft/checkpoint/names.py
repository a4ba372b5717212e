"""Name maps as data, applied strictly both ways.

Each tensor that a block wants is found once; each tensor of the layer in the file is either
used or listed as dropped on purpose. Anything else is an error that lists all of it at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmgraft.checkpoint.source import Checkpoint
from lmgraft.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class NameMap:
    """How one file style names the tensors of a layer."""

    layer_prefix: str
    """Prefix of a layer's tensors, with `{layer}`."""
    tensors: Mapping[str, str]
    """Canonical name -> name in the file after the prefix."""
    outside: Mapping[str, str] = field(default_factory=dict)
    """Canonical name -> whole name in the file, for tensors outside the layers."""
    dropped: tuple[str, ...] = ()
    """Regular expressions of names after the prefix that are known and not wanted."""


def read_tensors(
    checkpoint: Checkpoint, names: NameMap, layer: int, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Read the tensors `wanted` (canonical name -> shape) of `layer`; nothing else is touched.

    Raises:
        CheckpointError: If tensors are missing, of another shape, unknown, or hold NaN or infinity.
    """
    prefix = names.layer_prefix.format(layer=layer)
    in_file = {canonical: prefix + names.tensors[canonical] for canonical in wanted if canonical in names.tensors}
    in_file |= {canonical: names.outside[canonical] for canonical in wanted if canonical in names.outside}
    _check(checkpoint, names, prefix, in_file, wanted)
    tensors = {}
    for canonical, name in in_file.items():
        tensor = checkpoint.read(name)
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{name} in {checkpoint.label} holds {bad} values that are NaN or infinite",
                "the file is damaged or badly converted: fetch it again or use another",
            )
        tensors[canonical] = tensor
    return tensors


def _check(
    checkpoint: Checkpoint,
    names: NameMap,
    prefix: str,
    in_file: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
) -> None:
    present = set(checkpoint.names())
    problems = [f"no rule for {canonical}" for canonical in wanted if canonical not in in_file]
    for canonical, name in in_file.items():
        if name not in present:
            problems.append(f"missing {name}")
        elif checkpoint.shape(name) != wanted[canonical]:
            problems.append(f"{name} has shape {checkpoint.shape(name)}, the config says {wanted[canonical]}")
    used = set(in_file.values())
    for name in sorted(present - used):
        rest = name[len(prefix) :]
        if name.startswith(prefix) and not any(re.fullmatch(pattern, rest) for pattern in names.dropped):
            problems.append(f"unknown {name}")
    if problems:
        raise CheckpointError(
            f"{checkpoint.label} does not hold the layer its config describes:\n    " + "\n    ".join(problems),
            "the file is of another architecture than it says, or of a variant lmgraft does not know",
        )
