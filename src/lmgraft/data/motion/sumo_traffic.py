"""Traffic on a road network, simulated by SUMO inside this process, and recorded at 10 Hz. Nothing else knows SUMO.

Trips are drawn from a seed, so that one version of SUMO gives the same traffic everywhere. Drivers follow SUMO's
models (Krauss' car following, LC2013's lane changes, which take 3 s).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmgraft import records
from lmgraft.checkpoint.cache import scratch_dir
from lmgraft.data.motion.scenario import RATE
from lmgraft.data.motion.sumo_scenes import SEEN, WINDOW, Lane, Recording
from lmgraft.versions import optional

KINDS = {
    "passenger": "vehicle", "delivery": "vehicle", "truck": "vehicle", "bus": "bus", "motorcycle": "motorcyclist",
    "bicycle": "cyclist",
}  # fmt: skip
"""SUMO's class of vehicles -> Argoverse 2's object_type."""
ROAD = {"passenger": 0.74, "delivery": 0.08, "truck": 0.08, "bus": 0.06, "motorcycle": 0.04}
STREET = {"passenger": 0.64, "delivery": 0.06, "truck": 0.05, "bus": 0.07, "motorcycle": 0.05, "bicycle": 0.13}
_LANE_CHANGE = 3.0  # seconds
_WARM = 90  # seconds before the recording
_ROUTES = 60  # of each class
_TRIES = 40  # for each route
_SHORTEST = 150.0  # metres of a route
_THROUGH = 0.7  # share of trips that begin and end where the network does
_LEAST_GAP, _HEADWAY = 5.0, 3.0  # metres, seconds: a leader so near is whom one interacts with
_FOE = 50.0  # metres to a junction within which one yields to a foe
_TURNS = {"s": "NONE", "l": "LEFT", "L": "LEFT", "r": "RIGHT", "R": "RIGHT"}


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What drives on a network."""

    rate: float
    """Vehicles that begin their trip in a second."""
    mix: Mapping[str, float]
    """Class of vehicles -> its share."""
    walkers: float = 0.0
    """Pedestrians that begin to walk in a second."""


def simulate(net: Path, demand: Demand, name: str, windows: int, every: int, seed: int) -> Recording:
    """Simulate traffic and record so many windows of 5 s, after a minute and a half.

    Args:
        net: SUMO's file of the network.
        demand: Who drives.
        name: Of network and run.
        windows: How many.
        every: Steps from the start of one to that of the next.
        seed: Of trips and drivers.
    """
    rng = np.random.default_rng(seed)
    with _running(net, seed) as sumo:
        traffic = _Traffic(sumo, demand, rng)
        for _ in range(_WARM * RATE):
            traffic.step()
        seen: dict[str, list[tuple[float, ...]]] = {}
        interacts = []
        for step in range(windows * every):
            traffic.step()
            window, within = divmod(step, every)
            for agent, *row in traffic.agents() if within < WINDOW else ():
                seen.setdefault(agent, []).append((window * WINDOW + within, *row))
            if within == SEEN - 1:
                interacts.append(_partners(sumo))
        lanes = _lanes(sumo)
    ids = sorted(seen)
    positions = np.full((len(ids), windows * WINDOW, 2), np.nan)
    headings = np.full((len(ids), windows * WINDOW), np.nan)
    for number, agent in enumerate(ids):
        rows = np.array(seen[agent])
        steps = rows[:, 0].astype(int)
        positions[number, steps], headings[number, steps] = rows[:, 1:3], rows[:, 3]
    return Recording(
        name=name, every=every, ids=ids, kinds=[traffic.kinds[agent] for agent in ids], positions=positions,
        headings=headings, interacts=interacts, lanes=lanes,
    )  # fmt: skip


@contextmanager
def _running(net: Path, seed: int) -> Iterator[Any]:
    """libsumo with a network loaded."""
    sumo = optional("libsumo", "traffic", "simulating traffic")
    types = "".join(
        f'<vType id="{kind}" vClass="{kind}" speedFactor="normc(1,0.1,0.6,1.4)"/>' for kind in KINDS
    )  # fmt: skip
    with scratch_dir("sumo") as folder:
        records.write_text(folder / "types.add.xml", f"<additional>{types}</additional>")
        options = {
            "net-file": net, "additional-files": folder / "types.add.xml", "step-length": 1 / RATE, "seed": seed,
            "lanechange.duration": _LANE_CHANGE, "time-to-teleport": 60, "max-depart-delay": 10,
            "xml-validation": "never",
        }  # fmt: skip
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        sumo.start(["sumo", "--no-step-log", "--no-warnings", "--ignore-route-errors", *words])
        try:
            yield sumo
        finally:
            sumo.close()


class _Traffic:
    """Trips that begin at random, and where everyone is."""

    def __init__(self, sumo: Any, demand: Demand, rng: np.random.Generator) -> None:
        self.sumo, self.demand, self.rng = sumo, demand, rng
        self.kinds: dict[str, str] = {}
        self._lengths: dict[str, float] = {}
        self._routes = {kind: _routes(sumo, kind, rng) for kind in demand.mix}
        self._walks = _walks(sumo, rng) if demand.walkers else []
        self._open = [kind for kind in demand.mix if self._routes[kind]]
        shares = np.array([demand.mix[kind] for kind in self._open])
        self._shares = shares / shares.sum()

    def step(self) -> None:
        """A tenth of a second."""
        for _ in range(self.rng.poisson(self.demand.rate / RATE)):
            kind = str(self.rng.choice(self._open, p=self._shares))
            agent = self._new(KINDS[kind])
            route = _one_of(self._routes[kind], self.rng)
            self.sumo.vehicle.add(agent, route, kind, departLane="best", departPos="last", departSpeed="max")
        for _ in range(self.rng.poisson(self.demand.walkers / RATE) if self._walks else 0):
            agent, walk = self._new("pedestrian"), _one_of(self._walks, self.rng)
            self.sumo.person.add(agent, walk.edges[0], 0.0)
            self.sumo.person.appendStage(agent, walk)
        self.sumo.simulationStep()

    def _new(self, kind: str) -> str:
        """The id of someone who sets out."""
        agent = f"{len(self.kinds)}"
        self.kinds[agent] = kind
        return agent

    def agents(self) -> Iterator[tuple[str, float, float, float]]:
        """Id, x and y of the centre, heading in radians."""
        for agents, length_of in ((self.sumo.vehicle, self._length), (self.sumo.person, lambda _: 0.0)):
            for agent in agents.getIDList():
                x, y = agents.getPosition(agent)  # of the front
                heading = np.deg2rad(90 - agents.getAngle(agent))
                back = length_of(agent) / 2
                if np.isfinite(x) and abs(x) < 1e8:  # on its way from one place to another it is nowhere
                    yield agent, x - back * np.cos(heading), y - back * np.sin(heading), heading

    def _length(self, agent: str) -> float:
        if agent not in self._lengths:
            self._lengths[agent] = self.sumo.vehicle.getLength(agent)
        return self._lengths[agent]


def _open_to(sumo: Any, kind: str) -> list[str]:
    """Edges on which a class may travel."""
    kept = []
    for edge in sumo.edge.getIDList():
        lanes = [f"{edge}_{n}" for n in range(sumo.edge.getLaneNumber(edge))]
        if edge[0] != ":" and any(_may(sumo, lane, kind) for lane in lanes):
            kept.append(edge)
    return kept


def _may(sumo: Any, lane: str, kind: str) -> bool:
    allowed = sumo.lane.getAllowed(lane)
    return kind in allowed if allowed else kind not in sumo.lane.getDisallowed(lane)


def _routes(sumo: Any, kind: str, rng: np.random.Generator) -> list[str]:
    """Routes for a class, most of them through the whole network; none where it may not travel."""
    edges = _open_to(sumo, kind)
    starts, ends = (among or edges for among in _outer(sumo, edges))
    names: list[str] = []
    for number in range(_ROUTES if edges else 0):
        for _ in range(_TRIES):
            through = rng.random() < _THROUGH
            one, other = (_one_of(among if through else edges, rng) for among in (starts, ends))
            route = sumo.simulation.findRoute(one, other, kind) if one != other else None
            if route is not None and len(route.edges) > 1 and route.length >= _SHORTEST:
                names.append(f"{kind}{number}")
                sumo.route.add(names[-1], route.edges)
                break
    return names


def _one_of(among: list[Any], rng: np.random.Generator) -> Any:
    return among[int(rng.integers(len(among)))]


def _outer(sumo: Any, edges: list[str]) -> tuple[list[str], list[str]]:
    """Edges to which, and from which, no other leads but the one back."""
    ways = {edge: (sumo.edge.getFromJunction(edge), sumo.edge.getToJunction(edge)) for edge in edges}
    before: dict[str, set[str]] = {}
    behind: dict[str, set[str]] = {}
    for start, end in ways.values():
        before.setdefault(end, set()).add(start)
        behind.setdefault(start, set()).add(end)
    starts = [edge for edge, (start, end) in ways.items() if not before.get(start, set()) - {end}]
    ends = [edge for edge, (start, end) in ways.items() if not behind.get(end, set()) - {start}]
    return starts, ends


def _walks(sumo: Any, rng: np.random.Generator) -> list[Any]:
    """Walks from street to street, as stages of SUMO."""
    edges = _open_to(sumo, "pedestrian")
    walks = []
    for _ in range(_ROUTES * 4 if edges else 0):
        one, other = _one_of(edges, rng), _one_of(edges, rng)
        stages = sumo.simulation.findIntermodalRoute(one, other)
        if len(stages) == 1 and len(stages[0].edges) > 1 and stages[0].length < 600:
            walks.append(stages[0])
    return walks


class _Approach(NamedTuple):
    """A vehicle and the junction that it comes to."""

    agent: str
    inside: str
    """The lane inside the junction that it is on or comes to."""
    metres: float
    """To the junction; 0 inside."""
    must_yield: bool
    stopped: bool
    """Whether a red light stops it."""


def _partners(sumo: Any) -> dict[str, str]:
    """Whom each driver interacts with: the leader within 3 s and 5 m, else the nearest at a junction that comes first.

    That is one who is inside the junction or comes to it within 50 m, on a way that crosses one's own, when one has to
    give way. (SUMO's own getJunctionFoes ends the process on some networks.)
    """
    agents = sumo.vehicle.getIDList()
    approaches = [one for one in (_approach(sumo, agent) for agent in agents) if one is not None]
    at: dict[str, list[_Approach]] = {}
    for one in approaches:
        at.setdefault(one.inside, []).append(one)
    yields = {one.agent: one.inside for one in approaches if one.must_yield and not one.stopped}
    partners = {}
    for agent in agents:
        near = _LEAST_GAP + _HEADWAY * sumo.vehicle.getSpeed(agent)
        leader = sumo.vehicle.getLeader(agent, near)
        partners[agent] = str(leader[0]) if leader is not None and leader[0] and leader[1] <= near else ""
        if not partners[agent] and agent in yields:
            ways = sumo.lane.getInternalFoes(yields[agent])
            foes = [(foe.metres, foe.agent) for way in ways for foe in at.get(way, ()) if not foe.stopped]
            partners[agent] = min(foes, default=(0.0, ""))[1]
    return partners


def _approach(sumo: Any, agent: str) -> _Approach | None:
    lane = sumo.vehicle.getLaneID(agent)
    if lane[:1] == ":":
        return _Approach(agent, lane, 0.0, False, False)
    links = sumo.vehicle.getNextLinks(agent) if lane else ()
    if not links or not links[0][4]:
        return None
    _, priority, _, has_foe, inside, state, _, _ = links[0]
    metres = sumo.lane.getLength(lane) - sumo.vehicle.getLanePosition(agent)
    return _Approach(agent, inside, metres, has_foe and not priority, state in "rRu") if metres <= _FOE else None


def _lanes(sumo: Any) -> list[Lane]:
    """All lanes on which something but pedestrians and trains may travel."""
    controlled = {
        lane for light in sumo.trafficlight.getIDList() for lane in sumo.trafficlight.getControlledLanes(light)
    }
    turns: dict[str, str | None] = {}
    names = sorted(sumo.lane.getIDList())
    for name in names:
        for _, _, _, _, via, _, direction, _ in sumo.lane.getLinks(name):
            if name[0] != ":" and via:
                turns[via] = _TURNS.get(direction)
                controlled |= {via} & {via if name in controlled else ""}
    lanes = []
    for name in names:
        kinds = [kind for kind in KINDS if _may(sumo, name, kind)]
        if kinds:
            kind = (
                "BIKE" if kinds == ["bicycle"] else "BUS" if "passenger" not in kinds and "bus" in kinds else "VEHICLE"
            )
            inside = name[0] == ":"
            turn = turns.get(name) if inside else "NONE"
            lanes.append(Lane(np.array(sumo.lane.getShape(name))[:, :2], kind, inside, turn, name in controlled))
    return lanes
