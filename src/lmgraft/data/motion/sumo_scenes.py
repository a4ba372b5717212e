"""A recorded simulation -> scenes of 5 seconds in Argoverse 2's layout. Knows no simulator.

A scene is a window of time and a square cell of the map. Windows do not overlap; its targets are the tracks that are
in the cell at present, its other tracks and its lanes those around the cell.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmgraft import records
from lmgraft.data.motion.read_argoverse2 import FOCAL, SCORED
from lmgraft.data.motion.scenario import RATE, Array, Mask
from lmgraft.versions import optional

SEEN, AHEAD = 20, 30
WINDOW = SEEN + AHEAD
_CELL = 200.0  # metres a side
_AROUND = 60.0  # metres around a cell within which agents are kept
_LANES_AROUND = 85.0  # metres around a cell within which lanes are kept
_LONGEST = 60.0  # metres of a lane segment
_FEWEST, _MOST = 4, 16  # targets of a scene that move
STANDS = 3.0
"""Metres within 5 s below which a target stands."""
STANDING = 0.1
"""Share of targets that stand, at most."""
SIDEWAYS = 3.0
"""Metres a second across its heading that no agent moves; what moves faster has jumped, and is left out."""
GRIP = 8.0
"""Metres a second squared of lateral acceleration, the most that tyres hold on a dry road. SUMO's drivers do not slow
down for bends; whoever is faster is no target."""
_FASTEST = 60.0  # metres a second


class Lane(NamedTuple):
    """A lane of a road network."""

    points: Array
    """(n, 2) metres."""
    kind: str
    """VEHICLE, BIKE or BUS."""
    intersection: bool
    turn: str | None
    """NONE, LEFT, RIGHT; None where that is not known."""
    control: bool
    """Whether lights control it."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A agents of a simulation in all its windows, one behind the other, at 10 Hz."""

    name: str
    """Of network and run."""
    every: int
    """Steps from the start of one window to that of the next."""
    ids: Sequence[str]
    kinds: Sequence[str]
    """Argoverse 2's object_type of each."""
    positions: Array
    """(A, windows * WINDOW, 2) metres, the centre; NaN where it is not there."""
    headings: Array
    """(A, windows * WINDOW) radians."""
    interacts: Sequence[Mapping[str, str]]
    """Of each window at its present: agent -> whom it interacts with, "" for none; agents without entry: not known."""
    lanes: Sequence[Lane]


class Candidate(NamedTuple):
    """A track that may be a target of a window."""

    window: int
    cell: tuple[int, int]
    track: int
    stands: bool


def sideways(positions: Array, headings: Array) -> Array:
    """(A, steps - 1): metres a second across the heading; NaN where a track is not seen.

    Args:
        positions: (A, steps, 2) metres.
        headings: (A, steps) radians.
    """
    step = np.diff(positions, axis=1) * RATE
    middle = (
        np.unwrap(np.nan_to_num(headings), axis=1)[:, 1:] + np.unwrap(np.nan_to_num(headings), axis=1)[:, :-1]
    ) / 2
    across: Array = np.abs(step[..., 1] * np.cos(middle) - step[..., 0] * np.sin(middle))
    return across


def plausible(positions: Array, headings: Array) -> Mask:
    """(A,): tracks that are seen, without a jump or a break."""
    there = np.isfinite(positions[..., 0])
    fast = np.hypot(*np.moveaxis(np.diff(positions, axis=1), -1, 0)) * RATE > _FASTEST
    jumps = (fast | (sideways(positions, headings) > SIDEWAYS)).any(1)
    once = (np.diff(there.astype(np.int8), axis=1) != 0).sum(1) <= 1 + ~(there[:, 0] | there[:, -1])
    whole: Mask = there.any(1) & ~jumps & once
    return whole


def lateral_acceleration(positions: Array) -> Array:
    """(A,): each track's largest, of directions and speeds over a second before and after each step, in m/s²; NaN of
    tracks that are not seen throughout.

    Args:
        positions: (A, steps, 2) metres, of two seconds or more.
    """
    velocity = positions[:, RATE:] - positions[:, :-RATE]
    before, after = velocity[:, :-RATE], velocity[:, RATE:]
    turned = before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]
    speed = (np.hypot(before[..., 0], before[..., 1]) + np.hypot(after[..., 0], after[..., 1])) / 2
    largest: Array = (np.abs(turned) / np.maximum(speed, 1.0)).max(1)
    return largest


def candidates(recording: Recording) -> tuple[list[Candidate], int]:
    """All tracks of all windows that may be targets: seen throughout, without a jump, and no faster in a bend than
    `GRIP` allows; and how many are faster."""
    found, sharp = [], 0
    for window in range(recording.positions.shape[1] // WINDOW):
        part = slice(window * WINDOW, (window + 1) * WINDOW)
        positions, headings = recording.positions[:, part], recording.headings[:, part]
        fit = np.isfinite(positions).all((1, 2)) & plausible(positions, headings)
        holds = lateral_acceleration(positions) <= GRIP
        sharp += int((fit & ~holds).sum())
        fit &= holds
        for track in np.flatnonzero(fit).tolist():
            x, y = np.floor(positions[track, SEEN - 1] / _CELL).astype(int).tolist()
            moved = np.hypot(*(positions[track, -1] - positions[track, 0]))
            found.append(Candidate(window, (x, y), track, bool(moved < STANDS)))
    return found, sharp


def choose(found: Sequence[Candidate], wanted: int, rng: np.random.Generator) -> dict[tuple[int, int, int], list[int]]:
    """(window, cell) -> tracks: so many targets if there are, at most a tenth of which stand; no cell has but a few."""
    order = [found[i] for i in rng.permutation(len(found))]
    cells: dict[tuple[int, int, int], list[int]] = {}
    for one in order:
        if not one.stands:
            cells.setdefault((one.window, *one.cell), []).append(one.track)
    left = round(wanted * (1 - STANDING))
    scenes: dict[tuple[int, int, int], list[int]] = {}
    for cell, tracks in cells.items():
        if len(tracks) >= _FEWEST and left > 0:
            scenes[cell] = tracks[: min(_MOST, left)]
            left -= len(scenes[cell])
    moving = sum(map(len, scenes.values()))
    standing = [one for one in order if one.stands and (one.window, *one.cell) in scenes]
    for one in standing[: int(moving * STANDING / (1 - STANDING))]:
        scenes[(one.window, *one.cell)].append(one.track)
    return dict(sorted(scenes.items()))


def write_scenes(recording: Recording, folder: Path, wanted: int, seed: int) -> Counter[str]:
    """Write scenes below a folder, and count: scenes, targets, targets that stand, tracks that are too fast in a bend,
    targets by type.

    Args:
        recording: The simulation.
        folder: Of a split.
        wanted: Targets.
        seed: Of the choice among them.
    """
    found, sharp = candidates(recording)
    stands = {(one.window, one.track) for one in found if one.stands}
    counts: Counter[str] = Counter({"too fast in a bend": sharp})
    maps: dict[tuple[int, int], Path] = {}
    for (window, x, y), tracks in choose(found, wanted, np.random.default_rng(seed)).items():
        name = f"{recording.name}-{window:03}-{x}_{y}"
        low = np.array([x, y]) * _CELL
        table = scene_table(recording, window, tracks, low, name)
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        parquet = optional("pyarrow.parquet", "motion", "writing scenes")
        with records.atomic_path(place / f"scenario_{name}.parquet") as temporary:
            parquet.write_table(table, temporary, compression="zstd")
        file = place / f"log_map_archive_{name}.json"
        if (x, y) in maps:
            link(maps[x, y], file)
        else:
            maps[x, y] = file
            lanes = map_segments(recording.lanes, low)
            content = {"drivable_areas": {}, "lane_segments": lanes, "pedestrian_crossings": {}}
            records.write_text(file, json.dumps(content, separators=(",", ":")))
        counts.update({"scenes": 1, "targets": len(tracks), "standing": sum((window, t) in stands for t in tracks)})
        counts.update(recording.kinds[track] for track in tracks)
    return counts


def link(source: Path, file: Path) -> None:
    """One file under another name too; a copy where the file system cannot."""
    file.unlink(missing_ok=True)
    try:
        os.link(source, file)
    except OSError:
        shutil.copyfile(source, file)


def scene_table(recording: Recording, window: int, targets: Sequence[int], low: Array, name: str) -> Any:
    """The scene's table, with Argoverse 2's columns and `interacts`; numbers are rounded to a centimetre.

    Args:
        window: Which, in time.
        targets: Tracks of the cell.
        low: (2,) the cell's least x and y.
        name: The scene's.
    """
    pa = optional("pyarrow", "motion", "writing scenes")
    first = window * WINDOW
    positions, headings = (a[:, first : first + WINDOW] for a in (recording.positions, recording.headings))
    present = positions[:, SEEN - 1]
    near = ((present >= low - _AROUND) & (present <= low + _CELL + _AROUND)).all(1)
    shown = [*targets, *sorted(set(np.flatnonzero(near & plausible(positions, headings)).tolist()) - set(targets))]
    at, step = np.nonzero(np.isfinite(positions[shown][..., 0]))
    track = np.array(shown)[at]
    ids = np.array([recording.ids[i] for i in shown])
    kinds, category = np.array([recording.kinds[i] for i in shown]), np.zeros(len(shown), np.int64)
    category[: len(targets)], category[0] = SCORED, FOCAL
    whom = recording.interacts[window]
    velocity = velocities(positions)[track, step]
    start = window * recording.every * 10**9 // RATE
    minute = window * recording.every // (60 * RATE)
    same = {
        "scenario_id": name, "start_timestamp": start, "end_timestamp": start + (WINDOW - 1) * 10**9 // RATE,
        "num_timestamps": WINDOW, "focal_track_id": recording.ids[targets[0]],
        "city": recording.name.rpartition("-")[0], "slice_id": f"{recording.name}-{minute}",
    }  # fmt: skip
    columns = {
        "observed": step < SEEN, "track_id": ids[at], "object_type": kinds[at], "object_category": category[at],
        "timestep": step, "position_x": positions[track, step, 0].round(2),
        "position_y": positions[track, step, 1].round(2), "heading": headings[track, step].round(4),
        "velocity_x": velocity[:, 0].round(2), "velocity_y": velocity[:, 1].round(2),
        "interacts": pa.array([whom.get(one) for one in ids[at].tolist()], pa.string()),
    }  # fmt: skip
    return pa.table({**{key: [value] * len(at) for key, value in same.items()}, **columns})


def velocities(positions: Array) -> Array:
    """Metres a second since the step before, so that nothing to come is in it; of a track's first step those to its
    second, of one alone 0."""
    step = np.diff(positions, axis=1) * RATE
    forward, backward = (np.pad(step, ((0, 0), pad, (0, 0)), constant_values=np.nan) for pad in ((0, 1), (1, 0)))
    velocity: Array = np.nan_to_num(np.where(np.isfinite(backward), backward, forward))
    return velocity


def map_segments(lanes: Sequence[Lane], low: Array) -> dict[str, dict[str, Any]]:
    """Argoverse 2's lane_segments of the lanes around a cell, centrelines alone, at most 60 m long."""
    segments: dict[str, dict[str, Any]] = {}
    for lane in lanes:
        for points in split_line(lane.points, _LONGEST):
            if (points.max(0) < low - _LANES_AROUND).any() or (points.min(0) > low + _CELL + _LANES_AROUND).any():
                continue
            line = [{"x": round(x, 2), "y": round(y, 2), "z": 0.0} for x, y in points.tolist()]
            segments[str(len(segments))] = {
                "id": len(segments), "centerline": line, "lane_type": lane.kind, "is_intersection": lane.intersection,
                "turn_direction": lane.turn, "has_traffic_control": lane.control,
            }  # fmt: skip
    return segments


def split_line(points: Array, longest: float) -> list[Array]:
    """A line (n, 2) in equal parts of at most so many metres, with its own corners."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    count = max(1, int(np.ceil(along[-1] / longest)))
    ends = np.linspace(0, along[-1], count + 1)
    parts = []
    for first, last in pairwise(ends.tolist()):
        at = np.concatenate([[first], along[(along > first + 1e-6) & (along < last - 1e-6)], [last]])
        parts.append(np.stack([np.interp(at, along, points[:, axis]) for axis in (0, 1)], 1))
    return parts
