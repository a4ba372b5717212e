"""`lmgraft export MODEL --out FILE`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmgraft import records
from lmgraft.errors import ExportError, HostError, RunError
from lmgraft.graft import find_graft, load_pretrained
from lmgraft.graft.export import ExportReport, export_onnx, export_torch

_EXAMPLES = """examples:
  lmgraft export runs/fashion_llm --out fashion.onnx
  lmgraft export my_model --out model.pt2               # for torch.export.load
  lmgraft export my_model --out model.onnx --batch 1    # this batch size only
"""
_FORMATS = {"onnx": export_onnx, "torch": export_torch}
_ENDINGS = {".onnx": "onnx", ".pt2": "torch"}


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lmgraft export",
        description="Write a trained model as one program that needs no lmgraft: the block inside, what the head does "
        "not read left out, products of frozen weights worked out beforehand. What was written is run and compared "
        'with the model; beside it a JSON file says what it holds. ONNX needs pip install "lmgraft[export]".',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="run folder, or a folder written by lmgraft.save_pretrained")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .onnx, or .pt2 for torch.export.load")
    parser.add_argument("--format", choices=_FORMATS, help="if the ending of --out does not say it")
    parser.add_argument(
        "--batch", type=_batch, default=None, help="a number, or dynamic (default) for any", metavar="N"
    )
    parser.add_argument("--input-shape", type=_shape, help="of one sample, if the model does not say: 3,224,224")
    parser.add_argument("--llm", help="the block's source, if it has moved since")
    parser.add_argument("--no-check", action="store_true", help="do not compare with the model")
    arguments = parser.parse_args(argv)
    format_ = arguments.format or _ENDINGS.get(arguments.out.suffix)
    if format_ is None:
        raise ExportError(f"{arguments.out} says no format", "end it in .onnx or .pt2, or add --format")
    model = load_pretrained(_model_folder(arguments.model), llm=arguments.llm)
    shape = arguments.input_shape or _input_shape(model)
    like = next(p for p in model.parameters() if p.is_floating_point())
    example = torch.randn(arguments.batch or 2, *shape, generator=torch.Generator().manual_seed(0)).to(like)
    report = _FORMATS[format_](
        model, example, arguments.out, dynamic_batch=arguments.batch is None, check=not arguments.no_check
    )
    record = _record(model, report, example)
    beside = arguments.out.with_name(f"{arguments.out.name}.json")
    records.write_json(beside, record)
    print(describe(report, record, arguments.out.parent))
    print(f"{'record':>9}  {beside}")
    return 0


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is neither dynamic nor a number from 1")
    return int(text)


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape such as 3,224,224")
    return tuple(int(part) for part in parts)


def _model_folder(folder: Path) -> Path:
    """The saved model in `folder`, or the one of the run in `folder`."""
    for candidate in (folder, folder / "model"):
        if (candidate / "lmgraft.json").is_file():
            return candidate
    if (folder / "config.yaml").is_file():
        raise RunError(f"{folder} holds no grafted model", "finish the run with lmgraft train; arm plain has none")
    raise RunError(f"{folder} holds no saved model", "give a run folder, or one that lmgraft.save_pretrained wrote")


def _input_shape(model: nn.Module) -> tuple[int, ...]:
    """Channels, height and width, as timm's models say them."""
    patches = getattr(model, "patch_embed", None)
    size, weight = getattr(patches, "img_size", None), getattr(getattr(patches, "proj", None), "weight", None)
    if size is not None and isinstance(weight, torch.Tensor):
        return (weight.shape[1], *size)
    said = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(said, dict) and said.get("input_size"):
        return tuple(said["input_size"])
    raise HostError(f"this {type(model).__name__} does not say its input's shape", "add --input-shape 3,224,224")


def _record(model: nn.Module, report: ExportReport, example: torch.Tensor) -> dict[str, Any]:
    inserted = find_graft(model)
    assert inserted is not None
    block = inserted.block.provenance.to_dict()
    del block["tensors"]  # the digest covers them
    environment = records.environment()
    environment["versions"] |= {name: _version(name) for name in ("onnx", "onnxscript", "onnxruntime")}
    return {
        **asdict(report),
        "dtype": str(example.dtype).removeprefix("torch."),
        "host": type(model).__name__,
        "graft": inserted.config.to_dict(),
        "block": block,
        "environment": environment,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def describe(report: ExportReport, record: dict[str, Any], folder: Path) -> str:
    """What was written, as aligned lines."""
    block = record["block"]
    lines = [(f"{folder / name}", _size(nbytes)) for name, nbytes in report.files.items()]
    text = [f"{path}  {size}" for path, size in lines]
    opset = f"ONNX, opset {report.opset}" if report.opset else "torch.export"
    shapes = "; ".join(f"({', '.join(map(str, shape))}) {record['dtype']}" for shape in report.inputs)
    inside = ", ".join(f"{part} {_size(nbytes)}" for part, nbytes in report.contents.items() if nbytes)
    told = {
        "format": opset,
        "input": shapes,
        "block": f"{block['source']}, layers {', '.join(map(str, block['layers']))}, digest {block['digest'][:12]}"
        + (f", licence {block['licence']}" if block["licence"] else ""),
        "inside": inside,
        "left out": f"{_size(sum(report.left_out.values()))} of the model's tensors, which nothing uses here",
    }
    text += [f"{key:>9}  {value}" for key, value in told.items()]
    for check in report.checks:
        text.append(
            f"{'checked':>9}  {check.inputs} input, batch {check.batch}: "
            f"relative error {check.relative_error:.1e}, at most {check.max_abs_error:.1e}"
        )
    return "\n".join(text if report.checks else [*text, f"{'checked':>9}  not, as asked"])


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB" if nbytes >= 1 << 20 else f"{nbytes:,} bytes"
