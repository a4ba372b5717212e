"""Exported files: written beside their place, tried, and only then given their name."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lmgraft import records
from lmgraft.errors import ExportError
from lmgraft.graft.export import onnx_file
from lmgraft.graft.export.compare import Check, compare, tensors_in
from lmgraft.graft.export.trace import Trace, trace


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and how near to the model it computes."""

    format: Literal["onnx", "torch"]
    files: dict[str, int]
    """Bytes by name."""
    inputs: tuple[tuple[int | str, ...], ...]
    """Shape of each input; a name, such as "batch", stands for any size."""
    opset: int | None
    contents: dict[str, int]
    """Bytes of tensors, by what they belong to."""
    left_out: dict[str, int]
    """The model's tensors that the program does not use, and their bytes."""
    checks: tuple[Check, ...]
    """Empty where the check was not wanted."""


def export_onnx(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    check: bool = True,
) -> ExportReport:
    """Write a model as ONNX, folds baked in, and compare it under onnxruntime with the model.

    Inputs are named "input" and outputs "output", numbered from 0 where there are several. Above
    1.9 GB the tensors lie in `<path>.data`, which belongs to the file.

    Args:
        model: Grafted or plain; it stays as it is.
        example: Inputs of the model, with the batch on the first axis of each.
        path: The file to write, usually .onnx.
        dynamic_batch: Whether the file takes batches of any size, or only of the example's. Other axes that vary do.
        check: Compare with the eager model before the file gets its name.

    Raises:
        ExportError: If the extra is missing, the model cannot be traced, the place cannot be
            written, or the outputs differ by more than `TOLERANCE`. Nothing is written then.
    """
    onnx_file.require(check)
    with _whole_or_absent(Path(path)) as (temporary, files):
        traced = trace(model, example, dynamic_batch)
        with _writing(Path(path)):
            opset = onnx_file.write(traced, temporary)
        checks = compare(onnx_file.runner(temporary), traced.model, traced.example, traced.axes) if check else ()
    return _report("onnx", traced, files, checks, opset)


def export_torch(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    check: bool = True,
) -> ExportReport:
    """Write a model for torch.export.load, folds baked in; otherwise as `export_onnx`.

    Raises:
        ExportError: As `export_onnx`, and if `path` does not end in .pt2, as torch wants it.
    """
    if Path(path).suffix != ".pt2":
        raise ExportError(f"{path} does not end in .pt2", "torch.export.load knows its files by that: rename it")
    with _whole_or_absent(Path(path)) as (temporary, files):
        traced = trace(model, example, dynamic_batch)
        with _writing(Path(path)):
            torch.export.save(traced.program, temporary)
        checks: tuple[Check, ...] = ()
        if check:
            loaded = torch.export.load(temporary).module()
            checks = compare(lambda inputs: tensors_in(loaded(*inputs)), traced.model, traced.example, traced.axes)
    return _report("torch", traced, files, checks, None)


@contextmanager
def _whole_or_absent(path: Path) -> Iterator[tuple[Path, dict[str, int]]]:
    """A place of the same name in a temporary folder; what lies there moves to `path` at the end.

    Yields the place, and a dictionary that is filled with the bytes of each file.
    """
    if path.is_dir():
        raise ExportError(f"{path} is a folder", "name a file in it")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    files: dict[str, int] = {}
    try:
        yield folder / path.name, files
        written = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
        with _writing(path):
            if len(written) > 1:  # an old file must never stand beside new tensors, not even for a moment
                path.unlink(missing_ok=True)
            for file in written:  # the one of the given name last: with it the export is there
                files[file.name] = file.stat().st_size
                records.commit(file, path.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"{path} cannot be written ({error.strerror})", "choose another place, or make room"
        ) from None


def _report(
    format_: Literal["onnx", "torch"],
    traced: Trace,
    files: dict[str, int],
    checks: tuple[Check, ...],
    opset: int | None,
) -> ExportReport:
    return ExportReport(
        format=format_,
        files=files,
        inputs=tuple(
            tuple(named.get(axis, size) for axis, size in enumerate(x.shape))
            for x, named in zip(traced.example, traced.axes, strict=True)
        ),
        opset=opset,
        contents=traced.contents(),
        left_out=traced.left_out,
        checks=checks,
    )
