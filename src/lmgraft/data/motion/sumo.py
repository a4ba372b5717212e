"""Simulated traffic on real road networks: scenes that anyone can make, with SUMO. The drivers are simulated.

<set>/{train,val,test}/<scene>/scenario_<scene>.parquet, log_map_archive_<scene>.json   Argoverse 2's layout
<set>/runs/<network>-<number>.json                         counts of a simulation whose scenes are all there
<set>/set.json                                             source, licence, versions and counts; written last
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar, Literal

from lmgraft import records
from lmgraft.data.base import SPLITS, SplitName
from lmgraft.data.files import check_prepared, prepared_place
from lmgraft.data.motion.read_argoverse2 import Targets
from lmgraft.data.motion.scenario import RATE
from lmgraft.data.motion.scene_files import SceneFiles
from lmgraft.data.motion.sumo_scenes import write_scenes
from lmgraft.data.motion.sumo_traffic import ROAD, STREET, Demand, simulate
from lmgraft.data.motion.table import Source, whole_processes
from lmgraft.errors import DataError
from lmgraft.versions import optional

Roads = Literal["all", "motorway", "city", "junction"]
_PROCESSES = 2
_WINDOWS = {"val": 10, "test": 36}  # of 5 seconds, of a simulation; of one to train on a network says
EVERY = {"train": 5, "val": 30, "test": 15}
"""Seconds from the start of a window to that of the next: none overlap, those of val and test cover more minutes."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A road network and how many targets are wanted on it."""

    name: str
    category: Literal["motorway", "city", "junction", "drawn"]
    file: str
    """Below SUMO's tools/game."""
    demand: Demand
    train: int = 0
    val: int = 0
    test: int = 0
    windows: int = 40
    """Of the simulation that is trained on; there are others for val and test."""


NETWORKS = (
    Network(
        name="koenigs-wusterhausen", category="motorway", file="A10KW/osm.net.xml",
        demand=Demand(rate=2.5, mix=ROAD), train=6000, val=600, windows=60,
    ),
    Network(
        name="berlin-adlershof", category="city", file="DRT/osm.net.xml",
        demand=Demand(rate=2.0, mix=STREET, walkers=0.1), train=6000, val=600,
    ),
    Network(
        name="ingolstadt", category="junction", file="fkk_in/ingolstadt.net.xml.gz",
        demand=Demand(rate=1.0, mix=STREET, walkers=0.1), train=5000, val=500, windows=140,
    ),
    Network(
        name="grid", category="drawn", file="grid6/grid6.net.xml", demand=Demand(rate=1.0, mix=STREET),
        train=1500, val=150,
    ),
    Network(
        name="ramp", category="drawn", file="ramp/ramp.net.xml", demand=Demand(rate=1.0, mix=ROAD),
        train=1500, val=150,
    ),
    Network(
        name="bremen", category="motorway", file="highway/highway.net.xml", demand=Demand(rate=0.8, mix=ROAD),
        test=1300,
    ),
    Network(
        name="braunschweig", category="city", file="bs3d/bs.net.xml", demand=Demand(rate=0.8, mix=STREET), test=1400,
    ),
    Network(
        name="braunschweig-junction", category="junction", file="fokr_bs_demo/fokr_bs.net.xml.gz",
        demand=Demand(rate=0.8, mix=STREET, walkers=0.1), test=1300,
    ),
)  # fmt: skip
"""What is simulated. Roads of the last three are never trained on; the junction is one of Braunschweig's too."""
ROADS = {network.name: network.category for network in NETWORKS}
_SCENE = re.compile(r"(.+)-\d+-\d+--?\d+_-?\d+")  # network, run, window, cell


class Sumo(SceneFiles):
    """Simulated scenes, after `lmgraft prepare sumo`: 2 s of history and 3 s of future. The drivers are simulated.

    Val are other simulations of the networks that are trained on; test are three networks that are not.

    Args:
        root: The set's folder; None is lmgraft's cache.
        test_roads: Which of the test networks test: motorway (Bremen), city and junction (Braunschweig), or all.
        targets: All targets, or the first of each scene.
        max_agents, max_lanes: See `Framing`.
        options: See `SceneFiles` and `MotionData`.
    """

    name = "sumo"
    note: ClassVar[str] = "simulated drivers: SUMO's models on road networks, not recorded traffic"
    folders: ClassVar[tuple[dict[str, str], ...]] = ({split: split for split in SPLITS},)

    def __init__(
        self,
        root: str | None = None,
        *,
        test_roads: Roads = "all",
        targets: Targets = "scored",
        max_agents: int = 32,
        max_lanes: int = 64,
        **options: Any,
    ) -> None:
        self.tree = prepared_place(self.name) if root is None else Path(root).expanduser()
        self.test_roads = test_roads
        super().__init__(str(self.tree), targets=targets, max_agents=max_agents, max_lanes=max_lanes, **options)

    def find(self) -> dict[str, Source]:
        check_prepared(self.tree, self.name)
        self.remark(self.note)
        return super().find()

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "note": self.note}

    def _source(self, files: Sequence[Path]) -> Source:
        if self.test_roads != "all" and files and files[0].parents[1].name == "test":
            files = [file for file in files if category_of(file.parent.name) == self.test_roads]
        return super()._source(files)


def category_of(scene: str) -> str | None:
    """What the roads of a scene are, by its name."""
    match = _SCENE.fullmatch(scene)
    return ROADS.get(match[1]) if match else None


@dataclass(frozen=True)
class Run:
    """One simulation."""

    network: Network
    split: SplitName
    windows: int

    @property
    def seed(self) -> int:
        """Of trips and drivers; no two simulations of a network have the same."""
        return SPLITS.index(self.split)

    @property
    def name(self) -> str:
        return f"{self.network.name}-{self.seed}"

    @property
    def wanted(self) -> int:
        """Targets."""
        count: int = getattr(self.network, self.split)
        return count


def runs() -> list[Run]:
    """All simulations, network by network."""
    return [
        Run(network, split, network.windows if split == "train" else _WINDOWS[split])
        for network in NETWORKS
        for split in SPLITS
        if getattr(network, split)
    ]


def prepare(out: Path | None) -> Path:
    """Simulate and write the set, unless it is there; some minutes."""
    folder = prepared_place(Sumo.name) if out is None else out
    if not (folder / "set.json").exists():
        make_set(folder, runs())
    return folder


def make_set(folder: Path, todo: Sequence[Run]) -> None:
    """Simulate runs, in processes of their own, and write their scenes; what is there already is not made again."""
    optional("pyarrow.parquet", "traffic", "writing scenes")
    home, begun = road_networks(), time.monotonic()
    done = {run.name: folder / "runs" / f"{run.name}.json" for run in todo}
    left = [run for run in todo if not done[run.name].is_file()]
    # libsumo holds one simulation a process, and warns of pyarrow, so it has processes to itself.
    with whole_processes("simulated traffic"), ProcessPoolExecutor(_PROCESSES, mp_context=get_context("spawn")) as pool:
        nets, demands = [home / run.network.file for run in left], [run.network.demand for run in left]
        names, windows = [run.name for run in left], [run.windows for run in left]
        every, seeds = [RATE * EVERY[run.split] for run in left], [run.seed for run in left]
        recordings = pool.map(simulate, nets, demands, names, windows, every, seeds)
        for run, recording in zip(left, recordings, strict=True):
            made = write_scenes(recording, folder / run.split, run.wanted, run.seed)
            records.write_json(done[run.name], dict(sorted(made.items())))
            seconds = time.monotonic() - begun
            sys.stderr.write(f"[sumo] {run.name}: {made['targets']:,} targets of {run.split}, {seconds:.0f} s\n")
    about = {
        "name": Sumo.name, "note": Sumo.note,
        "source": "road networks of Eclipse SUMO's PyPI package, of OpenStreetMap's contributors (ODbL) where real",
        "licence": "SUMO: EPL-2.0 or GPL-2.0-or-later; the scenes are its output",
        "versions": {name: metadata.version(name) for name in ("eclipse-sumo", "libsumo")},
        "roads": {run.network.name: run.network.category for run in todo},
        "counts": {f"{run.split}/{run.network.name}": records.read_json(done[run.name]) for run in todo},
    }  # fmt: skip
    records.write_json(folder / "set.json", about)


def road_networks() -> Path:
    """The folder of the road networks in SUMO's package.

    Raises:
        VersionError: If the package is not installed.
        DataError: If it has none.
    """
    package = optional("sumo", "traffic", "simulating traffic")
    home = Path(package.__file__).parent / "tools" / "game"
    if not home.is_dir():
        raise DataError(
            f"{home} is not there", 'the networks come with the PyPI package: pip install "lmgraft[traffic]"'
        )
    return home
