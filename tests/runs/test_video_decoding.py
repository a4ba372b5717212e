"""Frames of a video, exactly those that were asked for, whatever the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_trees import frame, number_of, numbered, turn, write_video

from lmgraft.data.video.decoding import UNREADABLE, look_through, read_frames
from lmgraft.data.video.sampling import random_segments, segments

FORMATS = {
    "one_key_frame": ("x.mp4", {}),
    "many_key_frames": ("x.mp4", {"options": {"crf": "10", "g": "4"}}),
    "b_frames": ("x.mp4", {"options": {"crf": "10", "bf": "3", "g": "7", "x264-params": "open-gop=1:scenecut=0"}}),
    "intra": ("x.mkv", {"options": {"crf": "10", "g": "1"}}),
    "mpeg4_avi": ("x.avi", {"codec": "mpeg4", "options": {"qmin": "1", "qmax": "2"}}),
    "mpeg4_avi_b_frames": ("x.avi", {"codec": "mpeg4", "options": {"qmin": "1", "qmax": "2", "bf": "2", "g": "6"}}),
    "variable_rate": (
        "x.mp4",
        {"stamps": [0, 1, 2, 10, 11, 30, 31, 32, 33, 34, 35, 60, 61, 62, 63, 64, 65, 66, 90, 91]},
    ),
    "late_start": ("x.mkv", {"stamps": [500 + 4 * n for n in range(20)]}),
    "transport_stream": ("x.ts", {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_frame_is_the_one_asked_for(name: str, tmp_path: Path) -> None:
    file, options = FORMATS[name]
    path = str(numbered(tmp_path / file, 20, **options))
    wanted = [13, 2, 2, 19, 0, 7]
    assert [number_of(image) for image in read_frames(path, lambda _: wanted)] == wanted
    assert [number_of(image) for image in read_frames(path, lambda times: range(len(times)))] == list(range(20))
    for only in (0, 6, 11, 19):
        assert [number_of(image) for image in read_frames(path, lambda _, n=only: [n])] == [only]
    footage = look_through(path)
    assert (len(footage.times), footage.width, footage.height, footage.rotation) == (20, 64, 48, 0)
    assert footage.is_variable == (name == "variable_rate")
    stamps = options.get("stamps", [4 * n for n in range(20)])
    expected = [(stamp - stamps[0]) / 100 for stamp in stamps]
    assert footage.times[:-1] == pytest.approx(expected[:-1], abs=2e-3)  # AVI's last one is FFmpeg's guess


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_webm_with_hidden_frames(codec: str, tmp_path: Path) -> None:
    options = {"auto-alt-ref": "1", "lag-in-frames": "12", "crf": "10", "b": "1M", "deadline": "realtime"}
    path = str(numbered(tmp_path / "x.webm", 20, codec=codec, options=options))
    assert [number_of(image) for image in read_frames(path, lambda _: [19, 3, 11])] == [19, 3, 11]


@pytest.mark.parametrize(("degrees", "corner"), [(90, "lower left"), (180, "lower right"), (270, "upper right")])
def test_a_phone_s_video_is_turned(degrees: int, corner: str, tmp_path: Path) -> None:
    path = str(turn(numbered(tmp_path / "x.mp4", 3), degrees))
    (image,) = read_frames(path, lambda _: [1])
    assert image.size == ((48, 64) if degrees != 180 else (64, 48))
    pixels = np.asarray(image)[..., 0]
    at = {"upper left": (2, 2), "upper right": (2, -3), "lower left": (-3, 2), "lower right": (-3, -3)}
    assert [name for name, place in at.items() if pixels[place] > 240] == [corner]
    assert look_through(path).rotation == degrees


def test_folders_of_frames(tmp_path: Path) -> None:
    for number in range(12):
        Image.fromarray(frame(number)).save(tmp_path / f"img_{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    assert [number_of(image) for image in read_frames(str(tmp_path), lambda _: [10, 2, 10])] == [10, 2, 10]
    assert len(look_through(str(tmp_path)).times) == 12


def test_what_is_no_whole_video_says_so(tmp_path: Path) -> None:
    good = numbered(tmp_path / "good.mp4", 20).read_bytes()
    front = numbered(tmp_path / "front.mp4", 20, options={"crf": "1", "g": "1"})
    moved = tmp_path / "fast.mp4"
    with (
        __import__("av").open(str(front)) as source,
        __import__("av").open(str(moved), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    whole = moved.read_bytes()
    (tmp_path / "sound.mkv").write_bytes(b"")
    cases = {
        "empty.mp4": (b"", "not a video"),
        "text.mp4": (b"hello " * 100, "not a video"),
        "no_end.mp4": (good[: len(good) // 2], "not a video"),
        "half.mp4": (whole[: len(whole) * 3 // 4], "cut short: "),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UNREADABLE, match=words):
            read_frames(str(tmp_path / name), lambda _: [0])
    with pytest.raises(UNREADABLE, match="no such file"):
        read_frames(str(tmp_path / "absent.mp4"), lambda _: [0])
    (tmp_path / "folder").mkdir()
    with pytest.raises(UNREADABLE, match="holds no frame"):
        read_frames(str(tmp_path / "folder"), lambda _: [0])
    with pytest.raises(UNREADABLE, match="frame 20 of 20 cannot be decoded"):
        read_frames(str(tmp_path / "good.mp4"), lambda _: [20])


def test_a_video_of_sound_alone(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "x.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(UNREADABLE, match="no pictures"):
        read_frames(str(tmp_path / "x.mkv"), lambda _: [0])


class TestSampling:
    def test_segments_of_videomae(self) -> None:
        """Its test views are every second one of 16 starts and 16 middles in order."""
        times = np.arange(50) / 25
        tick = 50 / 16
        both = sorted([int(tick / 2 + tick * x) for x in range(16)] + [int(tick * x) for x in range(16)])
        assert segments(times, 16, "frames", 0, 2) == both[0::2]
        assert segments(times, 16, "frames", 1, 2) == both[1::2]
        assert segments(times, 16, "frames") == both[1::2]

    def test_random_ones_lie_in_their_segments(self) -> None:
        drawn = np.linspace(0, 0.999, 16)
        found = random_segments(np.arange(50) / 25, 16, "frames", drawn)
        assert all(3 * segment <= n < 3 * segment + 3 for segment, n in enumerate(found))
        assert random_segments(np.arange(50) / 25, 16, "frames", np.zeros(16)) == [3 * n for n in range(16)]

    def test_short_videos_repeat_frames(self) -> None:
        drawn = np.random.default_rng(0).random(16)
        for spacing in ("frames", "time"):
            found = random_segments(np.arange(5) / 25, 16, spacing, drawn)
            assert found == sorted(found)
            assert set(found) <= set(range(5))
            assert len(set(found)) > 1
            assert segments(np.arange(5) / 25, 16, spacing)[-1] == 4
        assert segments(np.zeros(1), 4, "time") == random_segments(np.zeros(1), 4, "time", drawn[:4]) == [0] * 4

    def test_by_time_where_the_rate_varies(self) -> None:
        """Ten frames in the first second, one in the second: by time half of the clip is that one."""
        times = np.array([*np.arange(10) / 10, 1.0, 2.0])
        assert segments(times, 4, "frames") == [1, 4, 7, 10]
        assert segments(times, 4, "time") == [2, 7, 10, 10]
        assert all(np.diff(segments(np.arange(48) / 25, 16, "time")) == 3)


def test_frames_of_one_size_only_are_needed(tmp_path: Path) -> None:
    """An odd size, as cameras have it: the picture is what was written."""
    pixels = [frame(n, 36, 50) for n in range(4)]
    (image,) = read_frames(str(write_video(tmp_path / "x.mp4", pixels)), lambda _: [2])
    assert np.abs(np.asarray(image).astype(int) - pixels[2]).max() < 12
