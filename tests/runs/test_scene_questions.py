"""Questions about rooms: VoteNet's losses and the answers' by hand, average precision by a slow reference, metrics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lmgraft.backbones.scene_qa.model import SceneAnswers
from lmgraft.backbones.scene_qa.vote_net import Proposals
from lmgraft.contracts.metric import by_name
from lmgraft.data.rooms.batch import RoomQuestions
from lmgraft.data.rooms.room_data import RoomData
from lmgraft.errors import RecipeError
from lmgraft.graft.hosts import find_host
from lmgraft.registry import METRICS, PICTURES
from lmgraft.report.pictures.rooms import draw_room
from lmgraft.tasks.detection import Truth, average_precision, box_iou, detection_losses, matched, mean_average_precision
from lmgraft.tasks.scene_questions import IOUS, WEIGHTS, SceneQuestions
from tiny_rooms import ANSWERS, MEAN_SIZES, make_scene_qa, rooms

SIZES = torch.tensor(MEAN_SIZES)


class Rooms(RoomData):
    name = "rooms"
    answer_names = tuple(f"answer {n}" for n in range(ANSWERS))
    words = ("", "", *"abcdefg")
    types = ("what", "is")
    mean_sizes = MEAN_SIZES  # type: ignore[assignment]
    class_names = ("chair", "table", "lamp")
    find = None  # type: ignore[assignment]


def task(**options: Any) -> SceneQuestions:
    return SceneQuestions(make_scene_qa(), Rooms(), None, None, **options)  # type: ignore[arg-type]


def batch(**changes: Tensor) -> RoomQuestions:
    return RoomQuestions(**{**rooms(), **changes})


def proposals(seed: int = 0, count: int = 9, truth: dict[str, Tensor] | None = None) -> Proposals:
    """Drawn ones of 3 rooms, some of which lie near the centres of objects."""
    draw = torch.Generator().manual_seed(seed)
    truth = truth or rooms()

    def noise(*shape: int) -> Tensor:
        return torch.randn(3, *shape, generator=draw)

    index = torch.randint(60, (3, 8), generator=draw)
    seeds = truth["points"][..., :3].gather(1, index[..., None].expand(-1, -1, 3))
    bases = 4 * torch.rand(3, count, 3, generator=draw)
    near = truth["boxes"][:, torch.arange(count) % 3, :3]
    bases = torch.where(torch.arange(count)[:, None] % 2 == 0, near + 0.15 * noise(count, 3), bases)
    return Proposals(
        seeds, index, seeds + noise(8, 3), bases, index[:, :count, None], noise(count, 5), noise(count, 2),
        bases + 0.1 * noise(count, 3), noise(count, 1), noise(count, 1), noise(count, 3), 0.3 * noise(count, 3, 3),
        noise(count, 3),
    )  # fmt: skip


def mean(values: list[float]) -> float:
    return sum(values) / (len(values) + 1e-6)


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def cross_entropy(logits: Tensor, wanted: int) -> float:
    return math.log(sum(math.exp(float(x)) for x in logits)) - float(logits[wanted])


def losses_by_hand(proposed: Proposals, fields: dict[str, Tensor]) -> dict[str, float]:
    """VoteNet's losses, one proposal after the other."""
    kept: dict[str, list[float]] = {name: [] for name in WEIGHTS}
    back: list[float] = []
    for b in range(3):
        objects = [k for k in range(4) if fields["box_classes"][b, k] >= 0]
        boxes = fields["boxes"][b].tolist()
        for s, point in enumerate(proposed.seed_index[b].tolist()):
            box = int(fields["point_box"][b, point])
            if box >= 0:
                kept["vote"].append(
                    sum(abs(v - c) for v, c in zip(proposed.votes[b, s].tolist(), boxes[box][:3], strict=True))
                )
        for p in range(proposed.bases.shape[1]):
            gaps = [math.dist(proposed.bases[b, p], boxes[k][:3]) for k in objects]
            gap = math.sqrt(min(gaps) ** 2 + 1e-6) if gaps else math.inf
            is_object = gap < 0.3
            if is_object or gap > 0.6:
                weight = 0.8 if is_object else 0.2
                kept["objectness"].append(weight * cross_entropy(proposed.objectness[b, p], int(is_object)))
            if not is_object:
                continue
            k = objects[gaps.index(min(gaps))]
            known = int(fields["box_classes"][b, k])
            kept["centre"].append(min(math.dist(proposed.centres[b, p], boxes[o][:3]) ** 2 for o in objects))
            kept["heading"].append(huber(float(proposed.heading_residuals[b, p, 0])))
            kept["size_class"].append(cross_entropy(proposed.size_scores[b, p], known))
            kept["class"].append(cross_entropy(proposed.classes[b, p], known))
            off = [
                float(proposed.size_residuals[b, p, known, i]) - (boxes[k][3 + i] / MEAN_SIZES[known][i] - 1)
                for i in range(3)
            ]
            kept["size"].append(sum(map(huber, off)) / 3)
        back += [min(math.dist(c, boxes[k][:3]) ** 2 for c in proposed.centres[b]) for k in objects]
    return {name: mean(values) for name, values in kept.items()} | {"centre": mean(kept["centre"]) + mean(back)}


def test_detection_losses_by_hand() -> None:
    for seed in range(3):
        fields = rooms(seed=seed)
        proposed = proposals(seed, truth=fields)
        losses = detection_losses(proposed, Truth(fields["boxes"], fields["box_classes"], fields["point_box"]), SIZES)
        expected = losses_by_hand(proposed, fields)
        assert expected["class"] > 0
        assert {name: float(loss) for name, loss in losses.items()} == pytest.approx(
            {name: expected[name] for name in losses}, rel=1e-4, abs=1e-6
        )
        assert not losses["heading_class"]


def test_all_of_the_loss_and_what_a_frozen_detector_leaves_out() -> None:
    part, fields = task(), batch()
    model = part.model.train()
    out = model(*part.inputs(fields))
    parts = part.parts(out, fields)
    answers = out.answers.double().sigmoid()
    wanted = fields.targets.double()
    by_hand = -(wanted * answers.log() + (1 - wanted) * (1 - answers).log()).sum() / 3
    assert parts["answer"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    total = sum(WEIGHTS[name] * loss.item() for name, loss in parts.items())
    assert part.loss(out, fields).item() == pytest.approx(10 * total, rel=1e-5)
    other = task(weights={"answer": 2.0}, total_weight=1.0)
    assert other.loss(out, fields).item() == pytest.approx(total + 1.9 * parts["answer"].item(), rel=1e-5)
    frozen = make_scene_qa(frozen=["detector"]).train()
    assert set(part.parts(frozen(*part.inputs(fields)), fields)) == {"answer"}
    part.loss(out, fields).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_one_answer_of_all() -> None:
    part, fields = task(answer_loss="softmax"), batch()
    out = SceneAnswers(torch.randn(3, ANSWERS, generator=torch.Generator().manual_seed(0)), proposals(), None)
    fields.targets[1] = 0
    fields.targets[1, 2:4] = torch.tensor([0.3, 0.9])
    fields.targets[2] = 0
    logs = out.answers.double().softmax(1).log()
    right = int(fields.targets[0].argmax())
    by_hand = [-logs[0, right], -(0.25 * logs[1, 2] + 0.75 * logs[1, 3]), -logs[2].mean()]
    assert part.score(out, fields)["answer_loss"].tolist() == pytest.approx([loss.item() for loss in by_hand], rel=1e-5)
    assert part.parts(out, fields)["answer"].item() == pytest.approx(sum(by_hand).item() / 3, rel=1e-5)
    first = part.predict(out, fields)[0]
    name, belief = next(iter(first.items()))
    assert name == f"answer {int(out.answers[0].argmax())}"
    assert belief == pytest.approx(logs[0].max().exp().item(), abs=1e-6)
    with pytest.raises(RecipeError, match=r"task\.answer_loss"):
        task(answer_loss="hinge")


def test_the_situation_s_loss() -> None:
    part, fields = task(), batch()
    out = make_scene_qa(situation_head=True).train()(*part.inputs(fields))
    assert out.pose is not None
    fields.pose[1] = torch.nan
    off = (out.pose - fields.pose)[[0, 2]].square()
    expected = (off[:, :3].mean() + off[:, 3:].mean()).item()
    assert part.parts(out, fields)["pose"].item() == pytest.approx(expected, rel=1e-5)
    unknown = part.parts(out, fields._replace(pose=fields.pose * torch.nan))["pose"]
    assert unknown.item() == 0
    assert torch.autograd.grad(unknown, out.pose)[0].abs().sum() == 0


def test_rooms_without_any_object_have_a_loss() -> None:
    part, fields = task(), batch()
    nothing = fields._replace(
        boxes=fields.boxes[:, :0], box_classes=fields.box_classes[:, :0], point_box=fields.point_box * 0 - 1
    )
    loss = part.loss(part.model.train()(*part.inputs(nothing)), nothing)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in part.model.parameters())
    with torch.no_grad():
        part.settle([part.columns(nothing)], "val")
    assert (part.values["map25"], part.values["map50"]) == (0, 0)


def above(boxes: Tensor) -> Tensor:
    """Corners (k, 4) of boxes (k, 6) from above, in centimetres."""
    return 100 * torch.cat([boxes[:, :2] - boxes[:, 3:5] / 2, boxes[:, :2] + boxes[:, 3:5] / 2], 1)


class TestAveragePrecision:
    def test_overlap_by_counting(self) -> None:
        a, b = torch.tensor([0.0, 0, 0, 4, 4, 2]), torch.tensor([1.0, 1, 0, 4, 2, 2])
        grid = torch.cartesian_prod(*[torch.arange(-4, 5, 0.5) + 0.25] * 3)
        inside = [((grid - box[:3]).abs() < box[3:] / 2).all(1) for box in (a, b)]
        expected = float((inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum())
        assert float(box_iou(a[None], b[None])) == pytest.approx(expected)
        flat = torch.tensor([[0.0, 0, 0, 1, 0, 1]])
        assert (float(box_iou(flat, flat)), float(box_iou(a[None], a[None]))) == (0, 1)

    def reference(self, proposed: Proposals, fields: dict[str, Tensor], threshold: float) -> float:
        """Greedy suppression and VOC's loop over detections, class by class."""
        detections: list[tuple[float, int, int, Tensor]] = []
        boxes = proposed.boxes(SIZES)
        for b in range(3):
            belief = proposed.objectness[b].softmax(-1)[:, 1] * proposed.classes[b].softmax(-1).amax(-1)
            kept: list[int] = []
            for p in sorted(range(len(belief)), key=lambda p: -float(belief[p])):
                same = [q for q in kept if proposed.classes[b, q].argmax() == proposed.classes[b, p].argmax()]
                if proposed.is_object[b, p] and all(box_iou(boxes[b, [p]], boxes[b, [q]]) <= 0.25 for q in same):
                    kept.append(p)
                    detections.append((float(belief[p]), b, int(proposed.classes[b, p].argmax()), boxes[b, p]))
        means = []
        for number in range(3):
            truth = [(b, k) for b in range(3) for k in range(4) if fields["box_classes"][b, k] == number]
            taken: set[tuple[int, int]] = set()
            right, curve = 0, []
            for count, (_, b, _, box) in enumerate(
                sorted((d for d in detections if d[2] == number), key=lambda d: -d[0]), 1
            ):
                overlaps = {(r, k): float(box_iou(box[None], fields["boxes"][r, [k]])) for r, k in truth if r == b}
                best = max(overlaps, key=lambda key: overlaps[key], default=None)
                if best is not None and overlaps[best] > threshold and best not in taken:
                    taken.add(best)
                    right += 1
                curve.append((right / len(truth) if truth else 0, right / count))
            if truth:
                steps = sorted({recall for recall, _ in curve if recall})
                means.append(sum(max(p for r, p in curve if r >= step) / len(truth) for step in steps))
        return sum(means) / len(means)

    def test_a_slow_reference(self) -> None:
        reached = []
        for seed in range(6):
            fields = rooms(seed=seed)
            proposed = proposals(seed, count=12, truth=fields)
            near = fields["boxes"][:, torch.arange(12) % 3]
            known = fields["box_classes"][:, torch.arange(12) % 3].clamp_min(0)
            residual = (near[..., 3:] / SIZES[known] - 1)[:, :, None].expand(-1, -1, 3, -1)
            proposed = proposed._replace(
                size_residuals=residual + 0.1 * proposed.size_residuals,
                size_scores=torch.nn.functional.one_hot(known, 3).float(),
                classes=proposed.classes + 2 * torch.nn.functional.one_hot(known, 3),
            )
            truth = Truth(fields["boxes"], fields["box_classes"], fields["point_box"])
            objects = (truth.classes[..., None] == torch.arange(3)).sum(1).numpy()
            values = mean_average_precision(matched(proposed, truth, SIZES, IOUS).numpy(), objects)
            assert values == pytest.approx([self.reference(proposed, fields, iou) for iou in IOUS])
            reached += values
        assert len(set(reached)) > 8

    def test_torchmetrics_on_boxes_of_one_height(self) -> None:
        """Between the same two heights a box's IoU is that seen from above, which COCO's evaluation knows."""
        detection = pytest.importorskip("torchmetrics.detection")
        pytest.importorskip("pycocotools")
        for seed in range(4):
            fields = rooms(seed=seed)
            fields["boxes"][..., [2, 5]] = 1.0
            known, near = fields["box_classes"][:, [0, 1, 2] * 4].clamp_min(0), fields["boxes"][:, [0, 1, 2] * 4]
            drawn = proposals(seed, count=12, truth=fields)
            residual = (near[..., 3:] / SIZES[known] - 1)[:, :, None] + 0.1 * drawn.size_residuals
            residual[..., 2] = (1 / SIZES[known][..., 2] - 1)[:, :, None]
            made = drawn._replace(
                size_residuals=residual, size_scores=torch.nn.functional.one_hot(known, 3).float(),
                centres=drawn.centres * torch.tensor([1.0, 1.0, 0.0]) + torch.tensor([0.0, 0.0, 1.0]),
                classes=drawn.classes + 2 * torch.nn.functional.one_hot(known, 3),
            )  # fmt: skip
            truth = Truth(fields["boxes"], fields["box_classes"], fields["point_box"])
            found = matched(made, truth, SIZES, IOUS)
            beliefs = made.objectness.softmax(-1)[..., 1] * made.classes.softmax(-1).amax(-1)
            order = beliefs.masked_fill(~made.is_object, -1).argsort(dim=1, descending=True, stable=True)
            boxes = made.boxes(SIZES).gather(1, order[..., None].expand(-1, -1, 6))
            objects = (truth.classes[..., None] == torch.arange(3)).sum(1).numpy()
            values = mean_average_precision(found.numpy(), objects)
            grid = torch.linspace(0, 1, 2001).tolist()  # of recall, over which COCO's evaluation takes a mean
            for value, iou in zip(values, IOUS, strict=True):
                metric = detection.MeanAveragePrecision(iou_thresholds=[iou], rec_thresholds=grid)
                for room, rows, of, classes in zip(found, boxes, *truth[:2], strict=True):
                    kept = room[:, 0] >= 0
                    metric.update(
                        [{"boxes": above(rows[kept]), "scores": room[kept, 0], "labels": room[kept, 1].long()}],
                        [{"boxes": above(of[classes >= 0]), "labels": classes[classes >= 0]}],
                    )
                assert value == pytest.approx(float(metric.compute()["map"]), abs=1e-3)
                assert 0 < value < 1

    def test_of_one_class(self) -> None:
        beliefs, right = np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 0, 1, 0])
        assert average_precision(beliefs, right, 4) == pytest.approx((1 + 2 / 3) / 4)
        assert average_precision(beliefs[:0], right[:0], 4) == 0


class TestMetrics:
    def test_exact_match_among_the_first(self) -> None:
        part, fields = task(), batch()
        out = SceneAnswers(torch.zeros(3, ANSWERS), proposals(), None)
        answers = fields.targets.argmax(1)
        order = [torch.randperm(ANSWERS, generator=torch.Generator().manual_seed(n)) for n in range(3)]
        for row, place in enumerate((0, 9, 10)):
            others = [int(a) for a in order[row] if a != answers[row]]
            ranked = [*others[:place], int(answers[row]), *others[place:]]
            out.answers[row, ranked] = -torch.arange(ANSWERS).float()
        columns = part.score(out, fields)
        assert columns["em1"].tolist() == [1, 0, 0]
        assert columns["em10"].tolist() == [1, 1, 0]
        assert columns["by_question_type"].tolist() == [0, 1, 0]
        assert columns["predicted"][0] == answers[0]
        right, targets = out.answers.sigmoid(), fields.targets
        losses = -(targets * right.log() + (1 - targets) * (1 - right).log()).sum(1)
        assert torch.allclose(columns["answer_loss"], losses)
        unknown = part.score(out, fields._replace(targets=fields.targets * 0))
        assert not unknown["em10"].any()
        assert next(iter(part.predict(out, fields)[0])) == f"answer {int(answers[0])}"

    def test_a_room_counts_once_and_the_names_are_rows(self) -> None:
        of_task = by_name(SceneQuestions.metrics(), "SceneQuestions")
        assert next(iter(of_task)) == "em1"
        assert all(METRICS.load(name) == metric for name, metric in of_task.items())
        part, once = task().eval().requires_grad_(False), batch()
        part.settle([part.columns(once)], "val")
        values, columns = dict(part.values), set(part.items)
        twice, precisions = once._replace(index=once.index + 3), {"map25", "map50"}
        part.settle([part.columns(once), part.columns(twice)], "val")
        assert part.values == pytest.approx(values)
        assert (
            part.items.keys()
            == columns
            == {*("index", "group"), *of_task, "predicted", "by_question_type"} - precisions
        )


def test_a_detector_s_run_is_chosen_by_detection() -> None:
    part = task(choose_by="map25")
    assert (part.primary.name, part.alone.name) == ("map25", "em1")
    assert task().primary.name == "em1"
    with pytest.raises(RecipeError, match=r"task\.choose_by"):
        task(choose_by="map50")


@pytest.mark.parametrize(
    "options", [{"weights": {"votes": 1.0}}, {"weights": {"vote": -1.0}}, {"total_weight": -1.0}, {"total_weight": 0}]
)
def test_weights_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"task\.weights"):
        task(**options)


def test_a_picture_shows_the_room_its_tokens_and_the_asker() -> None:
    part, fields = task(), batch()
    assert PICTURES.load(Rooms.things) is draw_room
    model = part.model
    layout, inputs = find_host(model).layout, part.inputs(fields)  # type: ignore[union-attr]
    at, seeds = layout.places(model, inputs)[1], layout.parts(model, inputs)[1]  # type: ignore[misc]
    assert torch.equal(seeds.isfinite().all(2).all(1), at.isfinite().all(1))
    every = model.detector(fields.points).seeds[1]
    assert all((every == seed).all(1).any() for seed in seeds[seeds.isfinite().all(2)])
    room = tree_map_only(Tensor, lambda values: values[1], part.shown(fields))
    answers = {"llm": part.predict(model(*part.inputs(fields)), fields)[1]}
    room.pose[3:] /= room.pose[3:].norm()
    truth = torch.arange(60) < 9
    maps = {"llm": {"W2": torch.rand(len(at))}, "plain": {"encoder": torch.rand(len(at))}}
    figure = draw_room(room, maps, None, {"llm": seeds, "plain": at}, truth, answers)
    assert len(figure.axes) == 2 * 3
    first, token_map = figure.axes[:2]
    assert [len(drawn.get_offsets()) for drawn in first.collections] == [60, 9]
    assert len(token_map.collections[1].get_offsets()) == int(seeds.isfinite().all(2).sum()) > 0
    coloured = figure.axes[5].collections[1]  # the encoder's map of the plain model: a point a token, in its own colour
    value, there = maps["plain"]["encoder"], at.isfinite().all(1)
    assert np.allclose(np.sort(coloured.get_array()), value[there].sort().values.numpy())
    assert len(first.patches) == 3  # its boxes
    *names, arrow = first.texts
    assert [name.get_text() for name in names] == [Rooms.class_names[n] for n in room.box_classes.tolist() if n >= 0]
    assert not any(text.get_text() for text in token_map.texts)
    tip = np.array(arrow.xy) - room.pose[:2].numpy()
    ahead = -rotation(room.pose[3:].double().numpy())[:2, 0]
    assert tip == pytest.approx(0.6 * ahead, abs=1e-4)
    title = figure.get_suptitle()
    assert title.split() == [Rooms.words[n] or "?" for n in [*room.situation.tolist(), *room.question.tolist()] if n]
    assert next(iter(answers["llm"])) in first.get_xlabel()
    without = draw_room(
        room._replace(pose=room.pose * torch.nan, points=room.points[:, :4]), maps, None, {"llm": at, "plain": at}
    )
    assert all(text.get_text() for text in without.axes[0].texts)
    with pytest.raises(ValueError, match="places"):
        draw_room(room, maps)


def rotation(turn: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """By q p q*, of a quaternion x, y, z, w of any length, which scales."""

    def times(p: Any, q: Any) -> Any:
        a, b = p[3], q[3]
        u, v = np.array(p[:3]), np.array(q[:3])
        return [*(a * v + b * u + np.cross(u, v)), a * b - u @ v]

    unit = turn / np.linalg.norm(turn)
    back = [*-unit[:3], unit[3]]
    return np.stack([np.array(times(times(unit, [*axis, 0.0]), back))[:3] for axis in np.eye(3)], 1)
