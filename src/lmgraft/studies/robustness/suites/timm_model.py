"""A robustness suite for a timm model and a weight file that lmgraft did not train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from lmgraft.checkpoint.torch_file import load_archive, refuse_old_torch
from lmgraft.data.image.imagenet_sets import wnids
from lmgraft.data.image.images import ImageData
from lmgraft.errors import CheckpointError, DataError, RunError, first_line
from lmgraft.registry import suggest
from lmgraft.studies.robustness.suites.imagenet_classes import check_classes
from lmgraft.tasks.classification import Classification

_WRAPPED = ("state_dict", "model", "module", "model_ema", "state_dict_ema")
_PREFIXES = ("model.", "module.", "model.")
"""Each is taken off where every name has it; Lightning's comes outside of DataParallel's or inside."""
_BATCH = 64


class AsTimmShows(ImageData):
    """How timm shows images to one of its models; there are none here.

    Args:
        model: The name, as a record keeps it.
        shown: Of `timm.data.resolve_model_data_config`.
    """

    name = "as_timm_shows"
    class_names = wnids()

    def __init__(self, model: str, shown: dict[str, Any]) -> None:
        from timm.data import create_transform

        super().__init__(eval_batch_size=_BATCH)
        self.model, self.shown = model, shown
        self.in_chans, height, width = shown["input_size"]
        self.img_size, self.mean, self.std = (height, width), shown["mean"], shown["std"]
        self._transform = create_transform(**shown, is_training=False)

    def prepare(self, image: Image.Image) -> Tensor:
        shown: Tensor = self._transform(image)
        return shown

    def transform_record(self) -> dict[str, Any]:
        return {"preprocess": self.shown | {"model": self.model}}

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name}

    def _none(self, *_: Any, **__: Any) -> Any:
        raise DataError("a model from elsewhere comes without images of its own", "give a suite that has some")

    setup = still = raw_test = _none


def timm_task(model: str, checkpoint: Path) -> tuple[Classification, AsTimmShows]:
    """Classification by a timm model with these weights, and how images are shown to it.

    Args:
        model: "timm:NAME"; images are shown as timm evaluates it.
        checkpoint: .safetensors, or a torch file, which is read without running code from it.

    Raises:
        LmgraftError: If there is no such model, or the file does not fit it.
    """
    import timm
    from timm.data import resolve_model_data_config

    factory, _, name = model.partition(":")
    if factory != "timm" or not name:
        raise RunError(f"--model {model}: only timm's models can be named", "write timm:NAME")
    if not timm.is_model(name):
        raise RunError(f"timm has no model {name!r}", suggest(name, timm.list_models()))
    built = timm.create_model(name, pretrained=False)
    data = AsTimmShows(model, resolve_model_data_config(built))
    check_classes(model, int(built.num_classes), data.in_chans, data.class_names)
    _load(built, checkpoint)
    return Classification(built.eval(), data, _not_trained, _not_trained), data


def _not_trained(*_: Any) -> Any:
    raise RunError("a model from elsewhere is evaluated, not trained", "lmgraft train starts from a recipe")


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
        refuse_old_torch(checkpoint)
        content = load_archive(checkpoint)
    except CheckpointError:  # a ValueError too
        raise
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{checkpoint} cannot be read as weights alone: {first_line(error)}",
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
