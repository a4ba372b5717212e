"""The tensors of one layer, read by transformers' own table of renamed and fused weights.

Only what the layer needs is read. Experts that a file holds one by one are stacked as they come: no two
copies of a stack are held.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import conversion_mapping, core_model_loading
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming

from lmgraft.borrowed.skeleton import Skeleton
from lmgraft.checkpoint import Checkpoint
from lmgraft.checkpoint.digest import Stack, tensor_digest
from lmgraft.checkpoint.memory import Step
from lmgraft.checkpoint.names import BESIDE_THE_MODEL, read_finite, several_roots
from lmgraft.checkpoint.wrapped import PlainNames
from lmgraft.errors import CheckpointError


@dataclass
class Target:
    """One tensor of the layer, or several that one operation makes, and what they are made of."""

    name: str
    """In the layer; of several the first."""
    converter: WeightConverter | None = None
    sources: dict[str, list[str]] = field(default_factory=dict)
    """Pattern of the converter -> names in the file; without a converter one of each."""

    def names(self) -> list[str]:
        return [name for names in self.sources.values() for name in names]


def find_targets(skeleton: Skeleton, prefix: str, names: Iterable[str]) -> list[Target]:
    """What in a file makes the tensors of the model whose names begin with `prefix`."""
    model = skeleton.model
    mapping = conversion_mapping.get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    meta = model.state_dict()
    targets: dict[str, Target] = {}
    for name in sorted(names, key=core_model_loading.dot_natural_key):
        renamed, pattern = core_model_loading.rename_source_key(
            name, renamings, converters, model.base_model_prefix, meta
        )
        if renamed not in meta and name in meta:
            renamed, pattern = name, None
        if not renamed.startswith(prefix):
            continue
        converter = None if pattern is None or renamed not in meta else by_pattern[pattern]
        target = targets.setdefault(renamed, Target(renamed.removeprefix(prefix), converter))
        target.sources.setdefault(pattern or name, []).append(name)
    return list(targets.values())


def _roots(skeleton: Skeleton, names: Iterable[str]) -> set[str]:
    """What may stand before the model's own names in a file: nothing, or wrappers and composites around it."""
    base = f"{skeleton.model.base_model_prefix}."
    begin = {name.removeprefix(cut).partition(".")[0] for name in skeleton.model.state_dict() for cut in ("", base)}
    roots = {""}
    for name in names:
        parts = name.split(".")
        if not name.startswith(BESIDE_THE_MODEL):
            roots |= {".".join(parts[:depth]) + "." for depth in range(1, len(parts)) if parts[depth] in begin}
    return roots


class Reader:
    """Reads the tensors of layers from one file.

    Args:
        dtype: What they are stored in; None keeps the file's own.
    """

    def __init__(self, checkpoint: Checkpoint, skeleton: Skeleton, dtype: torch.dtype | None) -> None:
        self.checkpoint, self.skeleton, self.dtype = checkpoint, skeleton, dtype
        self._targets: dict[int, list[Target]] = {}

    def layer(self, index: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors of a layer by their names in it, and the digests of the values that the file holds.

        Raises:
            CheckpointError: If tensors are missing, unknown, of another shape, or hold NaN.
        """
        module, prefix = self.skeleton.layer(index), self.skeleton.prefix(index)
        targets = self.targets(index)
        wanted = self.skeleton.tensors(index)
        self._check_experts(targets, wanted)
        tensors: dict[str, Tensor] = {}
        digests: dict[str, str] = {}
        for target in targets:
            for name, tensor, digest in self._make(target, wanted, prefix):
                tensors[name], digests[name] = tensor, digest
        self._check(module, prefix, tensors, wanted, targets)
        return tensors, digests

    def targets(self, index: int) -> list[Target]:
        """What a layer is made of in the file; matched once, as transformers' tables are long."""
        if index not in self._targets:
            self._targets[index] = self._match(index)
        return self._targets[index]

    def steps(self, index: int) -> list[Step]:
        """What is held at the same time while a layer is read."""
        steps: list[Step] = []
        for target in self.targets(index):
            if _is_stack(target):
                steps += [Step((name,), copied=True) for name in target.names()]
            else:
                steps.append(Step(tuple(target.names()), copied=target.converter is not None))
        return steps

    def _match(self, index: int) -> list[Target]:
        prefix, out = self.skeleton.prefix(index), self.skeleton.left_out(index)
        wanted = {prefix + name for name in self.skeleton.tensors(index)}
        number = re.compile(rf"(^|[^0-9]){index}([^0-9]|$)")
        near = [name for name in self.checkpoint.names() if number.search(name)]
        targets = self._under_one_root(index, near)
        if not wanted <= {prefix + target.name for target in targets}:  # some tables renumber layers
            every = find_targets(self.skeleton, prefix, self.checkpoint.names())
            targets = every if len(every) > len(targets) else targets
        kept = [target for target in targets if not target.name.startswith(out)]
        return sorted(kept, key=_is_stack)  # stacks last: what is read whole is narrowed before much is held

    def _under_one_root(self, index: int, near: Sequence[str]) -> list[Target]:
        """What makes a layer of `near`, its names; from here on the file is seen without what stands before them.

        Raises:
            CheckpointError: If the layer lies under several prefixes.
        """
        wanted, prefix = self.skeleton.tensors(index), self.skeleton.prefix(index)
        held: dict[frozenset[str], tuple[int, str, list[Target]]] = {}
        for root in sorted(_roots(self.skeleton, near), key=len):
            names = [name.removeprefix(root) for name in near if name.startswith(root)]
            targets = find_targets(self.skeleton, prefix, names)
            used = frozenset(root + name for t in targets if t.name in wanted for name in t.names())
            held.setdefault(used, (sum(t.name in wanted for t in targets), root, targets))
        most = max(count for count, _, _ in held.values())
        best = [(root, targets) for count, root, targets in held.values() if count == most]
        if len(best) > 1 and most:
            raise several_roots(index, [root for root, _ in best])
        root, targets = best[0]
        if root:
            names = [name for name in self.checkpoint.names() if name.startswith(root)]
            self.checkpoint = PlainNames(self.checkpoint, {name.removeprefix(root): name for name in names})
        return targets

    def one(self, name: str) -> Tensor | None:
        """A tensor of the model by its whole name; None where the file has none."""
        prefix, _, leaf = name.rpartition(".")
        near = [n for n in self.checkpoint.names() if n.endswith(leaf)]
        for target in find_targets(self.skeleton, f"{prefix}.", near):
            if target.name == leaf and target.converter is None:
                return read_finite(self.checkpoint, target.names()[0])
        return None

    def _make(self, target: Target, wanted: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor, str]]:
        if target.converter is None:
            yield target.name, *self._finished(read_finite(self.checkpoint, target.names()[0]))
        elif _is_stack(target) and target.name in wanted:
            yield target.name, *self._stacked(target, tuple(wanted[target.name].shape))
        else:
            made = self._converted(target, prefix)
            for name in list(made):
                yield name.removeprefix(prefix), *self._finished(made.pop(name))

    def _finished(self, tensor: Tensor) -> tuple[Tensor, str]:
        return tensor.to(self.dtype or tensor.dtype), tensor_digest(tensor)

    def _stacked(self, target: Target, shape: tuple[int, ...]) -> tuple[Tensor, str]:
        """Experts of a file, one after the other, in the rows of one tensor."""
        stack = Stack(shape, self.dtype)
        for expert in zip(*target.sources.values(), strict=True):
            wanted = (shape[1] // len(expert), *shape[2:])
            for name in expert:
                if self.checkpoint.shape(name) != wanted:
                    raise CheckpointError(
                        f"{name} has shape {self.checkpoint.shape(name)}, the config says {wanted}",
                        "the file does not fit its config.json",
                    )
                stack.add(read_finite(self.checkpoint, name))
        return stack.finished()

    def _converted(self, target: Target, prefix: str) -> dict[str, Tensor]:
        """By transformers' own operations."""
        assert target.converter is not None
        converter = target.converter.copy(
            target.converter._original_source_patterns,
            target.converter._original_target_patterns,
            operations=target.converter.operations,
        )
        whole = prefix + target.name
        for pattern, names in target.sources.items():
            for name in names:
                converter.add_tensor(whole, name, pattern, read_finite(self.checkpoint, name))
        model = self.skeleton.model
        made: dict[str, Any] = converter.convert(whole, model=model, config=model.config)
        return {name: (value[0] if isinstance(value, list) else value) for name, value in made.items()}

    def _check_experts(self, targets: list[Target], wanted: dict[str, Tensor]) -> None:
        """Each expert has each of its tensors; what is missing is named."""
        for target in targets:
            if not _is_stack(target) or target.name not in wanted:
                continue
            patterns = target.converter.source_patterns if target.converter else []
            for pattern in patterns:
                names = target.sources.get(pattern, [])
                experts = wanted[target.name].shape[0]
                if len(names) != experts:
                    missing = _missing(names, experts)
                    raise CheckpointError(
                        f"{self.checkpoint.label} has {len(names)} of {experts} experts of {pattern}"
                        + (f": missing {missing}" if missing else ""),
                        "a shard is missing or incomplete: fetch the model again",
                    )

    def _check(
        self,
        module: nn.Module,
        prefix: str,
        tensors: dict[str, Tensor],
        wanted: dict[str, Tensor],
        targets: list[Target],
    ) -> None:
        model = self.skeleton.model
        may_miss = _patterns(model, "_keys_to_ignore_on_load_missing")
        may_be_there = _patterns(model, "_keys_to_ignore_on_load_unexpected")
        counted = {n for n, t in wanted.items() if not t.is_floating_point()}
        problems = [
            f"missing {prefix}{name}"
            for name in wanted
            if name not in tensors and name not in counted and not any(p.search(prefix + name) for p in may_miss)
        ]
        problems += [
            f"{prefix}{name} has shape {tuple(t.shape)}, the config says {tuple(wanted[name].shape)}"
            for name, t in tensors.items()
            if name in wanted and t.shape != wanted[name].shape
        ]
        for target in targets:
            unknown = target.converter is None and target.name not in wanted
            if unknown and not _is_known(module, target.name, [*may_be_there, *_POSITIONS], prefix):
                problems.append(f"unknown {target.names()[0]}")
        if problems:
            raise CheckpointError(
                f"{self.checkpoint.label} does not hold the layer its config describes:\n    "
                + "\n    ".join(problems),
                "the file is of another architecture than it says, or this version of transformers does not know it",
            )


_POSITIONS = [re.compile(r"(inv_freq|rotary_emb|position_ids|masked_bias|attn\.bias|attention\.bias)$")]
"""Tensors of older files that hold no weights."""


def _is_known(module: nn.Module, name: str, patterns: list[re.Pattern[str]], prefix: str) -> bool:
    held = {n for n, _ in module.named_buffers()}
    return name in held or any(p.search(prefix + name) for p in patterns)


def _patterns(model: nn.Module, attribute: str) -> list[re.Pattern[str]]:
    return [re.compile(p) for p in getattr(model, attribute, None) or ()]


def _is_stack(target: Target) -> bool:
    """Whether experts are stacked, and nothing else is done to them."""
    operations = target.converter.operations if target.converter else []
    kinds = [(type(op), getattr(op, "dim", None)) for op in operations]
    return kinds in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])


def _missing(names: list[str], experts: int) -> str:
    """The experts that are not among `names`: an expert's number is the last one in a name."""
    there = {int(numbers[-1]) for n in names if (numbers := re.findall(r"\.(\d+)\.", n))}
    absent = [str(i) for i in range(experts) if i not in there]
    return ", ".join(absent[:6]) + (f" and {len(absent) - 6} more" if absent[6:] else "")
