"""Clips a second of lmgraft's reader against PyAV's bare decoder, in turn on one core.

Videos of Something-Something's size (60 frames of 320 x 240) are written first. "bare" decodes every frame with PyAV
and turns 16 into pictures, as they come; "reader" gives the same 16 frames by their time stamps; "clip" is the whole of
an evaluation clip at 224 pixels, and "training clip" one of training with RandAugment. Seconds are the processor's.

    python benchmarks/video_decoding.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from lmgraft.data.video.decoding import read_frames
from lmgraft.data.video.sampling import segments
from lmgraft.data.video.transforms import ClipAugment, ClipSize, TrainTransform, ViewTransform
from lmgraft.studies.bench.measure import interleave

SIZE = ClipSize(16, 224, 224, (0.5,) * 3, (0.5,) * 3, "bilinear")
COUNT = 60


def write(file: Path, rng: np.random.Generator) -> Path:
    scene = Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(COUNT):
            view = scene.crop((2 * number, number, 2 * number + 320, number + 240))
            frame = av.VideoFrame.from_image(view)
            frame.pts, frame.time_base = number, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file


def bare(path: str, wanted: set[int]) -> list[Image.Image]:
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = enumerate(container.decode(video=0))
        converter = av.video.reformatter.VideoReformatter()  # one for all frames, as lmgraft has it
        shown = [converter.reformat(frame, format="rgb24", threads=1) for number, frame in frames if number in wanted]
        return [Image.fromarray(frame.to_ndarray()) for frame in shown]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    out = torch.empty(SIZE.shape)
    view = ViewTransform(SIZE)
    train = TrainTransform(SIZE, ClipAugment(scale=(0.08, 1.0), auto_augment="rand-m7-n4-mstd0.5-inc1", re_prob=0.25))
    words = np.array([1, 2, 3], np.uint64)

    def choose(times: np.ndarray) -> list[int]:
        return segments(times, 16, "frames")

    with tempfile.TemporaryDirectory() as folder:
        paths = [str(write(Path(folder) / f"{n}.mp4", rng)) for n in range(given.videos)]
        wanted = set(choose(np.arange(COUNT) / 12))
        steps = {
            "bare": lambda: [bare(path, wanted) for path in paths],
            "reader": lambda: [read_frames(path, choose) for path in paths],
            "clip": lambda: [view(read_frames(path, choose), out) for path in paths],
            "training clip": lambda: [train(read_frames(path, choose), words, out) for path in paths],
        }
        times = interleave(steps, seconds=given.seconds, clock=time.process_time)  # type: ignore[arg-type]
    for name, seconds in times.items():
        ratios = np.array(times["bare"]) / np.array(seconds)
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        rate = given.videos / np.median(seconds)
        print(f"{name:14} {rate:6.1f} a second, {middle:.3f} times bare ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
