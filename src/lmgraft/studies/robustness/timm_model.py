"""A robustness suite for a timm model and a weight file that lmgraft did not train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.checkpoint.digest import file_digest
from lmgraft.data.image.imagenet_sets import wnids
from lmgraft.errors import CheckpointError, RunError
from lmgraft.registry import suggest
from lmgraft.studies.progress import Say, silent
from lmgraft.studies.robustness.cells import crop_transform
from lmgraft.studies.robustness.run import (
    FILE,
    Robustness,
    RobustnessConfig,
    Subject,
    check_imagenet_model,
    evaluate_cells,
    plan_cells,
)
from lmgraft.training.fit import TrainConfig

_WRAPPED = ("state_dict", "model", "module", "model_ema", "state_dict_ema")
_PREFIXES = ("model.", "module.", "model.")
"""Each is taken off where every name has it; Lightning's comes outside of DataParallel's or inside."""
_BATCH = 64


def evaluate_checkpoint(
    model: str, checkpoint: Path, out: Path, config: RobustnessConfig, *, say: Say | None = None
) -> Robustness:
    """Evaluate a model on ImageNet's published sets; `out`/robustness.json holds what is done.

    Args:
        model: "timm:NAME"; images are shown as timm evaluates it.
        checkpoint: .safetensors, or a torch file, which is read without running code from it.

    Raises:
        LmgraftError: If model, file or sets are missing or do not fit.
    """
    say = say or silent
    if config.suite != "imagenet-robustness":
        raise RunError("a model from elsewhere has no test images of its own", "use --suite imagenet-robustness")
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint} is no file", "check the path")
    built, shown = _build(model)
    check_imagenet_model(model, int(built.num_classes), shown["in_chans"], wnids())  # type: ignore[arg-type]
    _load(built, checkpoint)
    subject = Subject(
        label=checkpoint.stem,
        model=built.eval(),
        prepare=shown["prepare"],
        crop=shown["crop"],
        img_size=shown["img_size"],
        eval_batch_size=_BATCH,
        train=TrainConfig(),
        weights=file_digest(checkpoint),
        record=out / FILE,
        shown=shown["data"] | {"model": model},
    )
    cells, notes = plan_cells(config, say)(subject, None)
    return evaluate_cells(subject, cells, config, notes, say)


def _build(model: str) -> tuple[nn.Module, dict[str, Any]]:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    factory, _, name = model.partition(":")
    if factory != "timm" or not name:
        raise RunError(f"--model {model}: only timm's models can be named", "write timm:NAME")
    if not timm.is_model(name):
        raise RunError(f"timm has no model {name!r}", suggest(name, timm.list_models()))
    built = timm.create_model(name, pretrained=False)
    data = resolve_model_data_config(built)
    return built, {
        "data": data,
        "prepare": create_transform(**data, is_training=False),
        "crop": crop_transform(data["mean"], data["std"], data["input_size"][1:]),
        "in_chans": data["input_size"][0],
        "img_size": tuple(data["input_size"][1:]),
    }


def _load(model: nn.Module, checkpoint: Path) -> None:
    state = _read(checkpoint)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise CheckpointError(
            f"{checkpoint} does not fit the model: {' '.join(line.strip() for line in lines[1:3])[:400]}",
            "check --model",
        ) from None


def _read(checkpoint: Path) -> dict[str, Tensor]:
    import pickle

    try:
        if checkpoint.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(checkpoint)
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{checkpoint} cannot be read as weights alone: {str(error).splitlines()[0]}",
            "save the state dict by itself, best as .safetensors",
        ) from None
    for key in _WRAPPED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{checkpoint} holds no state dict", "save model.state_dict()")
    return _unwrapped({str(key): value for key, value in content.items()})


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the names of what the model was wrapped in: DataParallel's "module.", Lightning's "model."."""
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
