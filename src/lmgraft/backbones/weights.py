"""Pretrained weights of lmgraft's own encoders, from one file, a folder or the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor, nn

from lmgraft.checkpoint.base import Checkpoint
from lmgraft.checkpoint.places import LocalFolder
from lmgraft.checkpoint.safetensors_file import SafetensorsCheckpoint, read_json
from lmgraft.checkpoint.source import CONFIG, open_checkpoint
from lmgraft.checkpoint.torch_file import TorchCheckpoint
from lmgraft.errors import HostError


def open_weights(source: str) -> Checkpoint:
    """Open a file of weights, a folder with config.json, or a Hub repository.

    A file by itself needs no config.json beside it; where there is one, it is the checkpoint's `config`.

    Raises:
        SourceError: If there is nothing to read.
        CheckpointError: If it is damaged, or holds more than tensors.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        return open_checkpoint(source)
    place = LocalFolder(path.parent)
    kind = SafetensorsCheckpoint if path.suffix == ".safetensors" else TorchCheckpoint
    return kind(place, read_json(place, CONFIG) if CONFIG in place.names() else {}, path.name)


def load_weights(
    model: nn.Module, tensors: dict[str, Tensor], source: str, optional: Callable[[str], bool]
) -> list[str]:
    """Load tensors under the model's own names, each of its shape.

    Args:
        tensors: By the model's names.
        source: Where they come from, for errors.
        optional: Which of the model's tensors keep their initial values where the source has none, or has one of
            another shape (a head of other classes).

    Returns:
        Names of tensors that kept their initial values.

    Raises:
        HostError: If tensors are missing, of another shape, or unknown to the model.
    """
    wanted = model.state_dict()
    unfit = [n for n, tensor in tensors.items() if n in wanted and tensor.shape != wanted[n].shape and not optional(n)]
    missing = [name for name in wanted if name not in tensors and not optional(name)]
    unknown = [name for name in tensors if name not in wanted]
    if unfit:
        name = unfit[0]
        raise HostError(
            f"{source}: {name} has the shape {tuple(tensors[name].shape)}, the model's is {tuple(wanted[name].shape)}",
            "these weights are for another size: check backbone.name, backbone.kwargs and the size of the items",
        )
    for words, names in (("lacks", missing), ("has tensors that this encoder does not know:", unknown)):
        if names:
            raise HostError(
                f"{source} {words} {_some(names)}",
                "check backbone.name and backbone.kwargs: the depth, and whose weights these are",
            )
    fitting = {name: tensor for name, tensor in tensors.items() if tensor.shape == wanted[name].shape}
    model.load_state_dict(fitting, strict=False)
    return [name for name in wanted if name not in fitting]


def _some(names: Iterable[str]) -> str:
    first, *rest = names
    return f"{first} and {len(rest):,} more" if rest else first
