"""Questions about rooms as data: drawn rooms and their answers, SQA3D's and ScanQA's layouts, changes, faults."""

import gc
import json
import re
import shutil
import warnings
import zipfile
from collections import Counter
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmgraft.data.base import UnreadableItemWarning
from lmgraft.data.draws import permutation
from lmgraft.data.loader import Draw
from lmgraft.data.points.meshes import UnreadableCloudError
from lmgraft.data.rooms import asking, room_set
from lmgraft.data.rooms.asking import (
    DIRECTIONS,
    KINDS,
    NUMBERS,
    Asked,
    Balance,
    Situation,
    Thing,
    ask,
    every_question,
    middle,
    views,
)
from lmgraft.data.rooms.furnished import FurnishedRooms
from lmgraft.data.rooms.furnishing import draw_layout
from lmgraft.data.rooms.part import Worths, best_in_hindsight, best_of_training, question_type
from lmgraft.data.rooms.pieces import LABELS, Piece, pieces_of, read_pieces
from lmgraft.data.rooms.prepare import draw_room, make_set, measure
from lmgraft.data.rooms.room import RoomView, changed_boxes, changed_pose, degrees_of, pose_of, recognise
from lmgraft.data.rooms.room_set import in_rows
from lmgraft.data.rooms.scannet import CLASSES, ScanFolder
from lmgraft.data.rooms.scans import ScanQa, Sqa3d
from lmgraft.errors import DataError
from lmgraft.registry import PREPARERS
from lmgraft.studies.robustness.suites.rooms import RoomGrounding

ROOMS = {"train": 5, "val": 1, "test": 2}


def tiny_pieces():
    """Two pieces a label, each a box of its own size; one is for the test alone."""
    pieces = []
    for number, label in enumerate(LABELS):
        for copy in range(2):
            draw = np.random.default_rng([number, copy])
            size = draw.uniform(0.3, 0.9, 3)
            points = draw.uniform([-0.5, -0.5, 0], [0.5, 0.5, 1], (2048, 3)) * size
            colours = draw.integers(256, size=(2048, 3)).astype(np.uint8)
            pieces.append(Piece(f"{label}{copy}", label, points.astype(np.float32), colours, 1.0, test=copy == 1))
    return pieces


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    return make_set(tiny_pieces(), tmp_path_factory.mktemp("rooms") / "set", {"name": "rooms"}, ROOMS, points=128)


def answer_of(row, objects):
    """The answer by the words alone and the plain rule of quarters, from where the asker stands; None if unsure."""
    x, y = row["place"]
    ways = {"in front of me": 0, "to my left": 90, "behind me": 180, "to my right": 270}

    def side(box):
        degrees = np.degrees(np.arctan2(box[1] - y, box[0] - x)) - row["heading"]
        off = {words: min((degrees - way) % 360, (way - degrees) % 360) for words, way in ways.items()}
        return min(off, key=off.get)

    named = re.match(r"I am standing (?:at|next to|beside) the (\w+), (?:facing|with) the (\w+)", row["situation"])
    others = [one for one in objects if one["label"] not in named.groups()]
    question = row["question"]
    where = next((words for words in ways if words in question), None)
    there = [one for one in others if where and side(one["box"]) == where]
    if match := re.fullmatch(r"Is there an? (\w+) .*\?", question):
        return "yes" if any(one["label"] == match[1] for one in there) else "no"
    if match := re.fullmatch(r"How many (\w+)s are .*\?", question):
        return NUMBERS[sum(one["label"] == match[1] for one in there)]
    if match := re.fullmatch(r"On which side of me is the (\w+)\?", question):
        (box,) = [one["box"] for one in objects if one["label"] == match[1]]
        return {"in front of me": "front", "behind me": "back"}.get(side(box), side(box).split()[-1])
    if match := re.fullmatch(r"What colour is the (\w+) nearest to me\?", question):
        of = [one for one in objects if one["label"] == match[1]]
        return min(of, key=lambda one: np.hypot(one["box"][0] - x, one["box"][1] - y))["paint"]
    if match := re.fullmatch(r"What colour is the (\w+) .*\?", question):
        (one,) = [one for one in there if match[1] in ("object", one["label"])]
        return one["paint"]
    if match := re.fullmatch(r"Which is nearer to me, the (\w+) or the (\w+)\?", question):
        far = {one["label"]: np.hypot(one["box"][0] - x, one["box"][1] - y) for one in objects}
        return min(match.groups(), key=far.get)
    assert re.fullmatch(r"What is .*\?", question)
    (one,) = there
    return one["label"]


def test_answers_follow_from_the_room_and_need_the_situation(furnished):
    kinds = Counter()
    for split in ROOMS:
        rooms, rows = (json.loads((furnished / split / f"{name}.json").read_text()) for name in ("rooms", "questions"))
        for row in rows:
            assert row["answer"] == answer_of(row, rooms[row["room"]])
        asked = {}
        for row in rows:
            asked.setdefault((row["room"], row["question"]), []).append(row["answer"])
            kinds[row["kind"]] += 1
        for answers in asked.values():
            assert max(Counter(answers).values()) * 2 <= len(answers)
    assert set(kinds) == set(KINDS)


def test_the_words_of_a_situation_say_where_the_other_object_is(furnished):
    rooms, rows = (json.loads((furnished / "train" / f"{name}.json").read_text()) for name in ("rooms", "questions"))
    ways = {"facing": 0, "left": 90, "behind": 180, "right": -90}
    for row in rows:
        beside, other = re.search(r"the (\w+), \D*?the (\w+)", row["situation"]).groups()
        word = next(word for word in ways if word in row["situation"])
        box = {one["label"]: one["box"] for one in rooms[row["room"]]}
        gap = np.array(box[other][:2]) - row["place"]
        off = np.degrees(np.arctan2(gap[1], gap[0])) - row["heading"] - ways[word]
        assert abs((off + 180) % 360 - 180) < 1
        near = np.abs(np.array(row["place"]) - box[beside][:2]) - np.array(box[beside][3:5]) / 2
        assert 0 < near.max() < 0.31


def test_rooms_are_functions_of_their_numbers_and_objects_do_not_overlap(furnished, tmp_path):
    about = json.loads((furnished / "set.json").read_text())
    again = make_set(tiny_pieces(), tmp_path, {"name": "rooms"}, ROOMS, points=128)
    assert json.loads((again / "set.json").read_text())["digests"] == about["digests"]
    assert np.array_equal(*(np.load(at / "test" / "points.npy") for at in (furnished, again)))
    assert about["baselines"]["room and question, not the situation"] <= 0.5
    for rooms in (json.loads((furnished / split / "rooms.json").read_text()) for split in ROOMS):
        for objects in rooms:
            assert 3 <= len(objects) <= 8
            boxes = np.array([one["box"] for one in objects])
            apart = np.abs(boxes[:, None, :2] - boxes[None, :, :2]) - (boxes[:, None, 3:5] + boxes[None, :, 3:5]) / 2
            assert (apart.max(-1) + 10 * np.eye(len(boxes)) > 0.3).all()
    names = {
        split: {piece.name[-1] for of in pieces_of(tiny_pieces(), split).values() for piece in of} for split in ROOMS
    }
    assert names == {"train": {"0"}, "val": {"0"}, "test": {"0", "1"}}  # the second copies are for the test alone
    one = draw_room(pieces_of(tiny_pieces(), "test"), 4, (0, 2, 1), Balance(), 128)
    assert np.array_equal(one.points, np.load(furnished / "test" / "points.npy")[1])


def test_a_batch_shows_what_is_asked_about(furnished):
    data = FurnishedRooms(str(furnished), points=64, batch_size=4, eval_batch_size=32)
    data.setup()
    batch = data.still("test").batch(range(16))
    assert batch.points.shape == (16, 64, 7)
    assert batch.points.dtype == torch.float32
    assert batch.box_classes.shape == batch.boxes.shape[:2]
    assert batch.truth.shape == (16, 64)
    assert ((batch.box_classes < 0) == (batch.boxes == 0).all(-1)).all()
    assert batch.targets.sum(1).tolist() == [batch.targets[i].max() for i in range(16)]
    rows = json.loads((furnished / "test" / "questions.json").read_text())
    for i, row in enumerate(rows):
        assert data.answer_names[int(batch.targets[i].argmax())] == row["answer"] or not batch.targets[i].any()
        assert batch.truth[i].tolist() == [int(of) in row["objects"] for of in batch.point_box[i]]
        spelt = " ".join(data.words[n] for n in batch.question[i].tolist() if n)
        assert spelt.replace(" ", "") == re.sub(r"\s", "", row["question"].lower()) or "[UNK]" in spelt
        assert degrees_of(batch.pose[i].double().numpy()) == pytest.approx((row["heading"] + 180) % 360 - 180, abs=0.1)
    inside = batch.boxes.gather(1, batch.point_box.clamp_min(0)[..., None].expand(-1, -1, 6))
    off = (batch.points[..., :3] - inside[..., :3]).abs() - inside[..., 3:] / 2
    assert off[batch.point_box >= 0].max() < 0.005
    first = batch.points[batch.group == 0]
    assert (first == first[0]).all()  # a room looks the same to all its questions
    assert data.categories()["question_type"] == KINDS
    assert data.model_arguments()["num_words"] == len(data.words)
    assert data.words[:2] == ("[PAD]", "[UNK]")
    assert len(data.mean_sizes) == len(LABELS) == len(data.class_names)


def test_training_changes_rooms_by_seed_epoch_and_question_alone(furnished):
    def batch(seed=3, epoch=0, samples=(0, 1, 5), **options):
        data = FurnishedRooms(str(furnished), points=64, batch_size=2, **options)
        data.seed = seed
        data.setup()
        items = data.split("train")
        return items.__getitems__([Draw(epoch, sample) for sample in samples])

    assert not hasattr(batch(), "truth")
    assert torch.equal(batch().points, batch().points)
    assert torch.equal(batch().points[2:], batch(samples=(5,)).points)
    assert not torch.equal(batch().points, batch(epoch=1).points)
    assert not torch.equal(batch().points, batch(seed=4).points)
    kept = batch(redraw=False, turn=0, shift=0)
    assert torch.equal(kept.points[0], kept.points[1])
    assert torch.equal(kept.boxes[0], kept.boxes[1])
    fewer = FurnishedRooms(str(furnished), per_room=2, batch_size=2)
    fewer.setup()
    assert len(fewer.split("train")) == 2 * ROOMS["train"]


@pytest.mark.parametrize("flips", [(0.9, 0.9), (0.1, 0.9), (0.9, 0.1), (0.1, 0.1)])
def test_a_mirrored_room_has_its_sides_exchanged_for_the_asker(flips):
    draw = np.random.default_rng(0)
    change = RoomView(flip=True, turn=5.0).change(np.array([*flips, *draw.random(6)]))
    box = np.array([[1.0, 2.0, 0.5, 0.6, 0.8, 1.0]], np.float32)
    pose, thing = pose_of((0.3, -0.2), 35.0), box[0, :3].astype(float)
    moved, after = change.matrix @ thing + change.shift, changed_pose(pose, change)

    def seen(pose, place):
        x, y, z, w = pose[3:]
        turn = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                         [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                         [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])  # fmt: skip
        return turn.T @ (place - pose[:3])  # ahead is -x, left is -y

    mirrored = (flips[0] < 0.5) != (flips[1] < 0.5)
    assert seen(after, moved) == pytest.approx(seen(pose, thing) * [1, -1 if mirrored else 1, 1])
    wide = changed_boxes(box, change)[0]
    corners = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) / 2 * box[0, 3:] + box[0, :3]
    within = np.abs(corners @ change.matrix.T + change.shift - wide[:3]) - wide[3:] / 2
    assert within.max() == pytest.approx(0, abs=1e-5)


def scan(count=400):
    """Points (n, 3) of a floor and two walls, metres."""
    draw = np.random.default_rng(1)
    floor = np.column_stack([draw.uniform(-3, 3, (count, 2)), np.zeros(count)])
    walls = []
    for y in (-2.5, 2.5):
        along, up = draw.uniform([-3, 0], [3, 2.4], (count // 8, 2)).T
        walls.append(np.column_stack([along, np.full(count // 8, y), up]))
    return np.concatenate([floor, *walls]).astype(np.float32)


@pytest.mark.parametrize(("scale", "axes", "words"), [
    (1, (0, 1, 2), ()), (100, (0, 1, 2), ("centimetres",)), (1000, (0, 1, 2), ("millimetres",)),
    (1, (0, 2, 1), ("y upwards",)), (100, (2, 1, 0), ("centimetres", "x upwards")),
])  # fmt: skip
def test_units_and_axes_are_recognised_by_extents(scale, axes, words):
    points = scan()
    by = recognise((points * scale)[:, axes])
    assert all(word in by.note for word in words)
    assert bool(by.note) == bool(words)
    back = (points * scale)[:, axes] @ by.matrix.T
    assert np.linalg.det(by.matrix) > 0
    assert back[:, 2] == pytest.approx(points[:, 2], abs=1e-3)
    assert np.sort(np.ptp(back[:, :2], axis=0)) == pytest.approx(np.sort(np.ptp(points[:, :2], axis=0)), abs=1e-3)


def test_a_corridor_is_not_turned_and_a_toy_is_no_room():
    corridor = scan() * np.array([1.5, 0.2, 1], np.float32)
    assert recognise(corridor).note == ""
    for points, words in ((scan() / 1e4, "no room"), (scan()[:0], "no points"), (scan() * np.nan, "not finite")):
        with pytest.raises(UnreadableCloudError, match=words):
            recognise(points)


def write_scan(folder, name, boxes, scale=1.0, turned=True):
    """A scan as ScanQA's scripts export it: boxes are (centre, size, NYU number, object); aligned by a quarter turn."""
    draw = np.random.default_rng(2)
    floor, parts, of = scan() + np.array([5, 7, 0], np.float32), [], []
    for *box, _, number in boxes:
        parts.append(draw.uniform(-0.5, 0.5, (20, 3)) * box[3:] + box[:3])
        of += [number + 1] * 20
    aligned = np.concatenate([floor, *parts]).astype(np.float32) * scale
    raw = aligned[:, [1, 0, 2]] * np.array([1, -1, 1], np.float32)  # a quarter turn to the right
    rest = draw.uniform(0, 255, (len(aligned), 6))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}_aligned_vert.npy", np.concatenate([aligned, rest], 1))
    if turned:
        np.save(folder / f"{name}_vert.npy", np.concatenate([raw, rest], 1))
    np.save(folder / f"{name}_ins_label.npy", np.array([0] * len(floor) + of, np.uint32))
    np.save(folder / f"{name}_aligned_bbox.npy", np.array(boxes, np.float64).reshape(-1, 8) * [*[scale] * 6, 1, 1])
    return aligned


CHAIR, LAMP = (4.0, 7.0, 0.4, 0.5, 0.5, 0.8, 5, 3), (6.0, 8.0, 0.6, 0.2, 0.2, 1.2, 35, 7)


def write_sqa3d(root, rows, annotated=None):
    """(split, scene, situation, question, answer) in SQA3D's files."""
    folder = root / "balanced"
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        of = [(n, *row[1:]) for n, row in enumerate(rows) if row[0] == split]
        questions = [
            {"scene_id": s, "situation": where, "alternative_situation": [], "question": q, "question_id": n}
            for n, s, where, q, _ in of
        ]  # fmt: skip
        annotations = [
            {"scene_id": s, "question_id": n, "question_type": "N/A", "answer_type": "other",
             "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": 1}],
             "rotation": {"_w": 1, "_x": 0, "_y": 0, "_z": 0}, "position": {"x": 1.0, "y": 0.0, "z": 0}}
            for n, s, _, _, a in of
        ][: annotated]  # fmt: skip
        for kind, key, content in (
            ("questions", "questions", questions), ("sqa_annotations", "annotations", annotations),
        ):  # fmt: skip
            (folder / f"v1_balanced_{kind}_{split}_scannetv2.json").write_text(json.dumps({"info": {}, key: content}))


ROWS = [
    ("train", "scene0000_00", "I am at the chair.", "What's to my left?", "lamp"),
    ("train", "scene0000_00", "I am at the chair.", "How many lamps are here?", "one"),
    ("train", "scene0001_00", "I am lost.", "Can I sit?", "no"),
    ("train", "scene0001_00", "I am lost.", "Is it dark?", "no"),
    ("train", "scene0001_00", "I am lost.", "Is it late?", "maybe so"),
    ("val", "scene0000_00", "I face a lamp.", "Which is nearer?", "lamp"),
    ("test", "scene0002_00", "I face a wardrobe.", "Do I see it?", "lamp"),
    ("test", "scene0002_00", "I face a lamp.", "Is it red?", "purple"),
]


@pytest.fixture
def sqa3d(tmp_path):
    write_sqa3d(tmp_path, ROWS)
    (tmp_path / "answer_dict.json").write_text(json.dumps([{"no": 0, "lamp": 1, "one": 2}, {"0": "no"}]))
    write_scan(tmp_path / "scans", "scene0000_00", [CHAIR, LAMP])
    write_scan(tmp_path / "scans", "scene0001_00", [])
    write_scan(tmp_path / "scans", "scene0002_00", [CHAIR, (*LAMP[:3], 0.2, 0.0, 1.0, *LAMP[6:])], 100.0)
    return tmp_path


def quiet(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableItemWarning)
        data.setup()
    return data


def test_sqa3d_is_read_in_its_layout(sqa3d):
    data = Sqa3d(str(sqa3d), points=600, batch_size=2)
    data.setup()
    assert data.answer_names == ("lamp", "no", "one")
    assert data.selection == "val"
    assert len(data.split("train")) == 4  # "maybe so" is not in the vocabulary
    batch = data.still("train").batch(range(4))
    assert [data.categories()["question_type"][n] for n in batch.kind.tolist()] == ["what", "how", "can", "is"]
    # lamp comes three times in all splits, no twice, one once
    assert batch.targets.tolist() == pytest.approx(torch.tensor([[0.9, 0, 0], [0, 0, 0.3], [0, 0.6, 0], [0, 0.6, 0]]))
    assert batch.box_classes.tolist() == [[2, 17], [2, 17], [-1, -1], [-1, -1]]
    assert batch.boxes[0].tolist() == pytest.approx(torch.tensor([CHAIR[:6], LAMP[:6]]))
    assert [int((batch.point_box[0] == n).sum()) >= 20 for n in (0, 1)] == [True, True]
    # One metre along x of the scan as it is, from its middle, is one along y of the aligned one.
    aligned = np.load(sqa3d / "scans" / "scene0000_00_aligned_vert.npy")[:, :2]
    middle = (aligned.min(0) + aligned.max(0)) / 2
    assert batch.pose[0, :2].tolist() == pytest.approx([middle[0], middle[1] + 1], abs=1e-3)
    assert degrees_of(batch.pose[0].double().numpy()) == pytest.approx(-90)
    test = data.still("test").batch([0, 1])
    assert test.boxes.shape == (2, 1, 6)
    assert test.boxes[0, 0].tolist() == pytest.approx(CHAIR[:6])
    assert test.targets[1].sum() == 0
    assert 1 in test.situation[0]
    assert test.points[0, :, 6].max() == pytest.approx(2.4, abs=0.2)  # height in metres


def test_what_is_wrong_with_scans_is_named_and_counted(sqa3d, capsys):
    write_sqa3d(sqa3d, [*ROWS, ("train", "scene0009_00", "I am.", "Is it?", "no")])
    data = Sqa3d(str(sqa3d), points=700, batch_size=2)
    with pytest.raises(DataError, match=r"scene0009_00.*1 question about it"):
        data.setup()
    bare = np.load(sqa3d / "scans" / "scene0001_00_ins_label.npy")[:-1]
    np.save(sqa3d / "scans" / "scene0001_00_ins_label.npy", bare)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableItemWarning)
        findings = Sqa3d(str(sqa3d), points=700).check(0, lambda *_: nullcontext(lambda *_: None))
    assert findings.is_wrong
    assert [fault.file for fault in findings.faults["train"]] == ["scene0001_00", "scene0009_00"]
    said = "\n".join(findings.remarks)
    for words in ("centimetres", "1 box without an extent", "1 question without a right answer", "'purple'",
                  "fewer than data.points=700", "not among training's"):  # fmt: skip
        assert words in said
    write_scan(sqa3d / "scans", "scene0001_00", [])
    data = quiet(Sqa3d(str(sqa3d), points=600, batch_size=2, max_corrupt=1))
    assert len(data.split("train")) == 4
    assert [fault.file for fault in data.faults] == ["scene0009_00"]
    for change, words in (
        (lambda rows: rows[:-1], "has nothing about 1 question"),
        (lambda _: [{}], "question 1: question_id is None"),
        (lambda rows: [{**rows[0], "question_id": [1]}], r"question 1: question_id is \[1\]"),
    ):
        write_sqa3d(sqa3d, ROWS)
        file = sqa3d / "balanced" / "v1_balanced_sqa_annotations_test_scannetv2.json"
        rows = json.loads(file.read_text())["annotations"]
        file.write_text(json.dumps({"annotations": change(rows)}))
        with pytest.raises(DataError, match=words):
            Sqa3d(str(sqa3d)).setup()


@pytest.mark.parametrize(("part", "change", "words"), [
    ("aligned_vert", lambda file: file.write_bytes(file.read_bytes()[:-9]), "aligned_vert.npy: ValueError"),
    ("aligned_vert", lambda file: np.save(file, np.array([{}])), "aligned_vert.npy: ValueError: no array of numbers"),
    ("vert", lambda file: edit(file, (0, 1), np.nan), "scene0000_00_vert.npy has numbers that are not finite"),
    ("aligned_bbox", lambda file: np.save(file, np.load(file)[:, :7]), r"\(2, 7\), and numbers \(n, 8 or more\)"),
    ("aligned_bbox", lambda file: edit(file, (1, 7), 3), "aligned_bbox.npy: the last column is no number"),
    ("aligned_bbox", lambda file: edit(file, (1, 6), np.nan), "aligned_bbox.npy has numbers that are not finite"),
])  # fmt: skip
def test_damage_names_its_file(sqa3d, part, change, words):
    change(sqa3d / "scans" / f"scene0000_00_{part}.npy")
    with pytest.raises(UnreadableCloudError, match=words):
        ScanFolder(sqa3d / "scans").load("scene0000_00")


def edit(file, place, value):
    array = np.load(file)
    array[place] = value
    np.save(file, array)


def test_labels_below_0_are_no_object(sqa3d):
    file = sqa3d / "scans" / "scene0000_00_ins_label.npy"
    before = ScanFolder(sqa3d / "scans").load("scene0000_00").point_box
    labels = np.load(file).astype(np.int64)
    labels[np.flatnonzero(labels == 0)[::2]] = -1
    labels[np.flatnonzero(labels == 0)[::2]] = -100
    np.save(file, labels)
    assert (ScanFolder(sqa3d / "scans").load("scene0000_00").point_box == before).all()
    boxes = sqa3d / "scans" / "scene0000_00_aligned_bbox.npy"  # as scripts leave objects without points
    np.save(boxes, np.concatenate([np.zeros((2, 8)), np.load(boxes)]))
    room = ScanFolder(sqa3d / "scans").load("scene0000_00")
    assert (room.point_box == before).all()
    assert room.flat == 2


def test_folders_and_files_that_lack_are_named(sqa3d):
    with pytest.raises(DataError, match=r"scans: there is no such folder\n.*data\.scans"):
        Sqa3d(str(sqa3d), scans=str(sqa3d / "other" / "scans")).setup()
    write_sqa3d(sqa3d, [row for row in ROWS if row[0] != "val" and row[1] != "scene0001_00"])
    for file in (sqa3d / "balanced").glob("*_val_*"):
        file.unlink()
    with pytest.raises(DataError, match=r"no question of val can be shown\n.*data\.val_size=0\.5 holds out no room"):
        quiet(Sqa3d(str(sqa3d), points=32, batch_size=2, val_size=0.5))
    write_sqa3d(sqa3d, ROWS)
    (sqa3d / "balanced" / "v1_balanced_sqa_annotations_val_scannetv2.json").unlink()
    with pytest.raises(DataError, match="v1_balanced_sqa_annotations_val_scannetv2"):
        Sqa3d(str(sqa3d)).setup()


def test_rooms_of_two_splits_and_tests_without_poses_are_said(sqa3d):
    data = quiet(Sqa3d(str(sqa3d), points=32, batch_size=2))
    assert "1 room of val also in train: " in "".join(data.remarks)
    assert not any("where the asker stands" in remark for remark in data.remarks)
    (sqa3d / "scans" / "scene0002_00_vert.npy").unlink()
    data = quiet(Sqa3d(str(sqa3d), points=32, batch_size=2))
    assert any("known for 0 of 2 questions" in remark for remark in data.remarks)


def test_a_damaged_scan_is_left_out_of_its_split_from_the_start(sqa3d):
    data = Sqa3d(str(sqa3d), points=32, batch_size=2)
    data.setup()
    (sqa3d / "scans" / "scene0001_00_aligned_vert.npy").write_bytes(b"\x93NUMPY nothing")
    with pytest.raises(DataError, match="scene0001_00 could be read before"):
        data.still("train").batch([2])
    assert len(quiet(Sqa3d(str(sqa3d), points=32, batch_size=2, max_corrupt=1)).split("train")) == 2
    (sqa3d / "scans" / "scene0002_00_aligned_vert.npy").unlink()
    with pytest.raises(DataError, match=r"no question of test can be shown; of scene0002_00: "):
        quiet(Sqa3d(str(sqa3d), points=32, batch_size=2, max_corrupt=1, max_corrupt_test=1))


def test_a_run_is_evaluated_without_the_rooms_of_training(sqa3d, monkeypatch):
    data = Sqa3d(str(sqa3d), points=600, batch_size=2)
    record = json.loads(json.dumps({"data": data.fingerprint()}))
    whole = data.still("test").batch([0, 1])
    for file in (sqa3d / "scans").glob("scene000[01]_*"):
        file.unlink()
    with pytest.raises(DataError, match="max_corrupt"):
        Sqa3d(str(sqa3d), points=600, batch_size=2).setup()
    other = Sqa3d(str(sqa3d), points=600, batch_size=2, max_corrupt=1)
    other.as_trained(record)
    read, load = set(), ScanFolder.load
    monkeypatch.setattr(ScanFolder, "load", lambda of, name: read.add(name) or load(of, name))
    quiet(other)
    assert other.mean_sizes == data.mean_sizes
    assert other.fingerprint()["sizes"]["train"] == data.fingerprint()["sizes"]["train"] == 4
    assert read == {*data.parts["val"].names, *data.parts["test"].names}
    assert {*data.parts["train"].names} - read == {"scene0001_00"}
    assert any("1 room of val cannot be read, and an evaluation needs none" in remark for remark in other.remarks)
    assert all(torch.equal(one, two) for one, two in zip(other.still("test").batch([0, 1]), whole, strict=True))


def test_scans_that_were_aligned_are_never_turned(tmp_path):
    write_scan(tmp_path, "a", [CHAIR])
    lying = np.load(tmp_path / "a_aligned_vert.npy")
    lying[:, :3] = lying[:, [0, 2, 1]]
    np.save(tmp_path / "a_aligned_vert.npy", lying)
    room = ScanFolder(tmp_path).load("a")
    assert np.ptp(room.points[:, 1]) == pytest.approx(2.4, abs=0.2)
    assert room.notes == ("left with z upwards, though it looks like y, by its points",)
    (tmp_path / "a_aligned_vert.npy").rename(tmp_path / "a_vert.npy")
    (tmp_path / "a_aligned_bbox.npy").rename(tmp_path / "a_bbox.npy")
    room = ScanFolder(tmp_path).load("a")
    assert np.ptp(room.points[:, 2]) == pytest.approx(2.4, abs=0.2)
    assert room.notes == ("with y upwards, by its points",)
    assert room.frame[:, :3] == pytest.approx(np.eye(3), abs=1e-5)  # annotations have z upwards in any case


def test_a_floor_at_the_upper_end_is_said():
    assert "upper end" in recognise(scan() * np.array([1, 1, -1], np.float32)).note


def test_poses_are_in_metres_whatever_the_files_are_in(tmp_path):
    write_scan(tmp_path, "a", [CHAIR, LAMP])
    write_scan(tmp_path, "b", [CHAIR, LAMP], 100.0)
    one, other = (ScanFolder(tmp_path).load(name) for name in "ab")
    assert other.frame == pytest.approx(one.frame, abs=1e-4)
    assert abs(np.linalg.det(other.frame[:, :3])) == pytest.approx(1, abs=1e-3)


def test_colours_as_shares_are_recognised(tmp_path):
    write_scan(tmp_path, "a", [CHAIR])
    before = ScanFolder(tmp_path).load("a").colours
    points = np.load(tmp_path / "a_aligned_vert.npy")
    points[:, 3:6] /= 255
    np.save(tmp_path / "a_aligned_vert.npy", points)
    room = ScanFolder(tmp_path).load("a")
    assert (room.colours == before).all()
    assert "shares of 255" in room.notes[0]


def test_words_of_all_splits_are_known_on_request(sqa3d):
    data = quiet(Sqa3d(str(sqa3d), points=32, batch_size=2, vocabulary="all"))
    assert "wardrobe" in data.words
    assert not any("not among" in remark for remark in data.remarks)
    letters = quiet(Sqa3d(str(sqa3d), points=32, batch_size=2, lower_case=False))
    assert {"I", "What"} <= {*letters.words}
    assert not {"i", "what"} & {*letters.words}
    again = Sqa3d(str(sqa3d), lower_case=False)
    again.recall(json.loads(json.dumps({"data": letters.fingerprint()})))
    assert again.tokenizer == letters.tokenizer
    with pytest.raises(DataError, match=r"data\.vocabulary"):
        Sqa3d(vocabulary="test")


def test_what_is_hidden_is_shown_nowhere(furnished):
    data = FurnishedRooms(str(furnished), points=64, batch_size=2, hidden=["room", "situation"])
    data.setup()
    for batch in (data.split("train").__getitems__([Draw(0, 1)]), data.still("test").batch([0, 1])):
        assert not batch.points.any()
        assert not batch.situation.any()
        assert batch.pose.isnan().all()
        assert batch.question.any()
        assert (batch.box_classes == -1).all()
    for hidden, words, placed in (("pose", True, False), ("situation_text", False, True)):
        batch = FurnishedRooms(str(furnished), points=64, batch_size=2, hidden=[hidden])
        batch.setup()
        shown = batch.still("test").batch([0, 1])
        assert (bool(shown.situation.any()), bool(shown.pose.isfinite().all())) == (words, placed)
        assert shown.points.any()
    with pytest.raises(DataError, match=r"data\.hidden: 'rooms'"):
        FurnishedRooms(hidden=["rooms"])


@given(
    rooms=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    together=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_an_order_in_rows_keeps_each_sample_once_and_rooms_in_rows(rooms, together, seed):
    draw = partial(permutation, seed, 0)
    order, first = in_rows(np.array(rooms), together, draw)
    assert sorted(order.tolist()) == list(range(len(rooms)))
    assert together > 1 or order.tolist() == draw(len(rooms)).tolist()
    at, lengths = 0, Counter()
    while at < len(rooms):
        row = [sample for sample in order[at:].tolist() if first[sample] == order[at]]
        assert order[at : at + len(row)].tolist() == row
        (room,) = {rooms[sample] for sample in row}
        lengths[room, len(row)] += 1
        at += len(row)
    for room, count in Counter(rooms).items():  # as few rows as there can be
        assert lengths[room, together] == count // together
        assert sum(lengths[room, length] for length in range(together)) == (count % together > 0)


def test_short_rows_are_anywhere():
    ends = []
    for epoch in range(40):
        order, first = in_rows(np.repeat(np.arange(6), 5), 4, partial(permutation, 1, epoch))
        ends.append(Counter(first.tolist())[first[order[-1]]])
    assert {1, 4} == set(ends)


def test_questions_of_a_room_in_a_row_have_the_same_points_and_others_in_another_row(furnished):
    data = FurnishedRooms(str(furnished), points=64, batch_size=8, together=4, flip=True)
    data.setup()
    items, loader = data.split("train"), data.loader("train", progress=lambda: (3, 0))
    rows = {}
    for batch in loader:
        assert len(batch.group.unique()) <= 4
        for n, sample in enumerate(batch.index.tolist()):
            alone = items.__getitems__([Draw(3, sample)])
            assert torch.equal(alone.points[0], batch.points[n])
            assert torch.equal(alone.pose[0], batch.pose[n])
            row = rows.setdefault(batch.points[n].numpy().tobytes(), [])
            row.append((int(batch.group[n]), batch.boxes[n][: ROOMS["train"]].sum().item()))
    assert max(map(len, rows.values())) == 4
    assert all(len(set(row)) == 1 for row in rows.values())
    rooms = Counter(row[0][0] for row in rows.values())
    assert max(rooms.values()) > 1
    other = items.__getitems__([Draw(4, 0)])
    assert not torch.equal(other.points, items.__getitems__([Draw(3, 0)]).points)
    assert data.transform_record()["together"] == 4
    with pytest.raises(DataError, match="together"):
        FurnishedRooms(str(furnished), together=0)


def test_rooms_that_are_shown_alike_are_read_once(furnished, monkeypatch):
    data = FurnishedRooms(str(furnished), points=64, batch_size=2, redraw=False, turn=0, shift=0)
    data.setup()
    read, items = [], data.split("train")
    part_load = items.part.load
    object.__setattr__(items.part, "load", lambda name: read.append(name) or part_load(name))
    draws = [Draw(epoch, sample) for epoch in (0, 1) for sample in range(4)]
    first, again = items.__getitems__(draws), items.__getitems__(draws)
    assert len(read) == len(set(read)) == len(set(items.groups[:4].tolist()))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    still = items.still().batch(range(4))
    differ = [n for n, a, b in zip(first._fields, first, still, strict=False) if not torch.equal(a, torch.cat([b, b]))]
    assert not differ
    monkeypatch.setattr(room_set, "_KEPT", 64 * 7 * 4)
    few = items.still()
    few.batch(range(len(few)))
    assert len(few._kept) == 1
    assert not few.__getstate__()["_kept"]
    read.clear()
    redrawn = FurnishedRooms(str(furnished), points=64, batch_size=2)
    redrawn.setup()
    train = redrawn.split("train")
    of_part = train.part.load
    object.__setattr__(train.part, "load", lambda name: read.append(name) or of_part(name))
    assert not torch.equal(train.__getitems__(draws).points[:4], train.__getitems__(draws).points[4:])
    assert len(read) == 2 * len(set(read))  # once a batch
    moved = FurnishedRooms(str(furnished), points=64, batch_size=2, redraw=False)
    moved.setup()
    assert not torch.equal(moved.split("train").__getitems__(draws).points, first.points)
    assert torch.equal(moved.split("train").still().batch(range(4)).points, still.points)


def test_a_suite_takes_situation_question_and_room_away(furnished):
    data = FurnishedRooms(str(furnished), points=64, batch_size=2)
    clean, *conditions = RoomGrounding().conditions(data)
    whole = clean.items.batch(range(6))
    shown = {one.part: one.items.batch(range(6)) for one in conditions}
    for part, name in (("no_situation", "situation"), ("no_situation_text", "situation"), ("no_question", "question")):
        assert not getattr(shown[part], name).any()
        changed = {n for n, a, b in zip(whole._fields, whole, shown[part], strict=True) if not torch.equal(a, b)}
        assert changed - {"pose"} == {name}
    assert [part for part, batch in shown.items() if batch.pose.isnan().all()] == ["no_situation", "no_pose"]
    assert torch.equal(shown["no_pose"].situation, whole.situation)
    other = shown["other_room"]
    assert torch.equal(other.question, whole.question)
    everything = clean.items.batch(range(len(clean.items)))
    for row, points in enumerate(other.points):
        (room,) = {int(n) for n, of in zip(everything.group, everything.points, strict=True) if torch.equal(of, points)}
        assert room != int(whole.group[row])


def test_questions_of_ones_own_about_rooms_of_the_set(furnished, sqa3d, tmp_path):
    data = FurnishedRooms(str(furnished), points=64)
    data.recall(json.loads(json.dumps({"data": FurnishedRooms(str(furnished), batch_size=2).fingerprint()})))
    rows = [{"scene_id": "test/00001", "question": "How many chairs are behind me?", "situation": "I am standing."}]
    (tmp_path / "asked.json").write_text(json.dumps(rows))
    items = data.open([str(tmp_path / "asked.json")])
    assert items.about(0) == {"file": "test/00001", "situation": "I am standing.", "question": rows[0]["question"]}
    batch, other = items.batch([0]), FurnishedRooms(str(furnished), points=64, batch_size=2)
    other.setup()
    assert torch.equal(batch.points[0], other.still("test").batch([8]).points[0])
    assert batch.question.any()
    for name, why in (("test/7", "rooms 0 to"), ("kitchen", "called train/00000")):
        (tmp_path / "asked.json").write_text(json.dumps([{**rows[0], "scene_id": name}]))
        with pytest.raises(DataError, match=why):
            data.open([str(tmp_path / "asked.json")])
    assert "the asker stands is known for 0 of 1 question" in data.remarks[-1]
    (tmp_path / "asked.json").write_text(json.dumps([{**rows[0], "situation": ""}]))
    fresh = FurnishedRooms(str(furnished), points=64, batch_size=2)
    fresh.open([str(tmp_path / "asked.json")])
    assert "the asker stands is known for 0 of 1 question" in fresh.remarks[-1]
    placed = [{**rows[0], "position": [1, -2], "heading": 90}, {**rows[0], "position": [1, -2, 0, 0, 0, -1, 1]}]
    (tmp_path / "asked.json").write_text(json.dumps(placed), encoding="utf-8-sig")
    one, other = data.open([str(tmp_path / "asked.json")]).batch([0, 1]).pose.tolist()
    assert one == pytest.approx([1, -2, 0, 0, 0, -(0.5**0.5), 0.5**0.5])
    assert other == pytest.approx(one)
    for wrong in ({"position": [1, -2]}, {"position": [1, 2, 3], "heading": 90}, {"position": "here"}):
        (tmp_path / "asked.json").write_text(json.dumps([{**rows[0], **wrong}]))
        with pytest.raises(DataError, match="question 1: position is"):
            data.open([str(tmp_path / "asked.json")])
    for row, words in (
        ({"scene_id": 3, "question": "Is it?"}, "question 1: scene_id is 3"),
        ({"scene_id": "test/00001"}, "question 1: question is None"),
        ({**rows[0], "situation": ["here"]}, r"question 1: situation is \['here'\]"),
        ({**rows[0], "position": [10**400, 0], "heading": 0}, "question 1: position is"),
        ({**rows[0], "scene_id": "test/\u00b3"}, "there are rooms 0 to"),
        ({**rows[0], "scene_id": "test/x/00001"}, "there are rooms 0 to"),
    ):
        (tmp_path / "asked.json").write_text(json.dumps([row]))
        with pytest.raises(DataError, match=words):
            data.open([str(tmp_path / "asked.json")])
    (tmp_path / "asked.json").write_text(json.dumps({"questions": rows}))
    with pytest.raises(DataError, match=r'it holds \[\{"scene_id"'):
        data.open([str(tmp_path / "asked.json")])
    (tmp_path / "asked.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="RecursionError"):
        data.open([str(tmp_path / "asked.json")])
    (tmp_path / "asked.json").write_text(json.dumps([{**rows[0], "situation": None}]))
    assert not data.open([str(tmp_path / "asked.json")]).batch([0]).situation.any()
    (tmp_path / "asked.json").write_text(json.dumps([{**rows[0], "scene_id": "scene0000_00"}]))
    assert Sqa3d(str(sqa3d), points=32).open([str(tmp_path / "asked.json")]).batch([0]).points.any()


def test_points_say_which_object_they_are_of(furnished):
    data = FurnishedRooms(str(furnished), points=64, batch_size=2, given_objects=True)
    data.setup()
    assert data.model_arguments()["num_features"] == 6
    assert data.model_arguments()["given_objects"]
    for batch in (data.still("test").batch([0, 9]), data.split("train").batch([0, 1])):
        of = batch.point_box
        assert torch.equal(batch.points[..., -2].long(), of)
        kinds = batch.box_classes.gather(1, of.clamp_min(0)).masked_fill(of < 0, -1)
        assert torch.equal(batch.points[..., -1].long(), kinds)
        assert (of >= 0).any()
        assert (of < 0).any()
    hidden = FurnishedRooms(str(furnished), points=64, batch_size=2, given_objects=True, hidden=("room",))
    hidden.setup()
    batch = hidden.still("test").batch([0])
    assert (batch.points[..., -2:] == -1).all()
    assert not batch.points[..., :-2].any()
    assert "given_objects" not in FurnishedRooms(str(furnished), batch_size=2).model_arguments()


def test_a_list_is_judged_by_itself(furnished, tmp_path):
    data = FurnishedRooms(str(furnished), points=64, batch_size=2)
    data.setup()
    for name, scene in (("bad", "test/9"), ("good", "test/00001")):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"scene_id": scene, "question": "Is it?"}]))
    for _ in range(20):  # what a list said must not stay when its memory is another list's
        with pytest.raises(DataError, match="test/9"):
            data.open([str(tmp_path / "bad.json")])
        assert len(data.open([str(tmp_path / "good.json")])) == 1
    gc.collect()
    assert len(data._surveys) == len(data.parts)


def test_scans_as_scannet_has_them(tmp_path):
    pytest.importorskip("trimesh")
    folder = tmp_path / "scans" / "scene0000_00"
    folder.mkdir(parents=True)
    chair = np.random.default_rng(0).uniform(0, 1, (30, 3)) + np.array([1, 1, 0])
    points = np.concatenate([scan(), chair])
    rows = "\n".join(f"{x:.5f} {y:.5f} {z:.5f} 10 20 30 255" for x, y, z in points)
    head = f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n"
    fields = "".join(f"property float {x}\n" for x in "xyz") + "".join(
        f"property uchar {x}\n" for x in ("red", "green", "blue", "alpha")
    )
    faces = "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    (folder / "scene0000_00_vh_clean_2.ply").write_text(head + fields + faces + rows + "\n3 0 1 2\n")
    of = [5] * len(scan()) + [9] * 30
    (folder / "scene0000_00_vh_clean_2.0.010000.segs.json").write_text(json.dumps({"segIndices": of}))
    groups = [{"objectId": 0, "segments": [5], "label": "floor"}, {"objectId": 4, "segments": [9], "label": "seat"}]
    (folder / "scene0000_00.aggregation.json").write_text(json.dumps({"segGroups": groups}))
    (folder / "scene0000_00.txt").write_text("axisAlignment = 0 -1 0 2 1 0 0 0 0 0 1 0 0 0 0 1 \nnumColorFrames = 3\n")
    with pytest.raises(DataError, match=r"combined\.tsv"):
        ScanFolder(tmp_path / "scans").load("scene0000_00")
    (tmp_path / "scannetv2-labels.combined.tsv").write_text("id\traw_category\tnyu40id\n1\tseat\t5\n2\tfloor\t2\n")
    room = ScanFolder(tmp_path / "scans").load("scene0000_00")
    assert room.classes.tolist() == [list(CLASSES).index("chair")]
    assert room.ids.tolist() == [4]
    low, high = chair.min(0), chair.max(0)
    assert room.boxes[0, :2] == pytest.approx([2 - (low + high)[1] / 2, (low + high)[0] / 2], abs=1e-3)
    assert (room.point_box == 0).sum() == 30
    assert room.colours[0].tolist() == [10, 20, 30]
    turn, middle = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), (points.min(0) + points.max(0)) / 2
    assert room.frame == pytest.approx(np.column_stack([turn, turn @ middle + [2, 0, 0]]), abs=1e-3)
    assert room.notes == ()
    fields = "".join(f"property float {x}\n" for x in "xyz")
    plain = "\n".join(f"{x:.5f} {y:.5f} {z:.5f}" for x, y, z in points)
    for face in (faces + plain + "\n3 0 1 2\n", "end_header\n" + plain + "\n"):
        (folder / "scene0000_00_vh_clean_2.ply").write_text(head + fields + face)
        room = ScanFolder(tmp_path / "scans").load("scene0000_00")
        assert room.colours[0].tolist() == [110, 97, 84]
        assert ["without colours" in note for note in room.notes] == [True]
    (folder / "scene0000_00.txt").write_text("\t axisAlignment=0 -1 0 2 1 0 0 0 0 0 1 0 0 0 0 1\n")
    assert ScanFolder(tmp_path / "scans").load("scene0000_00").boxes == pytest.approx(room.boxes)
    (folder / "scene0000_00.txt").write_text("numColorFrames = 3\n")
    room = ScanFolder(tmp_path / "scans").load("scene0000_00")
    assert room.notes[1] == "without axisAlignment in its text file; left as it was scanned"
    (tmp_path / "scannetv2-labels.combined.tsv").write_text("raw_category\tnyu40id\nfloor\t2\n")
    other = ScanFolder(tmp_path / "scans").load("scene0000_00")
    assert other.classes.tolist() == [list(CLASSES).index("others")]
    assert "labels that scannetv2-labels.combined.tsv lacks" in other.notes[2]
    for name, words in (("_vh_clean_2.0.010000.segs.json", "segs.json: JSON"), (".aggregation.json", "aggregation"),
                        (".txt", r"\.txt: ValueError"), ("_vh_clean_2.ply", r"\.ply: ")):  # fmt: skip
        content = (folder / f"scene0000_00{name}").read_bytes()
        (folder / f"scene0000_00{name}").write_text("axisAlignment = 1 2 3\n")
        with pytest.raises(UnreadableCloudError, match=words):
            ScanFolder(tmp_path / "scans").load("scene0000_00")
        (folder / f"scene0000_00{name}").write_bytes(content)
    assert room.boxes[0, :2] == pytest.approx(((low + high) / 2)[:2], abs=1e-3)


def test_scanqa_is_read_with_what_its_questions_are_about(tmp_path):
    write_scan(tmp_path / "scans", "scene0000_00", [CHAIR, LAMP], turned=False)
    row = {"scene_id": "scene0000_00", "question_id": "q", "question": "Where is the lamp?", "object_ids": [7]}
    lists = {
        "ScanQA_v1.0_train.json": [{**row, "answers": ["right", "left of it"]}, {**row, "answers": ["behind"]}],
        "ScanQA_v1.0_val.json": [{**row, "answers": ["left of it", "unheard of"]}],
    }  # fmt: skip
    for name, rows in lists.items():
        (tmp_path / name).write_text(json.dumps(rows))
    data = ScanQa(str(tmp_path), points=440, batch_size=1, val_size=0)
    data.setup()
    assert data.answer_names == ("behind", "left of it", "right")
    assert data.selection == "test"
    batch = data.still("test").batch([0])
    assert batch.truth.tolist() == (batch.point_box == 1).tolist()
    assert batch.truth.sum() > 0
    # by training alone, as ScanQA's code counts
    assert batch.targets.tolist() == pytest.approx(torch.tensor([[0, 0.3, 0]]))
    assert batch.situation.shape[1] == 0
    assert batch.pose.isnan().all()
    (tmp_path / "answer_counter.json").write_text(json.dumps(["right"] * 5 + ["unheard of"]))
    assert ScanQa(str(tmp_path)).answer_names == ("right", "unheard of")
    hidden = [{key: value for key, value in row.items() if key != "answers"}, {**row, "answers": None}]
    (tmp_path / "ScanQA_v1.0_test_w_obj.json").write_text(json.dumps(hidden))
    kept = ScanQa(str(tmp_path), points=440, batch_size=1, val_size=0)
    kept.setup()
    assert len(kept.split("test")) == 1
    assert "ScanQA_v1.0_train.json has 1 question_id more than once: q" in kept.remarks[0]
    assert any("has no answers for the test" in remark for remark in kept.remarks)
    for wrong in ("7", ["7"], 7):
        lists["ScanQA_v1.0_val.json"][0]["object_ids"] = wrong
        (tmp_path / "ScanQA_v1.0_val.json").write_text(json.dumps(lists["ScanQA_v1.0_val.json"]))
        with pytest.raises(DataError, match="question 1: object_ids is"):
            ScanQa(str(tmp_path)).setup()
    with pytest.raises(DataError, match="none for test"):
        ScanQa(str(tmp_path / "scans")).setup()


@pytest.mark.parametrize(("kind", "key", "change", "words"), [
    ("questions", "questions", lambda rows: rows.append(rows[0]), "1 question_id more than once: 0"),
    ("sqa_annotations", "annotations", lambda rows: rows.append(rows[1]), "1 question_id more than once: 1"),
    ("sqa_annotations", "annotations", lambda rows: rows[2].update(scene_id="scene0009"), "2 is about scene0009"),
    ("sqa_annotations", "annotations", lambda rows: rows[0].update(position="here"), "rotation of question 0"),
])  # fmt: skip
def test_files_that_do_not_agree_are_refused(sqa3d, kind, key, change, words):
    file = sqa3d / f"balanced/v1_balanced_{kind}_train_scannetv2.json"
    content = json.loads(file.read_text())
    change(content[key])
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        Sqa3d(str(sqa3d)).setup()


def test_types_of_questions_follow_sqa3ds_rule():
    texts = {"What's that?": "what", "Is it?": "is", "HOW many": "how", "Can, I": "can", "Which?": "which",
             "To my left?": "others", "": "others", "whatever": "others"}  # fmt: skip
    assert {text: question_type(text) for text in texts} == texts


def test_baselines_count_what_needs_no_room():
    train = [("a", "yes"), ("a", "yes"), ("a", "no"), ("b", "no"), ("b", "no")]
    keys, answers = [(key,) for key, _ in train], [answer for _, answer in train]
    assert best_of_training(keys, answers, [("a",), ("b",), ("c",)], ["yes", "no", "yes"]) == pytest.approx(2 / 3)
    assert best_in_hindsight([1, 1, 2, 2, 2], ["x", "y", "x", "x", "y"]) == pytest.approx(3 / 5)
    worths = Worths.of([("b",), ("c", "a"), ()], ("a", "b"), {"a": 2, "b": 9})
    assert worths.dense([0, 1, 2], 2).tolist() == pytest.approx(torch.tensor([[0, 1], [0.6, 0], [0, 0]]))
    assert worths.is_known.tolist() == [True, True, False]
    row = {"situation": "s", "question": "q", "kind": "k", "room": 0, "place": [1, 2], "heading": 90}
    shares = measure([{**row, "answer": "x"}], [{**row, "answer": "x"}, {**row, "answer": "y"}])
    assert set(shares.values()) == {0.5}


@pytest.mark.parametrize(("limit", "value"), [(None, 0), ("_MARGIN", 0), ("_FARTHER", 1)])
def test_nothing_is_asked_where_it_is_near(monkeypatch, limit, value):
    """A thing at the border of two sides, or as near as another, is in no question about them; without limits it is."""
    if limit:
        monkeypatch.setattr(asking, limit, value)

    def thing(label, x, y):
        return Thing(label, "red", (x, y, 0.5, 0.4, 0.4, 1.0))

    room = [thing("bed", 0, 0), thing("sofa", 4, 0), thing("lamp", 0, 2), thing("plant", 1.4, 1.4)]
    of_bed = [view for view in views(room, np.random.default_rng(0)) if view.situation[-2:] == (0, 1)]
    assert len(of_bed) == 4
    asked = [one for view in of_bed for one in every_question(view)]
    assert any("lamp" in one.question for one in asked if one.kind == "existence")
    assert any(3 in one.objects for one in asked if one.kind == "existence") == (limit == "_MARGIN")
    assert any("lamp or the plant" in one.question for one in asked) == (limit == "_FARTHER")
    twins = [thing("bed", 0, 0), thing("bed", 4, 0), thing("lamp", 0, 2)]
    assert not ask(twins, 3, np.random.default_rng(0), Balance())


@pytest.mark.parametrize(("place", "heading", "sector", "ring"), [
    ((2, 0), 180, 0, 3), ((2, 0), 90, 2, 3), ((0, 1), 0, 6, 1), ((-0.5, -0.5), 45, 0, 1), ((-0.1, 0), 180, 4, 0),
])  # fmt: skip
def test_where_the_middle_lies(place, heading, sector, ring):
    """In eighths of a turn to the left of ahead."""
    assert middle(place, heading) == (sector, ring)


def test_where_the_middle_lies_says_no_answer():
    """Of many rooms, whoever knows the pose and the question's words alone is right about as often as by the words."""
    pieces, balance, asked = pieces_of(tiny_pieces(), "train"), Balance(), []
    for index in range(40):
        layout = draw_layout(pieces, rng := np.random.default_rng(index))
        things = [Thing(one.label, one.paint, tuple(one.box.tolist())) for one in layout.objects]
        of_room = ask(things, 8, rng, balance)
        for one in of_room:
            balance.add(one)
        asked += of_room
    given = {}
    for one in asked:
        if one.side is not None:
            where = (one.kind, middle(one.situation.place, one.situation.heading + one.side))
            given.setdefault(where, Counter())[one.answer] += 1
    assert sum(of.total() for of in given.values()) > 100
    for (kind, _), of in given.items():
        shares = asking._SHARES[kind]
        for answer, count in of.items():
            assert count <= (shares[answer] + 0.04) * of.total() + 2 + 2  # the second of a pair may come on top
    ahead = Asked(Situation("", (-2.0, 0.0), 0.0, 0, 1), "Where is it?", "front", "relation", (), 0.0)
    fresh = Balance()
    for _ in range(2):
        assert fresh.allows(ahead)
        fresh.add(ahead)
    assert not fresh.allows(ahead)
    assert fresh.allows(ahead._replace(answer="back"))
    assert fresh.allows(ahead._replace(situation=ahead.situation._replace(heading=180.0)))
    assert fresh.allows(ahead._replace(side=None))
    assert set(DIRECTIONS.values()) == set(asking._SHARES["relation"])


def test_pieces_come_out_of_catalogues_in_metres_with_colours(tmp_path):
    pytest.importorskip("trimesh")
    box = "".join(f"v {x} {y} {z}\n" for x in (0, 1) for y in (0, 3) for z in (0, 1))
    faces = "usemtl skin\nf 1 2 4\nf 1 4 3\nf 5 8 6\nf 5 7 8\nf 3 4 8\nf 3 8 7\nf 1 6 2\nf 1 5 6\n"
    rows = [("Chair", "chair", "50", "60", "90"), ("Lamp", "gone", "30", "30", "100"),
            ("Bed", "bed", "140", "200", "9"),
            ("Rock", "chair", "50", "50", "50"), ("Sofa", "chair", "200", "90", "80")]  # fmt: skip
    lines = []
    for i, (name, model, *size) in enumerate(rows, 1):
        of = zip(("width", "depth", "height"), size, strict=True)
        lines += [f"name#{i}={name}", f"model#{i}=/m/{model}.obj", *(f"{key}#{i}={value}" for key, value in of)]
    lines.append("elevation#5=120")
    with zipfile.ZipFile(tmp_path / "One.sh3f", "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(lines))
        for name in ("chair", "bed"):
            archive.writestr(f"m/{name}.obj", f"mtllib {name}.mtl\n{box}{faces}")
            archive.writestr(f"m/{name}.mtl", "newmtl skin\nKd 1.0 0.5 0.0\n")
    pieces, left_out = read_pieces(tmp_path)
    (chair,) = pieces
    assert (chair.label, chair.test) == ("chair", False)
    assert np.ptp(chair.points, axis=0) == pytest.approx([0.5, 0.6, 0.9], abs=0.02)
    assert chair.points[:, 2].min() == pytest.approx(0, abs=0.01)
    assert chair.colours[0].tolist() == pytest.approx([255, 127, 0], abs=1)
    assert list(left_out) == ["One/m/gone.obj", "One/m/bed.obj", "One/m/chair.obj"]


def test_a_set_must_be_there_and_of_this_format(tmp_path, furnished):
    assert "rooms" in PREPARERS.names()
    assert PREPARERS.load("rooms")(furnished) == furnished
    with pytest.raises(DataError, match="prepare rooms"):
        FurnishedRooms(str(tmp_path)).setup()
    (tmp_path / "set.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(DataError, match="format 0"):
        FurnishedRooms(str(tmp_path)).setup()
    with pytest.raises(DataError, match=r"data\.turn"):
        FurnishedRooms(turn=90)
    shutil.copytree(furnished, tmp_path / "part")
    (tmp_path / "part/test/rooms.json").unlink()
    with pytest.raises(DataError, match=r"test/rooms\.json is missing: the set in .* is not whole"):
        FurnishedRooms(str(tmp_path / "part")).setup()


def test_an_example_and_a_remembered_run_need_no_files(furnished):
    data = FurnishedRooms(str(furnished), points=32, batch_size=2)
    record = json.loads(json.dumps({"data": data.fingerprint()}))
    other = FurnishedRooms("nowhere", points=32)
    other.recall(record)
    assert other.model_arguments() == data.model_arguments()
    assert other.answer_names == data.answer_names
    batch = other.example(4)
    real = data.still("val").batch(range(4))
    assert [x.dtype for x in batch] == [x.dtype for x in real[: len(batch)]]
    assert (batch.points.shape, batch.targets.shape) == (real.points.shape, real.targets.shape)
    assert (batch.box_classes.gather(1, batch.point_box.clamp_min(0)) >= 0)[batch.point_box >= 0].all()


def test_a_layout_has_room_for_what_it_holds():
    layout = draw_layout(pieces_of(tiny_pieces(), "train"), np.random.default_rng(5))
    for one in layout.objects:
        assert (np.abs(one.box[:2]) + one.box[3:5] / 2 <= np.array(layout.sides) / 2).all()
        assert one.points.min(0) == pytest.approx(one.box[:3] - one.box[3:] / 2, abs=1e-4)
