"""Name maps as data, applied strictly both ways.

Each tensor that a block wants is found once; each tensor of the layer in the file is either
used or listed as dropped on purpose. Anything else is an error that lists all of it at once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmgraft.checkpoint.base import Checkpoint
from lmgraft.checkpoint.places import CHUNK
from lmgraft.errors import CheckpointError

BESIDE_THE_MODEL = ("mtp.",)  # layers that predict further tokens, named as the model's own
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class NameMap:
    """How one file style names the tensors of a layer."""

    layer_prefix: str
    """Prefix of a layer's tensors after the root, with `{layer}`."""
    tensors: Mapping[str, str]
    """Canonical name -> name in the file after the prefix; without `.weight` or `.bias`, both are meant."""
    outside: Mapping[str, str] = field(default_factory=dict)
    """As `tensors`, for tensors outside the layers: name in the file after the root."""
    dropped: tuple[str, ...] = ()
    """Regular expressions of names after the prefix that are known and not wanted."""
    roots: tuple[str, ...] = ("",)
    """What usually stands before everything; the first one is named where the layer is nowhere."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Canonical name in the file -> the projections whose rows it holds."""
    grouped: bool = False
    """Whether what is fused of attention lies group by group of heads (key/value heads, where keys are in it)."""
    interleaved: bool = False
    """Whether the rows of what is fused lie in turn."""
    transposed: tuple[str, ...] = ()
    """Projections stored as (inputs, outputs)."""

    stacked: Mapping[str, str] = field(default_factory=dict)
    """Canonical name -> name in the file with `{i}`, where each row is a tensor of its own."""

    def root(self, present: Collection[str], layer: int) -> str:
        """What stands before everything in the file: the only prefix under which `layer` is found, whatever it is.

        Where one holds less of the layer than another, as an image tower does, it does not count.

        Raises:
            CheckpointError: If several hold as much.
        """
        prefix = self.layer_prefix.format(layer=layer)
        modules = {*self.tensors.values()}
        held: dict[str, set[str]] = {}
        for name in present:
            at = f".{name}".find(f".{prefix}")
            if at >= 0 and not name.startswith(BESIDE_THE_MODEL):
                rest = name[at + len(prefix) :]
                held.setdefault(name[:at], set()).add(rest if rest in modules else rest.rpartition(".")[0])
        most = max((len(held[root] & modules) for root in held), default=0)
        best = sorted(root for root in held if len(held[root] & modules) == most)
        if len(best) > 1 and most:
            raise several_roots(layer, best)
        return best[0] if best else self.roots[0]

    def in_file(self, canonical: str, layer: int, root: str) -> str | None:
        """The whole name in the file, or None without a rule."""
        base, _, part = canonical.rpartition(".")
        for table, prefix in ((self.tensors, root + self.layer_prefix.format(layer=layer)), (self.outside, root)):
            if canonical in table:
                return prefix + table[canonical]
            if base in table:
                return f"{prefix}{table[base]}.{part}"
        whole, _, row = base.rpartition(".")
        if whole in self.stacked:
            prefix = root + self.layer_prefix.format(layer=layer)
            return f"{prefix}{self.stacked[whole].format(i=row)}.{part}"
        return None


def several_roots(layer: int, roots: Sequence[str]) -> CheckpointError:
    """What is said where a layer lies under several prefixes."""
    return CheckpointError(
        f"layer {layer} is there {len(roots)} times: under {' and '.join(map(repr, roots))}",
        "save the language model alone, or give a file that holds only one of them",
    )


def find_tensors(
    checkpoint: Checkpoint, names: NameMap, layer: int, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """Where the tensors `wanted` (canonical name -> shape) of `layer` are: canonical name -> name in the file.

    Raises:
        CheckpointError: If tensors are missing, of another shape, or unknown.
    """
    root = names.root(checkpoint.names(), layer)
    prefix = root + names.layer_prefix.format(layer=layer)
    rules = {canonical: names.in_file(canonical, layer, root) for canonical in wanted}
    in_file = {canonical: name for canonical, name in rules.items() if name is not None}
    _check(checkpoint, names, prefix, in_file, wanted)
    return in_file


def read_tensors(
    checkpoint: Checkpoint, names: NameMap, layer: int, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Read the tensors `wanted` (canonical name -> shape) of `layer`; nothing else is touched.

    Raises:
        CheckpointError: If tensors are missing, of another shape, unknown, or hold NaN or infinity.
    """
    in_file = find_tensors(checkpoint, names, layer, wanted)
    return {canonical: read_finite(checkpoint, name) for canonical, name in in_file.items()}


def read_finite(checkpoint: Checkpoint, name: str) -> Tensor:
    """Read one tensor.

    Raises:
        CheckpointError: If it is no floating tensor, or holds NaN or infinity.
    """
    tensor = checkpoint.read(name)
    if tensor.dtype not in FLOATS:
        raise CheckpointError(
            f"{name} in {checkpoint.label} is stored as {checkpoint.dtype(name)}, and no scales lie beside it",
            "it is quantised in a way that is not read: use the unquantised model, or a GGUF file of it",
        )
    bad = _count_not_finite(tensor)
    if bad:
        raise CheckpointError(
            f"{name} in {checkpoint.label} holds {bad} values that are NaN or infinite",
            "the file is damaged or badly converted: fetch it again or use another",
        )
    return tensor


def _count_not_finite(tensor: Tensor) -> int:
    """How many values are NaN or infinite; piece by piece, so that no copy of the tensor is made."""
    pieces = torch.split(tensor.reshape(-1), CHUNK // tensor.element_size())
    # A sum is finite unless a value is not, or it overflows: only then is it looked at value by value.
    return sum(int((~torch.isfinite(piece)).sum()) for piece in pieces if not piece.sum().isfinite())


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
    is_padding = getattr(checkpoint, "is_padding", lambda _: False)
    used = set(in_file.values())
    for name in sorted(present - used):
        rest = name[len(prefix) :]
        known = not name.startswith(prefix) or any(re.fullmatch(pattern, rest) for pattern in names.dropped)
        if not known and not is_padding(name):
            problems.append(f"unknown {name}")
    if problems:
        raise CheckpointError(
            f"{checkpoint.label} does not hold the layer its config describes:\n    " + "\n    ".join(problems),
            "the file is of another architecture than it says, or of a variant lmgraft does not know",
        )
