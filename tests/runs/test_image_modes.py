"""Images of every mode and depth become the numbers that stand in their files, none clipped and none misread."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from image_trees import image_files, picture
from PIL import Image, ImageCms

from lmgraft.cli.main import main
from lmgraft.data.image.file_set import reason
from lmgraft.data.image.image_files import ImageFiles
from lmgraft.data.image.opening import open_image
from lmgraft.data.image.reading import Reading
from lmgraft.errors import DataError, VersionError
from lmgraft.recipes.recipe import parse_recipe
from lmgraft.recipes.run import read_run

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def read(path, channels=1, **options):
    """(C, H, W) in [0, 1], as a training reads it."""
    with open_image(str(path)) as image:
        read = Reading(channels, **options).read(image)
    if isinstance(read, torch.Tensor):
        return read
    values = torch.from_numpy(np.array(read)).float() / 255
    return values[None] if values.dim() == 2 else values.permute(2, 0, 1)


def png16(path, values):
    """A PNG with 16 bits a channel, which PIL cannot write: (H, W, 3) or (H, W, 4)."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def big_endian(path, values):
    Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes()).save(path)


def pgm(path, values):
    path.write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())


DEEP = {
    "png": ("a.png", lambda path: Image.fromarray(RAMP).save(path), RAMP / 65535),
    "tiff": ("a.tif", lambda path: Image.fromarray(RAMP).save(path), RAMP / 65535),
    "big_endian": ("a.tif", lambda path: big_endian(path, RAMP), RAMP / 65535),
    "pgm": ("a.pgm", lambda path: pgm(path, RAMP), RAMP / 65535),
    "signed_32": (
        "a.tif",
        lambda path: Image.fromarray((RAMP.astype(np.int64) * 65537 - 2**31).astype(np.int32)).save(path),
        RAMP / 65535,
    ),
    "float": ("a.tif", lambda path: Image.fromarray((RAMP / 65535).astype(np.float32)).save(path), RAMP / 65535),
    "pages": (
        "a.tif",
        lambda path: Image.fromarray(RAMP).save(path, save_all=True, append_images=[Image.fromarray(RAMP[::-1])]),
        RAMP / 65535,
    ),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_grey_images_keep_every_level(tmp_path, kind):
    name, write, expected = DEEP[kind]
    write(tmp_path / name)
    for channels in (1, 3):
        values = read(tmp_path / name, channels)
        assert values.shape == (channels, 8, 8)
        assert torch.allclose(values, torch.from_numpy(expected).float().expand(channels, -1, -1), atol=1e-6)
        assert len(values.unique()) == 64


def test_colour_of_16_bits_and_its_alpha(tmp_path):
    colour = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)
    png16(tmp_path / "a.png", colour)
    expected = torch.from_numpy(colour / 65535).float().permute(2, 0, 1)
    assert torch.allclose(read(tmp_path / "a.png", 3), expected, atol=1e-6)
    grey = (expected * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    assert torch.allclose(read(tmp_path / "a.png", 1)[0], grey, atol=1e-6)
    png16(tmp_path / "b.png", np.dstack([colour, np.full((8, 8), 0x8000)]))
    alpha = 0x8000 / 65535
    assert torch.allclose(read(tmp_path / "b.png", 3), expected * alpha + 1 - alpha, atol=1e-6)


def test_a_range_of_ones_own_and_eight_bits(tmp_path):
    Image.fromarray((RAMP // 16).astype(np.uint16)).save(tmp_path / "a.png")  # 12 bits in 16
    values = read(tmp_path / "a.png", 1, limits=(1000.0, 3000.0))
    expected = ((RAMP // 16 - 1000.0) / 2000).clip(0, 1)
    assert torch.allclose(values[0], torch.from_numpy(expected).float(), atol=1e-6)
    rounded = read(tmp_path / "a.png", 1, limits=(1000.0, 3000.0), eight_bits=True)
    assert torch.allclose(rounded[0], torch.from_numpy((expected * 255).round() / 255).float(), atol=1e-6)


def test_floats_outside_their_range_are_an_error_that_says_what_to_choose(tmp_path):
    Image.fromarray((RAMP / 100).astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"floats from 0 to 655\.35, outside of \[0, 1\]: give data\.range"):
        read(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif", limits=(0, 655.35)).max() > 0.99999
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(ValueError, match="not finite"):
        read(tmp_path / "b.tif")


def lab_red(path):
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(Image.new("RGB", (8, 8), (255, 0, 0)), transform).save(path)


def palette(path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 2)
    image.save(path, transparency=2)


def grey_alpha(path):
    image = Image.new("LA", (8, 8), (100, 255))
    image.putpixel((0, 0), (100, 0))
    image.save(path)


MODES = {
    "lab": ("a.tif", lab_red, (1, 0, 0), (1, 0, 0)),
    "cmyk": ("a.tif", lambda path: Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path), (1, 0, 0), (1, 0, 0)),
    "palette": ("a.png", palette, (1, 1, 1), (1, 0, 0)),
    "grey_alpha": ("a.png", grey_alpha, (1, 1, 1), (100 / 255,) * 3),
    "one_bit": ("a.png", lambda path: Image.new("1", (8, 8), 1).save(path), (1, 1, 1), (1, 1, 1)),
}


@pytest.mark.parametrize("kind", MODES)
def test_modes_of_8_bits(tmp_path, kind):
    """The pixel at the corner, which is transparent where there is such a thing, and another one."""
    name, write, corner, other = MODES[kind]
    write(tmp_path / name)
    values = read(tmp_path / name, 3)
    assert torch.allclose(values[:, 0, 0], torch.tensor(corner).float(), atol=0.02)
    assert torch.allclose(values[:, 4, 4], torch.tensor(other).float(), atol=0.02)
    luma = torch.tensor(other).float() @ torch.tensor([0.299, 0.587, 0.114])
    assert torch.allclose(read(tmp_path / name, 1)[0, 4, 4], luma, atol=0.02)


def test_the_profile_of_a_cmyk_image_counts(tmp_path):
    """There is no free CMYK profile in PIL; one of another colour space is passed over."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    image.save(tmp_path / "a.jpg", icc_profile=profile)
    assert torch.allclose(read(tmp_path / "a.jpg", 3)[:, 4, 4], torch.tensor([1.0, 0, 0]), atol=0.02)


def test_orientation_is_applied_unless_images_are_read_as_timm_reads_them(tmp_path):
    image = picture(3, (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    upright = torch.from_numpy(np.array(image.transpose(Image.Transpose.ROTATE_270))).float().permute(2, 0, 1) / 255
    assert torch.equal(read(tmp_path / "a.png", 3), upright)
    assert read(tmp_path / "a.png", 3, style="timm").shape == (3, 20, 40)


@pytest.mark.parametrize("form", ["gif", "webp"])
def test_of_a_moving_image_the_first_frame_is_read(tmp_path, form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(
        tmp_path / f"a.{form}", save_all=True, append_images=frames[1:], **({} if form == "gif" else {"lossless": True})
    )
    assert torch.allclose(read(tmp_path / f"a.{form}", 3)[:, 4, 4], torch.tensor([1.0, 0, 0]), atol=0.01)


def deep_folder(root, low=0, high=4095, count=8):
    """Two classes of 12-bit images in 16-bit files."""
    for key in range(count):
        rng = np.random.default_rng(key)
        folder = root / ("bright" if key % 2 else "dark")
        folder.mkdir(parents=True, exist_ok=True)
        values = rng.integers(low, high + 1, (40, 48))
        Image.fromarray(values.astype(np.uint16)).save(folder / f"{key}.png")
    return root


PLAIN = {"crop_pct": 1.0, "img_size": (40, 48), "in_chans": 1, "mean": (0.0,), "std": (1.0,), "batch_size": 2}


def test_a_batch_of_deep_images_has_their_values(tmp_path):
    root = deep_folder(tmp_path)
    data = image_files(root, val_size=0, test_size=2, **PLAIN)
    items = data.split("test")
    inputs, _, index, _ = items.batch(range(2))
    for values, source in zip(inputs, index.tolist(), strict=True):
        expected = np.asarray(Image.open(items.table.place(source))).astype(np.float32) / 65535
        assert torch.allclose(values[0], torch.from_numpy(expected), atol=1e-6)
    assert "range" not in data.fingerprint()


def test_percentiles_of_the_training_images_are_chosen_recorded_and_recalled(tmp_path):
    root = deep_folder(tmp_path, high=4000)
    data = image_files(root, val_size=0, test_size=2, range="percentile", **PLAIN)
    low, high = data.fingerprint()["range"]
    assert 0 <= low < 20
    assert 3980 < high <= 4000
    assert data.transform_record()["preprocess"]["range"] == (low, high)
    items = data.split("test")
    inputs, _, index, _ = items.batch([0])
    expected = np.asarray(Image.open(items.table.place(int(index[0])))).astype(np.float64)
    assert torch.allclose(
        inputs[0, 0], torch.from_numpy(((expected - low) / (high - low)).clip(0, 1)).float(), atol=1e-5
    )
    again = ImageFiles(root="elsewhere", range="percentile", **PLAIN)
    again.recall(json.loads(json.dumps({"data": data.fingerprint(), "categories": {"class": ["bright", "dark"]}})))
    assert again.preprocess.range == (low, high)
    assert torch.equal(again.load_file(root / "dark" / "0.png"), data.load_file(root / "dark" / "0.png"))


def test_augmentation_of_deep_images(tmp_path):
    root = deep_folder(tmp_path)
    from lmgraft.data.image.transforms import Augment

    augment = Augment(vflip=0.5, color_jitter=0.3, re_prob=0.5)
    options = {"val_size": 0, "img_size": 32, "in_chans": 3, "range": "percentile", "augment": augment}
    inputs = image_files(root, **options).split("train").batch(range(4)).inputs
    assert inputs.shape == (4, 3, 32, 32)
    assert all(len(image.unique()) > 256 for image in inputs)
    with pytest.raises(DataError, match=r"RandAugment \(data\.augment\.auto_augment\) takes 8 bits"):
        image_files(root, **options | {"augment": Augment(auto_augment="rand-m9-mstd0.5-inc1")})
    eight = image_files(root, **options | {"augment": Augment(auto_augment="rand-m9-mstd0.5-inc1"), "depth": 8})
    assert eight.split("train").batch(range(4)).inputs.shape == (4, 3, 32, 32)
    with pytest.raises(DataError, match="interpolate bilinear or bicubic"):
        image_files(root, **options | {"interpolation": "lanczos"})


def test_four_channels(tmp_path):
    for key in range(8):
        folder = tmp_path / "ab"[key % 2]
        folder.mkdir(exist_ok=True)
        pixels = np.random.default_rng(key).integers(0, 256, (40, 48, 4), dtype=np.uint8)
        Image.fromarray(pixels, "RGBA").save(folder / f"{key}.png")
    options = PLAIN | {"in_chans": 4, "mean": (0.0,) * 4, "std": (1.0,) * 4}
    data = image_files(tmp_path, val_size=0, test_size=2, **options)
    inputs, _, index, _ = data.split("test").batch([0])
    expected = np.array(Image.open(data.split("test").table.place(int(index[0])))).transpose(2, 0, 1)
    assert torch.allclose(inputs[0], torch.from_numpy(expected).float() / 255, atol=1e-6)
    assert data.model_arguments()["in_chans"] == 4
    with pytest.raises(DataError, match="5 numbers"):
        ImageFiles(root=str(tmp_path), in_chans=4, mean=(0.0,) * 5)
    picture(1).save(tmp_path / "a" / "0.png")
    with pytest.raises(ValueError, match=r"3 channels, data\.in_chans=4"):
        read(tmp_path / "a" / "0.png", 4)


def test_check_data_says_what_deep_images_hold(tmp_path, capsys):
    root = deep_folder(tmp_path / "scans")
    assert main(["check-data", str(root), "--workers", "0", "--json", str(tmp_path / "f.json")]) == 0
    out = capsys.readouterr().out
    assert "8 images of mode I;16 with values from 0 to 4,09" in out
    assert "of 0 to 65,535" in out
    assert "--data.range percentile" in out
    main(["check-data", str(root), "--workers", "0", "--reading", "timm"])
    assert "cuts them off at 255" in capsys.readouterr().out
    Image.fromarray((RAMP / 100).astype(np.float32)).save(root / "dark" / "f.tif")
    assert main(["check-data", str(root), "--workers", "0"]) == 1
    assert "f.tif: floats from 0 to 655.35, outside of [0, 1]" in capsys.readouterr().out
    assert main(["check-data", str(root), "--workers", "0", "--range", "percentile"]) == 0


def test_tiff_of_many_channels_and_odd_types(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    bands = np.random.default_rng(0).integers(0, 65536, (5, 8, 8), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="separate")
    assert torch.allclose(read(tmp_path / "a.tif", 5), torch.from_numpy(bands / 65535).float(), atol=1e-6)
    with pytest.raises(ValueError, match=r"5 channels, data\.in_chans=3: give data\.in_chans=5"):
        read(tmp_path / "a.tif", 3)
    colour = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)
    expected = torch.from_numpy(colour / 65535).float().permute(2, 0, 1)
    planes = {"planarconfig": "separate"}
    for options in ({}, {"byteorder": ">"}, {"compression": "zlib"}, planes, planes | {"compression": "zlib"}):
        values = np.moveaxis(colour, -1, 0) if "planarconfig" in options else colour
        tifffile.imwrite(tmp_path / "b.tif", values, photometric="rgb", **options)
        assert torch.allclose(read(tmp_path / "b.tif", 3), expected, atol=1e-6)
    tifffile.imwrite(tmp_path / "c.tif", RAMP.astype(np.float64) / 65535)
    assert torch.allclose(read(tmp_path / "c.tif")[0], torch.from_numpy(RAMP / 65535).float(), atol=1e-6)
    tifffile.imwrite(tmp_path / "d.tif", RAMP.astype(np.uint32) * 65537)
    assert torch.allclose(read(tmp_path / "d.tif")[0], torch.from_numpy(RAMP / 65535).float(), atol=1e-6)


def test_dicom(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    values = (RAMP // 16).astype(np.uint16)

    def write(name, **options):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        data = pydicom.Dataset()
        data.file_meta = meta
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 8, 8, 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.PixelData = values.tobytes()
        for key, value in options.items():
            setattr(data, key, value)
        data.save_as(tmp_path / name, enforce_file_format=True)
        return tmp_path / name

    expected = torch.from_numpy(values / 4095).float()
    assert torch.allclose(read(write("a.dcm"))[0], expected, atol=1e-6)
    assert torch.allclose(read(write("b.dcm", PhotometricInterpretation="MONOCHROME1"))[0], 1 - expected, atol=1e-6)
    ct = write("c.dcm", RescaleSlope=1, RescaleIntercept=-1024)
    assert torch.allclose(read(ct)[0], expected, atol=1e-6)
    hounsfield = ((values - 1024.0 + 100) / 500).clip(0, 1)
    assert torch.allclose(read(ct, limits=(-100.0, 400.0))[0], torch.from_numpy(hounsfield).float(), atol=1e-6)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti(tmp_path, name):
    nibabel = pytest.importorskip("nibabel")
    volume = np.random.default_rng(0).integers(0, 1000, (6, 8, 5), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1.0, 1, 1, 1])), tmp_path / name)
    middle = volume[::-1, :, 2].T[::-1] / 1000  # x runs to the left in this file
    assert torch.allclose(
        read(tmp_path / name, limits=(0.0, 1000.0))[0], torch.from_numpy(middle.copy()).float(), atol=1e-6
    )
    with open_image(str(tmp_path / name)) as opened:
        assert opened.parts == 5
        assert opened.limits == (-32768, 32767)


def test_what_a_reader_is_missing_for_is_said(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 300)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(VersionError) as caught:
        read(tmp_path / "a.dcm")
    assert reason(caught.value) == "reading DICOM needs the package 'pydicom': pip install \"lmgraft[medical]\""


def test_a_run_from_before_these_rules_is_read_as_it_was(tmp_path):
    old = "data: {class_path: lmgraft.data.image_files.ImageFiles, init_args: {root: photos}}\n"
    (tmp_path / "config.yaml").write_text(old)
    assert read_run(tmp_path).data.preprocess.reading == "timm"
    assert parse_recipe(old).data.preprocess.reading == "viewer"
    record = read_run(tmp_path).data.transform_record()["preprocess"]
    assert set(record) == {"img_size", "in_chans", "interpolation", "crop_pct", "mean", "std"}
