"""Traffic scenes as data: both layouts of Argoverse, frames, prepared shards, faults, draws, the suite."""

import csv
import json
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmgraft.backbones.scene_parts import agent_vectors
from lmgraft.cli.main import main
from lmgraft.data.loader import Draw
from lmgraft.data.motion import table as tables
from lmgraft.data.motion.argoverse1 import Argoverse1
from lmgraft.data.motion.argoverse2 import Argoverse2
from lmgraft.data.motion.framing import Framing, frame, heading_of
from lmgraft.data.motion.motion_data import held_out
from lmgraft.data.motion.read_argoverse1 import read_csv
from lmgraft.data.motion.read_argoverse2 import read_map, read_parquet
from lmgraft.data.motion.scenario import LaneMap, UnreadableSceneError, cut_lane
from lmgraft.data.motion.scene_files import SceneFiles
from lmgraft.data.motion.scene_set import hide_first, mirror
from lmgraft.data.motion.scenes import AGENT_TYPES, LANE_ATTRIBUTES, Scenes
from lmgraft.data.motion.table import Source, make_shards
from lmgraft.data.motion.toy_scenes import ToyScenes, draw_scene
from lmgraft.errors import DataError
from lmgraft.studies.robustness.suites.motion import Motion

XML = """<?xml version="1.0" encoding="UTF-8"?>
<ArgoverseVectorMap>
  <node id="0" x="300.0" y="1000.0" /><node id="1" x="330.0" y="1000.0" /><node id="2" x="360.0" y="1005.0" />
  <node id="3" x="9000.0" y="9000.0" /><node id="4" x="9030.0" y="9000.0" />
  <way lane_id="9604854"><tag k="has_traffic_control" v="False" /><tag k="turn_direction" v="LEFT" />
    <tag k="is_intersection" v="True" /><tag k="l_neighbor_id" v="None" /><tag k="r_neighbor_id" v="None" />
    <nd ref="0" /><nd ref="1" /><nd ref="2" /><tag k="predecessor" v="1" /><tag k="successor" v="2" /></way>
  <way lane_id="7"><tag k="has_traffic_control" v="True" /><tag k="turn_direction" v="NONE" />
    <tag k="is_intersection" v="False" /><nd ref="3" /><nd ref="4" /></way>
</ArgoverseVectorMap>"""


def write_csv(file, steps=50, gap=0.1, missing=(), first=300.0, nan=None):
    """One scene in Argoverse 1's layout: the AGENT drives along the lane at 10 m/s."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["TIMESTAMP", "TRACK_ID", "OBJECT_TYPE", "X", "Y", "CITY_NAME"])
        for step in range(steps):
            for track, kind, x in (("av-0", "AV", 290.0), ("ag-1", "AGENT", first), ("ot-2", "OTHERS", 308.0)):
                if not (kind == "AGENT" and step in missing):
                    x = "nan" if nan == (kind, step) else x + step
                    rows.writerow([315968207.0 + gap * step, f"0000-{track}", kind, x, 1000.0, "MIA"])


@pytest.fixture
def argoverse1(tmp_path):
    """root with train, val and test_obs."""
    (tmp_path / "map_files").mkdir()
    (tmp_path / "map_files/pruned_argoverse_MIA_10316_vector_map.xml").write_text(XML)
    for split, count in (("train", 4), ("val", 2), ("test_obs", 1)):
        for number in range(count):
            write_csv(tmp_path / split / "data" / f"{number}.csv", 20 if split == "test_obs" else 50)
    return tmp_path


def lane(points, **more):
    line = [{"x": x, "y": y, "z": 0.0} for x, y in points]
    return {"id": 1, "centerline": line, "lane_type": "VEHICLE", "is_intersection": True, "successors": [], **more}


def write_av2(
    folder, name, steps=110, seen=50, lanes=None, drive="drive", change=None, interacts=None, skip=None, twice=None
):
    """One scene in Argoverse 2's layout: a focal car, a scored bus behind it, and a fragment of a pedestrian.

    `skip`: track -> it is recorded at every so many steps, not the first; `twice`: a track with a second row elsewhere.
    """
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    tracks = [("10", "vehicle", 3, 0.0, 0), ("20", "bus", 2, -15.0, 0), ("30", "pedestrian", 0, 5.0, seen - 10)]
    rows = {}
    for track, kind, category, x, since in tracks:
        every = (skip or {}).get(track, 1)
        for step in [*range(since + every - 1, steps, every), *([7] if track == twice else [])]:
            row = {"observed": step < seen, "track_id": track, "object_type": kind, "object_category": category}
            row |= {"timestep": step, "position_x": 1e3 + x + step, "position_y": 2e3 + x, "heading": 0.0}
            row |= {"velocity_x": 10.0, "velocity_y": 0.0, "scenario_id": name, "start_timestamp": 10**18}
            row |= {"end_timestamp": 10**18 + (steps - 1) * 10**8, "num_timestamps": steps, "focal_track_id": "10"}
            row |= {"city": "austin", "map_id": 1, "slice_id": drive}
            row |= {} if interacts is None else {"interacts": interacts.get(track)}
            row |= {} if change is None or track not in change else change[track]
            if step < rows.get("timestep", [0])[-1] and track == twice:
                row["position_x"] += 1
            for key, value in row.items():
                rows.setdefault(key, []).append(value)
    (folder / name).mkdir(parents=True)
    pq.write_table(pa.table(rows), folder / name / f"scenario_{name}.parquet")
    lanes = {"1": lane([(1000, 2000), (1100, 2000)])} if lanes is None else lanes
    content = {"drivable_areas": {}, "lane_segments": lanes, "pedestrian_crossings": {}}
    (folder / name / f"log_map_archive_{name}.json").write_text(json.dumps(content))
    return folder / name / f"scenario_{name}.parquet"


def ready(data):
    data.setup()
    return data


def found(data):
    @contextmanager
    def progress(split, total):
        yield lambda *_: None

    return data.check(0, progress)


def test_argoverse1(argoverse1, monkeypatch):
    data = ready(Argoverse1(str(argoverse1), batch_size=2))
    batch = data.split("train").changed_by(None).batch([0, 1])
    assert batch.agents.shape == (2, 3, 20, 2)
    assert data.selection == "test"
    assert data.model_arguments() == {"history": 20, "future": 30}
    torch.testing.assert_close(batch.agents[0, 0, :, 0], torch.arange(-19.0, 1))
    torch.testing.assert_close(batch.future[0, :, 0], torch.arange(1.0, 31))
    assert batch.agent_types[0].tolist() == [0, AGENT_TYPES.index("other"), 0]  # the nearer OTHERS before the AV
    assert len(batch.lanes[0]) == 4  # 30 and 30.4 m in pieces of at most 20; the other lane is far away
    known = dict(zip(LANE_ATTRIBUTES, batch.lane_attributes[0, 0].tolist(), strict=True))
    assert {n: LANE_ATTRIBUTES[n][v] for n, v in known.items()} == {
        "intersection": "yes", "turn": "left", "control": "no"
    }  # fmt: skip
    assert batch.ignored.all()  # nothing says who interacts
    monkeypatch.chdir(argoverse1)
    loose = data.open(["test_obs"]).batch([0])
    assert loose.future.isnan().all()
    torch.testing.assert_close(loose.agents[0], batch.agents[0])


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ({"gap": 0.2}, "not 0.1 s"),
        ({"steps": 49}, "49 steps"),
        ({"missing": range(17)}, "3 steps"),
        ({"missing": [19]}, "not seen at present"),
        ({"missing": [30]}, "every step to come"),
        ({"missing": range(50)}, "no track is a target"),
        ({"nan": ("OTHERS", 3)}, "not finite"),
    ],
)
def test_argoverse1_bad_scenes_are_named_and_counted(argoverse1, written, reason):
    write_csv(argoverse1 / "train/data/bad.csv", **written)
    findings = found(Argoverse1(str(argoverse1)))
    assert [fault.file for fault in findings.faults["train"]] == ["train/data/bad.csv"]
    assert reason in findings.faults["train"][0].reason
    assert findings.limits() == {"max_corrupt": 1}
    with pytest.raises(DataError, match="max_corrupt is 0"):
        Argoverse1(str(argoverse1), batch_size=2).setup()
    with pytest.warns(UserWarning, match="left out"):
        assert len(ready(Argoverse1(str(argoverse1), batch_size=2, max_corrupt=1)).split("train")) == 4


def test_argoverse1_missing_map_and_no_csv(argoverse1):
    (argoverse1 / "val/data/0.csv").write_bytes(b"\0\xff")
    findings = found(Argoverse1(str(argoverse1), maps=str(argoverse1 / "val")))
    assert len(findings.faults["train"]) == 4
    assert "vector map of MIA" in findings.faults["train"][0].reason
    assert findings.problems
    assert "TRACK_ID" in findings.faults["test"][0].reason
    with pytest.raises(DataError, match="no folders train and val"):
        found(Argoverse1(str(argoverse1 / "train")))


def test_argoverse2(tmp_path):
    straight, turning = [(1000, 2000), (1100, 2000)], [(1000, 1980), (1040, 1980)]
    lanes = {"1": lane(straight), "2": lane(turning, turn_direction="LEFT", has_traffic_control=True)}
    for number, split in enumerate(["train", "train", "train", "val"]):
        write_av2(
            tmp_path / split, f"s{number}", lanes=lanes, drive=f"d{number // 2}", interacts={"20": "10", "10": ""}
        )
    data = ready(Argoverse2(str(tmp_path), targets="scored", batch_size=2))
    items = data.split("train").changed_by(None)
    assert [items.place(i) for i in range(2)] == [f"train/s0/scenario_s0.parquet:{track}" for track in ("10", "20")]
    batch = items.batch(range(6))
    assert batch.agents.shape == (6, 3, 50, 2)
    assert batch.future.shape == (6, 60, 2)
    assert batch.group.tolist() == [0, 0, 0, 0, 1, 1]
    assert batch.agent_types[1].tolist() == [AGENT_TYPES.index(name) for name in ("bus", "vehicle", "pedestrian")]
    assert batch.agent_valid.sum(2)[0].tolist() == [50, 10, 50]  # the pedestrian is nearer to the car than the bus
    assert batch.truth[0].tolist() == [False] * 3  # it is known to interact with none
    assert batch.truth[1].tolist() == [False, True, False]
    assert not batch.ignored.any()
    assert {tuple(row) for row in batch.lane_attributes[0].tolist()} == {(2, 0, 0), (2, 2, 2)}
    focal = ready(Argoverse2(str(tmp_path), batch_size=2, history=10, future=20, stride=2, val_size=0.5))
    assert [len(focal.split(split)) for split in ("train", "val", "test")] in ([1, 2, 1], [2, 1, 1])
    batch = focal.split("test").batch([0])
    torch.testing.assert_close(batch.agents[0, 0, :, 0], torch.arange(-18.0, 1, 2))
    torch.testing.assert_close(batch.future[0, :, 0], torch.arange(2.0, 41, 2))


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ({"lanes": {}}, "no lanes"),
        ({"lanes": {"1": {"id": 1}}}, "KeyError"),
        ({"change": {"10": {"end_timestamp": 10**18 + 109 * 2 * 10**8}}}, "not 0.1 s"),
        ({"change": {"30": {"position_x": float("nan")}}}, "track 30"),
        ({"change": {"10": {"focal_track_id": "99", "object_category": 1}}}, "no track is a target"),
        ({"steps": 60}, "10 steps to come"),
        ({"change": {"30": {"timestep": -1}}}, "timesteps"),
        ({"change": {"30": {"position_x": None}}}, "track 30"),
        ({"steps": 50}, "without a future"),
        ({"skip": {"10": 2, "20": 2, "30": 2}}, "no track has 54 of the timesteps up to 109, the first 2"),
        ({"twice": "20"}, "track 20 is in two places at step 7"),
    ],
)
def test_argoverse2_bad_scenes(tmp_path, written, reason):
    write_av2(tmp_path / "train", "good")
    write_av2(tmp_path / "val", "bad", **written)
    faults = found(Argoverse2(str(tmp_path))).faults
    assert not faults["train"]
    assert [fault.file for fault in faults["test"]] == ["val/bad/scenario_bad.parquet"]
    assert reason in faults["test"][0].reason


def test_argoverse2_files_that_are_missing_or_no_parquet(tmp_path):
    good = write_av2(tmp_path, "s0", steps=50)
    assert read_parquet(good).positions.shape[1] == 50
    next(good.parent.glob("*.json")).unlink()
    with pytest.raises(UnreadableSceneError, match="lies beside"):
        read_parquet(good)
    good.write_bytes(b"PAR1 no")
    with pytest.raises(UnreadableSceneError, match="no parquet"):
        read_parquet(good)
    with pytest.raises(DataError, match="no parquet"):
        Argoverse2(str(tmp_path)).open([str(good)])


def test_map_of_boundaries_alone(tmp_path):
    sides = {"left_lane_boundary": [(0, 1), (10, 1)], "right_lane_boundary": [(0, -1), (5, -1), (10, -1)]}
    segment = {name: [{"x": x, "y": y, "z": 0} for x, y in points] for name, points in sides.items()}
    (tmp_path / "log_map_archive_a.json").write_text(json.dumps({"lane_segments": {"1": segment}}))
    lanes = read_map(tmp_path / "scenario_b.parquet")
    np.testing.assert_allclose(lanes[0][[0, -1]], [[0, 0], [10, 0]])
    assert lanes.attributes.tolist() == [[0, 0, 0]]


def test_of_several_maps_in_a_folder_a_scene_has_its_own(tmp_path):
    for name, x in (("a", 0.0), ("b", 500.0)):
        segment = {"centerline": [{"x": x, "y": 0.0}, {"x": x + 9, "y": 0.0}], "turn_direction": "STRAIGHT"}
        segment |= {"is_intersection": "true", "has_traffic_control": True}
        (tmp_path / f"log_map_archive_{name}.json").write_text(json.dumps({"lane_segments": {"1": segment}}))
    lanes = read_map(tmp_path / "scenario_b.parquet")
    assert lanes[0][0].tolist() == [500.0, 0.0]
    assert lanes.attributes.tolist() == [[2, 0, 2]]  # a turn of another name is not known
    with pytest.raises(UnreadableSceneError, match=r"no log_map_archive_c\.json"):
        read_map(tmp_path / "scenario_c.parquet")


def test_a_map_that_was_mended_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
    for number in range(8):
        write_av2(tmp_path / "set", f"s{number}", steps=50, seen=20, drive=f"d{number}")
    maps = sorted((tmp_path / "set").rglob("*.json"))
    whole = maps[0].read_text()
    maps[0].unlink()

    def found():
        bad = {"max_corrupt": 1, "max_corrupt_test": 1}
        data = SceneFiles(str(tmp_path / "set"), test_size=2, val_size=2, batch_size=1, **bad)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data.setup()
        return len(data.faults), data.fingerprint()

    assert found()[0] == 1
    maps[0].write_text(whole)
    faults, before = found()
    assert faults == 0
    maps[0].write_text(whole + "  ")
    assert found()[1] != before


def test_a_map_may_lie_elsewhere_if_it_is_given_with_its_scene(tmp_path, argoverse1):
    scene = write_av2(tmp_path, "s0", steps=50)
    there = next(scene.parent.glob("*.json")).rename(tmp_path / "log_map_archive_s0.json")
    data = SceneFiles(history=50, future=60)
    with pytest.raises(DataError, match=r"no log_map_archive_s0\.json"):
        data.open([str(scene)])
    assert len(data.open([str(scene), str(there)]).batch([0]).lanes[0]) == 5
    with pytest.raises(DataError, match="no scene"):
        data.open([str(there)])
    table = (argoverse1 / "val/data/0.csv").rename(tmp_path / "other.csv")
    city = next((argoverse1 / "map_files").glob("*.xml")).rename(tmp_path / "pruned_argoverse_MIA_1_vector_map.xml")
    assert len(SceneFiles().open([str(table), str(city)]).batch([0]).lanes[0]) == 4


def test_what_is_recorded_at_a_lower_rate_is_named_and_seen(tmp_path):
    for number, split in enumerate(["train", "val"]):
        write_av2(tmp_path / split, f"s{number}", skip={"20": 2})
    data = Argoverse2(str(tmp_path), batch_size=1)
    assert "targets of train that are seen, then not, and then again: 1 (" in found(data).remarks[0]
    batch = ready(data).still("train").batch([0])
    vectors, seen = agent_vectors(*batch[:3])
    assert seen[0].sum(1).tolist() == [49, 9, 24]  # the bus is last, from one place where it was seen to the next
    ways = vectors[0, 2][seen[0, 2]]
    torch.testing.assert_close(ways[:, 2] - ways[:, 0], torch.full((24,), 2.0))
    torch.testing.assert_close(ways[1:, :2], ways[:-1, 2:4])


def test_a_row_that_is_there_twice_is_no_fault(tmp_path):
    write_csv(tmp_path / "a.csv")
    lines = (tmp_path / "a.csv").read_text().splitlines()
    (tmp_path / "map_files").mkdir()
    (tmp_path / "map_files/pruned_argoverse_MIA_10316_vector_map.xml").write_text(XML)
    (tmp_path / "a.csv").write_text("\n".join(["\ufeff" + lines[0], *lines[1:], lines[-1]]))
    read_csv(tmp_path / "a.csv", sorted((tmp_path / "map_files").iterdir()))
    time, track, *rest = lines[-1].split(",")
    (tmp_path / "a.csv").write_text("\n".join([*lines, ",".join([time, track, rest[0], "0", *rest[2:]])]))
    with pytest.raises(UnreadableSceneError, match="two places at step 49"):
        read_csv(tmp_path / "a.csv", sorted((tmp_path / "map_files").iterdir()))


def test_linked_folders_are_entered_once(tmp_path):
    for number in range(3):
        write_av2(tmp_path / "there", f"s{number}", steps=50, seen=20)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/scenes").symlink_to(tmp_path / "there")
    (tmp_path / "there/again").symlink_to(tmp_path / "there")
    assert len(SceneFiles(str(tmp_path / "set")).find()["train"].keys) == 3


def test_scenes_whose_future_is_kept_back_are_no_test(tmp_path):
    for split in ("train", "val", "test"):
        write_av2(tmp_path / split, split, steps=50 if split == "test" else 110)
    data = SceneFiles(str(tmp_path), batch_size=1, history=50, future=60, max_corrupt_test=1)
    with pytest.warns(UserWarning, match="left out"), pytest.raises(DataError, match="can be predicted, not scored"):
        data.setup()


def test_scenes_to_predict_need_no_future(tmp_path):
    gone = {"20": {"timestep": 0, "observed": True, "position_x": 0.0, "position_y": 0.0}}
    path = write_av2(tmp_path, "short", steps=60, change=gone)
    data = SceneFiles(targets="scored", history=50, future=60)
    items = data.open([str(path)])
    assert len(items) == 1
    assert ["short.parquet:20 is left out" in one for one in data.remarks] == [True]
    about = items.about(0)
    assert about.pop("file").endswith("short.parquet:10")
    assert about == {"track": "10", "origin": [1049.0, 2000.0], "heading": 0.0}
    future = items.batch([0]).future[0]
    torch.testing.assert_close(future[:10, 0], torch.arange(1.0, 11))
    assert future[10:].isnan().all()


def test_bare_folders_are_split_by_whole_groups(tmp_path):
    for number in range(8):
        write_av2(tmp_path, f"s{number}", steps=50, seen=20, drive=f"d{number // 2}")
    data = ready(SceneFiles(str(tmp_path), test_size=0.25, val_size=2, batch_size=1))
    sets = {split: data.split(split) for split in ("train", "val", "test")}
    assert {split: len(items) for split, items in sets.items()} == {"train": 4, "val": 2, "test": 2}
    groups = [set(items.groups.tolist()) for items in sets.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 4
    assert (
        data.fingerprint() == ready(SceneFiles(str(tmp_path), test_size=0.25, val_size=2, batch_size=1)).fingerprint()
    )
    assert held_out(["a", "a", "b"], 0.0).sum() == 0


def moved(scene, angle, shift):
    """The scene turned and shifted on its map."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    lanes = LaneMap(scene.lanes.points @ turn + shift, scene.lanes.starts, scene.lanes.attributes)
    headings = None if scene.headings is None else scene.headings + angle
    return replace(scene, positions=scene.positions @ turn + shift, lanes=lanes, headings=headings)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    angle=st.floats(-7, 7),
    x=st.floats(-1e6, 1e6),
    y=st.floats(-1e6, 1e6),
    stands=st.booleans(),
)
def test_neither_turning_nor_shifting_a_whole_scene_changes_anything(seed, angle, x, y, stands):
    scene = draw_scene(seed)
    if stands:  # its heading is that of the nearest lane
        scene = replace(scene, positions=scene.positions.copy())
        scene.positions[1] = scene.positions[1, :1]
    framing = Framing(max_lanes=6, max_agents=3, agent_radius=40, lane_radius=35)
    here, there = (frame(one, 1, framing) for one in (scene, moved(scene, angle, np.array([x, y]))))
    where = there.pose[:2] - here.pose[:2] @ [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    np.testing.assert_allclose(where, [x, y], atol=1e-4)
    for name in set(here._fields) - {"pose"}:
        np.testing.assert_allclose(getattr(here, name), getattr(there, name), atol=1e-4, err_msg=name)


def test_headings():
    scene = draw_scene(3)
    path = np.stack([np.zeros(50), np.arange(50.0)], 1) * 0.05  # within 2 s a metre northwards
    scene.positions[0] = path
    assert heading_of(scene, 0) == pytest.approx(np.pi / 2)
    recorded = replace(scene, headings=np.full(5, 0.3))
    assert heading_of(recorded, 0) == 0.3
    scene.positions[0] = path * 10
    assert heading_of(recorded, 0) == pytest.approx(np.pi / 2)
    scene.positions[0] = 0
    lanes = LaneMap.of([np.array([[-5.0, 1], [5, 1]]), np.array([[0.0, -2], [0, -30]])], [(0, 0, 0)] * 2)
    assert heading_of(replace(scene, lanes=lanes), 0) == 0
    assert heading_of(replace(scene, lanes=LaneMap.of([lanes[1]], [(0, 0, 0)])), 0) == pytest.approx(-np.pi / 2)


def test_lanes_are_cut_into_equal_pieces_that_meet():
    pieces = cut_lane(np.array([[0.0, 0], [30, 0], [30, 15]]), 20, 4)
    assert pieces.shape == (3, 4, 2)
    np.testing.assert_array_equal(pieces[:-1, -1], pieces[1:, 0])
    np.testing.assert_allclose(pieces[0, :, 0], [0, 5, 10, 15])


def test_the_nearest_agents_and_lanes_are_kept():
    scene = draw_scene(1)
    everything, few = frame(scene, 1, Framing()), frame(scene, 1, Framing(max_agents=2, max_lanes=3, agent_radius=30))
    np.testing.assert_array_equal(few.agents, everything.agents[:2])
    np.testing.assert_array_equal(few.lanes, everything.lanes[:3])
    far = np.hypot(*everything.agents[:, -1].T)
    assert (np.diff(far) >= 0).all()
    assert len(frame(scene, 1, Framing(agent_radius=1e-3, lane_radius=1e-3)).agents) == 1


def test_a_killed_preparation_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_SHARD", 2)
    read = []

    def scene(number, last=99):
        read.append(number)
        if number > last:
            raise KeyboardInterrupt
        return draw_scene(number)

    source = Source(read=partial(scene, last=4), keys=range(6), names=list("abcdef"), identity={})
    with pytest.raises(KeyboardInterrupt):
        make_shards(source, Framing(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # whole ones alone
    (tmp_path / "00001.safetensors").write_bytes(b"damaged")
    read.clear()
    table = make_shards(replace(source, read=scene), Framing(), tmp_path)
    assert read == [2, 3, 4, 5]
    assert [item.name for item in table.items[:3]] == ["a:1", "a:2", "b:1"]
    for one, two in zip(table[9], frame(draw_scene(4), 2, Framing()), strict=True):
        np.testing.assert_array_equal(one, two)
    read.clear()
    make_shards(replace(source, read=scene), Framing(), tmp_path)
    assert not read


def test_unreadable_scenes_keep_the_place_of_the_others(tmp_path):
    def scene(number):
        if number == 1:
            raise UnreadableSceneError("broken")
        return draw_scene(number)

    table = make_shards(Source(read=scene, keys=range(3), names=list("abc"), identity={}), Framing(), tmp_path)
    assert [item.fault for item in table.items] == ["", "", "broken", "", ""]
    np.testing.assert_array_equal(table[3].agents, frame(draw_scene(2), 1, Framing()).agents)


@pytest.fixture(scope="module")
def toys():
    return ready(ToyScenes(train_size=8, test_size=4, batch_size=4))


def test_training_changes_are_functions_of_seed_epoch_and_item(toys):
    items, still = toys.split("train"), toys.still("train")
    one, again, later = (items.__getitems__([Draw(epoch, n) for n in range(16)]) for epoch in (1, 1, 2))
    plain = still.batch(range(16))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one.agents, later.agents)
    flipped = (one.future[:, -1, 1] * plain.future[:, -1, 1]) < 0
    assert 0 < flipped.sum() < 16
    torch.testing.assert_close(one.future.abs(), plain.future.abs())
    seen = one.agent_valid[:, 0].sum(1)
    assert seen.min() < 20
    assert seen.min() >= 10
    assert one.agent_valid[:, 0, -1].all()
    assert not one.agents[~one.agent_valid].any()
    alone = items.__getitems__([Draw(1, 5)])
    torch.testing.assert_close(alone.agents[0], one.agents[5, : alone.agents.shape[1]])


def test_a_mirrored_scene_turns_the_other_way(toys):
    batch = toys.still("test").batch(range(8))
    twice = mirror(mirror(batch, torch.ones(8, dtype=torch.bool)), torch.ones(8, dtype=torch.bool))
    assert all(torch.equal(a, b) for a, b in zip(batch, twice, strict=True))
    once = mirror(batch, torch.arange(8) < 4)
    names = LANE_ATTRIBUTES["turn"]
    left, right = names.index("left"), names.index("right")
    assert torch.equal(once.lane_attributes[:4, :, 1] == right, batch.lane_attributes[:4, :, 1] == left)
    assert torch.equal(once.agents[4:], batch.agents[4:])
    assert torch.equal(hide_first(batch, torch.full((8,), 50)).agent_valid.sum(2), batch.agent_valid[..., -1].long())


def test_example_is_a_batch_without_a_file(toys):
    batch, example = toys.split("train").batch([0, 1]), Argoverse2("nowhere").example(3)
    assert {name: value.dtype for name, value in batch._asdict().items()} == {
        name: value.dtype for name, value in example._asdict().items()
    }
    assert example.future.shape == (3, 60, 2)
    assert example.agent_valid[:, 0, -1].all()
    assert not example.agents[~example.agent_valid].any()
    assert not example.lanes[~example.lane_valid].any()


def test_options_are_checked():
    for wrong in ({"history": 1}, {"stride": 0}, {"lane_length": 0.0}, {"hide": -1}, {"val_size": -0.1}):
        with pytest.raises(DataError):
            ToyScenes(**wrong)


def test_suite_of_motion():
    data = ToyScenes(train_size=8, test_size=4, batch_size=4)
    conditions = Motion(history=0.5, noise=0.3).conditions(data)
    shown = {one.key: one.items.batch(range(4)) for one in conditions}
    clean = shown["clean"]
    assert list(shown) == ["clean", *(f"motion/{n}" for n in ("short_history", "target_alone", "no_lanes", "noise"))]
    assert isinstance(clean, Scenes)
    assert shown["motion/short_history"].agent_valid[:, 0].sum(1).tolist() == [5] * 4
    assert not shown["motion/target_alone"].agent_valid[:, 1:].any()
    torch.testing.assert_close(shown["motion/target_alone"].agents[:, 0], clean.agents[:, 0])
    assert not shown["motion/no_lanes"].lane_valid.any()
    noise = shown["motion/noise"].agents - clean.agents
    assert noise[clean.agent_valid].std() == pytest.approx(0.3, abs=0.03)
    assert "motion/short_history" not in [one.key for one in Motion(history=5).conditions(data)]
    alone = conditions[-1].items.batch([2])
    torch.testing.assert_close(alone.agents[0], shown["motion/noise"].agents[2, : alone.agents.shape[1]])
    assert conditions[-1].identity["noise"] == 0.3
    for condition in shown.values():
        assert all(torch.equal(getattr(condition, n), getattr(clean, n)) for n in ("future", "index", "group", "truth"))
    with pytest.raises(DataError):
        Motion(noise=0)


def test_check_data_takes_a_folder_of_scenes(argoverse1, capsys):
    words = ["check-data", str(argoverse1), "--kind", "scenes", "--workers", "0"]
    assert main([*words, "--test-size", "0.5"]) == 0
    assert "scenes" in capsys.readouterr().out
    write_csv(argoverse1 / "val/data/bad.csv", gap=0.2)
    assert main([*words, "--json", str(argoverse1 / "found.json")]) == 1
    assert "val/data/bad.csv" in capsys.readouterr().out
    found = json.loads((argoverse1 / "found.json").read_text())
    assert [row["file"] for row in found["splits"]["test"]["unreadable"]] == ["val/data/bad.csv"]


def test_csv_reader_reads_a_city_once(argoverse1):
    first, second = (
        read_csv(argoverse1 / "train/data/0.csv", sorted((argoverse1 / "map_files").iterdir())) for _ in range(2)
    )
    assert first.lanes is second.lanes
