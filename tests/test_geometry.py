"""Point operations against plain loops, and their edges."""

import pytest
import torch

from lmgraft.geometry.points import (
    ball_points,
    farthest_points,
    group_points,
    interpolate,
    nearest_points,
    take_points,
)


def cloud(batch=3, size=40, seed=0):
    return torch.randn(batch, size, 3, generator=torch.Generator().manual_seed(seed))


def farthest_by_loop(points, count, skip=False):
    """pointnet2's kernel written out for one cloud (N, 3)."""
    rows = points.double().tolist()
    nearest, order = [1e10] * len(rows), [0]
    while len(order) < count:
        last, best, winner = rows[order[-1]], -1.0, 0
        for i, (x, y, z) in enumerate(rows):
            if skip and x * x + y * y + z * z <= 1e-3:
                continue
            gap = (x - last[0]) ** 2 + (y - last[1]) ** 2 + (z - last[2]) ** 2
            nearest[i] = min(nearest[i], gap)
            if nearest[i] > best:
                best, winner = nearest[i], i
        order.append(winner)
    return order


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("spread", [1.0, 0.02])
def test_farthest_points_are_those_of_the_loop(skip, spread):
    points = cloud() * spread
    points[:, 5:] += 0.01 * torch.arange(35).unsqueeze(1)
    result = farthest_points(points, 12, skip_near_origin=skip)
    assert result.tolist() == [farthest_by_loop(one, 12, skip) for one in points]


def test_the_kernels_rule_matters_near_the_origin_alone():
    far, near = cloud() + 3, cloud() * 0.005
    assert torch.equal(farthest_points(far, 9), farthest_points(far, 9, skip_near_origin=True))
    near[:, 7] = 1.0
    assert set(farthest_points(near, 9, skip_near_origin=True)[0].tolist()) == {0, 7}


def test_the_order_is_nested_and_repeats_when_points_run_out():
    points = cloud(size=6)
    assert torch.equal(farthest_points(points, 6)[:, :4], farthest_points(points, 4))
    assert sorted(farthest_points(points, 6)[0].tolist()) == list(range(6))
    assert farthest_points(points, 8).shape == (3, 8)
    assert farthest_points(torch.zeros(1, 5, 3), 4).tolist() == [[0, 0, 0, 0]]


def test_nearest_points_are_those_of_a_sort_also_far_from_the_origin():
    points = cloud() + 100
    centres = points[:, :4]
    result = nearest_points(points, centres, 5).sort(-1).values
    gaps = (centres.double()[:, :, None] - points.double()[:, None]).norm(dim=-1)
    assert torch.equal(result, gaps.argsort(-1)[..., :5].sort(-1).values)


def test_groups_lie_around_their_centres():
    points = cloud()
    groups, centres = group_points(points, 6, 8)
    assert (groups.shape, centres.shape) == ((3, 6, 8, 3), (3, 6, 3))
    order = farthest_points(points, 6)
    for b in range(3):
        for g in range(6):
            centre = points[b, order[b, g]]
            near = sorted(range(40), key=lambda i: float((points[b, i] - centre).norm()))[:8]
            expected = (points[b, near] - centre).tolist()
            assert torch.equal(centres[b, g], centre)
            assert sorted(groups[b, g].tolist()) == sorted(expected)


def test_take_points_keeps_the_index_shape_and_the_gradient():
    values = cloud().requires_grad_()
    taken = take_points(values, torch.tensor([[[0, 1], [2, 0]]] * 3))
    assert taken.shape == (3, 2, 2, 3)
    taken.sum().backward()
    assert values.grad[:, :3].sum(-1).tolist() == [[6.0, 3.0, 3.0]] * 3


def test_groups_compile_to_one_graph():
    compiled = torch.compile(lambda x: group_points(x, 5, 4), fullgraph=True, backend="aot_eager")
    for result, expected in zip(compiled(cloud()), group_points(cloud(), 5, 4), strict=True):
        assert torch.equal(result, expected)


def ball_by_loop(points, centre, radius, count):
    """pointnet2's kernel written out for one centre."""
    inside = [
        i
        for i, p in enumerate(points.tolist())
        if sum((a - b) ** 2 for a, b in zip(p, centre.tolist(), strict=True)) < radius**2
    ]
    first = inside[0] if inside else 0
    return [*inside[:count], *[first] * (count - len(inside))]


@pytest.mark.parametrize("radius", [0.05, 0.7, 9.0])
def test_balls_are_those_of_the_loop(radius, monkeypatch):
    points = cloud()
    centres = torch.cat([points[:, :5], points[:, :1] + 100], 1)
    result = ball_points(points, centres, radius, 6)
    expected = [
        [ball_by_loop(one, centre, radius, 6) for centre in of] for one, of in zip(points, centres, strict=True)
    ]
    assert result.tolist() == expected
    monkeypatch.setattr("lmgraft.geometry.points._PAIRS", 3 * 40 * 2)
    assert torch.equal(ball_points(points, centres, radius, 6), result)
    assert ball_points(points[:, :3], centres, radius, 6).shape == (3, 6, 6)


def test_interpolated_values_are_those_of_the_loop():
    known, places = cloud(size=7), cloud(size=9, seed=1)
    values = cloud(size=7, seed=2)[..., :2].requires_grad_()
    result = interpolate(values, known, places)
    for b in range(3):
        for n in range(9):
            gaps = [float((known[b, g] - places[b, n]).norm()) for g in range(7)]
            near = sorted(range(7), key=gaps.__getitem__)[:3]
            shares = [1 / (gaps[g] + 1e-8) for g in near]
            expected = sum(share / sum(shares) * values[b, g] for share, g in zip(shares, near, strict=True))
            assert torch.allclose(result[b, n], expected, atol=1e-5)
    assert torch.allclose(interpolate(values, known, known), values, atol=1e-5)
    assert torch.allclose(interpolate(values[:, :1], known[:, :1], places), values[:, :1].expand(-1, 9, -1))
    result.sum().backward()
    assert values.grad.sum() == pytest.approx(54, rel=1e-4)
