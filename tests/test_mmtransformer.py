"""mmTransformer: its parameters counted by hand, a plain reference, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from lmgraft.backbones.mmtransformer import MMTransformer, create
from lmgraft.errors import HostError
from tiny import randomise_, relative_error
from tiny_scenes import FUTURE, HISTORY, POINTS, SIZES, Seen, scenes

V, HEADS, K = 8, 2, 3


def tiny(**options: object) -> MMTransformer:
    small = {**SIZES, "embed_dim": V, "num_heads": HEADS, "num_modes": K, "depth": 1}
    return randomise_(create("mmtransformer", small | options), seed=5).eval()


@pytest.mark.parametrize("read", ["vehicle", "proposals"])
def test_parameters_by_hand(read: str) -> None:
    """Width 128 as published."""
    with torch.device("meta"):
        model = MMTransformer(20, 30, read=read)

    def maps(*sizes: tuple[int, int]) -> int:
        return sum(a * b + b for a, b in sizes)

    v = 128
    branch, mlp, norm = maps(*[(v, v)] * 4), maps((v, 2 * v), (2 * v, v)), 2 * v
    encoder, decoder = 2 * (branch + mlp + 2 * norm) + norm, 2 * (2 * branch + mlp + 3 * norm) + norm
    motion = maps((10, v)) + encoder + 6 * v + decoder + maps((2, 64), (v + 64, v))
    lanes = maps((14, 32), (64, 32)) + 2 * 64 + maps((64, v)) + encoder + decoder
    social = maps((6 * v, v), (2, v)) + encoder
    wide = v if read == "proposals" else 2 * v
    head = maps((wide, 256), (256, v), (v, 60), (wide, v), (v, 1)) + 2 * 256
    join = maps((2 * v, v)) if read == "proposals" else 0
    assert sum(p.numel() for p in model.parameters()) == motion + lanes + social + join + head


class Reference:
    """One scene, agent by agent and token by token, from the model's tensors."""

    def __init__(self, model: MMTransformer, seen: Seen, item: int) -> None:
        self.w, self.read, self.scale = model.state_dict(), model.read, model.coordinate_scale
        self.agents, self.valid, self.types, self.lanes, self.lane_valid, self.attributes = (x[item] for x in seen)

    def through(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def normed(self, x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def attended(self, x: Tensor, source: Tensor, name: str) -> Tensor:
        if not len(source):
            return self.w[f"{name}.out.bias"].expand_as(x)
        q, k, v = (self.through(y, f"{name}.{part}") for part, y in (("q", x), ("k", source), ("v", source)))
        size = V // HEADS
        heads = [slice(h * size, (h + 1) * size) for h in range(HEADS)]
        mixed = [(q[:, h] @ k[:, h].T / math.sqrt(size)).softmax(-1) @ v[:, h] for h in heads]
        return self.through(torch.cat(mixed, -1), f"{name}.out")

    def stack(self, x: Tensor, name: str, memory: Tensor | None = None) -> Tensor:
        layer = f"{name}.layers.0"
        y = self.normed(x, f"{layer}.norms.0")
        x = x + self.attended(y, y, f"{layer}.attention")
        if memory is not None:
            x = x + self.attended(self.normed(x, f"{layer}.norms.1"), memory, f"{layer}.cross")
        y = self.normed(x, f"{layer}.norms.{1 if memory is None else 2}")
        x = x + self.through(self.through(y, f"{layer}.mlp.0").relu(), f"{layer}.mlp.2")
        return self.normed(x, f"{name}.norm")

    def time(self, step: int) -> Tensor:
        rates = [10_000 ** (-i / V) for i in range(0, V, 2)]
        return torch.tensor([part(step * rate) for rate in rates for part in (math.sin, math.cos)])

    def proposals(self, a: int) -> tuple[Tensor, Tensor]:
        kind = [float(int(self.types[a]) == i) for i in range(6)]
        rows, path, valid = [], self.agents[a], self.valid[a]
        for s in range(HISTORY - 1):
            if valid[s] and valid[s + 1]:
                moved = (path[s + 1] - path[s]).tolist()
                row = torch.tensor([*moved, (s + 1 - (HISTORY - 1)) / (HISTORY - 1), *kind, 1.0])
                rows.append(self.through(row, "history_embed") + self.time(s))
        memory = self.stack(torch.stack(rows), "history_encoder")
        of_history = self.stack(self.w["queries"], "history_decoder", memory)
        last = path[max(s for s in range(HISTORY) if valid[s])] / self.scale
        place = self.through(last, "place").expand(K, -1)
        return self.through(torch.cat([place, of_history], -1), "fuse"), last

    def lane(self, n: int) -> Tensor:
        known = [float(int(self.attributes[n, i]) == v) for i, count in enumerate((3, 4, 3)) for v in range(count)]
        valid = self.lane_valid[n]
        pieces = [p for p in range(POINTS - 1) if valid[p] and valid[p + 1]]
        points = self.lanes[n] / self.scale
        rows = [torch.tensor([*points[p], *points[p + 1], *known]) for p in pieces]
        for i in range(2):
            hidden = [self.normed(self.through(r, f"lane_net.layers.{i}.0"), f"lane_net.layers.{i}.1") for r in rows]
            hidden = [h.relu() for h in hidden]
            rows = [torch.cat([h, torch.stack(hidden).max(0).values]) for h in hidden]
        return self.through(torch.stack(rows).max(0).values, "lane_embed")

    def __call__(self) -> tuple[Tensor, Tensor]:
        there = [a for a in range(len(self.agents)) if self.valid[a].sum() > 1]
        each = [self.proposals(a) for a in there]
        vehicles = [self.through(p.flatten(), "vehicle") + self.through(last, "vehicle_place") for p, last in each]
        lanes = [self.lane(n) for n in range(len(self.lanes)) if self.lane_valid[n].any()]
        memory = self.stack(torch.stack(lanes), "lane_encoder") if lanes else torch.zeros(0, V)
        of_target = self.stack(each[0][0], "lane_decoder", memory)
        social = self.stack(torch.stack(vehicles), "social")
        read = torch.cat([social[:1].expand(K, -1), of_target], -1)
        if self.read == "proposals":
            read = self.through(read, "join")
        h = self.normed(self.through(read, "regression.0.0"), "regression.0.1").relu()
        steps = self.through(self.through(h, "regression.1").relu(), "regression.3")
        if steps.shape[1] > FUTURE * 2:  # a last layer for each
            steps = torch.stack([steps[k, k * FUTURE * 2 : (k + 1) * FUTURE * 2] for k in range(K)])
        steps = steps.reshape(K, FUTURE, 2)
        logits = self.through(self.through(read, "confidence.0").relu(), "confidence.2")[:, 0]
        return torch.stack([steps[:, : t + 1].sum(1) for t in range(FUTURE)], 1), logits


@pytest.mark.parametrize(
    "options", [{}, {"read": "proposals"}, {"layer_by_mode": True, "coordinate_scale": 4.0}], ids=str
)
def test_a_plain_reference(options: dict[str, object]) -> None:
    model, seen = tiny(**options), scenes()
    out = model(*seen)
    for item in range(3):
        trajectories, logits = Reference(model, seen, item)()
        assert relative_error(out.trajectories[item], trajectories) < 1e-5
        assert relative_error(out.logits[item], logits) < 1e-5


def test_proposals_begin_far_apart() -> None:
    queries = MMTransformer(HISTORY, FUTURE, embed_dim=16).queries.detach()
    assert torch.allclose(queries @ queries.T, torch.eye(6), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"read": "lanes"}, "one of "),
        ({"embed_dim": 12}, "multiple of 4"),
        ({"depth": 0}, "0 layers"),
        ({"num_heads": 0}, "0 heads"),
        ({"mlp_ratio": 0}, "cannot be made"),
        ({"from_velocity": 1.5}, "from_velocity=1.5"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(HostError, match=words):
        tiny(**options)
