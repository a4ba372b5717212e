"""What tokens are told of the objects that they are, beside what a detector made of their surroundings.

Knows boxes, classes, colours and where the asker stands; no text and no detector.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from lmgraft.backbones.scene_qa.vote_net import Proposals
from lmgraft.geometry.points import take_points
from lmgraft.geometry.poses import gaze

InputKind = Literal["none", "room", "asker"]
_ASKER_FEATURES, _NEAR = 6, 1e-3  # of `from_asker`; metres within which no direction is told
_SCALE = 4.0  # of what points have beside their places: two colours are a tenth apart, too little to learn from


class ObjectInputs(nn.ModuleDict):
    """Proposals to tokens (B, T, V): a linear map for each kind of what is told, summed.

    One net of all together is learnt later (docs/rooms.md).

    Args:
        kind: "room": an object's box, its class as the detector believes it, and the mean of what its seeds have beside
            their places (colour, height). "asker": also where it lies from the asker.
        num_classes: C.
        num_features: F, what points have beside their places.
        dim: V.
    """

    def __init__(self, kind: InputKind, num_classes: int, num_features: int, dim: int) -> None:
        widths = {"box": 6, "class": num_classes, "seen": num_features}
        if kind == "asker":
            widths["asker"] = _ASKER_FEATURES
        super().__init__({name: nn.Linear(width, dim) for name, width in widths.items()})
        self.num_features = num_features

    def forward(self, inputs: dict[str, Tensor], order: Tensor) -> Tensor:
        """Tokens (B, T, V) of those proposals that `order` (B, T) names, by what `read` gives."""
        embedded = (embed(take_points(inputs[name], order)) for name, embed in self.items())
        tokens: Tensor = reduce(torch.add, embedded)
        return tokens

    def read(self, points: Tensor, proposals: Proposals, mean_sizes: Tensor, pose: Tensor | None) -> dict[str, Tensor]:
        """What is told of each proposal, (B, P, ...) by its kind, without gradient.

        Args:
            points: (B, N, 3 + F) or more.
            proposals: Of these points.
            mean_sizes: (C, 3) of each class, metres.
            pose: As in `from_asker`.
        """
        features = points[..., 3 : 3 + self.num_features]
        of_seeds = take_points(take_points(features, proposals.seed_index), proposals.gathered)
        inputs = {
            "box": proposals.boxes(mean_sizes),
            "class": proposals.classes.softmax(-1),
            "seen": _SCALE * of_seeds.mean(2),
        }
        if "asker" in self:
            inputs["asker"] = from_asker(proposals.centres, pose)
        return {name: one.detach() for name, one in inputs.items()}


def from_asker(places: Tensor, pose: Tensor | None) -> Tensor:
    """Places (B, P, 3) as the asker has them, (B, P, 6); 0 throughout without a pose.

    Metres ahead and to the left, how far it is, the direction as cosine (ahead) and sine (left), and 1.

    Args:
        places: In the room.
        pose: (B, 7) place and quaternion x, y, z, w, which turns -x to where one looks; NaN where it is not known.
    """
    if pose is None:
        return places.new_zeros(*places.shape[:2], _ASKER_FEATURES)
    known, pose = pose.isfinite().all(1), pose.nan_to_num()
    forward = nn.functional.normalize(gaze(pose), dim=1)[:, None]
    away = places[..., :2] - pose[:, None, :2]
    ahead, left = (away * forward).sum(-1), forward[..., 0] * away[..., 1] - forward[..., 1] * away[..., 0]
    far = torch.hypot(ahead, left)
    cosine, sine = (way / far.clamp_min(_NEAR) for way in (ahead, left))
    return torch.stack([ahead, left, far, cosine, sine, torch.ones_like(left)], -1) * known[:, None, None]
