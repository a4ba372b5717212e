"""Any clouds: a run's own test clouds, corrupted on the fly as in ModelNet-C."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lmgraft.checkpoint.digest import json_digest
from lmgraft.data.items import ItemSet
from lmgraft.data.loader import Draw, Reported
from lmgraft.data.points.cloud_set import CloudSet
from lmgraft.data.points.corruptions import CORRUPTIONS, SEVERITIES, VERSION, corrupt
from lmgraft.data.points.point_data import PointData
from lmgraft.studies.robustness.suite import Condition
from lmgraft.studies.robustness.suites.chosen import CorruptionSuite


@dataclass(frozen=True, kw_only=True)
class PointCorruptions(CorruptionSuite):
    """Any clouds, corrupted on the fly: the 7 corruptions of ModelNet-C in 5 severities."""

    name = "points-c"
    data_type = PointData
    known = tuple(CORRUPTIONS)

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
