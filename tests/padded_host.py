"""A small encoder of two streams with padding, its host, data and task: points and a context to a place in metres.

Nothing in it is an image or a class; registered like one of a user's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.contracts import Host, Metric, Reads
from lmgraft.data.base import Data, SplitName
from lmgraft.data.items import ItemSet
from lmgraft.registry import HOSTS
from lmgraft.tasks.base import Task


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=~padded[:, None, None])
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class PaddedEncoder(nn.Module):
    """points (B, T, 3), padded (B, T) bool, context (B, 2) -> (B, 2), in metres; the head reads token 0."""

    def __init__(self, embed_dim: int = 24, depth: int = 2, outputs: int = 2) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.points, self.context = nn.Linear(3, embed_dim), nn.Linear(2, embed_dim)
        self.layers = nn.ModuleList(Layer(embed_dim, 2) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(embed_dim), nn.Linear(embed_dim, outputs)

    def forward(self, points: Tensor, padded: Tensor, context: Tensor) -> Tensor:
        x = torch.cat([self.context(context).unsqueeze(1), self.points(points)], dim=1)
        padded = F.pad(padded, (1, 0), value=False)
        for layer in self.layers:
            x = layer(x, padded)
        out: Tensor = self.head(self.norm(x)[:, 0])
        return out


def reads_first(model: nn.Module, *call: Any) -> Reads:
    return 0


def padding_of_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[1]


def describe(model: Any) -> Host:
    layers = tuple(f"layers.{i}" for i in range(len(model.layers)))
    return Host(embed_dim=model.embed_dim, layers=layers, reads=reads_first, padding_mask=padding_of_call)


HOSTS.register("padded_host.PaddedEncoder", "padded_host:describe")


class PaddedBatch(NamedTuple):
    points: Tensor
    padded: Tensor
    context: Tensor
    target: Tensor
    index: Tensor
    group: Tensor


class Scenes(ItemSet):
    """Scenes of 2 to 6 points; a batch is padded to its longest. Two scenes make a group."""

    def __init__(self, indices: Tensor) -> None:
        self.indices, self.groups = indices, indices // 2

    def __getitems__(self, draws: list[Any]) -> PaddedBatch:
        indices = self.indices[[draw.sample for draw in draws]]
        scenes = [_scene(int(index)) for index in indices]
        longest = max(len(points) for points, _ in scenes)
        points = torch.stack([F.pad(p, (0, 0, 0, longest - len(p))) for p, _ in scenes])
        padded = torch.stack([torch.arange(longest) >= len(p) for p, _ in scenes])
        context = torch.stack([c for _, c in scenes])
        target = torch.stack([p.mean(0)[:2] + c * p[0, 2] for p, c in scenes])
        return PaddedBatch(points, padded, context, target, indices, indices // 2)


def _scene(index: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(2 + index % 5, 3, generator=generator), torch.randn(2, generator=generator)


class PaddedData(Data):
    name = "scenes"
    things = "scenes"

    def __init__(self, *, train_size: int = 60, batch_size: int = 20, eval_batch_size: int = 10) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size)
        self.train_size = train_size

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name}

    def transform_record(self) -> dict[str, Any]:
        return {}

    def setup(self, stage: str | None = None) -> None:
        if not self._sets:
            ends = {"train": (0, self.train_size), "val": (1000, 1024), "test": (2000, 2020)}
            self._sets.update({name: Scenes(torch.arange(*range_)) for name, range_ in ends.items()})

    def still(self, name: SplitName) -> ItemSet:
        return self._sets[name]

    def model_arguments(self) -> dict[str, Any]:
        return {"outputs": 2}

    def example(self, size: int, seed: int = 0) -> PaddedBatch:
        drawn = torch.randn(size, 6, 3, generator=torch.Generator().manual_seed(seed))
        padded = torch.arange(6).expand(size, 6) >= 3 + torch.arange(size)[:, None] % 4
        index = torch.arange(size)
        return PaddedBatch(drawn, padded, drawn[:, 0, :2], drawn[:, 1, :2], index, index)


ERROR = Metric(
    name="error", title="test error", higher_is_better=False, scale=1, unit="m", difference_unit="m", margin=0.05,
    low=0.0, digits=3,
)  # fmt: skip


class Displacement(Task):
    """Regression in metres; less is better."""

    data_type = PaddedData

    @classmethod
    def metrics(cls, data: Data | None = None) -> tuple[Metric, ...]:
        return (ERROR,)

    def inputs(self, batch: PaddedBatch) -> tuple[Tensor, Tensor, Tensor]:
        return batch.points, batch.padded, batch.context

    def loss(self, out: Tensor, batch: PaddedBatch) -> Tensor:
        return F.smooth_l1_loss(out, batch.target)

    def score(self, out: Tensor, batch: PaddedBatch) -> dict[str, Tensor]:
        return {"error": (out - batch.target).norm(dim=1)}

    def targets(self, batch: PaddedBatch) -> Tensor:
        return batch.target


class NoTargets(Displacement):
    """The same, with nothing that a linear probe could predict."""

    def targets(self, batch: PaddedBatch) -> None:  # type: ignore[override]
        return None


RECIPE = """
seed: 1
arm: llm
graft: {{llm: {llm}, layer: -1}}
backbone: {{factory: padded_host.PaddedEncoder}}
data: {{class_path: padded_host.PaddedData}}
task: {{class_path: padded_host.Displacement}}
optim: {{lr: 0.003}}
train: {{epochs: 1, accelerator: cpu}}
"""
