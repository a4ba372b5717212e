"""From a model to a traced program; a plain host is traced as it is, to be compared with.

A copy is traced, in eval mode and without gradients, so the model stays as it is and later
training does not reach the program, whose folds would then belong to other mappers. Only frozen
tensors of the block are shared. What is read is what the head reads now. Copies are exact: an
approximation that was asked for is not exported.

What LoRA added is merged into the weights of the copy, except where those are stored narrower.

Where folds replace the block's own projections, nothing in the program uses those: they are
taken out, as are stack traces, which name folders of this machine.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lmgraft.block.lora import merge_lora
from lmgraft.contracts import Host
from lmgraft.errors import ExportError, LmgraftError, first_line
from lmgraft.graft.hosts import find_host
from lmgraft.graft.layer import baked, find_grafts
from lmgraft.graft.reads import reading
from lmgraft.graft.wrappers import unwrapped
from lmgraft.versions import check_versions


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A program and what it was made from."""

    program: ExportedProgram
    model: nn.Module
    """The copy that was traced: what the program is to equal."""
    example: tuple[Tensor, ...]
    axes: tuple[dict[int, str], ...]
    """Of each input, the axes that take any size, and their names."""
    left_out: dict[str, int]
    """Tensors that the program does not use, by name in the model, and their bytes."""

    def contents(self) -> dict[str, int]:
        """Bytes of the program's tensors, by what they belong to."""
        sizes = {"host": 0, "mappers": 0, "block": 0, "folds and constants": _bytes(self.program.constants)}
        grafts = tuple(f"{at}." for at in find_grafts(self.model))
        blocks = tuple(f"{at}block." for at in grafts)
        for name, tensor in self.program.state_dict.items():
            kind = "block" if name.startswith(blocks) else "mappers" if name.startswith(grafts) else "host"
            sizes[kind] += tensor.nbytes
        return sizes


def export_program(
    model: nn.Module, example: Tensor | tuple[Tensor, ...], *, dynamic_batch: bool = True
) -> ExportedProgram:
    """Trace a model, a graft's folds as constants; see the module's text for what is in it.

    Args:
        model: Grafted or plain; it stays as it is, whatever mode it is in.
        example: Inputs of the model, with the batch on the first axis of each.
        dynamic_batch: Whether the program takes batches of any size, or only of the example's. Other axes whose size
            differs from call to call, as the model's `Host` names them, take any size.

    Raises:
        ExportError: If it cannot be traced.
        VersionError: If torch is too old to.
    """
    return trace(model, example, dynamic_batch).program


def trace(model: nn.Module, example: Tensor | tuple[Tensor, ...], dynamic_batch: bool) -> Trace:
    """As `export_program`, with all that came of it."""
    check_versions("export", "torch")
    model = unwrapped(model)
    grafts = find_grafts(model)
    host = find_host(model)
    if host is not None and host.not_exported:
        raise ExportError(f"{type(model).__qualname__} is not exported: {host.not_exported}", "run it in PyTorch")
    given = example if isinstance(example, tuple) else (example,)
    axes = _axes(host, given, dynamic_batch)
    inputs = tuple(_two_at_least(x, named) for x, named in zip(given, axes, strict=True))
    names = {name for named in axes for name in named.values()}
    dims = {name: torch.export.Dim(name) for name in names}
    shapes = tuple({axis: dims[name] for axis, name in named.items()} for named in axes)
    twin = _frozen_copy(model)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for at, inserted in grafts.items():
            if pinned := inserted.read_state.pinned:
                stack.enter_context(reading(twin.get_submodule(at), pinned[-1]))
        stack.enter_context(baked(twin))
        stack.enter_context(_named_errors(model))
        program = torch.export.export(twin, inputs, dynamic_shapes=shapes if dims else None, strict=False)
    left_out = _drop_unused(program)
    _forget_where(program)
    return Trace(program=program, model=twin, example=given, axes=axes, left_out=left_out)


def _axes(host: Host | None, inputs: tuple[Tensor, ...], dynamic_batch: bool) -> tuple[dict[int, str], ...]:
    """Of each input the batch axis, where it is to vary, and those that the model's host says vary."""
    varying = host.varying if host is not None and len(host.varying) == len(inputs) else ({},) * len(inputs)
    batch = {0: "batch"} if dynamic_batch else {}
    return tuple(batch | dict(named) for named in varying)


def _two_at_least(x: Tensor, axes: Iterable[int]) -> Tensor:
    """With axes of size one doubled: a traced size of one is a constant, with two any will do, one as well."""
    for axis in axes:
        x = torch.cat([x, x], axis) if x.shape[axis] == 1 else x
    return x


def _frozen_copy(model: nn.Module) -> nn.Module:
    blocks = [inserted.block for inserted in find_grafts(model).values()]
    shared = {id(p): p for block in blocks for p in block.parameters() if not p.requires_grad}
    twin = copy.deepcopy(model, dict(shared)).eval().requires_grad_(False)
    for inserted in find_grafts(twin).values():
        merge_lora(inserted.block)
    return twin


@contextmanager
def _named_errors(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except LmgraftError:
        raise
    except Exception as error:  # torch.export lets through whatever the traced code raises
        raise ExportError(
            f"torch.export cannot trace this {type(model).__name__}: {first_line(error)}",
            "check that model(example) runs; if it does, try a fixed batch (dynamic_batch=False)",
        ) from error


def _drop_unused(program: ExportedProgram) -> dict[str, int]:
    """Take tensors out that no operation uses."""
    signature = program.graph_signature
    unused = {n.name: n for n in program.graph.nodes if n.op == "placeholder" and not n.users}
    written = set(signature.buffers_to_mutate.values())
    specs = [s for s in signature.input_specs if s.target is not None and s.target not in written]
    dropped: dict[str, int] = {}
    for spec in (s for s in specs if s.arg.name in unused):
        tensor = program.state_dict.pop(str(spec.target), None)
        constant = program.constants.pop(str(spec.target), None)
        dropped[str(spec.target)] = next((t.nbytes for t in (tensor, constant) if isinstance(t, Tensor)), 0)
        signature.input_specs.remove(spec)
        program.graph.erase_node(unused[spec.arg.name])
    program.graph_module.recompile()
    program.validate()  # type: ignore[no-untyped-call]
    return dropped


def _forget_where(program: ExportedProgram) -> None:
    """Leave neither the example nor paths of this machine in the program."""
    program.example_inputs = None
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _bytes(tensors: dict[str, object]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values() if isinstance(tensor, Tensor))
