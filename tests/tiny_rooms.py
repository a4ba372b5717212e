"""Random rooms with boxes and questions, for tests of their encoder and task. Not a test file itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmgraft.backbones.scene_qa.model import SceneQA
from tiny import randomise_

POINTS, OBJECTS, WORDS, ANSWERS = 60, 4, 9, 12
MEAN_SIZES = [[0.5, 0.6, 0.7], [1.0, 0.4, 0.8], [0.3, 0.3, 0.3]]
ARGUMENTS: dict[str, Any] = {"num_words": WORDS, "num_answers": ANSWERS, "mean_sizes": MEAN_SIZES, "num_features": 4}
SIZES: dict[str, Any] = {
    "hidden": 8,
    "num_heads": 2,
    "word_dim": 5,
    "pool_hidden": 4,
    "pooled": 6,
    "detector": {
        "levels": [[20, 0.8, 4, [6, 6]], [12, 1.6, 4, [6, 7]], [6, 3.0, 4, [6, 8]]],
        "width": 9,
        "proposals": 7,
        "proposal_width": 10,
        "radius": 0.5,
        "samples": 3,
    },
}


def make_scene_qa(**options: Any) -> SceneQA:
    """In eval mode, with random weights and statistics, about half of whose proposals are objects."""
    torch.manual_seed(1)
    model = randomise_(SceneQA(**{**ARGUMENTS, **SIZES, **options}), seed=5).eval()
    draw = torch.Generator().manual_seed(6)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=draw) - 0.3)
        if name.endswith("running_var"):
            buffer.copy_(0.3 + torch.rand(buffer.shape, generator=draw))
    if options.get("given_objects"):
        return model
    with torch.no_grad():
        nothing, an_object = model.detector(rooms()["points"]).objectness.unbind(-1)
        model.detector.head[-1].bias[1] -= (an_object - nothing).median()
    return model


def rooms(batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """The fields of a batch; the last room has no object, the last situation no word."""
    draw = torch.Generator().manual_seed(seed)
    centres = 4 * torch.rand(batch, OBJECTS, 3, generator=draw)
    sizes = 0.3 + torch.rand(batch, OBJECTS, 3, generator=draw)
    classes = torch.randint(3, (batch, OBJECTS), generator=draw)
    classes[:, -1] = -1
    classes[-1] = -1
    there = (classes >= 0)[..., None]
    boxes = torch.cat([centres, sizes], -1) * there
    belongs = torch.randint(-1, OBJECTS - 1, (batch, POINTS), generator=draw)
    belongs[-1] = -1
    inside = boxes.gather(1, belongs.clamp_min(0)[..., None].expand(-1, -1, 6))
    points = 5 * torch.rand(batch, POINTS, 3, generator=draw)
    noise = torch.rand(batch, POINTS, 3, generator=draw) - 0.5
    points = torch.where(belongs[..., None] >= 0, inside[..., :3] + noise * inside[..., 3:], points)
    texts = torch.randint(1, WORDS, (2, batch, 6), generator=draw)
    texts[:, :, 4:] = 0
    texts[0, -1] = 0
    targets = torch.zeros(batch, ANSWERS)
    targets[torch.arange(batch), torch.randint(ANSWERS, (batch,), generator=draw)] = 0.6
    index = torch.arange(batch)
    return {
        "points": torch.cat([points, torch.randn(batch, POINTS, 4, generator=draw)], -1),
        "situation": texts[0],
        "question": texts[1],
        "targets": targets,
        "boxes": boxes,
        "box_classes": classes,
        "point_box": belongs,
        "kind": index % 2,
        "pose": torch.randn(batch, 7, generator=draw),
        "index": index,
        "group": index,
    }


def inputs(**options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What the model is called with."""
    fields = rooms(**options)
    return fields["points"], fields["situation"], fields["question"]
