"""Any clouds: a run's own test clouds, corrupted on the fly as in ModelNet-C."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lmgraft.checkpoint.digest import json_digest
from lmgraft.data.base import ItemSet
from lmgraft.data.loader import Draw, Reported
from lmgraft.data.points.cloud_set import CloudSet
from lmgraft.data.points.corruptions import CORRUPTIONS, SEVERITIES, VERSION, check_corruption, corrupt
from lmgraft.data.points.point_data import PointData
from lmgraft.errors import DataError
from lmgraft.studies.robustness.suite import Condition, Suite


@dataclass(frozen=True, kw_only=True)
class PointCorruptions(Suite):
    """Any clouds, corrupted on the fly: the 7 corruptions of ModelNet-C in 5 severities."""

    name = "points-c"
    data_type = PointData
    word, whole = "corruption", "corruptions"
    option_names = {"seed": "corruption-seed"}

    corruptions: tuple[str, ...] | None = None
    """Only these, A,B; all by default."""
    seed: int = 0
    """Of what they draw; the same for all models."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise DataError(f"seed {self.seed} of the corruptions must not be negative")
        for name in self.chosen:
            check_corruption(name)
        if not self.chosen or len(set(self.chosen)) < len(self.chosen):
            raise DataError(f"corruptions={list(self.chosen)} names {'one twice' if self.chosen else 'none'}")

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the corruptions that are shown."""
        return tuple(CORRUPTIONS) if self.corruptions is None else self.corruptions

    def conditions(self, data: PointData) -> list[Condition]:
        data.prepare_data()
        data.setup("test")
        known: dict[str, Any] = {"data": json_digest(data.fingerprint())}
        clouds = data.still("test")
        made = [Condition(key="clean", items=clouds, identity=known)]
        drawn = {"seed": self.seed, "version": VERSION}
        return made + [
            Condition(
                key=f"points-c/{name}/{severity}",
                items=CorruptedClouds(clouds, name, severity, self.seed),
                identity=known | drawn,
                part=name,
                level=severity,
            )
            for name in self.chosen
            for severity in SEVERITIES
        ]

    def notes(self, data: PointData) -> list[str]:
        return [
            "corruptions made on the fly on the run's own test clouds, as ModelNet-C defines them; its published "
            "figures are of ModelNet40's test clouds, drawn once"
        ]


class CorruptedClouds(ItemSet):
    """Test clouds with a corruption at a severity.

    Args:
        clouds: As evaluation shows them.
        name, severity: Of the corruption.
        seed: Of what it draws.
    """

    def __init__(self, clouds: CloudSet, name: str, severity: int, seed: int) -> None:
        self.clouds, self.name, self.severity, self.seed = clouds, name, severity, seed
        self.indices, self.groups = clouds.indices, clouds.groups

    def __getitems__(self, draws: list[Draw]) -> Reported:
        shown = self.clouds.__getitems__(draws)
        index = shown.batch.index.tolist()
        changed = [
            corrupt(cloud, self.name, self.severity, seed=self.seed, index=i)
            for cloud, i in zip(shown.batch.inputs.numpy(), index, strict=True)  # type: ignore[attr-defined]
        ]
        inputs = torch.from_numpy(np.stack(changed))
        return Reported(shown.batch._replace(inputs=inputs), shown.faults)  # type: ignore[attr-defined]

    def place(self, index: int) -> str:
        return self.clouds.place(index)
