"""ONNX: writing a traced program, and running what was written.

The only place that needs onnx, onnxscript and onnxruntime; they are imported when called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmgraft.errors import ExportError, first_line
from lmgraft.graft.export.trace import Trace
from lmgraft.versions import check_versions, optional

LARGEST_IN_ONE_FILE = 1_900_000_000
"""Bytes of tensors. A protobuf message ends at 2 GiB; more goes into a second file beside it."""


def require(check: bool) -> None:
    """Make sure that what is needed is installed.

    Raises:
        VersionError: Naming what is missing or too old.
    """
    check_versions("export")
    for name in ("onnx", "onnxscript", *(["onnxruntime"] if check else [])):
        optional(name, "export", "writing ONNX")


def write(trace: Trace, path: Path) -> int:
    """Write `path`, and `<path>.data` beside it if the tensors are too large for one file.

    Returns:
        The opset version.
    """
    names = _numbered("input", len(trace.example))
    # Of axes that are one size, one gets a name; the exporter warns of a second.
    known: set[str] = set()
    shapes: list[dict[int, str]] = []
    for named in trace.axes:
        shapes.append({axis: name for axis, name in named.items() if name not in known})
        known |= set(named.values())
    try:
        written = torch.onnx.export(
            trace.program,
            input_names=names,
            dynamo=True,
            verbose=False,
            optimize=True,
            dynamic_shapes=tuple(shapes) if known else None,
        )
    except Exception as error:
        raise ExportError(
            f"torch.onnx cannot write this model: {first_line(error)}",
            "write torch.export's own format instead: export_torch, --format torch",
        ) from error
    assert written is not None
    _name_outputs(written.model)
    size = sum(trace.contents().values())
    written.save(str(path), external_data=size > LARGEST_IN_ONE_FILE)
    return int(written.model.opset_imports[""])


def runner(path: Path) -> Callable[[tuple[Tensor, ...]], Sequence[Tensor]]:
    """A function that runs the file with onnxruntime, on the CPU."""
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _cannot_run(error) from error

    def run(inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
        try:
            arrays = {i.name: x.numpy(force=True) for i, x in zip(session.get_inputs(), inputs, strict=True)}
            return [torch.from_numpy(array) for array in session.run(None, arrays)]
        except Exception as error:
            raise _cannot_run(error) from error

    return run


def _cannot_run(error: Exception) -> ExportError:
    return ExportError(
        f"onnxruntime cannot run what was written: {first_line(error)}",
        "export in float32: model.float(), and graft with dtype='float32'",
    )


def _name_outputs(model: Any) -> None:
    for value, name in zip(model.graph.outputs, _numbered("output", len(model.graph.outputs)), strict=True):
        value.name = name


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
