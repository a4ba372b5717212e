"""Where someone looks: poses of a place and a quaternion, as SQA3D has them."""

from __future__ import annotations

import torch
from torch import Tensor


def gaze(pose: Tensor) -> Tensor:
    """The direction from above, x and y of a unit vector: (..., 7) to (..., 2).

    Args:
        pose: Place and quaternion x, y, z, w of length 1, which turns -x to where one looks.
    """
    x, y, z, w = pose[..., 3:].unbind(-1)
    return torch.stack([2 * (y * y + z * z) - 1, -2 * (x * y + z * w)], -1)
