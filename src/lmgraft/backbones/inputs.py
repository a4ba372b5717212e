"""What an image model is called with, as far as it says so itself; knows the names that timm gives these things."""

from __future__ import annotations

from torch import Tensor, nn

from lmgraft.errors import HostError


def input_shape(model: nn.Module) -> tuple[int, ...]:
    """Channels, height and width of one image.

    Raises:
        HostError: If the model does not say.
    """
    patches = getattr(model, "patch_embed", None)
    size, weight = getattr(patches, "img_size", None), getattr(getattr(patches, "proj", None), "weight", None)
    if size is not None and isinstance(weight, Tensor):
        return (int(weight.shape[1]), *(int(side) for side in size))
    written = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(written, dict) and written.get("input_size"):
        return tuple(written["input_size"])
    raise HostError(f"this {type(model).__name__} does not say its input's shape", "give a timm model")
