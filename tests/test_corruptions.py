"""The fifteen corruptions: seeds, severities, sizes, and their parts against plain definitions."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from lmgraft.data.image import corruptions_filters as filters
from lmgraft.data.image import corruptions_frost, corruptions_kinds
from lmgraft.data.image.corruptions import CORRUPTIONS, SEVERITIES, corrupt, working_size
from lmgraft.data.image.corruptions_frost import PICTURES, frost_pictures
from lmgraft.errors import DataError, SourceError


def photograph(seed, size=(224, 224)):
    """Coloured patches with edges and texture at several scales."""
    rng = np.random.default_rng(seed)
    image = np.zeros((size[1], size[0], 3), np.float32)
    for scale in (7, 19, 57):
        field = rng.random((size[1] // scale + 2, size[0] // scale + 2, 3))
        large = np.kron(field, np.ones((scale, scale, 1)))[: size[1], : size[0]]
        image += scipy.ndimage.gaussian_filter(large, (scale / 6, scale / 6, 0)) * scale**0.5
    image -= image.min()
    return Image.fromarray((image / image.max() * 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photographs():
    return [photograph(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def frost():
    rng = np.random.default_rng(1)
    noise = scipy.ndimage.gaussian_filter(rng.random((300, 400, 3)), (2, 2, 0))
    return [np.uint8(170 + 400 * (noise - noise.mean())) for _ in range(2)]


def distance(a, b):
    return float(np.sqrt(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))


def roughness(image):
    pixels = np.asarray(image, float)
    return np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels, axis=1)).mean()


def test_there_are_fifteen_in_five_severities():
    assert len(CORRUPTIONS) == 15
    assert all(len(corruption.parameters) == 5 for corruption in CORRUPTIONS.values())


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in ("glass_blur", "elastic_transform")])
def test_more_severe_is_farther_from_the_clean_image(name, photographs, frost):
    means = [
        np.mean([distance(corrupt(p, name, s, index=i, frost=frost), p) for i, p in enumerate(photographs)])
        for s in SEVERITIES
    ]
    assert means[0] > 2
    # Weather is drawn anew for every severity, and snow's second and third are published alike.
    slack = 0.9 if name in ("fog", "frost", "snow") else 1
    assert all(after > slack * before for before, after in pairwise(means))
    assert means[4] > means[0]


@pytest.mark.long
def test_glass_and_elastic_are_as_uneven_as_published(photographs):
    """Distance is no measure of them: glass gets smoother, and elastic's first two severities shift the whole."""
    rough = [np.mean([roughness(corrupt(p, "glass_blur", s)) for p in photographs]) for s in SEVERITIES]
    assert all(after < before for before, after in pairwise(rough))
    far = [np.mean([distance(corrupt(p, "elastic_transform", s, index=i), p) for i, p in enumerate(photographs)])
           for s in SEVERITIES]  # fmt: skip
    assert min(far[:2]) > max(far[2:]) > min(far[2:]) > 2


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_are_a_function_of_seed_and_index(name, photographs, frost):
    def made(**key):
        return np.asarray(corrupt(photographs[0], name, 3, frost=frost, **key))

    np.random.seed(5)  # the global state must not matter, nor be touched
    state = np.random.get_state()[1].copy()
    first = made(seed=1, index=7)
    assert np.array_equal(np.random.get_state()[1], state)
    np.random.seed(6)
    assert np.array_equal(made(seed=1, index=7), first)
    still = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    for other in ({"seed": 2, "index": 7}, {"seed": 1, "index": 8}):
        assert np.array_equal(made(**other), first) == (name in still)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("mode", "size"), [("RGB", (231, 224)), ("L", (40, 28)), ("RGB", (33, 47)), ("L", (300, 400))])
def test_any_size_and_grey(name, mode, size, frost):
    image = photograph(3, size).convert(mode)
    made = corrupt(image, name, 5, frost=frost)
    assert made.mode == mode
    assert made.size == (size if min(size) <= 256 else (256, 341))
    clean = image.resize(made.size, Image.Resampling.BICUBIC)
    assert distance(made, clean) > 0.5


def test_working_sizes():
    assert working_size((500, 375), "image") == working_size((500, 375), "pixel") == (341, 256)
    assert working_size((240, 250), "image") == (240, 250)
    assert working_size((28, 28), "image") == (224, 224)
    assert working_size((28, 56), "image") == (224, 448)
    assert working_size((28, 28), "pixel") == (79, 79)  # sqrt(28 * 224) = 79.2


def test_the_mode_of_other_images_becomes_rgb(frost):
    assert corrupt(photograph(0).convert("RGBA"), "contrast", 1).mode == "RGB"
    assert corrupt(photograph(0).convert("P"), "frost", 1, frost=frost).mode == "RGB"


def test_published_parameters_by_hand():
    grey = Image.new("RGB", (224, 224), (100, 100, 100))
    assert np.asarray(corrupt(grey, "gaussian_noise", 2), float).std() == pytest.approx(0.12 * 255, rel=0.02)
    assert np.asarray(corrupt(grey, "brightness", 3)).max() == int(100 + 0.3 * 255)
    salted = np.asarray(corrupt(grey, "impulse_noise", 5))
    assert np.mean(salted != 100) == pytest.approx(0.27, abs=0.005)
    assert np.mean(salted == 255) == pytest.approx(0.135, abs=0.005)
    shot = np.asarray(corrupt(grey, "shot_noise", 1), float) / 255
    assert shot.std() == pytest.approx((100 / 255 / 60) ** 0.5, rel=0.02)
    halves = np.zeros((224, 224, 3), np.uint8)
    halves[:112] = 200
    flat = np.asarray(corrupt(Image.fromarray(halves), "contrast", 5))
    assert set(np.unique(flat)) == {95, 105}  # 100 +- 0.05 * 100
    assert len(np.unique(np.asarray(corrupt(photograph(0), "pixelate", 5))[:, 0].reshape(-1, 3), axis=0)) <= 56


def test_brightness_is_the_value_of_hsv(photographs):
    import colorsys

    pixels = corruptions_kinds.to_pixels(photographs[0])
    bright = corruptions_kinds.brightness(pixels, 0.2, np.random.default_rng(0))
    for y, x in ((0, 0), (17, 200), (101, 44)):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, pixels[y, x]))
        assert bright[y, x] == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.2)), abs=1e-5)


@pytest.mark.parametrize("factor", [1.0, 1.05, 1.28, 3, 4.5])
@pytest.mark.parametrize("shape", [(224, 224, 3), (97, 64, 1)])
def test_zoom_equals_scipy(factor, shape):
    image = np.random.default_rng(0).random(shape, np.float32)
    parts = [int(np.ceil(n / factor)) for n in shape[:2]]
    starts = [(n - part) // 2 for n, part in zip(shape, parts, strict=False)]
    part = image[starts[0] : starts[0] + parts[0], starts[1] : starts[1] + parts[1]]
    expected = scipy.ndimage.zoom(part, (factor, factor, 1), order=1)
    trim = [(large - n) // 2 for large, n in zip(expected.shape, shape, strict=False)]
    expected = expected[trim[0] : trim[0] + shape[0], trim[1] : trim[1] + shape[1]]
    assert filters.zoom_in(image, factor) == pytest.approx(expected, abs=1e-4)


def test_motion_blur_of_a_point_is_half_a_gaussian_along_a_line():
    image = np.zeros((41, 41, 1), np.float32)
    image[20, 20] = 1
    blurred = filters.motion_blur(image, radius=5, sigma=3, angle=0)[:, :, 0]
    weights = np.exp(-(np.arange(11) ** 2) / 18)
    assert blurred[20, 20:9:-1] == pytest.approx(weights / weights.sum(), abs=1e-6)
    assert blurred.sum() == pytest.approx(1, abs=1e-6)


def test_smooth_fields_and_disks():
    field = np.random.default_rng(0).random((60, 80)).astype(np.float32)
    for sigma in (2.4, 170.8):
        expected = scipy.ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3)
        assert filters.smooth_field(field, sigma) == pytest.approx(expected, abs=1e-4)
    for radius, side in ((3, 17), (10, 21)):
        disk = filters.disk(radius, 0.5)
        assert disk.shape == (side, side)
        assert disk.sum() == pytest.approx(1, abs=0.02)  # mirrored at its rim, as published
    image = np.random.default_rng(0).random((50, 40, 3)).astype(np.float32)
    expected = scipy.ndimage.convolve(image, disk[:, :, None], mode="mirror")
    assert filters.convolve(image, disk) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_glass_copies_pixel_after_pixel(reach):
    """The published loop, from the last pixel to the first, whose swap is a copy."""
    height, width = 30, 23
    rng = np.random.default_rng(reach)
    before = rng.permutation(height * width)
    rows, columns = np.arange(reach + 1, height - reach + 1), np.arange(reach + 1, width - reach + 1)
    down, right = rng.integers(-reach, reach, (2, len(rows), len(columns)))
    after = before.copy().reshape(height, width)
    for h in rows[::-1]:
        for w in columns[::-1]:
            step = (h - rows[0], w - columns[0])
            after[h, w] = after[h + down[step], w + right[step]]
    made = corruptions_kinds.copied_from(before, (height, width), rows, columns, down, right)
    assert np.array_equal(made, after.ravel())


def test_plasma_spans_its_range_and_wraps():
    heights = filters.plasma(64, 2.0, np.random.default_rng(0))
    assert (heights.min(), heights.max()) == (0, 1)
    # On a torus the step across the border is like any other.
    assert np.abs(heights[0] - heights[-1]).mean() < 4 * np.abs(np.diff(heights, axis=0)).mean()


def test_mistakes():
    image = photograph(0)
    with pytest.raises(DataError, match="'fog'"):
        corrupt(image, "fogg", 1)
    with pytest.raises(DataError, match="1 to 5"):
        corrupt(image, "fog", 6)
    with pytest.raises(DataError, match="needs pictures"):
        corrupt(image, "frost", 1)


def test_frost_pictures_of_a_folder(tmp_path):
    with pytest.raises(DataError, match="holds no picture"):
        frost_pictures(tmp_path)
    Image.new("RGBA", (30, 20), (10, 20, 30, 0)).save(tmp_path / "a.png")
    (picture,) = frost_pictures(tmp_path)
    assert picture.shape == (20, 30, 3)
    assert picture[0, 0].tolist() == [10, 20, 30]  # opacity dropped, not applied
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b\.jpg"):
        frost_pictures(tmp_path)


def test_frost_pictures_come_from_a_pinned_wheel(tmp_path, monkeypatch):
    asked = []

    def fetch(source, *, sha256):
        asked.append((source, sha256))
        path = tmp_path / source.rpartition("/")[2]
        Image.new("RGB", (8, 8)).save(path)
        return path

    monkeypatch.setattr(corruptions_frost, "fetch_from_wheel", fetch)
    assert len(frost_pictures()) == 5
    assert [sha256 for _, sha256 in asked] == list(PICTURES.values())
    assert all(source.startswith("pypi://imagecorruptions==1.1.2#") for source, _ in asked)

    def fail(source, *, sha256):
        raise SourceError("no network", "")

    monkeypatch.setattr(corruptions_frost, "fetch_from_wheel", fail)
    with pytest.raises(DataError, match="no network") as error:
        frost_pictures()
    assert "--frost" in error.value.remedy


@pytest.mark.slow
def test_without_scipy_the_extra_is_named():
    code = (
        "import sys; sys.modules['scipy'] = None\n"
        "from PIL import Image\n"
        "from lmgraft.data.image.corruptions import corrupt\n"
        "im = Image.new('RGB', (224, 224))\n"
        "corrupt(im, 'gaussian_noise', 1)\n"
        "corrupt(im, 'glass_blur', 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "lmgraft[image]"' in done.stderr
