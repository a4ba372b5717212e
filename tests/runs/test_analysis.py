"""Analysis: intervals, activation maps and curves against plain formulas."""

import csv
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmgraft.analysis.activations import frequency, magnitude
from lmgraft.analysis.curves import read_curves
from lmgraft.analysis.intervals import wilson_interval


def test_wilson_equals_the_published_example():
    """Newcombe 1998 (Statistics in Medicine 17, 857), Table I, method 3: 81/263 and 15/148, 0/20, 1/29."""
    for correct, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


@given(total=st.integers(1, 10_000), share=st.floats(0, 1))
def test_wilson_solves_its_equation(total, share):
    correct = round(share * total)
    for bound in wilson_interval(correct, total):
        assert 0 <= bound <= 1
        if 0 < bound < 1:
            score = (correct / total - bound) / math.sqrt(bound * (1 - bound) / total)
            assert abs(abs(score) - 1.959963984540054) < 1e-6


def test_wilson_covers():
    rng = np.random.default_rng(0)
    hits = [low <= 0.9 <= high for low, high in (wilson_interval(int(c), 500) for c in rng.binomial(500, 0.9, 4000))]
    assert 0.935 < np.mean(hits) < 0.965


def test_wilson_refuses_what_is_no_share():
    for correct, total in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="no share"):
            wilson_interval(correct, total)


def test_maps_equal_the_definition():
    tokens = torch.randn(3, 12, 8, dtype=torch.float64)
    for measure, values in (
        (magnitude, tokens.numpy()),
        (frequency, np.angle(np.fft.fft(tokens.numpy(), axis=-1))),
    ):
        distance = np.linalg.norm(values - values.mean(1, keepdims=True), axis=-1)
        low, high = distance.min(1, keepdims=True), distance.max(1, keepdims=True)
        expected = ((distance - low) / (high - low)).reshape(3, 3, 4)
        assert np.allclose(measure(tokens, (3, 4)).numpy(), expected, atol=1e-5)


def test_maps_can_center_by_rows_as_the_pseudo_code_does():
    tokens = torch.randn(1, 12, 8)
    image = tokens.view(3, 4, 8)
    distance = (image - image.mean(0)).norm(dim=-1)
    expected = (distance - distance.min()) / (distance.max() - distance.min())
    assert torch.allclose(magnitude(tokens, (3, 4), center="rows")[0], expected, atol=1e-6)


def test_a_constant_map_is_zero_not_nan():
    assert torch.equal(magnitude(torch.ones(2, 4, 3), (2, 2)), torch.zeros(2, 2, 2))


def test_curves_join_launches_and_the_later_one_counts(tmp_path):
    launches = {
        "version_0": [(0, 1.0), (1, 0.9), (2, 0.8)],
        "version_1": [(2, 0.7), (3, 0.6)],
        "version_10": [(4, 0.5)],
    }
    for launch, rows in launches.items():
        folder = tmp_path / "logs" / "csv" / launch
        folder.mkdir(parents=True)
        with open(folder / "metrics.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "step", "train/loss", "val/accuracy"])
            writer.writerows([0, step, loss, ""] for step, loss in rows)
    assert read_curves(tmp_path) == {"train/loss": [(0, 1.0), (1, 0.9), (2, 0.7), (3, 0.6), (4, 0.5)]}
    assert read_curves(tmp_path / "nowhere") == {}
