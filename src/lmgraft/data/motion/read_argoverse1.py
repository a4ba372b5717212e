"""Argoverse 1's forecasting scenes: csv files of 5 seconds, 2 of them without a future, and a vector map a city."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from lmgraft.data.motion.scenario import Array, LaneMap, Scenario, UnreadableSceneError, by_track, check_times
from lmgraft.data.motion.scenes import AGENT_TYPES, LANE_ATTRIBUTES

MAPS = "map_files"
_SEEN, _ALL = 20, 50  # steps
_COLUMNS = ("TIMESTAMP", "TRACK_ID", "OBJECT_TYPE", "X", "Y", "CITY_NAME")
_TYPES = {"AV": AGENT_TYPES.index("vehicle"), "AGENT": AGENT_TYPES.index("vehicle")}
_YES = {"True": "yes", "False": "no"}
_TURNS = {"NONE": "none", "LEFT": "left", "RIGHT": "right"}


def read_csv(path: Path, maps: Sequence[Path]) -> Scenario:
    """A scene of 50 steps, or of 20 where its future is kept back; AGENT is its target, in no group but its own.

    Args:
        path: The file.
        maps: The cities' vector maps.

    Raises:
        UnreadableSceneError: If something is missing, damaged or not what it should be.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = list(zip(*([row[name] for name in _COLUMNS] for row in rows), strict=True))
        times, tracks, kinds, x, y, city = columns
        when, steps = np.unique(np.array(times, float), return_inverse=True)
        places = np.stack([np.array(x, float), np.array(y, float)], 1)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UnreadableSceneError(f"no csv with {', '.join(_COLUMNS)} ({error})") from None
    if len(when) not in (_SEEN, _ALL):
        raise UnreadableSceneError(f"it has {len(when)} steps, not {_ALL}, or {_SEEN} without a future")
    check_times(when)
    ids, row = np.unique(tracks, return_inverse=True)
    positions, valid = by_track(row, steps.reshape(-1), places, (len(ids), len(when)), ids.tolist())
    types = np.full(len(ids), AGENT_TYPES.index("other"))
    types[row] = [_TYPES.get(kind, AGENT_TYPES.index("other")) for kind in kinds]
    return Scenario(
        ids=tuple(ids.tolist()),
        types=types,
        positions=positions,
        valid=valid,
        seen=_SEEN,
        targets=tuple(np.unique(row[np.array(kinds) == "AGENT"]).tolist()),
        lanes=read_city(tuple(maps), city[0]),
        group=path.stem,
    )


@lru_cache(maxsize=4)
def read_city(maps: tuple[Path, ...], city: str) -> LaneMap:
    """The lanes of a city, read once by each process.

    Raises:
        UnreadableSceneError: If there is no map, or a damaged one.
    """
    files = [file for file in maps if fnmatch(file.name, f"*_{city}_*vector_map.xml")]
    if not files:
        raise UnreadableSceneError(f"there is no vector map of {city}, {MAPS}/pruned_argoverse_{city}_*_vector_map.xml")
    try:
        tree = ElementTree.parse(files[0]).getroot()
        nodes = {node.attrib["id"]: (float(node.attrib["x"]), float(node.attrib["y"])) for node in tree.iter("node")}
        ways = list(tree.iter("way"))
        lanes: list[Array] = [np.array([nodes[nd.attrib["ref"]] for nd in way.iter("nd")]) for way in ways]
        tags = [{tag.attrib["k"]: tag.attrib["v"] for tag in way.iter("tag")} for way in ways]
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise UnreadableSceneError(f"{files[0]} is no vector map ({error})") from None
    return LaneMap.of(lanes, [_attributes(tag) for tag in tags])


def _attributes(tags: dict[str, str]) -> tuple[int, int, int]:
    values = {
        "intersection": _YES.get(tags.get("is_intersection", "")),
        "turn": _TURNS.get(tags.get("turn_direction", "")),
        "control": _YES.get(tags.get("has_traffic_control", "")),
    }
    return attribute_rows(values)


def attribute_rows(values: dict[str, str | None]) -> tuple[int, int, int]:
    """Rows of `LANE_ATTRIBUTES` for what is known of a lane by name; None is not known, nor is any other value."""
    known = {name: values[name] for name, kinds in LANE_ATTRIBUTES.items() if values[name] in kinds}
    intersection, turn, control = (kinds.index(known.get(n) or "unknown") for n, kinds in LANE_ATTRIBUTES.items())
    return intersection, turn, control
