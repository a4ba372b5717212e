"""A transform that writes its result where it is wanted: into its place in a batch.

The steps on images and random erasing are timm's own; turning bytes into normalised numbers
is done here, with the same operations in the same order, so that every bit is equal, but
without four passes over fresh memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision import transforms


class Pipeline:
    """One of timm's transforms.

    Args:
        transform: Steps on PIL images, ToTensor, Normalize, steps on tensors.
        shape: (C, H, W) of its result.
    """

    def __init__(self, transform: transforms.Compose, shape: tuple[int, int, int]) -> None:
        steps: list[Any] = list(transform.transforms)
        at = next(i for i, step in enumerate(steps) if isinstance(step, transforms.ToTensor))
        normalize = steps[at + 1]
        assert isinstance(normalize, transforms.Normalize)
        self.shape = shape
        self.before, self.after = steps[:at], steps[at + 2 :]
        self.mean, self.std = (_column(values) for values in (normalize.mean, normalize.std))

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """(C, H, W) float, of a PIL image or of a float tensor in [0, 1]."""
        out = torch.empty(self.shape)
        self.into(image, out)
        return out

    def into(self, image: Image.Image | Tensor, out: Tensor) -> None:
        """Write the transformed image to `out`, (C, H, W) float."""
        for step in self.before:
            image = step(image)
        if isinstance(image, Tensor):
            out.copy_(image).clamp_(0, 1)  # bicubic interpolation overshoots; PIL's is cut off in the same way
        else:
            height, width = self.shape[1:]
            out.copy_(torch.from_numpy(np.array(image)).view(height, width, -1).permute(2, 0, 1)).div_(255)
        out.sub_(self.mean).div_(self.std)
        for step in self.after:
            result = step(out)
            if result is not out:
                out.copy_(result)


def _column(values: Sequence[float] | Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1)


def batch_memory(batch: int, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) float, not filled; in a worker in memory that the main process shares, so that nothing is copied."""
    size = (batch, *shape)
    if get_worker_info() is None:
        # NumPy asks for huge pages: one in twenty of a sample's time would go into faults of small ones.
        return torch.from_numpy(np.empty(size, np.float32))
    # As torch's own collation does; there is no public way to memory that is shared from the start.
    storage = torch.UntypedStorage._new_shared(4 * int(np.prod(size)))  # type: ignore[no-untyped-call]
    memory: Tensor = torch.empty(0).set_(storage)
    return memory.view(size)
