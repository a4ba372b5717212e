"""A family of its own: distances in metres from a few echoes, items in groups, and a suite that makes them noisier."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmgraft.contracts import Metric
from lmgraft.data.base import Data
from lmgraft.data.items import ItemSet
from lmgraft.studies.robustness.suite import Condition, Suite
from lmgraft.tasks.base import Task

ERROR = Metric(
    name="error", title="test error", higher_is_better=False, scale=1, unit="m", difference_unit="m", margin=0.05,
    low=0.0, digits=3,
)  # fmt: skip

RECIPE = """
arm: plain
backbone: {factory: toy_ranges.Net}
data: {class_path: toy_ranges.Ranges, init_args: {batch_size: 16}}
task: {class_path: toy_ranges.Distance}
optim: {lr: 0.05, warmup_epochs: 0}
train: {epochs: 2, accelerator: cpu}
"""


class Echoes(NamedTuple):
    inputs: Tensor
    metres: Tensor
    index: Tensor
    group: Tensor


class EchoSet(ItemSet):
    def __init__(self, first, size, noise=0.0, seed=0):
        self.indices = torch.arange(first, first + size)
        self.groups = self.indices // 4
        self.metres = (self.indices * 7 % 11) / 5.0
        draws = torch.randn(first + size, 3, generator=torch.Generator().manual_seed(seed))[first:]
        self.inputs = self.metres[:, None] + noise * draws

    def __getitems__(self, draws):
        rows = torch.tensor([draw.sample for draw in draws])
        return Echoes(self.inputs[rows], self.metres[rows], self.indices[rows], self.groups[rows])


class Ranges(Data):
    """Distances."""

    name, things = "ranges", "echoes"
    places = {"train": (0, 64), "val": (64, 20), "test": (84, 40)}

    def setup(self, stage=None):
        self._sets = {name: self.still(name) for name in self.places}

    def still(self, name):
        return EchoSet(*self.places[name])

    def fingerprint(self):
        return {"name": self.name}

    def transform_record(self):
        return {"preprocess": {}}

    def model_arguments(self):
        return {}

    def example(self, size, seed=0):
        return EchoSet(0, size).batch(range(size))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, inputs):
        return self.head(inputs)[:, 0]


class Distance(Task):
    """Regression of a distance."""

    data_type = Ranges

    @classmethod
    def metrics(cls, data=None):
        return (ERROR,)

    def inputs(self, batch):
        return (batch.inputs,)

    def loss(self, out, batch):
        return (out - batch.metres).abs().mean()

    def score(self, out, batch):
        return {"error": (out - batch.metres).abs()}


@dataclass(frozen=True, kw_only=True)
class Noisier(Suite):
    """Echoes with noise."""

    name = "noisier"
    data_type = Ranges
    word, whole = "noise", "noises"

    seed: int = 0
    """Of the noise."""
    kinds: tuple[str, ...] = ("white",)
    """Which, A,B."""
    option_names = {"seed": "noise-seed"}

    def conditions(self, data):
        data.setup()
        first, size = data.places["test"]
        return [Condition(key="clean", items=data.split("test"))] + [
            Condition(
                key=f"noisier/{kind}/{level}",
                items=EchoSet(first, size, 0.2 * level, self.seed),
                identity={"seed": self.seed},
                part=kind,
                level=level,
            )
            for kind in self.kinds
            for level in (1, 2, 3)
        ]
