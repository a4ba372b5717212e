"""The model of questions about rooms: its parts against plain loops, padding, rooms without objects, and as a host."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

import lmgraft
from lmgraft.analysis.observe import observe
from lmgraft.backbones.scene_qa import model as scene_qa
from lmgraft.backbones.scene_qa.create import create
from lmgraft.backbones.scene_qa.fusion import Attention, AttFlat, GuidedLayer, Norm, SelfLayer
from lmgraft.backbones.scene_qa.inputs import from_asker
from lmgraft.backbones.scene_qa.model import SceneQA
from lmgraft.backbones.scene_qa.point_net import Level, PointNet, SetAbstraction
from lmgraft.backbones.scene_qa.vote_net import Proposals
from lmgraft.backbones.scene_qa.words import TextEncoder, WordVectorWarning, read_word_vectors
from lmgraft.data.rooms.room import pose_of
from lmgraft.errors import ExportError, HostError, SourceError
from lmgraft.geometry.points import interpolate
from lmgraft.graft.export import export_onnx, export_torch
from lmgraft.graft.hosts import find_host
from tiny import random_block, randomise_, relative_error
from tiny_rooms import ARGUMENTS, MEAN_SIZES, OBJECTS, SIZES, inputs, make_scene_qa, rooms


def vector(x: Tensor, name: str, w: dict[str, Tensor]) -> Tensor:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def normed(x: Tensor, name: str, w: dict[str, Tensor]) -> Tensor:
    n = len(x)
    mean = sum(x) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in x) / (n - 1))
    return w[f"{name}.weight"] * (x - mean) / (deviation + 1e-6) + w[f"{name}.bias"]


ACTIVATIONS = {"relu": lambda x: x.clamp_min(0), "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2}


def attended(tokens: list[Tensor], source: list[Tensor], name: str, w: dict[str, Tensor], heads: int) -> list[Tensor]:
    """Token by token and head by head; nothing where there is no source."""
    if not source:
        return [torch.zeros_like(t) for t in tokens]
    q, k, v = (
        [vector(t, f"{name}.{part}", w) for t in of] for part, of in zip("qkv", (tokens, source, source), strict=True)
    )
    size = len(tokens[0]) // heads
    results = []
    for query in q:
        parts = []
        for h in range(heads):
            at = slice(h * size, (h + 1) * size)
            scores = torch.stack([query[at] @ key[at] / math.sqrt(size) for key in k]).softmax(0)
            parts.append(sum(share * value[at] for share, value in zip(scores, v, strict=True)))
        results.append(vector(torch.cat(parts), f"{name}.out", w))
    return results


def layer_by_loop(layer: SelfLayer, tokens: list[Tensor], guide: list[Tensor] | None, activation: str) -> list[Tensor]:
    w = layer.state_dict()
    heads, act = layer.attention.num_heads, ACTIVATIONS[activation]
    tokens = [
        normed(t + a, "norm1", w) for t, a in zip(tokens, attended(tokens, tokens, "attention", w, heads), strict=True)
    ]
    if guide is not None:
        around = attended(tokens, guide, "guided", w, heads)
        tokens = [normed(t + a, "norm_guided", w) for t, a in zip(tokens, around, strict=True)]
    return [normed(t + vector(act(vector(t, "mlp.0", w)), "mlp.3", w), "norm2", w) for t in tokens]


@pytest.mark.parametrize(("guided", "activation"), [(False, "gelu"), (True, "gelu"), (True, "relu")])
def test_fusion_layers_are_those_of_the_loop(guided: bool, activation: str) -> None:
    draw = torch.Generator().manual_seed(0)
    layer = randomise_((GuidedLayer if guided else SelfLayer)(8, 2, 0.5, activation), seed=1).eval()
    x, guide = torch.randn(3, 4, 8, generator=draw), torch.randn(3, 5, 8, generator=draw)
    padded, no_word = torch.arange(4) >= torch.tensor([[4], [2], [1]]), torch.arange(5) >= torch.tensor([[5], [3], [0]])
    out = layer(x, padded, guide, no_word) if guided else layer(x, padded)
    for b in range(3):
        words = list(guide[b, ~no_word[b]]) if guided else None
        expected = torch.stack(layer_by_loop(layer, list(x[b, ~padded[b]]), words, activation))
        assert relative_error(out[b, ~padded[b]], expected) < 1e-5


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_pooling_is_that_of_the_loop_and_zero_of_nothing(activation: str) -> None:
    pool, act = randomise_(AttFlat(6, 4, 5, 0.5, activation), seed=1).eval(), ACTIVATIONS[activation]
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    padded = torch.arange(4) >= torch.tensor([[4], [2], [0]])
    out, w = pool(x, padded), pool.state_dict()
    for b in range(2):
        tokens = list(x[b, ~padded[b]])
        scores = torch.stack([vector(act(vector(t, "scores.0", w)), "scores.3", w)[0] for t in tokens]).softmax(0)
        expected = vector(sum(s * t for s, t in zip(scores, tokens, strict=True)), "out", w)
        assert relative_error(out[b], expected) < 1e-5
    assert not out[2].any()
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not x.grad[2].any()


def test_attention_to_nothing_is_zero_and_norms_of_constants_have_a_gradient() -> None:
    attention, x = randomise_(Attention(8, 2, 0.0), seed=1), torch.randn(2, 3, 8).requires_grad_()
    out = attention(x, x, torch.ones(2, 3, dtype=torch.bool))
    assert not out.any()
    (out.sum() + randomise_(Norm(8), seed=2)(x * 0).square().sum()).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def unit_by_loop(x: Tensor, name: str, w: dict[str, Tensor]) -> Tensor:
    """A linear map, a batch norm in evaluation, and a ReLU, of one vector."""
    x = w[f"{name}.linear.weight"] @ x
    x = (x - w[f"{name}.norm.running_mean"]) / (w[f"{name}.norm.running_var"] + 1e-5).sqrt()
    return (x * w[f"{name}.norm.weight"] + w[f"{name}.norm.bias"]).relu()


def abstracted(level: SetAbstraction, points: Tensor, features: Tensor) -> tuple[Tensor, list[Tensor]]:
    """One cloud's centres and their features, point by point."""
    w, order = level.state_dict(), [0]
    while len(order) < level.centres:
        gaps = [min(float((p - points[c]).square().sum()) for c in order) for p in points]
        order.append(max(range(len(points)), key=gaps.__getitem__))
    results = []
    for c in order:
        inside = [i for i, p in enumerate(points) if (p - points[c]).norm() < level.radius][: level.samples]
        hidden = [torch.cat([(points[i] - points[c]) / level.radius, features[i]]) for i in inside]
        for name in ["first", *(f"rest.{n}" for n in range(len(level.rest)))]:
            hidden = [unit_by_loop(h, name, w) for h in hidden]
        results.append(torch.stack(hidden).max(0).values)
    return points[order], results


def test_the_point_net_is_that_of_the_loop() -> None:
    levels = [Level(9, 0.9, 4, (5, 6)), Level(6, 1.5, 3, (5, 7)), Level(4, 3.0, 3, (5, 8))]
    net = randomise_(PointNet(2, levels, 10), seed=1).eval()
    cloud = torch.randn(2, 20, 5, generator=torch.Generator().manual_seed(0))
    seeds, features, index = net(cloud)
    for b in range(2):
        points, values = cloud[b, :, :3], list(cloud[b, :, 3:])
        known = []
        for level in net.down:
            points, values = abstracted(level, points, torch.stack(values))
            known.append((points, torch.stack(values)))
        (_, _), (places, of_places), (coarse, of_coarse) = known
        joined = torch.cat([interpolate(of_coarse[None], coarse[None], places[None])[0], of_places], -1)
        w = net.up[0].state_dict()
        expected = torch.stack([unit_by_loop(unit_by_loop(row, "units.0", w), "units.1", w) for row in joined])
        assert torch.equal(seeds[b], places)
        assert torch.equal(cloud[b, index[b], :3], places)
        assert relative_error(features[b], expected) < 1e-5


def test_proposals_are_made_of_the_votes_around_them() -> None:
    detector = make_scene_qa().detector
    cloud = inputs()[0]
    out = detector(cloud)
    assert out.features.shape == (3, 7, 10)
    assert torch.equal(
        out.votes - out.seeds, (out.votes - cloud[..., :3].gather(1, out.seed_index[..., None].expand(-1, -1, 3)))
    )
    votes = out.votes.gather(1, out.gathered.flatten(1)[..., None].expand(-1, -1, 3)).view(3, 7, 3, 3)
    assert ((votes - out.bases.unsqueeze(2)).norm(dim=-1) < 0.5).all()
    boxes = out.boxes(detector.mean_sizes)
    best = int(out.size_scores[1, 2].argmax())
    size = torch.tensor(MEAN_SIZES[best]) * (1 + out.size_residuals[1, 2, best])
    assert torch.allclose(boxes[1, 2], torch.cat([out.centres[1, 2], size.clamp_min(0)]))


def with_proposals(model: SceneQA, proposals: Proposals) -> SceneQA:
    model.propose = Mock(return_value=proposals)  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("grafted", [False, True])
def test_what_is_no_object_or_no_word_never_changes_an_answer(grafted: bool) -> None:
    model, seen = make_scene_qa(), inputs()
    if grafted:
        torch.manual_seed(2)
        lmgraft.graft(model, random_block())
    with torch.no_grad():
        proposals = model.propose(seen[0])
        there = proposals.is_object
        assert there.any(1).all()
        assert not there.all(1).any()
        plain = model(*seen).answers
        noise = 9 * torch.randn(proposals.features.shape)
        other = proposals._replace(features=torch.where(there[..., None], proposals.features, noise))
        more = Proposals(*(torch.cat([part, part[:, :2]], 1) for part in other))
        more.objectness[:, -2:] = torch.tensor([1.0, 0.0])
        longer = [torch.cat([texts, torch.zeros(3, 4, dtype=torch.long)], 1) for texts in seen[1:]]
        assert relative_error(with_proposals(model, other)(*seen).answers, plain) < 1e-5
        assert relative_error(with_proposals(model, more)(*seen).answers, plain) < 1e-5
        assert relative_error(with_proposals(model, proposals)(seen[0], *longer).answers, plain) < 1e-5
        changed = proposals._replace(features=torch.where(there[..., None], noise, proposals.features))
        assert relative_error(with_proposals(model, changed)(*seen).answers, plain) > 1e-3


@pytest.mark.parametrize("grafted", [False, True])
def test_rooms_without_objects_and_no_texts_give_zero_attention_and_no_nan(grafted: bool) -> None:
    model, (points, situation, question) = make_scene_qa().train(), inputs()
    if grafted:
        lmgraft.graft(model, random_block())
    proposals = model.propose(points)
    proposals.objectness.data[0] = torch.tensor([1.0, 0.0])
    pooled: list[Tensor] = []
    model.pools["objects"].register_forward_hook(lambda *call: pooled.append(call[2]))
    out = with_proposals(model, proposals)(points, situation * 0, question[:, :0])
    assert not pooled[0][0].any()
    assert pooled[0][1].any()
    out.answers.square().sum().backward()
    assert out.answers.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_padding_behind_words_does_not_change_them() -> None:
    text = randomise_(TextEncoder(9, 5, 6, 0.3), seed=1).eval()
    ids = torch.tensor([[3, 4, 8, 0, 0], [5, 0, 0, 0, 0]])
    tokens, padded = text(ids)
    assert padded.tolist() == (ids == 0).tolist()
    for row, count in ((0, 3), (1, 1)):
        assert torch.allclose(text(ids[row : row + 1, :count])[0], tokens[row : row + 1, :count], atol=1e-6)


class TestHost:
    def test_a_graft_in_any_form_is_the_dense_one_and_goes_out_again(self) -> None:
        model, seen = make_scene_qa(), inputs()
        plain, grafts = model(*seen).answers, {}
        for form in ("dense", "auto"):
            torch.manual_seed(3)
            grafts[form] = lmgraft.graft(copy.deepcopy(model), random_block(dim=48, mlp_dim=24), form=form)
        out = {form: grafted(*seen).answers for form, grafted in grafts.items()}
        assert relative_error(out["auto"], out["dense"]) < 1e-5
        assert relative_error(out["dense"], plain) > 1e-2
        assert torch.equal(lmgraft.ungraft(grafts["auto"])(*seen).answers, plain)

    @pytest.mark.parametrize("at", ["head", "middle", 0])
    def test_other_places(self, at: str | int) -> None:
        model, seen = make_scene_qa(), inputs()
        plain = model(*seen).answers
        lmgraft.graft(model, random_block(), at=at)
        assert relative_error(model(*seen).answers, plain) > 1e-4

    def test_what_it_says_of_its_tokens(self) -> None:
        model, seen = make_scene_qa(), inputs()
        host, proposals = find_host(model), model.propose(seen[0])
        assert host is not None
        assert host.layers == ("by_situation.0", "by_situation.1", "by_question.0", "by_question.1")
        assert host.reads(model, seen, {}) is None
        noted = observe(model, *seen)
        assert noted.padded is not None
        counts = proposals.is_object.sum(1)
        most = int(counts.max())
        assert torch.equal(noted.padded, torch.arange(most) >= counts[:, None])
        assert noted.at["encoder"].tokens.shape == (3, most, 8)
        words = torch.arange(3, 3 + most).expand(3, -1)  # as many as tokens, whose attention is asked for
        of_proposals = observe(model, *seen[:2], words).attention["encoder"]
        assert not of_proposals.transpose(1, 2)[noted.padded].any()
        assert host.layout.places is not None
        places = host.layout.places(model, seen)
        assert torch.equal(places.isnan().any(-1), noted.padded)
        assert torch.equal(places[~noted.padded], proposals.centres[proposals.is_object])
        truth = torch.rand(3, 60, generator=torch.Generator().manual_seed(1)) < 0.4
        assert host.layout.shares is not None
        shares = host.layout.shares(model, seen, truth)
        for b in range(3):
            for token, p in enumerate(proposals.is_object[b].nonzero()[:, 0].tolist()):
                seeds = [truth[b, proposals.seed_index[b, s]] for s in proposals.gathered[b, p]]
                assert float(shares[b, token]) == pytest.approx(sum(map(float, seeds)) / 3)
        assert not model.training

    def test_saved_and_loaded(self, tmp_path: Path, llama_folder: Path) -> None:
        spec = {"factory": "scene_qa", "name": "scene_qa", "kwargs": ARGUMENTS | SIZES}
        model, seen = lmgraft.graft(make_scene_qa(), llama_folder, host_spec=spec), inputs()
        lmgraft.save_pretrained(model, tmp_path / "model")
        again = lmgraft.load_pretrained(tmp_path / "model").eval()
        assert torch.equal(again(*seen).answers, model(*seen).answers)


class TestGiven:
    OPTIONS: dict[str, Any] = {
        "num_features": 6,
        "given_objects": True,
        "object_features": False,
        "object_inputs": "asker",
        "detector": None,
    }

    def seen(self) -> tuple[dict[str, Tensor], Tensor]:
        """A batch, and its points with the object of each and its class."""
        fields = rooms()
        of = fields["point_box"]
        kinds = fields["box_classes"].gather(1, of.clamp_min(0)).masked_fill(of < 0, -1)
        return fields, torch.cat([fields["points"], of[..., None].float(), kinds[..., None].float()], -1)

    def test_objects_are_those_of_the_points(self) -> None:
        model = make_scene_qa(**self.OPTIONS)
        fields, points = self.seen()
        out = model.propose(points)
        told = model.input_embed.read(points, out, model.detector.mean_sizes, fields["pose"])
        assert scene_qa.objects_first(out.is_object)[1][-1].all()
        found = 0
        for b, of in enumerate(fields["point_box"]):
            assert out.is_object[b].nonzero()[:, 0].tolist() == sorted({n for n in of.tolist() if n >= 0})
            for number in range(OBJECTS):
                mine = (of == number).nonzero()[:, 0]
                if not len(mine):
                    continue
                found += 1
                places = points[b, mine, :3]
                low, high = places.amin(0), places.amax(0)
                box = out.boxes(model.detector.mean_sizes)[b, number]
                assert torch.allclose(box, torch.cat([(low + high) / 2, high - low]), atol=1e-5)
                assert out.gathered[b, number].tolist() == list(itertools.islice(itertools.cycle(mine.tolist()), 32))
                kind = int(fields["box_classes"][b, number])
                assert told["class"][b, number].argmax() == kind
                assert told["class"][b, number].max() > 1 - 1e-6
                mean = points[b, out.gathered[b, number], 3:7].mean(0)
                assert torch.allclose(told["seen"][b, number], 4 * mean, atol=1e-5)
                assert torch.allclose(
                    told["asker"][b, number], from_asker(box[None, None, :3], fields["pose"][b : b + 1])[0, 0]
                )
        assert found >= 4

    def test_an_answer_follows_from_objects_alone(self) -> None:
        model = make_scene_qa(**self.OPTIONS)
        fields, points = self.seen()
        texts = fields["situation"], fields["question"], fields["pose"]
        answers = model(points, *texts).answers
        other = points.clone()
        other[points[..., -2] < 0, :-2] += 1  # of no object
        assert torch.allclose(model(other, *texts).answers, answers, atol=1e-6)
        moved = points.clone()
        moved[0, points[0, :, -2] == 0, 0] += 1
        assert relative_error(model(moved, *texts).answers[0], answers[0]) > 1e-4
        nothing = points.clone()
        nothing[..., -2:] = -1
        assert model(nothing, *texts).answers.isfinite().all()
        assert not model.propose(nothing).is_object.any()

    def test_a_graft_and_its_tokens(self, tmp_path: Path, llama_folder: Path) -> None:
        spec = {"factory": "scene_qa", "name": "scene_qa", "kwargs": {**ARGUMENTS, **SIZES, **self.OPTIONS}}
        fields, points = self.seen()
        seen = points, fields["situation"], fields["question"], fields["pose"]
        model = lmgraft.graft(make_scene_qa(**self.OPTIONS), llama_folder, host_spec=spec).eval()
        lmgraft.save_pretrained(model, tmp_path / "model")
        again = lmgraft.load_pretrained(tmp_path / "model").eval()
        assert torch.equal(again(*seen).answers, model(*seen).answers)
        host = find_host(make_scene_qa(**self.OPTIONS))
        assert host is not None
        truth = fields["point_box"] == 1
        shares = host.layout.shares(model, seen, truth)
        order, padded = scene_qa.objects_first(model.propose(points).is_object)
        assert torch.equal(shares.nan_to_num(-1), (order == 1).float().masked_fill(padded, -1))

    @pytest.mark.parametrize(
        "options",
        [{"object_features": True}, {"object_inputs": "none"}, {"frozen": ["detector"]}, {"detector": {"width": 9}}],
    )
    def test_what_would_detect_is_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(HostError, match=r"data\.given_objects leaves nothing to detect"):
            make_scene_qa(**{**self.OPTIONS, **options})

    def test_points_without_objects_are_refused(self) -> None:
        with pytest.raises(HostError, match=r"data\.given_objects: true adds"):
            make_scene_qa(**{**self.OPTIONS, "num_features": 1})
        with pytest.raises(HostError, match="the last two a point's object and its class"):
            make_scene_qa(**self.OPTIONS).propose(rooms()["points"])


class TestLearning:
    @pytest.mark.parametrize("training", [False, True])
    def test_a_detector_that_learns_computes_equal_rooms_once(self, training: bool) -> None:
        model, points = make_scene_qa().train(training), inputs()[0]
        once = copy.deepcopy(model)
        asked: list[int] = []
        model.detector.register_forward_hook(lambda _, args, __: asked.append(len(args[0])))
        rows = torch.tensor([0, 0, 1, 2, 2, 2, 0])
        out = model.propose(points[rows])
        expected = once.detector(points)
        assert asked == [3]
        for name, ours, theirs in zip(out._fields, out, expected, strict=True):
            assert relative_error(ours, theirs[rows]) < 1e-4, name
        weights = torch.randn(out.votes.shape, generator=torch.Generator().manual_seed(0))
        (out.votes * weights).sum().backward()
        summed = torch.stack([weights[rows == room].sum(0) for room in range(3)])
        (expected.votes * summed).sum().backward()
        for ours, theirs in zip(model.detector.net.parameters(), once.detector.net.parameters(), strict=True):
            assert ours.grad is not None
            assert theirs.grad is not None
            assert relative_error(ours.grad, theirs.grad) < 1e-4

    def test_one_room_none_equal_and_rooms_that_are_only_alike(self) -> None:
        model, points = make_scene_qa(), inputs()[0]
        shuffled = points.clone()
        shuffled[0] = points[0].flip(0)  # the same numbers in all
        for seen in (points, points[:1], torch.cat([points, shuffled])):
            assert torch.allclose(model.propose(seen).features, model.detector(seen).features, atol=1e-5)


class TestFrozen:
    def test_a_frozen_detector_is_asked_once_for_each_room(self) -> None:
        model, seen = make_scene_qa(frozen=["detector"]).train(), inputs()
        assert not model.detector.training
        assert not any(p.requires_grad for p in model.detector.parameters())
        asked: list[int] = []
        model.detector.register_forward_hook(lambda _, args, __: asked.append(len(args[0])))
        twice = [torch.cat([x, x[:1]]) for x in seen]
        out = model.propose(twice[0])
        assert asked == [1, 1, 1]
        with torch.no_grad():
            expected = model.detector(twice[0])
        assert all(relative_error(a, b) < 1e-5 for a, b in zip(out, expected, strict=True) if a.is_floating_point())
        assert torch.equal(out.gathered, expected.gathered)
        assert torch.equal(model.propose(twice[0][2:]).features, out.features[2:])
        assert asked == [1, 1, 1, 4]
        model.propose(twice[0] + 1)
        assert asked == [1, 1, 1, 4, 1, 1, 1]

    def test_other_weights_are_asked_again(self) -> None:
        model, points = make_scene_qa(frozen=["detector"]), inputs()[0]
        before = model.propose(points).features
        state = {name: tensor * 2 for name, tensor in model.state_dict().items()}
        model.load_state_dict(state)
        after = model.propose(points).features
        assert not torch.equal(before, after)
        with torch.no_grad():
            assert relative_error(after, model.detector(points).features) < 1e-5
        randomise_(model, seed=9)
        assert not torch.equal(model.propose(points).features, after)

    def test_what_evaluation_keeps_serves_training(self) -> None:
        model = make_scene_qa(frozen=["detector"])
        with torch.inference_mode():
            seen = inputs()
            evaluated = model(*seen).answers
        out = model(*(x.clone() for x in seen)).answers
        assert relative_error(out, evaluated) < 1e-6
        out.sum().backward()
        assert model.object_embed[0].weight.grad is not None

    def test_another_precision_is_asked_again(self) -> None:
        model, points = make_scene_qa(frozen=["detector"]), inputs()[0]
        whole = model.propose(points)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.propose(points)
        assert not torch.equal(rough.features.float(), whole.features)
        assert torch.equal(model.propose(points).features, whole.features)

    def test_few_rooms_are_remembered(self) -> None:
        model, points = make_scene_qa(frozen=["detector"], remembered_rooms=2), inputs()[0]
        first = model.propose(points)
        assert len(model._memory._kept) == 2
        assert torch.equal(model.propose(points).features, first.features)
        assert not copy.deepcopy(model)._memory._kept

    def test_a_detector_of_another_run(self, tmp_path: Path) -> None:
        trained = make_scene_qa()
        file = tmp_path / "best.ckpt"
        torch.save({"state_dict": {f"model.{name}": t for name, t in trained.state_dict().items()}}, file)
        options = {**ARGUMENTS, **SIZES, "hidden": 16, "pretrained": {"detector": str(file)}}
        model = create("scene_qa", options).eval()
        points = inputs()[0]
        assert torch.equal(model.propose(points).features, trained.propose(points).features)
        with pytest.raises(HostError, match="shape"):
            create("scene_qa", options | {"detector": SIZES["detector"] | {"proposal_width": 11}})
        torch.save({"state_dict": {"model.head.0.weight": torch.zeros(1)}}, file)
        with pytest.raises(SourceError, match="lmgraft train rooms/furnished_detector"):
            create("scene_qa", options | {"pretrained": {"detector": str(tmp_path / "none.ckpt")}})
        with pytest.raises(HostError, match="no detector"):
            create("scene_qa", options)


@pytest.mark.parametrize("options", [{}, {"object_inputs": "room"}])
def test_what_is_no_object_in_any_room_is_not_computed(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    graft = lmgraft.graft(make_scene_qa(**options), random_block()).eval()
    seen = inputs()
    objects = graft.detector(seen[0]).is_object
    most = int(objects.sum(1).max())
    assert 0 < most < objects.shape[1]
    tokens: list[int] = []
    handle = graft.by_question[-1].register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[1]))
    few = graft(*seen)
    layout = find_host(make_scene_qa()).layout  # type: ignore[union-attr]
    assert layout.places(graft, seen).shape[1] == layout.parts(graft, seen).shape[1] == most  # type: ignore[misc]
    monkeypatch.setattr(scene_qa, "objects_first", every_token)
    every = graft(*seen)
    handle.remove()
    assert tokens == [most, objects.shape[1]]
    torch.testing.assert_close(few.answers, every.answers)


def every_token(is_object: Tensor) -> tuple[Tensor, Tensor]:
    return torch.arange(is_object.shape[1]).expand(is_object.shape), ~is_object


def test_tokens_are_told_where_objects_lie_and_what_colour_they_are() -> None:
    model, points = make_scene_qa(object_inputs="asker"), inputs()[0]
    proposals = model.detector(points)
    told = model.input_embed.read(points, proposals, model.detector.mean_sizes, None)
    assert torch.equal(told["box"], proposals.boxes(model.detector.mean_sizes))
    assert torch.equal(told["class"], proposals.classes.softmax(-1))
    seeds = points[1, proposals.seed_index[1, proposals.gathered[1, 2]], 3:]
    torch.testing.assert_close(told["seen"][1, 2], 4 * seeds.mean(0))
    assert not told["asker"].any()
    model.requires_grad_(True)
    again = model.input_embed.read(points, model.detector(points), model.detector.mean_sizes, None)
    assert not any(one.requires_grad for one in again.values())
    assert set(make_scene_qa(object_inputs="room").input_embed) == {"box", "class", "seen"}
    with pytest.raises(HostError, match="object_inputs='all'"):
        make_scene_qa(object_inputs="all")


def test_first_weights_keep_what_tokens_say() -> None:
    """By Xavier's gain of 1 a map keeps the variance of its inputs; PyTorch's own leaves a third."""

    def spread(model: SceneQA) -> list[float]:
        maps = [
            m for m in model.by_question.modules() if isinstance(m, torch.nn.Linear) and m.in_features == m.out_features
        ]
        return [
            m(torch.randn(400, m.in_features, generator=torch.Generator().manual_seed(0))).var().item() for m in maps
        ]

    sizes = {**ARGUMENTS, **SIZES, "hidden": 96, "num_heads": 4}
    torch.manual_seed(0)
    model = SceneQA(**sizes, init_gain=1.0, answer_prior=0.02, object_inputs="asker", object_features=False)
    torch.manual_seed(0)
    published = SceneQA(**sizes)
    assert np.mean(spread(model)) == pytest.approx(1, rel=0.1)
    assert np.mean(spread(published)) == pytest.approx(1 / 3, rel=0.1)
    pairs = zip(model.detector.parameters(), published.detector.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    answers = model.eval()(*inputs()).answers
    assert answers.sigmoid().mean().item() == pytest.approx(0.02, abs=0.02)
    assert model.object_embed is None
    assert "object_embed" not in find_host(model).embedding_paths
    assert "input_embed" in find_host(model).embedding_paths


@pytest.mark.parametrize("degrees", [0.0, 90.0, 200.0])
def test_places_from_the_asker(degrees: float) -> None:
    pose = torch.tensor(np.stack([pose_of((1.0, 2.0), degrees), np.full(7, np.nan)])).float()
    way = np.deg2rad(degrees)
    place = [1 + 3 * np.cos(way) - np.sin(way), 2 + 3 * np.sin(way) + np.cos(way), 0.5]  # 3 m ahead, 1 m to the left
    seen = from_asker(torch.tensor([[place], [place]]).float(), pose)
    torch.testing.assert_close(seen[0, 0], torch.tensor([3.0, 1.0, 10**0.5, 0.9**0.5, 0.1**0.5, 1.0]))
    assert not seen[1].any()


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_it_is_not_exported_and_says_so(ending: str, tmp_path: Path) -> None:
    write = {"onnx": export_onnx, "pt2": export_torch}[ending]
    with pytest.raises(ExportError, match=r"SceneQA is not exported: its LSTM"):
        write(make_scene_qa(), inputs(), tmp_path / f"model.{ending}")
    assert not list(tmp_path.iterdir())


class TestWords:
    WORDS = ("", "", "sofa", "left", "zzz")

    def write(self, path: Path, text: str) -> Path:
        path.write_text(text, encoding="utf-8")
        return path

    def test_of_glove(self, tmp_path: Path) -> None:
        file = self.write(tmp_path / "glove.txt", "the 9 9 9\nleft 1 2 3\nunk .5 .5 .5\nsofa -1 0 1\nan other 2 2 2\n")
        with pytest.warns(WordVectorWarning, match="lacks 1 of the 3 words, such as zzz"):
            table = read_word_vectors(file, self.WORDS)
        assert table.tolist() == [[0, 0, 0], [0.5] * 3, [-1, 0, 1], [1, 2, 3], [0.5] * 3]
        options = {**ARGUMENTS, **SIZES, "num_words": 5, "words": self.WORDS, "pretrained": {"words": str(file)}}
        with pytest.warns(WordVectorWarning):
            model = create("scene_qa", options | {"word_dim": 3, "frozen": ["words"]})
        assert torch.equal(model.text.words.weight, table)
        assert not model.text.words.weight.requires_grad
        with pytest.raises(HostError, match="word_dim to 3"), pytest.warns(WordVectorWarning):
            create("scene_qa", options)
        learnt = create("scene_qa", options | {"pretrained": {"words": None}})  # an optional key that is switched off
        assert learnt.text.words.weight.requires_grad
        with pytest.raises(HostError, match="words without vectors"):
            create("scene_qa", options | {"pretrained": None, "frozen": ["words"]})
        create("scene_qa", options | {"pretrained": False, "frozen": ["words"]})  # trained weights are loaded
        with pytest.raises(HostError, match="vectors for 5 words"):
            create("scene_qa", options | {"word_dim": 3, "words": None})

    def test_words_with_spaces_and_a_mark_at_the_beginning(self, tmp_path: Path) -> None:
        file = self.write(tmp_path / "glove.txt", "\ufeffleft 1 2 3\n. . . 4 5 6\nat name@x.org 7 8 9\nsofa 1 1 1\n")
        table = read_word_vectors(file, ("", "", "left", "sofa", ". . ."))
        assert table[2:].tolist() == [[1, 2, 3], [1, 1, 1], [4, 5, 6]]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("left 1 2 3\nsofa 1 2\n", "line 2"),
            ("the 1 2 3\n", "lacks 3 of the 3 words, such as sofa, left, zzz"),
            ("left 1 2 3\nthe 1 2 3\n", "lacks 2 of the 3"),  # as of a file that is cut
            ("sofa 1 x 3\n", "no word vectors"),
            ("400000 300\nleft 1 2 3\n", "line 1: 1 numbers"),
            ("the 1 2\nleft 1 2 3\n", "line 2: 3 numbers behind 'left', and 2"),
            ("left 1 nan 3\nsofa 1 2 3\n", "line 1: the vector of 'left' is not finite"),
        ],
    )
    def test_files_that_are_none(self, tmp_path: Path, text: str, words: str) -> None:
        with pytest.raises(HostError, match=words) as error:
            read_word_vectors(self.write(tmp_path / "glove.txt", text), self.WORDS)
        assert str(error.value).count("What to do") == 1
        with pytest.raises(HostError, match="nothing"):
            read_word_vectors(tmp_path / "nothing", self.WORDS)


def test_published_parameters_by_hand() -> None:
    """SQA3D's sizes with the paper's width of 768: 18 classes, 706 answers, 3,000 words."""
    with torch.device("meta"):
        model = create(
            "scene_qa", {"num_words": 3000, "num_answers": 706, "mean_sizes": [[1.0] * 3] * 18, "hidden": 768}
        )

    def through(*widths: int) -> int:
        return sum(a * b + 2 * b for a, b in itertools.pairwise(widths))

    levels = through(7, 64, 64, 128) + through(131, 128, 128, 256) + 2 * through(259, 128, 128, 256)
    net = levels + 2 * through(512, 256, 256)
    voting = through(256, 256, 256) + 256 * 259 + 259
    outputs = 2 + 3 + 2 + 4 * 18 + 18
    proposals = through(259, 128, 128, 128) + through(128, 128, 128) + 128 * outputs + outputs
    h = 768
    text = 3000 * 300 + 4 * (300 * h + h * h + 2 * h) + h * h + h
    layers = 4 * (12 * h * h + 13 * h) + 4 * (16 * h * h + 19 * h)
    pools = 3 * (256 * h + 256 + 257 + 512 * h + 512)
    head = 1536 * h + h + 706 * h + 706
    assert SceneQA.__init__.__kwdefaults__["activation"] == "gelu"
    counted = {
        "detector": net + voting + proposals,
        "text": text,
        "object_embed": 128 * h + h,
        "pools": pools,
        "head": head,
    }
    for name, count in counted.items():
        assert sum(p.numel() for p in model.get_submodule(name).parameters()) == count, name
    assert sum(p.numel() for p in model.parameters()) == sum(counted.values()) + layers == 75_484_425


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hiden": 3}, "refused its arguments"),
        ({"num_heads": 3}, "multiple of num_heads"),
        ({"activation": "silu"}, "one of gelu, relu"),
        ({"object_features": False}, "nothing tells objects apart"),
        ({"answer_prior": 1.0}, "above 0 and below 1"),
        ({"frozen": ["text"]}, "a list, of words and detector"),
        ({"frozen": "words"}, "a list, of words and detector"),
        ({"num_heads": 0}, r"backbone\.kwargs\.num_heads=0"),
        ({"drop_rate": 2}, r"kwargs\.drop_rate=2"),
        ({"init_gain": -1.0}, r"kwargs\.init_gain=-1"),
        ({"word_dim": 2.5}, "refused its arguments"),
        ({"mean_sizes": [[1.0, 0.0, 1.0]]}, "three sizes above 0"),
        ({"detector": {"proposals": 99}}, "99 proposals"),
        ({"detector": {"levels": [[9, 0.2]]}}, r"detector refused its arguments: not enough values"),
        ({"detector": {"levels": [[9, 0.2, 3, [3, 3]], [12, 0.4, 3, [3, 3]]]}}, "9, 12 centres"),
        ({"detector": {"wide": 3}}, "'wide'"),
        ({"detector": {"levels": [[9, -0.2, 3, [3, 3]]]}}, r"levels\[0\]"),
        ({"detector": {"width": 0}}, "above 0"),
        ({"pretrained": True}, "names no weights"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    detector = SIZES["detector"] | options.get("detector", {})
    with pytest.raises(HostError, match=words):
        create("scene_qa", {**ARGUMENTS, **SIZES, **options, "detector": detector})
    with pytest.raises(HostError, match="one of scene_qa"):
        create("scene_qb", {})


def test_points_that_are_none_are_refused() -> None:
    model, (points, *texts) = make_scene_qa(), inputs()
    with pytest.raises(HostError, match="4 features"):
        model(points[..., :6], *texts)
    with pytest.raises(HostError, match="19 points"):
        model(points[:, :19], *texts)
    assert rooms()["points"].shape == points.shape
