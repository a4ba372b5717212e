"""`lmgraft export MODEL --out FILE`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lmgraft import records
from lmgraft.backbones.inputs import input_shape
from lmgraft.cli.command import Command, option, word
from lmgraft.errors import DataError, ExportError, HostError, RunError
from lmgraft.graft import find_graft, load_pretrained
from lmgraft.registry import FACTORIES

if TYPE_CHECKING:
    from lmgraft.graft.export import ExportReport
    from lmgraft.recipes import Recipe

_ENDINGS = {".onnx": "onnx", ".pt2": "torch"}


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write a trained model, grafted or plain, as one program that needs no lmgraft: the block inside, what the head
    does not read left out, products of frozen weights worked out beforehand. What was written is run and compared with
    the model; beside it a JSON file says what it holds. ONNX needs pip install "lmgraft[export]"."""

    examples = """examples:
  lmgraft export runs/fashion_llm --out fashion.onnx
  lmgraft export my_model --out model.pt2               # for torch.export.load
  lmgraft export my_model --out model.onnx --batch 1    # this batch size only
  lmgraft export my_model --out model.onnx --input-shape 8,3 5    # two inputs, (B, 8, 3) and (B, 5)"""
    model: Path = word()
    """Run folder, or a folder written by lmgraft.save_pretrained."""
    out: Path = option(Path(), metavar="FILE")
    """File to write: .onnx, or .pt2 for torch.export.load."""
    format: Literal["onnx", "torch"] | None = None
    """If the ending of --out does not say it."""
    batch: int | Literal["dynamic"] = option("dynamic", metavar="N")
    """A number, or dynamic for any."""
    input_shape: list[str] = option([], metavar="N,N", commas=False)
    """Of one sample of each input, where neither run nor model says it: 3,224,224."""
    llm: str | None = None
    """The block's source, if it has moved since."""
    no_check: bool = False
    """Do not compare with the model."""

    def run(self) -> int:
        from lmgraft.graft.export import export_onnx, export_torch

        if self.out == Path():
            raise ExportError("no file was named", "add --out model.onnx, or model.pt2")
        format_ = self.format or _ENDINGS.get(self.out.suffix)
        if format_ is None:
            raise ExportError(f"{self.out} says no format", "end it in .onnx or .pt2, or add --format")
        if self.batch != "dynamic" and self.batch < 1:
            raise ExportError(f"--batch {self.batch} is neither dynamic nor a number from 1", "for instance --batch 1")
        shapes = [_shape(text) for text in self.input_shape] or None
        folder = _model_folder(self.model)
        recipe = _recipe(folder)
        model = _load(folder, recipe, self.llm)
        dynamic = self.batch == "dynamic"
        example = _example(model, recipe, shapes, 2 if self.batch == "dynamic" else self.batch)
        write = {"onnx": export_onnx, "torch": export_torch}[format_]
        report = write(model, example, self.out, dynamic_batch=dynamic, check=not self.no_check)
        record = _record(model, report, example)
        beside = self.out.with_name(f"{self.out.name}.json")
        records.write_json(beside, record)
        print(describe(report, record, self.out.parent))
        print(f"{'record':>9}  {beside}")
        return 0


COMMAND = Export


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ExportError(f"--input-shape {text} is no shape", "give the size of one sample, such as 3,224,224")
    return tuple(int(part) for part in parts)


def _model_folder(folder: Path) -> Path:
    """The saved model in `folder`, or the one of the run in `folder`."""
    for candidate in (folder, folder / "model"):
        if (candidate / "lmgraft.json").is_file():
            return candidate
    if (folder / "result.json").is_file():
        raise RunError(
            f"{folder} is a finished run without a saved model",
            "lmgraft.load_run(RUN).model is its model, which torch.onnx.export writes as it is",
        )
    if (folder / "config.yaml").is_file():
        raise RunError(f"{folder} holds no trained model", "finish the run with lmgraft train")
    raise RunError(f"{folder} holds no saved model", "give a run folder, or one that lmgraft.save_pretrained wrote")


def _recipe(folder: Path) -> Recipe | None:
    """Of the run that the saved model belongs to; None where it belongs to none."""
    from lmgraft.recipes.run import read_run

    return read_run(folder.parent) if (folder.parent / "config.yaml").is_file() else None


def _load(folder: Path, recipe: Recipe | None, llm: str | None) -> nn.Module:
    """The saved model; its encoder is made as the recipe says where that names a class of one's own."""
    from lmgraft.recipes import build_model

    own = recipe is not None and recipe.backbone.factory not in FACTORIES
    encoder = build_model(replace(recipe, arm="plain"), initial=False) if recipe is not None and own else None
    return load_pretrained(folder, model=encoder, llm=llm)


def _example(
    model: nn.Module, recipe: Recipe | None, shapes: list[tuple[int, ...]] | None, batch: int
) -> tuple[torch.Tensor, ...]:
    """Inputs of the model: of these shapes, as the task of its run gives them, or as the model says itself.

    Raises:
        LmgraftError: If nothing says them, or one of them is no tensor.
    """
    given: tuple[Any, ...] = ()
    if shapes is None and recipe is not None:
        try:
            given = recipe.task(model).inputs(recipe.data.example(batch))
        except DataError:  # names of classes may lie with the images; without them the model may still say enough
            shapes = [_input_shape(model)]
    if not given:
        generator = torch.Generator().manual_seed(0)
        given = tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes or [_input_shape(model)])
    for number, x in enumerate(given):
        if not isinstance(x, torch.Tensor):
            raise ExportError(f"input {number} of this task's model is no tensor, but a {type(x).__name__}")
    like = next(p for p in model.parameters() if p.is_floating_point())
    return tuple(x.to(like) if x.is_floating_point() else x.to(like.device) for x in given)


def _input_shape(model: nn.Module) -> tuple[int, ...]:
    try:
        return input_shape(model)
    except HostError as error:
        raise HostError(error.message, "add --input-shape 3,224,224, or one shape for each input") from None


def _record(model: nn.Module, report: ExportReport, example: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    inserted = find_graft(model)
    block = None if inserted is None else inserted.block.provenance.to_dict()
    if block is not None:
        del block["tensors"]  # the digest covers them
    environment = records.environment()
    environment["versions"] |= {name: _version(name) for name in ("onnx", "onnxscript", "onnxruntime")}
    return {
        **asdict(report),
        "dtype": next(_dtype(x) for x in example if x.is_floating_point()),
        "dtypes": [_dtype(x) for x in example],
        "host": type(model).__name__,
        "graft": None if inserted is None else inserted.config.to_dict(),
        "block": block,
        "environment": environment,
    }


def _block_line(block: dict[str, Any]) -> str:
    licence = f", licence {block['licence']}" if block["licence"] else ""
    return f"{block['source']}, layers {', '.join(map(str, block['layers']))}, digest {block['digest'][:12]}{licence}"


def _dtype(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


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
    pairs = zip(report.inputs, record["dtypes"], strict=True)
    shapes = "; ".join(f"({', '.join(map(str, shape))}) {dtype}" for shape, dtype in pairs)
    inside = ", ".join(f"{part} {_size(nbytes)}" for part, nbytes in report.contents.items() if nbytes)
    rows = {
        "format": opset,
        "input": shapes,
        "block": "none" if block is None else _block_line(block),
        "inside": inside,
        "left out": f"{_size(sum(report.left_out.values()))} of the model's tensors, which nothing uses here",
    }
    text += [f"{key:>9}  {value}" for key, value in rows.items()]
    for check in report.checks:
        text.append(
            f"{'checked':>9}  {check.inputs} input, batch {check.batch}: "
            f"relative error {check.relative_error:.1e}, at most {check.max_abs_error:.1e}"
        )
    return "\n".join(text if report.checks else [*text, f"{'checked':>9}  not, as asked"])


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB" if nbytes >= 1 << 20 else f"{nbytes:,} bytes"
