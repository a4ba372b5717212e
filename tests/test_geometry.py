"""Point operations against plain loops, and their edges."""

import pytest
import torch

from lmgraft.geometry.points import farthest_points, group_points, nearest_points, take_points


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
