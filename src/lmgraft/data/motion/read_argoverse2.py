"""Argoverse 2's forecasting scenes: a folder with scenario_<id>.parquet and log_map_archive_<id>.json each.

Two things more are read where they are there, as in the scenes that lmgraft makes: a column `interacts`, the id of the
track that this one interacts with ("" for none, null where that is not known), and of a lane `turn_direction` and
`has_traffic_control`, as Argoverse 1 calls them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lmgraft.data.motion.read_argoverse1 import attribute_rows
from lmgraft.data.motion.scenario import (
    RATE,
    Array,
    Index,
    LaneMap,
    Scenario,
    UnreadableSceneError,
    by_track,
    check_times,
)
from lmgraft.data.motion.scenes import AGENT_TYPES
from lmgraft.errors import first_line
from lmgraft.versions import optional

Targets = Literal["focal", "scored"]
SCORED, FOCAL = 2, 3
"""Values of `object_category`."""
MAP_FILES = "log_map_archive_*.json"
"""A scene's map, beside it; * is the scene's ID."""
_MOST_STEPS = 10_000
_NEEDED = ("observed", "track_id", "object_type", "object_category", "timestep", "position_x", "position_y")
_TIMES = ("start_timestamp", "end_timestamp", "num_timestamps")
_MORE = ("heading", "focal_track_id", "slice_id", "interacts", *_TIMES)
Columns = dict[str, npt.NDArray[Any]]


def read_parquet(path: Path, targets: Targets = "focal", maps: Sequence[Path] = ()) -> Scenario:
    """A scene with its map beside it; its group is the drive it was cut out of, `slice_id`.

    Args:
        path: The file.
        targets: The focal track alone, or all scored ones with it.
        maps: Files that the map may be, beside those in the scene's folder.

    Raises:
        UnreadableSceneError: If something is missing, damaged or not what it should be.
    """
    columns = _columns(path)
    step = columns["timestep"].astype(np.int64)
    steps = int(step.max()) + 1
    if step.min() < 0 or steps > _MOST_STEPS:
        raise UnreadableSceneError(f"its timesteps go from {step.min()} to {step.max()}")
    if not columns["observed"].any():
        raise UnreadableSceneError("no step is observed")
    _check_rate(columns, step)
    seen = int(step[columns["observed"].astype(bool)].max()) + 1
    ids, first, row = np.unique(columns["track_id"].astype(str), return_index=True, return_inverse=True)
    names, places = ids.tolist(), np.stack([columns["position_x"], columns["position_y"]], 1).astype(float)
    positions, valid = by_track(row, step, places, (len(ids), steps), names)
    headings = np.full((len(ids), steps), np.nan)
    if "heading" in columns:
        headings[row, step] = columns["heading"]
    kinds = columns["object_type"][first].tolist()
    other = AGENT_TYPES.index("other")
    wanted = _targets(columns, first, names, targets)
    return Scenario(
        ids=tuple(names),
        types=np.array([AGENT_TYPES.index(kind) if kind in AGENT_TYPES else other for kind in kinds]),
        positions=positions,
        valid=valid,
        seen=seen,
        targets=wanted,
        lanes=read_map(path, maps),
        group=str(columns["slice_id"][0]) if "slice_id" in columns else path.stem,
        headings=headings[:, seen - 1],
        interacts=_interacts(columns, row, step == seen - 1, names, wanted),
    )


def _columns(path: Path) -> Columns:
    parquet = optional("pyarrow.parquet", "motion", "reading Argoverse 2")
    try:
        with parquet.ParquetFile(path) as file:
            there = set(file.schema_arrow.names)
            table = file.read(columns=[name for name in (*_NEEDED, *_MORE) if name in there])
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise UnreadableSceneError(f"no parquet file ({first_line(error)})") from None
    lacking = [name for name in _NEEDED if name not in there]
    if lacking or not table.num_rows:
        raise UnreadableSceneError(f"it has no column {', '.join(lacking)}" if lacking else "it has no rows")
    return {name: table[name].to_numpy() for name in table.column_names}


def _check_rate(columns: Columns, step: Index) -> None:
    """By the scene's first and last time, in nanoseconds, between which its steps lie evenly; and whether there is
    someone at each step."""
    steps = int(step.max()) + 1
    empty = np.setdiff1d(np.arange(step.min(), steps), step)
    if len(empty):
        raise UnreadableSceneError(
            f"no track has {len(empty)} of the timesteps up to {steps - 1}, the first {empty[0]}: are they 0.1 s apart?"
        )
    if all(name in columns for name in _TIMES):
        start, end, count = (float(columns[name][0]) for name in _TIMES)
        if count < steps:
            raise UnreadableSceneError(f"it has {steps} steps, and num_timestamps={count:g}")
        check_times(np.linspace(0, (end - start) / 1e9, max(2, int(count))))


def _targets(columns: Columns, first: npt.NDArray[Any], names: list[str], targets: Targets) -> tuple[int, ...]:
    """Rows of the targets, the focal track first."""
    category = columns["object_category"][first]
    focal = np.flatnonzero(category == FOCAL).tolist()
    if "focal_track_id" in columns and (name := str(columns["focal_track_id"][0])) in names:
        focal = [names.index(name)]
    more = np.flatnonzero(category == SCORED).tolist() if targets == "scored" else []
    return tuple(dict.fromkeys([*focal, *more]))


def _interacts(
    columns: Columns, row: npt.NDArray[Any], present: npt.NDArray[Any], names: list[str], targets: tuple[int, ...]
) -> dict[int, int | None]:
    if "interacts" not in columns:
        return {}
    numbers = {name: number for number, name in enumerate(names)}
    with_whom = dict(zip(row[present].tolist(), columns["interacts"][present].tolist(), strict=True))
    return {target: numbers.get(with_whom[target]) for target in targets if isinstance(with_whom.get(target), str)}


def read_map(scene: Path, maps: Sequence[Path] = ()) -> LaneMap:
    """The lanes of log_map_archive_*.json in a scene's folder; of several, of the scene's own.

    Args:
        scene: Its file, scenario_ID.parquet.
        maps: Further files that it may be, which come first.

    Raises:
        UnreadableSceneError: If it is missing, damaged, or one of several of other names.
    """
    own = MAP_FILES.replace("*", scene.stem.removeprefix("scenario_"))
    there = [*maps, *scene.parent.glob(MAP_FILES)]
    files = [file for file in there if file.name == own] or there
    if not files or len({file.name for file in files}) > 1:
        raise UnreadableSceneError(f"no {own} lies beside it")
    try:
        lanes = list(json.loads(files[0].read_text(encoding="utf-8"))["lane_segments"].values())
        return LaneMap.of([_centreline(lane) for lane in lanes], [_attributes(lane) for lane in lanes])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UnreadableSceneError(f"{files[0].name} is no map with lane_segments ({reason})") from None


def _centreline(lane: dict[str, Any]) -> Array:
    """(n, 2); where only the boundaries are there, half way between them."""
    if "centerline" in lane:
        return _points(lane["centerline"])
    sides = [_points(lane[f"{side}_lane_boundary"]) for side in ("left", "right")]
    at, middle = np.linspace(0, 1, RATE), []
    for side in sides:
        along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(side, axis=0).T))])
        middle.append(np.stack([np.interp(at, along / max(along[-1], 1e-9), side[:, axis]) for axis in (0, 1)], 1))
    mean: Array = np.mean(middle, 0)
    return mean


def _points(line: list[dict[str, float]]) -> Array:
    return np.array([(float(point["x"]), float(point["y"])) for point in line]).reshape(-1, 2)


def _attributes(lane: dict[str, Any]) -> tuple[int, int, int]:
    yes = {True: "yes", False: "no", "true": "yes", "false": "no"}
    turn = lane.get("turn_direction")
    return attribute_rows({
        "intersection": yes.get(lane.get("is_intersection")),
        "turn": None if turn is None else str(turn).lower(),
        "control": yes.get(lane.get("has_traffic_control")),
    })  # fmt: skip
