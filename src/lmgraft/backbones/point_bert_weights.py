"""Released Point-BERT files: the ShapeNet pre-training, of which the encoder is taken, and fine-tuned models."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lmgraft.backbones.weights import load_weights
from lmgraft.checkpoint.torch_file import load_archive, refuse_old_torch
from lmgraft.errors import HostError, first_line

_WRAPPED = ("base_model", "model", "state_dict")
_PRETRAINED = "transformer_q."
_HEAD = "cls_head_finetune."
_OF_PRETRAINING = ("mask_token", "lm_head.", "cls_head.")
"""What fine-tuning has no use for."""


def load_released(model: nn.Module, file: Path) -> None:
    """Load a released file into a Point-BERT: all of a fine-tuned one, of a pre-training all but the head.

    Raises:
        HostError: If the file cannot be read, or does not fit.
    """
    refuse_old_torch(file)
    try:
        content = load_archive(file)
    except FileNotFoundError:
        raise HostError(f"{file} is not there", "backbone.kwargs.weights is a released Point-BERT file") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise HostError(
            f"{file} cannot be read as weights ({first_line(error)})",
            "fetch it again; a file that holds more than tensors is not opened: it could run code",
        ) from None
    state, is_pretraining = released_state(content, str(file))
    last = f"{_HEAD}3.bias"
    if last in state and len(state[last]) != len(model.state_dict()[last]):
        raise HostError(
            f"{file} is of {len(state[last])} classes, this model of {len(model.state_dict()[last])}",
            f"give backbone.kwargs.num_classes {len(state[last])}, as the file has it",
        )
    load_weights(model, state, str(file), lambda name: is_pretraining and name.startswith(_HEAD))


def released_state(content: Any, label: str = "the file") -> tuple[dict[str, Tensor], bool]:
    """The tensors under a Point-BERT's own names, and whether they are of the pre-training.

    Args:
        content: What `torch.load` gave.
        label: The file's name, for errors.

    Raises:
        HostError: If it holds no tensors by name.
    """
    for key in _WRAPPED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise HostError(f"{label} holds no tensors by name", "give a file of Point-BERT's release")
    state = {name.removeprefix("module."): value for name, value in content.items()}
    is_pretraining = any(name.startswith(_PRETRAINED) for name in state)
    if is_pretraining:
        encoder = {name.removeprefix(_PRETRAINED): v for name, v in state.items() if name.startswith(_PRETRAINED)}
        state = {name: v for name, v in encoder.items() if not name.startswith(("cls_head", *_OF_PRETRAINING))}
    return state, is_pretraining
