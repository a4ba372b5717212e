"""Simulated scenes: what a recording becomes, which roads are kept for testing; SUMO itself where it is installed."""

import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
import pytest

from lmgraft import records
from lmgraft.data.motion import sumo
from lmgraft.data.motion.read_argoverse2 import read_parquet
from lmgraft.data.motion.scenes import AGENT_TYPES
from lmgraft.data.motion.sumo_scenes import (
    SEEN,
    SIDEWAYS,
    WINDOW,
    Lane,
    Recording,
    candidates,
    lateral_acceleration,
    plausible,
    sideways,
    split_line,
    velocities,
    write_scenes,
)  # fmt: skip
from lmgraft.data.motion.table import whole_processes
from lmgraft.errors import DataError, VersionError
from lmgraft.registry import PREPARERS

pq = pytest.importorskip("pyarrow.parquet")
KINDS = ("vehicle", "bus", "cyclist", "pedestrian")


def recording(windows=3, movers=8, standing=6):
    """Agents that go east in one cell at 1 m/s and more, some that stand, one that jumps sideways, one that is new."""
    count, steps = movers + standing + 2, windows * WINDOW
    time = np.arange(steps) / 10 % 5
    speeds = np.array([1.0 + n for n in range(movers)] + [0.0] * standing + [3.0, 3.0])
    x = 20 + speeds[:, None] * time + np.arange(count)[:, None]
    positions = np.stack([x, np.broadcast_to(3.0 * np.arange(count)[:, None] - 10, x.shape)], -1)
    positions[-2, time > 2, 1] += 4.0
    positions[-1, time < 1] = np.nan
    return Recording(
        name="ramp-0", every=150, ids=[f"{n}" for n in range(count)], kinds=[KINDS[n % 4] for n in range(count)],
        positions=positions, headings=np.zeros((count, steps)), interacts=[{"0": "1", "1": ""}] * windows,
        lanes=[
            Lane(np.array([[-200.0, 0], [500, 0]]), "VEHICLE", False, "NONE", True),
            Lane(np.array([[0.0, 900], [9, 900]]), "BIKE", True, None, False),
        ],
    )  # fmt: skip


def test_targets_are_seen_throughout_and_do_not_jump():
    made = recording(windows=1)
    found, sharp = candidates(made)
    assert sharp == 0
    assert {one.track for one in found} == set(range(14))
    assert {one.track for one in found if one.stands} == set(range(8, 14))
    assert {one.cell for one in found} == {(0, -1), (0, 0)}
    seen = plausible(made.positions, made.headings)
    assert seen.tolist() == [True] * 14 + [False, True]
    assert np.nanmax(sideways(made.positions, made.headings)[seen]) < SIDEWAYS
    broken = made.positions.copy()
    broken[0, 20:25] = np.nan
    assert not plausible(broken, made.headings)[0]


def test_who_is_too_fast_in_a_bend_is_no_target():
    angle = np.arange(WINDOW)[None] / 10 * np.array([0.25, 0.4, 0.0])[:, None]  # radians, of bends of 80 m
    circles = 80 * np.stack([np.cos(angle), np.sin(angle)], -1)
    held = lateral_acceleration(circles)
    np.testing.assert_allclose(held, [80 * 0.25**2, 80 * 0.4**2, 0], rtol=0.05)
    made = recording(windows=1)
    sharp = made.positions.copy()
    sharp[:2] = circles[:2]
    headings = made.headings.copy()
    headings[:2] = angle[:2] + np.pi / 2
    found, left_out = candidates(replace(made, positions=sharp, headings=headings))
    assert left_out == 1
    assert {0, 2} <= {one.track for one in found}
    assert 1 not in {one.track for one in found}


def test_scenes_are_written_in_the_layout_of_argoverse2(tmp_path):
    counts = write_scenes(recording(), tmp_path / "test", 20, seed=0)
    assert counts["targets"] - counts["standing"] == 18
    assert counts["standing"] <= 2
    files = sorted(tmp_path.rglob("*.parquet"))
    assert len(files) == counts["scenes"]
    scenes = [read_parquet(file, "scored") for file in files]
    targets = set()
    for file, scene in zip(files, scenes, strict=True):
        assert scene.positions.shape[1:] == (WINDOW, 2)
        assert scene.seen == SEEN
        assert scene.group == "ramp-0-0"
        assert "14" not in scene.ids  # it jumps
        places = np.where(scene.valid[..., None], scene.positions, np.nan)
        assert np.nanmax(sideways(places, np.zeros(scene.valid.shape))) < SIDEWAYS
        window = file.parent.name.split("-")[2]
        targets |= {(window, scene.ids[row]) for row in scene.targets}
        assert scene.lanes.points[:, 1].max() < 800  # the other lane is far away
        assert np.hypot(*np.diff([scene.lanes[0][[0, -1]]], axis=1)[0, 0]) <= 60
        row = scene.ids.index("0")
        assert scene.interacts.get(row) == (scene.ids.index("1") if row in scene.targets else None)
    assert len(targets) == counts["targets"]  # no target is one twice in a window
    assert {AGENT_TYPES[kind] for scene in scenes for kind in scene.types.tolist()} == set(KINDS)
    maps = list(tmp_path.rglob("*.json"))
    assert len({file.stat().st_ino for file in maps}) < len(maps)  # one map of a place


def test_a_prepared_set_is_read(tmp_path):
    with pytest.raises(DataError, match="lmgraft prepare sumo"):
        sumo.Sumo(str(tmp_path)).setup()
    for split, name in (("train", "ramp-0"), ("val", "ramp-1"), ("test", "bremen-0"), ("test", "braunschweig-0")):
        write_scenes(replace(recording(1), name=name), tmp_path / split, 12, seed=1)
    records.write_json(tmp_path / "set.json", {})
    data, city = sumo.Sumo(str(tmp_path), batch_size=4), sumo.Sumo(str(tmp_path), batch_size=4, test_roads="city")
    data.setup()
    city.setup()
    assert data.selection == "val"
    assert data.model_arguments() == {"history": 20, "future": 30}
    items = city.split("test")
    assert {items.place(i).split("/")[1].split("-")[0] for i in items.indices.tolist()} == {"braunschweig"}
    assert 0 < len(items) < len(data.split("test"))
    batch = items.batch(range(len(items)))
    of_zero = [i for i, index in enumerate(items.indices.tolist()) if items.place(index).endswith(":0")]
    assert all(batch.truth[i].sum() == 1 and not batch.ignored[i, 0] for i in of_zero)
    assert batch.ignored.all(1).any()  # of some nothing is known


def test_three_categories_of_roads_are_never_trained_on():
    todo = sumo.runs()
    test, others = ({run.network.name for run in todo if (run.split == "test") is tests} for tests in (True, False))
    assert not test & others
    assert {sumo.ROADS[name] for name in test} == {"motorway", "city", "junction"}
    assert len({run.name for run in todo}) == len(todo)
    assert {run.split for run in todo if run.network.name in others} == {"train", "val"}
    assert sumo.category_of("braunschweig-junction-0-003--1_2") == "junction"
    assert sumo.category_of("bremen-1-010-0_-3") == "motorway"
    assert sumo.category_of("elsewhere") is None
    assert min(sumo.EVERY.values()) * 10 >= WINDOW  # windows do not overlap


def test_lines_are_split_with_their_corners():
    parts = split_line(np.array([[0.0, 0], [50, 0], [50, 50]]), 60)
    assert [len(part) for part in parts] == [2, 2]
    np.testing.assert_allclose(parts[0][-1], parts[1][0])
    assert [part.tolist() for part in split_line(np.array([[0.0, 0], [30, 0], [30, 9]]), 60)] == [
        [[0, 0], [30, 0], [30, 9]]
    ]


def test_without_sumo_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sumo", None)
    with pytest.raises(VersionError, match=r"lmgraft\[traffic\]"):
        PREPARERS.load("sumo")(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_simulation_that_dies_is_said():
    with pytest.raises(DataError, match="process died"), whole_processes("simulated traffic"):
        raise BrokenProcessPool


def test_a_simulation_whose_scenes_are_there_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sumo, "road_networks", lambda: tmp_path)
    monkeypatch.setattr(sumo.metadata, "version", lambda _: "1")
    run = next(run for run in sumo.runs() if run.network.name == "ramp")
    records.write_json(tmp_path / "runs" / "ramp-0.json", {"targets": 7})
    sumo.make_set(tmp_path, [run])
    assert records.read_json(tmp_path / "set.json")["counts"] == {"train/ramp": {"targets": 7}}


def test_a_velocity_knows_nothing_of_what_is_to_come():
    track = np.array([[np.nan, 0.0, 1.0, 3.0, np.nan]])
    velocity = velocities(np.stack([track, -track], -1))
    np.testing.assert_array_equal(velocity[0, :, 0], [0, 10, 10, 20, 0])
    np.testing.assert_array_equal(velocity[..., 1], -velocity[..., 0])


@pytest.mark.long
def test_simulated_drivers_change_lanes_slowly(tmp_path):
    pytest.importorskip("libsumo")
    ramp = next(run for run in sumo.runs() if run.network.name == "ramp")
    sumo.make_set(tmp_path, [replace(ramp, windows=1)])
    about = records.read_json(tmp_path / "set.json")
    assert "simulated" in about["note"]
    assert about["counts"]["train/ramp"]["targets"] > 10
    columns = [pq.read_table(file).to_pydict() for file in tmp_path.rglob("*.parquet")]
    for one in columns:
        for track in set(one["track_id"]):
            rows = [i for i, name in enumerate(one["track_id"]) if name == track]
            x, y, headings = (np.array(one[name])[rows] for name in ("position_x", "position_y", "heading"))
            across = sideways(np.stack([x, y], 1)[None], headings[None])
            assert across.max(initial=0) < SIDEWAYS + 0.2  # of centimetres
    assert any(max(one["velocity_x"]) > 5 for one in columns)
