"""What all data sets of traffic scenes share: sources of scenes become splits of prepared items."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmgraft import records
from lmgraft.data.base import SPLITS, Data, SplitName
from lmgraft.data.check import Findings, Grid, ShowProgress
from lmgraft.data.files import as_names
from lmgraft.data.holdout import name_hashes
from lmgraft.data.loader import Fault
from lmgraft.data.motion.framing import Framing
from lmgraft.data.motion.scene_set import Changes, SceneSet
from lmgraft.data.motion.scenes import AGENT_TYPES, LANE_ATTRIBUTES, Scenes
from lmgraft.data.motion.table import NO_FUTURE, SceneTable, Source, Table, prepared_table
from lmgraft.errors import DataError

_MOST_WORKERS = 8


class MotionData(Data):
    """Traffic scenes, an item a target: class_path names the data set, a subclass of this.

    Args:
        batch_size: Training items a step (and a process).
        eval_batch_size: Items a step in validation and test.
        val_size: Training items held out to choose the epoch by, a share (below 1) or a count, whole groups of them,
            where the set has none of its own. 0: the test items choose it, as in the paper.
        flip: Whether training mirrors every other scene left to right, as mmTransformer's code does.
        hide: Training hides up to so many of the first steps of all agents, each number as likely, never more than
            half of them; mmTransformer's masks the first 10.
        max_corrupt: Scenes and targets of training and validation that cannot be shown, above which a run stops.
        max_corrupt_test: The same of test.
        num_workers: Loader processes; scenes are prepared, so that none is needed.
        options: See `Framing`.
    """

    things: ClassVar[str] = "scenes"
    packages: ClassVar[tuple[str, ...]] = ("pyarrow",)
    leaves_out: ClassVar[bool] = True
    many_sizes: ClassVar[bool] = True
    test_size: int | float = 0
    """As `val_size`, for the test items of a set that has none of its own."""

    def __init__(
        self,
        *,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        val_size: int | float = 0,
        flip: bool = True,
        hide: int = 10,
        max_corrupt: int = 0,
        max_corrupt_test: int = 0,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers)
        if val_size < 0 or hide < 0:
            raise DataError(f"data.val_size={val_size} and data.hide={hide} must not be negative")
        self.framing = Framing(**options)
        self.flip, self.hide, self.val_size = flip, hide, val_size
        self.max_corrupt, self.max_corrupt_test = max_corrupt, max_corrupt_test
        self._sources: dict[str, Source] = {}
        self._tables: dict[str, SceneTable] = {}
        self._chosen: dict[str, Tensor] = {}
        """Split -> items of its table, those that cannot be shown among them."""

    @abstractmethod
    def find(self) -> dict[str, Source]:
        """What there is of "train", "val" and "test"; train at least.

        Raises:
            DataError: If something is missing or does not agree.
        """

    def model_arguments(self) -> dict[str, Any]:
        return {"history": self.framing.history, "future": self.framing.future}

    def categories(self) -> dict[str, tuple[str, ...]]:
        return {"agent_type": AGENT_TYPES}

    def setup(self, stage: str | None = None) -> None:
        if self._sets:
            return
        self._prepare(min(_MOST_WORKERS, records.usable_cpus()))
        for name in SPLITS:
            if not (name == "val" and self._is_test_again(name)):
                self.report(name, self._faults_of(name))
        changes = Changes(seed=self.seed, flip=self.flip, hide=self.hide)
        sets: dict[str, SceneSet] = {
            split: self._items(split, changes if split == "train" else None) for split in SPLITS
        }
        for split, items in sets.items():
            if not len(items):
                raise DataError(f"{self.name} has no {split} {self.things} that can be shown", self._why_none(split))
        self.fill_a_batch(len(sets["train"]))
        self._sets.update(sets)

    def _prepare(self, workers: int) -> None:
        """The tables of all sources, and which of their items make which split."""
        if self._tables:
            return
        sources = self.find()
        self._tables = {split: prepared_table(source, self.framing, workers) for split, source in sources.items()}
        self._chosen = {split: torch.arange(len(table)) for split, table in self._tables.items()}
        for part, size in {"test": self.test_size, "val": self.val_size}.items():
            if part not in sources and size:
                table, index = self._tables["train"], self._chosen["train"]
                held = held_out([table.items[i].group for i in index.tolist()], size)
                self._tables[part] = table
                self._chosen |= {"train": index[~held], part: index[held]}
        if "test" not in self._tables:
            raise DataError(f"{self.name} has no test {self.things}", "make data.test_size more than 0")
        self.selection: Literal["val", "test", "last"] = "val" if "val" in self._tables else "test"
        if self.selection == "test":
            self._tables["val"], self._chosen["val"] = self._tables["test"], self._chosen["test"]
        self._sources = sources

    def _faults_of(self, split: str) -> list[Fault]:
        items = self._tables[split].items
        return [Fault(items[i].name, items[i].fault) for i in self._chosen[split].tolist() if items[i].fault]

    def _why_none(self, split: str) -> str:
        """What to do about a split without a scene that can be shown."""
        faults = self._faults_of(split)
        if faults and all(fault.reason == NO_FUTURE for fault in faults):
            return (
                "their future is kept back: they can be predicted, not scored; take the folder away, so that there is "
                "train and val alone, or take a set whose val is the test"
            )
        return "lmgraft check-data says what is wrong with each; scenes of one group are not divided among splits"

    def _items(self, split: str, changes: Changes | None = None) -> SceneSet:
        table, index = self._tables[split], self._chosen[split]
        shown = torch.tensor([not table.items[i].fault for i in index.tolist()], dtype=torch.bool)
        return SceneSet(table, index[shown], group_numbers(table), self.framing, changes)

    def of_table(self, table: Table) -> SceneSet:
        """All items of a table, as evaluation shows them."""
        return SceneSet(table, torch.arange(len(table.items)), group_numbers(table), self.framing)

    def still(self, name: SplitName) -> SceneSet:
        items = self._sets[name]
        assert isinstance(items, SceneSet)
        return items.changed_by(None)

    def fingerprint(self) -> dict[str, Any]:
        """What names the contents of all splits, and how many items they have."""
        return {
            "name": self.name,
            "contents": {split: dict(source.identity) for split, source in self._sources.items()},
            "sizes": {split: len(items) for split, items in self._sets.items()},
            "selection": self.selection,
        }

    def transform_record(self) -> dict[str, Any]:
        return {"preprocess": dict(vars(self.framing)), "flip": self.flip, "hide": self.hide}

    def check(self, workers: int, progress: ShowProgress, near: bool = False) -> Findings:
        """Every scene read and prepared; what cannot be shown is named, and targets are counted by their type."""
        self.prepare_data()
        self._prepare(workers)
        findings = Findings(self.things, remarks=list(self.remarks))
        splits = [split for split in SPLITS if not (split == "val" and self._is_test_again(split))]
        rows, kinds = [], {}
        for split in splits:
            table, index, faults = self._tables[split], self._chosen[split].tolist(), self._faults_of(split)
            with progress(split, len(index)) as tell:
                tell(len(index), len(faults))
            findings.faults[split] = faults
            kinds[split] = Counter(table.items[i].type for i in index)
            groups = len({table.items[i].group for i in index})
            rows.append((split, f"{len(index):,}", f"{groups:,}", f"{len(faults):,}"))
            items = self._items(split)
            bare = gaps = 0
            for framed in (table[i] for i in items.indices.tolist()):
                bare += not len(framed.lanes)
                gaps += int(_with_gaps(framed.agent_valid).sum())
            if bare:
                within = f"data.lane_radius={self.framing.lane_radius:g} m"
                findings.remarks.append(f"{bare:,} {self.things} of {split} have no lane within {within}")
            if gaps:
                findings.remarks.append(
                    f"agents around the targets of {split} that are seen, then not, and then again: {gaps:,} (they "
                    "were hidden, or are recorded at a lower rate)"
                )
            if not len(items):
                findings.problems.append(f"no {self.things[:-1]} of {split} can be shown: {self._why_none(split)}")
        findings.grids.append(Grid(("split", self.things, "groups", "unreadable"), rows))
        shown = [n for n in range(len(AGENT_TYPES)) if any(counts[n] for counts in kinds.values())]
        by_type = [(AGENT_TYPES[n], *(f"{kinds[split][n]:,}" for split in splits)) for n in shown]
        findings.grids.append(Grid(("target", *splits), by_type))
        findings.details["splits"] = {
            split: {self.things: len(self._chosen[split]), "unreadable": [f._asdict() for f in findings.faults[split]]}
            for split in splits
        }
        return findings

    def example(self, size: int, seed: int = 0) -> Scenes:
        """Random walks among random lanes; every second scene has fewer agents and lanes than the others."""
        draw = torch.Generator().manual_seed(seed)
        framing, index = self.framing, torch.arange(size)
        agents, lanes = min(4, framing.max_agents), min(6, framing.max_lanes)
        short = index[:, None] % 2 == 1
        there = ~(short & (torch.arange(agents) >= max(1, agents // 2)))
        lane_there = ~(short & (torch.arange(lanes) >= lanes // 2))
        steps = torch.randn(size, agents, framing.history, 2, generator=draw)
        path = steps.cumsum(2) - steps.cumsum(2)[:, :1, -1:]
        points = torch.randn(size, lanes, framing.lane_points, 2, generator=draw).cumsum(2)
        values = [torch.randint(len(kinds), (size, lanes), generator=draw) for kinds in LANE_ATTRIBUTES.values()]
        return Scenes(
            agents=path * there[..., None, None],
            agent_valid=there[..., None].expand(-1, -1, framing.history).clone(),
            agent_types=torch.randint(len(AGENT_TYPES), (size, agents), generator=draw) * there,
            lanes=points * lane_there[..., None, None],
            lane_valid=lane_there[..., None].expand(-1, -1, framing.lane_points).clone(),
            lane_attributes=torch.stack(values, -1) * lane_there[..., None],
            future=torch.randn(size, framing.future, 2, generator=draw).cumsum(1),
            index=index,
            group=index,
            truth=there & (torch.arange(agents) == 1),
            ignored=~there,
        )


def _with_gaps(valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(A, S) to (A,): agents that are seen, then not, and then again."""
    gaps: npt.NDArray[np.bool_] = (np.diff(valid.astype(np.int8), axis=1) == 1).sum(1) + valid[:, 0] > 1
    return gaps


def group_numbers(table: Table) -> Tensor:
    """(N,) int64: a number for each group of a table's items."""
    names = np.array([item.group for item in table.items], np.str_)
    return torch.from_numpy(np.unique(names, return_inverse=True)[1].astype(np.int64).reshape(-1))


def held_out(groups: Sequence[str], size: int | float) -> Tensor:
    """(N,) bool: whole groups, those with the smallest hashes, until they have so many items (below 1: that share).

    One group is always left.
    """
    counts = Counter(groups)
    names = list(counts)
    order = np.argsort(name_hashes(as_names(names)), kind="stable")
    wanted, taken, held = size * len(groups) if size < 1 else size, 0, set()
    for i in order[:-1]:
        if taken >= wanted:
            break
        held.add(names[i])
        taken += counts[names[i]]
    return torch.tensor([group in held for group in groups], dtype=torch.bool)
