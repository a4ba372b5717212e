"""Point clouds as data: layouts, faults, draws, votes, prepared sets, corruptions, and a run from end to end."""

import io
import json
import struct
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lmgraft.cli.main import main
from lmgraft.data.debian import Pinned, fetch_pinned
from lmgraft.data.loader import Draw
from lmgraft.data.points import furniture, kicad, prepared
from lmgraft.data.points.cloud_files import CloudFiles
from lmgraft.data.points.cloud_set import Shown, turns
from lmgraft.data.points.corruptions import CORRUPTIONS, corrupt
from lmgraft.data.points.files import checked, read_cloud
from lmgraft.data.points.meshes import UnreadableCloudError, read_vrml, sample_surface
from lmgraft.data.points.modelnet40 import ModelNet40
from lmgraft.data.points.near import near_groups, noise, signatures, split_groups
from lmgraft.data.points.scanobjectnn import ScanObjectNN
from lmgraft.data.points.scenes import scene_of
from lmgraft.data.points.toy import ToyShapes, draw_shape
from lmgraft.errors import DataError, HostError, RecipeError
from lmgraft.geometry.points import farthest_points
from lmgraft.recipes import list_recipes, load_recipe, read_result, train_run
from lmgraft.recipes.build import build_model, build_task

SMALL = {"points": 16, "pool": 20, "batch_size": 4, "eval_batch_size": 4}
CUBE = """v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nv 0 0 1\nv 1 0 1\nv 0 1 1\nv 1 1 1
f 1 3 4\nf 1 4 2\nf 5 6 8\nf 5 8 7\nf 1 2 6\nf 1 6 5\nf 3 7 8\nf 3 8 4\nf 1 5 7\nf 1 7 3\nf 2 4 8\nf 2 8 6\n"""
VRML = """#VRML V2.0 utf8
Shape { geometry IndexedFaceSet { coordIndex [0,1,2,-1, 0,2,3,-1] # a square
 coord Coordinate { point [0 0 0, 1 0 0, 1 1 0, 0 1 0] } } }
Transform { translation 0 0 0 children Shape { geometry IndexedFaceSet { coord Coordinate { point [
 0 0 1, 1 0 1, 1 1 1, 0 1 1 ] } coordIndex [ 0 1 2 3 -1 ] } } }"""


@pytest.fixture
def h5(tmp_path):
    h5py = pytest.importorskip("h5py")

    def write(labels=15, size=30, name="main_split/{}_objectdataset_augmentedrot_scale75.h5", points=None):
        for part in ("training", "test"):
            file = tmp_path / name.format(part)
            file.parent.mkdir(exist_ok=True)
            clouds = np.random.default_rng(0).normal(size=(size, 25, 3)) if points is None else points
            with h5py.File(file, "w") as out:
                out["data"], out["label"] = clouds.astype(np.float32), np.arange(len(clouds)) % labels
        return tmp_path

    return write


def ready(data):
    data.setup()
    return data


def test_scanobjectnn_is_shown_as_it_lies_there(h5):
    data = ready(ScanObjectNN(str(h5()), **SMALL))
    assert (len(data.split("train")), len(data.split("test")), data.selection, data.num_classes) == (30, 30, "test", 15)
    raw = torch.tensor(np.random.default_rng(0).normal(size=(30, 25, 3)).astype(np.float32))
    shown = data.split("test").batch([3]).inputs
    assert torch.equal(shown, raw[3:4, farthest_points(raw[3:4], 16)[0]])
    assert data.split("val").batch([3]).inputs.equal(shown)
    places = {"objects": "main_split_nobg/{}_objectdataset.h5", "objects_background": "main_split/{}_objectdataset.h5"}
    for variant, name in places.items():
        assert len(ready(ScanObjectNN(str(h5(name=name)), variant=variant, **SMALL)).split("test")) == 30


def test_scanobjectnn_refuses_what_is_wrong(h5, tmp_path):
    with pytest.raises(DataError, match="label 15 with 15 classes"):
        ready(ScanObjectNN(str(h5(labels=17)), **SMALL))
    with pytest.raises(DataError, match="is not there"):
        ready(ScanObjectNN(str(tmp_path / "nowhere"), **SMALL))
    (tmp_path / "main_split" / "training_objectdataset_augmentedrot_scale75.h5").write_bytes(b"no hdf5")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        ready(ScanObjectNN(str(tmp_path), **SMALL))


def test_bad_clouds_are_named_counted_and_replaced(h5):
    clouds = np.random.default_rng(1).normal(size=(30, 25, 3))
    clouds[2, 4, 1], clouds[5] = np.nan, 0.25
    root = str(h5(points=clouds))
    with pytest.raises(DataError, match=r"training_objectdataset_augmentedrot_scale75.h5\[2\].*not finite"):
        list(ready(ScanObjectNN(root, **SMALL)).loader("train"))
    data = ready(ScanObjectNN(root, max_corrupt=2, max_corrupt_test=2, **SMALL))
    with pytest.warns(UserWarning, match="is not readable"):
        assert [len(list(data.loader(split))) for split in ("train", "test")] == [7, 8]
    assert sorted(fault.reason for fault in data.faults)[:2] == ["1 of 25 points are not finite"] * 2
    assert data.split("train").batch([2]).index.tolist() == [3]
    blank = data.split("test").batch([5])
    assert (blank.index.tolist(), float(blank.inputs.abs().max())) == ([5], 0.0)
    findings = data.check(0, lambda *_: __import__("contextlib").nullcontext(lambda *_: None))
    assert {split: len(faults) for split, faults in findings.faults.items()} == {"train": 2, "test": 2}


def modelnet(root, bad=False):
    rng = np.random.default_rng(0)
    names = ["airplane", "night_stand"]
    (root / "modelnet40_shape_names.txt").write_text("\n".join(names) + "\n")
    for split, count in (("train", 8), ("test", 4)):
        ids = [f"{names[i % 2]}_{i:04}{split}" for i in range(count)]
        (root / f"modelnet40_{split}.txt").write_text("\n".join(ids) + "\n")
        for shape in ids:
            file = root / shape.rpartition("_")[0] / f"{shape}.txt"
            file.parent.mkdir(exist_ok=True)
            np.savetxt(file, rng.normal(size=(40, 6)) + 3, delimiter=",", fmt="%.6f")
    return root


def test_modelnet40_is_normalised_cached_and_read_again_when_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
    root = modelnet(tmp_path)
    first = ready(ModelNet40(str(root), **SMALL))
    batch = first.still("train").batch([0, 1])
    assert batch.inputs.norm(dim=2).max() <= 1 + 1e-6
    assert (batch.labels.tolist(), first.class_names) == ([0, 1], ("airplane", "night_stand"))
    file = root / "airplane" / "airplane_0000train.txt"
    text = file.read_text()
    file.unlink()  # the cache has it
    with pytest.raises(DataError):
        list(ready(ModelNet40(str(root), **SMALL)).loader("train"))
    file.write_text(text.replace(",", " "))
    with pytest.raises(DataError, match=r"airplane_0000train\.txt"):
        list(ready(ModelNet40(str(root), **SMALL)).loader("train"))
    for damaged in (tmp_path / "cache" / "points").rglob("*.npz"):
        damaged.write_bytes(damaged.read_bytes()[:100])
    file.write_text(text)
    again = ready(ModelNet40(str(root), **SMALL))
    assert torch.equal(again.still("train").batch([0, 1]).inputs, batch.inputs)
    assert again.fingerprint() == first.fingerprint()
    (root / "modelnet40_test.txt").write_text("sofa_0001\n")
    with pytest.raises(DataError, match="sofa_0001"):
        ready(ModelNet40(str(root), **SMALL))


def pcd(points, form, fields="x y z"):
    head = f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {len(points)}\n"
    head = (head + f"HEIGHT 1\nPOINTS {len(points)}\nDATA {form}\n").encode()
    if form == "ascii":
        return head + "\n".join(" ".join(map(str, row)) for row in points.tolist()).encode()
    raw = points.astype("<f4").tobytes() if form == "binary" else points.T.astype("<f4").tobytes()
    if form == "binary":
        return head + raw
    packed = b"".join(bytes([len(raw[i : i + 32]) - 1]) + raw[i : i + 32] for i in range(0, len(raw), 32))
    return head + struct.pack("<II", len(packed), len(raw)) + packed


def test_point_files_give_their_points(tmp_path):
    points = np.random.default_rng(0).normal(size=(25, 3)).astype(np.float32).round(3)
    rows = [" ".join(map(str, row)) for row in points.tolist()]
    files = {
        "a.xyz": "\n".join(rows).encode(),
        "a.pts": f"{len(rows)}\n{chr(10).join(rows)}".encode(),
        "a.csv": ("# x,y,z\n" + "\n".join(row.replace(" ", ", ") + ",9" for row in rows)).encode(),
        "a.pcd": pcd(points, "ascii"), "b.pcd": pcd(points, "binary"), "c.pcd": pcd(points, "binary_compressed"),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert np.array_equal(read_cloud(tmp_path / name, 8), points), name
    np.save(tmp_path / "a.npy", points)
    assert np.array_equal(read_cloud(tmp_path / "a.npy", 8), points)


def test_lzf_copies_and_is_bounded(tmp_path):
    points = np.zeros((25, 3), np.float32)
    whole = points.tobytes()
    body = (
        bytes([0, 0]) + bytes([0xE0, 255, 0]) + bytes([0xE0, len(whole) - 1 - 264 - 9, 0]) if len(whole) > 273 else b""
    )
    head = pcd(points, "binary_compressed").split(b"DATA binary_compressed\n")[0] + b"DATA binary_compressed\n"
    file = tmp_path / "a.pcd"
    file.write_bytes(head + struct.pack("<II", len(body), len(whole)) + body)
    assert np.array_equal(read_cloud(file, 8), points)
    for bad in (body[:-1], body[:3], bytes([0x20, 9])):
        file.write_bytes(head + struct.pack("<II", len(bad), len(whole)) + bad)
        with pytest.raises(UnreadableCloudError):
            read_cloud(file, 8)


def test_las_and_meshes_by_their_libraries(tmp_path):
    trimesh, laspy = pytest.importorskip("trimesh"), pytest.importorskip("laspy")
    cube = trimesh.creation.box()
    for ending in ("obj", "off", "stl", "ply", "glb"):
        cube.export(tmp_path / f"a.{ending}")
        points = read_cloud(tmp_path / f"a.{ending}", 64)
        assert points.shape == (64, 3)
        assert np.allclose(np.abs(points).max(1), 0.5, atol=1e-6)
    places = np.random.default_rng(0).normal(size=(9, 3)) + np.array([4e5, 5e6, 100])
    trimesh.PointCloud(places - places.mean(0)).export(tmp_path / "cloud.ply")
    assert read_cloud(tmp_path / "cloud.ply", 64).shape == (9, 3)
    las = laspy.create()
    las.header.scales, las.header.offsets = [1e-4] * 3, places.mean(0)
    las.x, las.y, las.z = places.T
    las.write(tmp_path / "a.las")
    assert np.allclose(read_cloud(tmp_path / "a.las", 64), places - places.mean(0), atol=1e-3)
    for name in ("bad.ply", "bad.las", "bad.glb", "bad.stl", "empty.obj"):
        (tmp_path / name).write_bytes(b"" if "empty" in name else b"not what the name says")
        with pytest.raises(UnreadableCloudError):
            checked(read_cloud(tmp_path / name, 64), True)


def test_vrml_faces_are_read_and_what_is_not_followed_is_refused():
    vertices, faces = read_vrml(VRML.encode())
    assert (len(vertices), faces.tolist()) == (8, [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    for text in (VRML.replace("V2.0", "V1.0"), VRML.replace("translation 0 0 0", "translation 0 1 0"),
                 VRML.replace("point", "pint"), VRML.replace("1 1 0", "1 one 0")):  # fmt: skip
        with pytest.raises(UnreadableCloudError):
            read_vrml(text.encode())


def test_surfaces_are_sampled_by_area_and_the_same_each_time(tmp_path):
    vertices = np.array([[0, 0, 0], [3, 0, 0], [0, 3, 0], [9, 9, 9], [9, 9, 9], [10, 9, 9], [9, 10, 9]], np.float32)
    faces = np.array([[0, 1, 2], [3, 3, 4], [3, 5, 6]])
    points = sample_surface(vertices, faces, 4000)
    assert np.array_equal(points, sample_surface(vertices, faces, 4000))
    assert not np.array_equal(points, sample_surface(vertices, faces, 4000, seed=1))
    assert abs((points[:, 0] < 5).mean() - 0.9) < 0.02
    for bad, why in ((faces[1:2], "no area"), (faces, "not finite")):
        vertices[0, 0] = np.nan
        with pytest.raises(UnreadableCloudError, match=why):
            sample_surface(vertices, bad, 10)


@pytest.fixture
def folder(tmp_path):
    """Two classes of VRML shapes and point files, ShapeNet's depth in one, and three that are no good."""
    rng = np.random.default_rng(0)
    for i in range(10):
        deep = tmp_path / "set" / "chair" / f"m{i}" / "models"
        deep.mkdir(parents=True)
        np.save(deep / "model.npy", rng.normal(size=(40 if i else 5, 3)))
        flat = tmp_path / "set" / "table" / f"t{i}.wrl"
        flat.parent.mkdir(exist_ok=True)
        flat.write_text(VRML.replace("1 1 1", f"1 1 {1 + i}"))
    return tmp_path / "set"


def test_class_folders_are_split_by_names_and_cached(folder):
    data = ready(CloudFiles(str(folder), **SMALL))
    sizes = {split: len(data.split(split)) for split in ("train", "val", "test")}
    assert (sum(sizes.values()), data.class_names, data.selection) == (20, ("chair", "table"), "val")
    assert set(data.split("test").labels.tolist()) == {0, 1}
    assert data.split("train").place(0).startswith("chair/m")
    for split in ("train", "test"):  # folders that are split already are taken so
        (folder.parent / "two" / split).mkdir(parents=True)
        (folder / {"train": "chair", "test": "table"}[split]).rename(folder.parent / "two" / split / "thing")
    two = ready(CloudFiles(str(folder.parent / "two"), **SMALL))
    assert (len(two.split("test")), two.class_names) == (10, ("thing",))


def test_check_data_counts_what_cannot_be_read(folder, tmp_path, capsys):
    (folder / "chair" / "none.npy").write_bytes(b"")
    np.save(folder / "chair" / "empty.npy", np.zeros((0, 3)))
    np.save(folder / "table" / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (folder / "table" / "flat.wrl").write_text(
        VRML.replace("0,1,2,-1, 0,2,3,-1", "0,0,1,-1").replace("0 1 2 3", "0 0 0 0")
    )
    assert main(["check-data", str(folder), "--kind", "points", "--points", "16"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    for name in ("none.npy", "empty.npy", "object.npy", "flat.wrl"):
        assert name in printed
    assert "have fewer than data.points=16 points, the least 5" in printed


def test_clouds_with_few_points_show_all_of_them():
    data = ready(ToyShapes(points=300, pool=400, batch_size=4))
    cloud = data.split("test").batch([0]).inputs[0]
    assert len(cloud) == 300
    assert len(cloud.unique(dim=0)) == 256


def test_training_shows_a_random_part_by_seed_epoch_and_index():
    data = ToyShapes(**SMALL, shift=0.1)
    data.seed = 3
    clouds = ready(data).split("train")
    one = clouds.__getitems__([Draw(1, 0), Draw(1, 5)]).batch
    other = clouds.__getitems__([Draw(1, 5), Draw(2, 0)]).batch
    assert torch.equal(one.inputs[1], other.inputs[0])
    assert not torch.equal(one.inputs[0], other.inputs[1])
    still = data.still("train").table.points[0]
    ratio = (one.inputs[0].max(0).values - one.inputs[0].min(0).values).numpy() / np.ptp(still, axis=0)
    assert ((ratio > 0.4) & (ratio <= 1.5 + 1e-6)).all()
    plain = ready(ToyShapes(**SMALL, shift=0, scale=(1.0, 1.0))).split("train").batch([0]).inputs[0]
    assert {tuple(point) for point in plain.tolist()} <= {tuple(point) for point in still.tolist()}


@pytest.mark.parametrize("turn", ["x", "y", "z", "any"])
def test_turns_are_rotations(turn):
    rotations = turns(np.random.default_rng(0).random((50, 3)), turn)
    assert np.allclose(rotations @ rotations.transpose(0, 2, 1), np.eye(3))
    assert np.allclose(np.linalg.det(rotations), 1)
    if turn != "any":
        assert np.allclose(rotations[:, "xyz".index(turn), "xyz".index(turn)], 1)
    turned = ready(ToyShapes(**SMALL, turn=turn, scale=(1.0, 1.0), shift=0)).split("train").batch([0]).inputs
    assert turned.norm(dim=2).max() <= 1 + 1e-6


def test_votes_come_one_behind_the_other_and_are_averaged(capsys):
    data = ready(ToyShapes(**SMALL, votes=3))
    assert "3 votes" in capsys.readouterr().err
    batch = data.split("test").batch([0, 1])
    assert batch.index.tolist() == [0, 0, 0, 1, 1, 1]
    assert not torch.equal(batch.inputs[0], batch.inputs[1])
    assert data.split("val").batch([0]).inputs.shape == (1, 16, 3)
    assert data.transform_record()["preprocess"]["votes"] == 3


def test_settings_that_cannot_be_are_refused():
    for bad in ({"points": 0}, {"pool": 3}, {"scale": (2.0, 1.0)}, {"shift": -1.0}, {"votes": 0}):
        with pytest.raises(DataError):
            Shown(**({"points": 16} | bad))
    assert [Shown(points=n).kept for n in (1024, 2048, 4096, 8192, 512)] == [1200, 2400, 4800, 8192, 598]


def test_near_shapes_share_a_group_and_a_split():
    shapes = np.stack([checked(draw_shape(kind, seed), True) for seed in range(6) for kind in range(4)])
    twice = np.concatenate([shapes, shapes + 1e-4, shapes[:3]])
    marks = signatures(twice)
    groups = near_groups(marks, 0.01)
    assert groups.tolist() == [*range(24), *range(24), 0, 1, 2]
    assert 0 < noise(marks[:24], marks[24:48]) < 0.001
    labels = np.arange(len(twice)) % 4
    labels[48:] = [0, 1, 2]
    split = split_groups(groups, labels, [f"s{i}" for i in range(len(twice))], {"test": 0.25, "val": 0.25})
    assert all(len(set(split[groups == group])) == 1 for group in set(groups.tolist()))
    assert {part: int((split == part).sum()) > 5 for part in ("train", "val", "test")} == dict.fromkeys(
        ("train", "val", "test"), True
    )


def wrl(points):
    text = ", ".join(" ".join(f"{x:.5f}" for x in row) for row in points)
    faces = " ".join(f"{i} {i + 1} {i + 2} -1" for i in range(len(points) - 2))
    return f"#VRML V2.0 utf8\nIndexedFaceSet {{ coord Coordinate {{ point [{text}] }} coordIndex [{faces}] }}"


def test_kicad_models_become_a_set(tmp_path, monkeypatch):
    monkeypatch.setattr(kicad, "_LEAST", 3)
    monkeypatch.setattr(prepared, "_SHARES", {"test": 0.3, "val": 0.3})
    for family, spread in (("Diode_THT", (5, 1, 1)), ("Diode_SMD", (5, 1, 1)), ("Package_SO", (1, 1, 3))):
        (tmp_path / f"{family}.3dshapes").mkdir()
        for i in range(8):
            points = np.random.default_rng(i + 10 * (family == "Package_SO")).normal(size=(30, 3)) * spread
            (tmp_path / f"{family}.3dshapes" / f"part{i}.wrl").write_text(wrl(points))
    (tmp_path / "Diode_SMD.3dshapes" / "broken.wrl").write_text("#VRML V2.0 utf8\n")
    out = kicad.make_set(tmp_path, tmp_path / "out")
    about = json.loads((out / "set.json").read_text())
    assert about["classes"] == ["Diode", "Package"]
    assert "CC-BY-SA-4.0" in about["licence"]
    assert list(about["left_out"]["unreadable"]) == ["Diode_SMD.3dshapes/broken.wrl"]
    assert about["nearness"]["across"]["test from train"]["least"] > about["nearness"]["limit"]
    data = ready(kicad.KicadModels(str(out), **SMALL))
    assert sum(len(data.split(split)) for split in ("train", "val", "test")) == 24
    groups = {split: set(data.split(split).groups.tolist()) for split in ("train", "val", "test")}
    assert not groups["train"] & groups["test"]
    one = ready(kicad.KicadModels(str(out), per_group=1, **(SMALL | {"batch_size": 2}))).split("train")
    assert len(one) == len(set(one.groups.tolist())) < len(data.split("train"))
    scene = ready(kicad.KicadModels(str(out), scenes=True, **SMALL)).split("test").batch([0])
    assert scene.truth.shape == (1, 16)
    assert 0 < scene.truth.sum() < 16
    (out / "clouds.npz").write_bytes(b"")
    with pytest.raises(DataError, match="prepare kicad-models"):
        ready(kicad.KicadModels(str(out), **SMALL))
    with pytest.raises(DataError, match="prepare furniture"):
        ready(furniture.Furniture(str(tmp_path / "nothing"), **SMALL))


def test_furniture_comes_out_of_its_catalogues(tmp_path, monkeypatch):
    pytest.importorskip("trimesh")
    monkeypatch.setattr(furniture, "_LEAST", 1)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.obj", CUBE)
    with zipfile.ZipFile(tmp_path / "One.sh3f", "w") as archive:
        lines = []
        for i, name in enumerate(["Office chair", "Glass table", "Statue", "Bed", "Desk lamp"], 1):
            lines += [f"name#{i}={name}", f"model#{i}=/one/{i}.{'zip' if i == 2 else 'obj'}"]
            if i != 4:
                text = CUBE.replace("v 1 1 1", f"v 1 {i} 3")
                archive.writestr(f"one/{i}.{'zip' if i == 2 else 'obj'}", inner.getvalue() if i == 2 else text)
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(lines))
    about = json.loads((furniture.make_set(tmp_path, tmp_path / "out") / "set.json").read_text())
    assert about["classes"] == ["chair", "lamp", "table"]
    assert list(about["left_out"]["unreadable"]) == ["One/one/4.obj"]
    assert [furniture.class_of(n) for n in ("Armchair", "Table lamp", "Rock")] == ["chair", "lamp", None]


def test_a_package_must_be_the_pinned_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thing_1_all.deb").write_bytes(b"another")
    with pytest.raises(DataError, match="SHA-256"):
        fetch_pinned(Pinned("thing", "1", "0" * 64, 7), tmp_path)


def test_a_scene_has_its_truth():
    cloud = checked(draw_shape(1, 0), True)
    scene = scene_of(cloud, "a")
    assert np.array_equal(scene, scene_of(cloud, "a"))
    assert not np.array_equal(scene, scene_of(cloud, "b"))
    object_points = {tuple(point) for point in scene[scene[:, 3] > 0, :3].tolist()}
    assert object_points <= {tuple(point) for point in cloud.tolist()}
    assert 0.5 < scene[:, 3].mean() < 0.6


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_grows_and_repeats(name):
    cloud = checked(np.random.default_rng(0).normal(size=(1024, 3)), True)
    made = [corrupt(cloud, name, severity, seed=0, index=7) for severity in range(1, 6)]
    assert np.array_equal(made[2], corrupt(cloud, name, 3, seed=0, index=7))
    assert not np.array_equal(made[2], corrupt(cloud, name, 3, seed=0, index=8))
    sizes = {"dropout_global": [768, 640, 512, 384, 256], "dropout_local": [924, 824, 724, 624, 524]}
    sizes |= {"add_global": [1034, 1044, 1054, 1064, 1074], "add_local": [1124, 1224, 1324, 1424, 1524]}
    assert [len(one) for one in made] == sizes.get(name, [1024] * 5)
    if name.startswith("add"):
        assert np.array_equal(made[4][:1024], cloud)
    if name == "jitter":
        assert [round(float((one - cloud).std()), 3) for one in made] == pytest.approx(
            [0.01, 0.02, 0.03, 0.04, 0.05], abs=2e-3
        )
    if name == "rotate":
        assert np.allclose(np.linalg.norm(made[4], axis=1), np.linalg.norm(cloud, axis=1), atol=1e-5)
    if name == "scale":
        assert np.linalg.norm(made[4], axis=1).max() == pytest.approx(1, abs=1e-5)
    with pytest.raises(RecipeError):
        corrupt(cloud, "fog", 1, seed=0, index=0)


def test_a_run_is_trained_voted_evaluated_and_corrupted(tmp_path, llama_folder, capsys):
    out = tmp_path / "run"
    options = ["--llm", str(llama_folder), "--train.accelerator", "cpu", "--data.votes", "2", "--train.epochs", "1"]
    assert main(["train", "points/kicad_small_debug", *options, "--out", str(out)]) == 0
    result = read_result(out)
    assert {"accuracy", "class_mean", "nll"} <= set(result.metrics)
    by_class = list(result.by["class"].values())
    assert result.metrics["class_mean"] == pytest.approx(sum(by_class) / len(by_class))
    assert (result.selection, result.items) == ("val", 16)
    np.save(tmp_path / "a.npy", draw_shape(0, 5))
    assert main(["predict", str(out), str(tmp_path / "a.npy")]) == 0
    assert "ball" in capsys.readouterr().out
    suite = ["--suite", "points-c", "--corruptions", "jitter,dropout_local", "--workers", "0"]
    assert main(["evaluate", str(out), *suite]) == 0
    cells = json.loads((out / "robustness.json").read_text())
    assert sum("points-c/" in key for key in json.dumps(cells).split('"')) >= 10


POINTS = [name for name in list_recipes() if name.startswith("points/")]
PAPER = [name for name in POINTS if name != "points/kicad_small"]
ENCODERS = {"modelnet40_4k": 256, "modelnet40_8k": 512}


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_have_the_papers_settings_and_size(name, monkeypatch):
    monkeypatch.setattr(ModelNet40, "class_names", tuple(map(str, range(40))))
    recipe = load_recipe(name, ["--backbone.kwargs.pretrained", "false", "--arm", "plain"])
    groups = next((count for key, count in ENCODERS.items() if key in name), 64)
    with torch.device("meta"):
        model = build_model(recipe)
    classes = 40 if "modelnet" in name else 15
    assert (model.num_groups, model.group_size, model.skip_near_origin) == (groups, 32, True)
    assert sum(p.numel() for p in model.parameters()) == 22_065_960 - (40 - classes) * 257
    optim, shown = recipe.optim, recipe.data.shown
    assert (optim.lr, optim.weight_decay, optim.warmup_epochs, optim.min_lr, optim.decay_epochs) == (
        5e-4,
        0.05,
        10,
        1e-6,
        300,
    )
    assert (recipe.train.epochs, recipe.train.clip_grad, recipe.data.batch_size, recipe.data.val_size) == (
        301,
        10,
        32,
        0,
    )
    assert (shown.scale, shown.shift, shown.votes, shown.turn) == (pytest.approx((2 / 3, 3 / 2)), 0.2, 1, "none")
    assert optim.mapper_lr == (0.1 if name.endswith("_llama") else 1)
    assert bool(optim.rates) == name.endswith("_released")


def test_released_rates_are_those_of_the_code(tiny_block):
    from lmgraft.backbones.point_bert import PointBert
    from lmgraft.graft import graft
    from lmgraft.training.optim import make_optimizer

    recipe = load_recipe("points/scanobjectnn_hardest_llama_released")
    model = graft(PointBert(15, embed_dim=48, depth=1, num_heads=3), tiny_block)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in make_optimizer(model, recipe.optim).param_groups:
        for p in group["params"]:
            name = names[id(p)]
            vector = p.dim() == 1 or name.endswith(".bias") or "token" in name
            rate, decay = (2.5e-4, 0) if "mapper" in name else (5e-5, 0) if vector else (5e-4, 0.05)
            assert (group["lr"], group["weight_decay"]) == (pytest.approx(rate), decay), name


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long) if n != "points/scanobjectnn_hardest_llama" else n for n in PAPER]
)
def test_a_paper_size_model_makes_a_step(name, monkeypatch, llama_folder):
    monkeypatch.setattr(ModelNet40, "class_names", tuple(map(str, range(40))))
    arguments = ["--backbone.kwargs.pretrained", "false", "--graft.llm", str(llama_folder)]
    recipe = load_recipe(name, arguments)
    task = build_task(recipe)
    task.trainer = SimpleNamespace(estimated_stepping_batches=100)
    optimizer = task._optimizer(task.model)
    batch = recipe.data.example(2)
    before = [p.detach().clone() for p in task.model.parameters() if p.requires_grad]
    task.loss(task.outputs(batch), batch).backward()
    optimizer.step()
    moved = [
        p
        for p, was in zip((p for p in task.model.parameters() if p.requires_grad), before, strict=True)
        if not p.equal(was)
    ]
    assert len(moved) > len(before) * 0.9
    assert all(bool(torch.isfinite(p).all()) for p in moved)


@pytest.mark.parametrize(
    "name", [name for name in POINTS if name in ("points/kicad_small", "points/modelnet40_8k_llama")]
)
def test_debug_variants_train(name, tmp_path, llama_folder):
    result = train_run(
        load_recipe(f"{name}_debug", ["--graft.llm", str(llama_folder), "--train.epochs", "2"]), tmp_path / "run"
    )
    assert set(result.metrics) >= {"accuracy", "class_mean"}


def test_a_cloud_is_drawn_with_the_values_of_its_tokens():
    from lmgraft.report.pictures.clouds import draw_cloud

    cloud = draw_shape(0, 0)
    places = np.concatenate([np.full((1, 3), np.nan), cloud[:4]])
    figure = draw_cloud(cloud, [9.0, 1.0, 2.0, 3.0, 4.0], places, title="a ball")
    colours = figure.axes[0].collections[0].get_array()
    assert (len(colours), set(colours.tolist())) == (256, {1.0, 2.0, 3.0, 4.0})
    assert len(draw_cloud(cloud, np.arange(256)).axes) == 4
    for values, where in (([1.0, 2.0], places), ([1.0, 2.0], None)):
        with pytest.raises(ValueError, match="values for"):
            draw_cloud(cloud, values, where)


def test_too_few_points_for_the_groups_are_refused_before_training(tmp_path, llama_folder):
    recipe = load_recipe("points/kicad_small_debug", ["--graft.llm", str(llama_folder), "--data.points", "8"])
    with pytest.raises(HostError, match="16 groups of 8 need 16"):
        train_run(recipe, tmp_path / "run")
