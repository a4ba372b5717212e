"""A family that lmgraft does not know: where a ball lands, from the first seconds of its flight and the wind.

Two inputs with padding, a regression in metres where lower is better, items in groups (one thrower's throws), no
classes, and files that may be broken. Importing this module registers it; nothing else of lmgraft is changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.contracts import Host, Metric
from lmgraft.data.base import Data
from lmgraft.data.draws import uniforms
from lmgraft.data.items import ItemSet
from lmgraft.data.loader import Draw, Fault, Reported
from lmgraft.registry import HOSTS
from lmgraft.tasks.base import Task

MOST = 6  # points of a flight
HANDS = ("left", "right")


class Throws(NamedTuple):
    points: Tensor  # (B, T, 2) metres
    padded: Tensor  # (B, T) bool, True where there is no point
    wind: Tensor  # (B, 2)
    landing: Tensor  # (B, 2) metres
    hand: Tensor  # (B,)
    index: Tensor
    group: Tensor


def write_throws(root: Path, train: int = 48, test: int = 24, throwers: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for split, size in (("train", train), ("test", test)):
        (root / split).mkdir(parents=True, exist_ok=True)
        for number in range(size):
            speed, wind, count = rng.normal(1, 0.3, 2), rng.normal(0, 0.2, 2), int(rng.integers(2, MOST + 1))
            points = [(speed * t + wind * t * t / 20).tolist() for t in range(count)]
            throw = {"points": points, "wind": wind.tolist(), "landing": (speed * 8 + wind * 3).tolist()}
            throw |= {"thrower": number % throwers, "hand": number % 2}
            (root / split / f"{number:03}.json").write_text(json.dumps(throw))
    return root


class ThrowSet(ItemSet):
    """Throws in files; in training turned by a random angle, and an unreadable one is replaced by the next."""

    def __init__(self, files: list[Path], indices: list[int], *, seed: int = 0, turned: bool = False) -> None:
        self.files, self.indices, self.seed, self.turned = files, torch.tensor(indices), seed, turned
        self.groups = torch.tensor([index % 8 for index in indices])

    def place(self, index: int) -> str:
        return str(self.files[index])

    def __getitems__(self, draws: list[Draw]) -> Reported:
        faults: list[Fault] = []
        rows = [self._throw(draw, faults) for draw in draws]
        return Reported(Throws(*map(torch.stack, zip(*rows, strict=True))), tuple(faults))

    def _throw(self, draw: Draw, faults: list[Fault]) -> tuple[Tensor, ...]:
        for step in range(len(self) if self.turned else 1):
            index = int(self.indices[(draw.sample + step) % len(self)])
            try:
                throw = json.loads(self.files[index].read_text())
                break
            except ValueError as error:
                faults.append(Fault(str(self.files[index]), str(error)))
                throw = {"points": [], "wind": [0.0, 0.0], "landing": [0.0, 0.0], "hand": 0, "thrower": index % 8}
        points = torch.zeros(MOST, 2)
        points[: len(throw["points"])] = torch.tensor(throw["points"]).reshape(-1, 2)
        padded = torch.arange(MOST) >= len(throw["points"])
        wind, landing = torch.tensor(throw["wind"]), torch.tensor(throw["landing"])
        if self.turned:
            angle = torch.tensor(uniforms(self.seed, [draw.epoch], [index], 1)[0, 0] * 0.3, dtype=torch.float32)
            turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
            points, wind, landing = points @ turn.T, turn @ wind, turn @ landing
        codes = [throw["hand"], index, throw["thrower"]]
        return points, padded, wind, landing, *map(torch.tensor, codes)


class ThrowData(Data):
    """Throws below a folder with train and test.

    Args:
        root: The folder.
        batch_size: Training throws a step.
        max_corrupt: Unreadable training throws above which a run stops.
    """

    name, things, max_corrupt_test = "throws", "throws", 1

    def __init__(self, root: str = "", batch_size: int = 8, max_corrupt: int = 1, num_workers: int = 0) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=10, num_workers=num_workers)
        self.root, self.max_corrupt = Path(root), max_corrupt

    def setup(self, stage: str | None = None) -> None:
        files = {split: sorted((self.root / split).glob("*.json")) for split in ("train", "test")}
        numbers = list(range(len(files["train"])))
        self._sets = {
            "train": ThrowSet(files["train"], numbers[:-8], seed=self.seed, turned=True),
            "val": ThrowSet(files["train"], numbers[-8:]),
            "test": ThrowSet(files["test"], list(range(len(files["test"])))),
        }

    def still(self, name: str) -> ThrowSet:
        shown = self._sets[name]
        return ThrowSet(shown.files, shown.indices.tolist())

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name, "sizes": {name: len(items) for name, items in self._sets.items()}}

    def transform_record(self) -> dict[str, Any]:
        return {"preprocess": {}, "turned": 0.3}

    def model_arguments(self) -> dict[str, Any]:
        return {"in_features": 2}

    def categories(self) -> dict[str, tuple[str, ...]]:
        return {"hand": HANDS}

    def example(self, size: int, seed: int = 0) -> Throws:
        draw = torch.Generator().manual_seed(seed)
        index = torch.arange(size)
        padded = torch.arange(MOST) >= (2 + index[:, None] % (MOST - 1))
        points, wind, landing = (torch.randn(size, *shape, generator=draw) for shape in ((MOST, 2), (2,), (2,)))
        return Throws(points, padded, wind, landing, index % 2, index, index)

    def open(self, sources: list[str]) -> ThrowSet:
        return ThrowSet([Path(source) for source in sources], list(range(len(sources))))


class Layer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.mlp = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=~padded[:, None, None]).transpose(1, 2).flatten(-2)
        return x + self.mlp(x).relu()


class Thrower(nn.Module):
    """A token of the wind before those of the points; the head reads the first."""

    def __init__(self, in_features: int = 2, embed_dim: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.embed, self.wind = nn.Linear(in_features, embed_dim), nn.Linear(in_features, embed_dim)
        self.layers = nn.ModuleList(Layer(embed_dim) for _ in range(depth))
        self.head = nn.Linear(embed_dim, 2)

    def forward(self, points: Tensor, padded: Tensor, wind: Tensor) -> Tensor:
        x = torch.cat([self.wind(wind)[:, None], self.embed(points)], 1)
        padded = torch.cat([padded.new_zeros(padded.shape[0], 1), padded], 1)
        for layer in self.layers:
            x = layer(x, padded)
        return self.head(x[:, 0])


def first_token(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return 0


def second_argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[1]


def describe(model: Thrower) -> Host:
    layers = tuple(f"layers.{i}" for i in range(len(model.layers)))
    return Host(embed_dim=model.embed_dim, layers=layers, reads=first_token, padding_mask=second_argument)


HOSTS.register("toy_family.Thrower", "toy_family:describe")

MISS = Metric(
    name="miss", title="distance from the landing", higher_is_better=False, scale=1, unit="m", difference_unit="m",
    margin=0.05, low=0.0, digits=3,
)  # fmt: skip
NEAR = Metric(
    name="near", title="throws within 4 m", higher_is_better=True, scale=100, unit="%", difference_unit="points",
    margin=0.05, low=0.0, high=1.0,
)  # fmt: skip


class Landing(Task):
    """Where the ball lands, in metres."""

    data_type = ThrowData

    @classmethod
    def metrics(cls, data: Data | None = None) -> tuple[Metric, ...]:
        return MISS, NEAR

    def inputs(self, batch: Throws) -> tuple[Tensor, Tensor, Tensor]:
        return batch.points, batch.padded, batch.wind

    def loss(self, out: Tensor, batch: Throws) -> Tensor:
        return (out - batch.landing).square().mean()

    def score(self, out: Tensor, batch: Throws) -> dict[str, Tensor]:
        miss = (out - batch.landing).norm(dim=1)
        return {"miss": miss, "near": (miss < 4).float(), "by_hand": batch.hand, "landing": out}

    def targets(self, batch: Throws) -> Tensor:
        return batch.landing

    def predict(self, out: Tensor, batch: Throws) -> list[dict[str, Any]]:
        return [{"x": x, "y": y} for x, y in out.tolist()]


RECIPE = """
seed: 1
arm: llm
graft: {{llm: {llm}, layer: -1}}
backbone: {{factory: toy_family.Thrower, kwargs: {{embed_dim: 16}}}}
data: {{class_path: toy_family.ThrowData, init_args: {{root: {root}}}}}
task: {{class_path: toy_family.Landing}}
optim: {{lr: 0.003}}
train: {{epochs: 2, save_every: 1, log_every: 1, accelerator: cpu}}
"""
