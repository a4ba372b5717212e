"""What is read is computed, exactly, and all of it is there when features are asked for."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lmgraft
from lmgraft.block import FrozenBlock
from lmgraft.contracts import MeanOf
from lmgraft.errors import HostError
from lmgraft.graft import reads as reads_module
from lmgraft.graft.hosts import find_host
from tiny import calls_of, images, make_vit, randomise_, relative_error

B, T, V = 2, 17, 48


def dense_twin(model: nn.Module) -> nn.Module:
    """A copy that computes every token and takes the rows afterwards."""
    twin = copy.deepcopy(model)
    twin.graft.config = replace(twin.graft.config, form="dense")
    return twin


def features_by_hand(model: nn.Module, x: Tensor) -> Tensor:
    """Every module called by name, without lmgraft's hooks: the reference of this file."""
    plain = copy.deepcopy(model)
    graft = plain.graft
    lmgraft.ungraft(plain)
    tokens = plain.norm_pre(plain.patch_drop(plain._pos_embed(plain.patch_embed(x))))
    for layer in plain.blocks:
        tokens = layer(tokens)
    return plain.norm(graft.mapper_out(graft.block(graft.mapper_in(tokens))))


class ReadsAll(VisionTransformer):
    """A user's own head that looks at every token."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x.amax(1))


class OwnPool(VisionTransformer):
    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        return x[:, -1]


SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": V, "depth": 3, "num_heads": 3, "num_classes": 7}

HOSTS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    # How to make it, and for how many tokens the graft must be computed in model(x).
    "token": (make_vit, 1),
    "avg": (lambda: make_vit(global_pool="avg"), T - 1),
    "no_class_token": (lambda: make_vit(class_token=False, global_pool="avg"), T - 1),
    "max": (lambda: make_vit(global_pool="max"), T),
    "avgmax": (lambda: make_vit(global_pool="avgmax"), T),
    "map": (lambda: make_vit(global_pool="map"), T),
    "no_pool": (lambda: make_vit(global_pool=""), T),
    "registers": (lambda: make_vit(reg_tokens=4), 1),
    "registers_avg": (lambda: make_vit(reg_tokens=4, global_pool="avg"), T - 1),
    "no_head": (lambda: make_vit(num_classes=0), 1),
    "distilled": (lambda: make_vit("deit_tiny_distilled_patch16_224"), 2),
    "own_head": (lambda: randomise_(ReadsAll(**SHAPE), seed=5).eval(), T),
    "own_pool": (lambda: randomise_(OwnPool(**SHAPE), seed=5).eval(), T),
}


@pytest.fixture
def model(tiny_vit: nn.Module, tiny_block: FrozenBlock) -> nn.Module:
    return lmgraft.graft(tiny_vit, tiny_block)


@pytest.fixture
def model_64(tiny_block: FrozenBlock) -> nn.Module:
    return lmgraft.graft(make_vit().double(), tiny_block)


X = images()
X_64 = images(dtype=torch.float64)


class TestWhatTheHeadSees:
    @pytest.mark.parametrize("name", HOSTS)
    def test_exactly_what_it_reads(self, name: str, tiny_block: FrozenBlock) -> None:
        make, rows = HOSTS[name]
        model = lmgraft.graft(make().double(), tiny_block)
        queries, normed = calls_of(model.graft.block.layers[0].mlp), calls_of(model.norm)
        out = model(X_64)
        assert [tuple(x.shape) for x, _ in queries] == [(B, rows, 32)]
        features = model.forward_features(X_64)
        averaged = isinstance(find_host(model).reads(model, (), {}), MeanOf)  # every token is then the mean
        assert normed[0][0].shape == (B, features.shape[1] if averaged else rows, V)
        assert features.shape[1] == find_host(model).layout.num_prefix_tokens + 16
        assert relative_error(features, features_by_hand(model, X_64)) <= 1e-12
        assert relative_error(out, model.forward_head(features)) <= 1e-12
        assert relative_error(dense_twin(model)(X_64), out) <= 1e-12

    def test_float32(self, model: nn.Module) -> None:
        out = model(X)
        assert relative_error(out, model.forward_head(features_by_hand(model, X))) <= 1e-5
        assert relative_error(out, dense_twin(model)(X)) <= 1e-5

    @pytest.mark.parametrize("batch", [1, 3])
    def test_one_patch(self, tiny_block: FrozenBlock, batch: int) -> None:
        model = lmgraft.graft(make_vit(img_size=8).double(), tiny_block)
        x = torch.randn(batch, 3, 8, 8, dtype=torch.float64)
        assert relative_error(model(x), model.head(features_by_hand(model, x)[:, 0])) <= 1e-12

    @pytest.mark.parametrize("residual", ["out", "in", "gated"])
    def test_residuals_use_the_same_rows(self, tiny_block: FrozenBlock, residual: Any) -> None:
        model = lmgraft.graft(make_vit().double(), tiny_block, residual=residual)
        if residual == "gated":
            nn.init.constant_(model.graft.gate, 0.4)
        assert relative_error(model(X_64), model.forward_head(model.forward_features(X_64))) <= 1e-12
        assert relative_error(model(X_64), dense_twin(model)(X_64)) <= 1e-12

    def test_distilled_in_training(self, tiny_block: FrozenBlock) -> None:
        model = lmgraft.graft(make_vit("deit_tiny_distilled_patch16_224").double(), tiny_block).train()
        model.set_distilled_training(True)
        pair = model(X_64)
        assert isinstance(pair, tuple)
        expected = model.forward_head(features_by_hand(model, X_64))
        for found, wanted in zip(pair, expected, strict=True):
            assert relative_error(found, wanted) <= 1e-12

    def test_a_head_replaced_on_the_instance(self, model_64: nn.Module) -> None:
        model_64.forward_head = lambda x: x[:, 1:].mean(1)
        assert relative_error(model_64(X_64), features_by_hand(model_64, X_64)[:, 1:].mean(1)) <= 1e-12

    def test_middle_layers_see_every_token(self, tiny_block: FrozenBlock) -> None:
        model = lmgraft.graft(make_vit(), tiny_block, at="middle")
        seen = calls_of(model.graft)
        model(X)
        assert [out.shape for _, out in seen] == [(B, T, V)]


class TestTheUsersWord:
    @pytest.mark.parametrize("reads", [0, (0,), -1, (0, 3, 5)])
    def test_reads_at_the_tail(self, tiny_block: FrozenBlock, reads: Any) -> None:
        model = lmgraft.graft(make_vit().double(), tiny_block, reads=reads)
        rows = [reads] if isinstance(reads, int) else list(reads)
        normed = calls_of(model.norm)
        out = model(X_64)
        assert normed[0][0].shape == (B, len(rows), V)
        assert relative_error(out, model.forward_head(features_by_hand(model, X_64)[:, rows])) <= 1e-12
        assert model.forward_features(X_64).shape == (B, T, V)

    @pytest.mark.parametrize("reads", [T, -T - 1, (0, T), (), slice(T, None), MeanOf(slice(T, None))])
    def test_tokens_that_are_not_there(self, tiny_block: FrozenBlock, reads: Any) -> None:
        model = lmgraft.graft(make_vit(), tiny_block, reads=reads)
        with pytest.raises(HostError, match=f"of {T} tokens"):
            model(X)

    @pytest.mark.parametrize("at", ["middle", "head", 0])
    def test_reads_where_more_layers_follow(self, tiny_vit: nn.Module, tiny_block: FrozenBlock, at: Any) -> None:
        with pytest.raises(HostError, match="reads=0 with at="):
            lmgraft.graft(tiny_vit, tiny_block, at=at, reads=0)


class TestAllTokens:
    def test_after_a_narrow_call(self, model_64: nn.Module) -> None:
        for _ in range(2):
            model_64(X_64)
            assert relative_error(model_64.forward_features(X_64), features_by_hand(model_64, X_64)) <= 1e-12

    @pytest.mark.parametrize("norm", [True, False])
    @pytest.mark.parametrize("indices", [None, 1, [0, 2], [1]])
    def test_forward_intermediates(self, model_64: nn.Module, norm: bool, indices: Any) -> None:
        plain = copy.deepcopy(model_64)
        before = features_by_hand(model_64, X_64)
        options = {"indices": indices, "norm": norm, "output_fmt": "NLC", "return_prefix_tokens": True}
        final, found = model_64.forward_intermediates(X_64, **options)
        assert relative_error(final, before) <= 1e-12
        _, expected = lmgraft.ungraft(plain).forward_intermediates(X_64, **options)
        taken = {None: [0, 1, 2], 1: [2]}.get(indices if not isinstance(indices, list) else "", indices)
        assert len(found) == len(expected) == len(taken)
        for layer, (patches, prefix), (plain_patches, plain_prefix) in zip(taken, found, expected, strict=True):
            assert patches.shape == (B, T - 1, V)
            assert prefix.shape == (B, 1, V)
            if layer == 2:  # the encoder's last layer is what comes out behind the graft
                assert relative_error(patches, plain_patches) > 1e-2
                if norm:
                    assert relative_error(torch.cat([prefix, patches], 1), before) <= 1e-12
            else:
                assert torch.equal(patches, plain_patches)
                assert torch.equal(prefix, plain_prefix)

    def test_stop_early_before_the_graft(self, model: nn.Module) -> None:
        (maps,) = model.forward_intermediates(X, indices=[0], stop_early=True, intermediates_only=True)
        assert maps.shape == (B, V, 4, 4)

    def test_attention_masks_reach_the_encoder(self, model_64: nn.Module) -> None:
        """timm calls its layers with `attn_mask=` then; the hook on the layer must not mind."""
        mask = torch.zeros(T, T, dtype=torch.float64)
        mask[:, -3:] = float("-inf")
        out = model_64(X_64, attn_mask=mask)
        features = model_64.forward_features(X_64, attn_mask=mask)
        assert features.shape == (B, T, V)
        assert relative_error(out, model_64.forward_head(features)) <= 1e-12
        assert relative_error(out, model_64(X_64)) > 1e-6

    def test_reading_all_tokens(self, model_64: nn.Module) -> None:
        narrow = model_64(X_64)
        normed = calls_of(model_64.norm)
        with lmgraft.reading_all_tokens(model_64):
            wide = model_64(X_64)
            with lmgraft.reading_all_tokens(model_64):
                model_64(X_64)
            model_64(X_64)
        model_64(X_64)
        assert [x.shape[1] for x, _ in normed] == [T, T, T, 1]
        assert relative_error(wide, narrow) <= 1e-12

    def test_reading_all_tokens_ends_with_an_error(self, model: nn.Module) -> None:
        with pytest.raises(RuntimeError, match="inside"), lmgraft.reading_all_tokens(model):
            raise RuntimeError("inside")
        normed = calls_of(model.norm)
        model(X)
        assert normed[0][0].shape[1] == 1

    def test_reading_all_tokens_of_a_plain_model(self, tiny_vit: nn.Module) -> None:
        with lmgraft.reading_all_tokens(tiny_vit):
            assert tiny_vit(X).shape == (B, 7)

    def test_reading_all_tokens_of_a_wrapped_model(self, model: nn.Module) -> None:
        wrapped = nn.Sequential(model, nn.Identity())
        normed = calls_of(model.norm)
        with lmgraft.reading_all_tokens(wrapped):
            wrapped(X)
        wrapped(X)
        assert [x.shape[1] for x, _ in normed] == [T, 1]

    def test_only_the_named_model(self, model: nn.Module, tiny_block: FrozenBlock) -> None:
        other = lmgraft.graft(make_vit(), tiny_block)
        mine, its = calls_of(model.norm), calls_of(other.norm)
        with lmgraft.reading_all_tokens(model):
            model(X)
            other(X)
        assert (mine[0][0].shape[1], its[0][0].shape[1]) == (T, 1)


class TestPoolingChanges:
    def test_there_and_back(self, model_64: nn.Module) -> None:
        """The head is asked at every call: nothing about it is stored when grafting."""
        normed = calls_of(model_64.norm)
        for pool, rows in (("avg", T), ("token", 1), ("max", T), ("", T), ("token", 1)):
            model_64.reset_classifier(5, global_pool=pool)
            randomise_(model_64.head, seed=2).double()
            normed.clear()
            out = model_64(X_64)
            assert normed[0][0].shape[1] == rows
            assert relative_error(out, model_64.forward_head(features_by_hand(model_64, X_64))) <= 1e-12
            assert relative_error(out, dense_twin(model_64)(X_64)) <= 1e-12

    def test_no_classes(self, model_64: nn.Module) -> None:
        model_64.reset_classifier(0)
        assert relative_error(model_64(X_64), features_by_hand(model_64, X_64)[:, 0]) <= 1e-12


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    assert {"graft.mapper_in.weight", "graft.mapper_out.weight", "patch_embed.proj.weight"} <= a.keys()
    for name, grad in a.items():
        if b[name].norm() > 0:
            assert relative_error(grad, b[name]) <= tolerance, name
        else:
            assert grad.norm() == 0, name


class TestGradients:
    def test_reach_both_mappers_and_the_patches(self, model: nn.Module) -> None:
        model(X).square().sum().backward()
        found = gradients(model)
        for name in ("graft.mapper_in.weight", "graft.mapper_out.weight", "patch_embed.proj.weight", "cls_token"):
            assert found[name].norm() > 0
        assert not any(n.startswith("graft.block.") for n in found)

    @pytest.mark.parametrize("name", ["token", "registers", "avg", "distilled"])
    def test_equal_those_of_the_dense_form(self, name: str, tiny_block: FrozenBlock) -> None:
        model = lmgraft.graft(HOSTS[name][0]().double(), tiny_block)
        dense = dense_twin(model)
        toward = torch.randn(B, 7, dtype=torch.float64)
        for each in (model, dense):
            (each(X_64) * toward).sum().backward()
        assert_same_gradients(gradients(model), gradients(dense), 1e-10)

    def test_equal_those_by_hand(self, model_64: nn.Module) -> None:
        toward = torch.randn(B, 7, dtype=torch.float64)
        x = X_64.clone().requires_grad_()
        (by_hand,) = torch.autograd.grad((model_64.head(features_by_hand(model_64, x)[:, 0]) * toward).sum(), x)
        (found,) = torch.autograd.grad((model_64(x) * toward).sum(), x)
        assert relative_error(found, by_hand) <= 1e-10


class TestGradientCheckpointing:
    """Encoder layers, and the graft behind the last, run again inside backward, outside the hooks."""

    def run(self, model: nn.Module, forwards: Callable[[nn.Module], Tensor], checkpointed: bool) -> dict[str, Tensor]:
        model.set_grad_checkpointing(checkpointed)
        forwards(model).backward()
        model.set_grad_checkpointing(False)
        return gradients(model)

    CASES: dict[str, Callable[[nn.Module], Tensor]] = {
        "model": lambda m: (m(X_64) * W).sum(),
        "features": lambda m: (m.forward_features(X_64) * W_ALL).sum(),
        "model_then_features": lambda m: (m(X_64) * W).sum() + (m.forward_features(X2_64) * W_ALL).sum(),
        "features_then_model": lambda m: (m.forward_features(X2_64) * W_ALL).sum() + (m(X_64) * W).sum(),
        "same_images_both_ways": lambda m: (m(X_64) * W).sum() + (m.forward_features(X_64) * W_ALL).sum(),
        "many": lambda m: sum(
            ((m(X_64) * W).sum() + (m.forward_features(X_64) * W_ALL).sum() for _ in range(3)), W[0, 0]
        ),
        "two_poolings": lambda m: two_poolings(m),
        "inside_then_outside": lambda m: inside_then_outside(m),
    }

    @pytest.mark.parametrize("case", CASES)
    def test_equal_those_without(self, model_64: nn.Module, case: str) -> None:
        model_64.train()
        without = self.run(model_64, self.CASES[case], checkpointed=False)
        with_it = self.run(model_64, self.CASES[case], checkpointed=True)
        assert_same_gradients(with_it, without, 1e-10)

    def test_it_really_recomputes(self, model_64: nn.Module) -> None:
        model_64.train().set_grad_checkpointing(True)
        seen = calls_of(model_64.graft.block.layers[0].mlp_norm)
        (model_64(X_64) * W).sum().backward()
        (model_64.forward_features(X_64) * W_ALL).sum().backward()
        assert [x.shape[1] for x, _ in seen] == [1, 1, T, T]

    def test_backward_while_all_tokens_are_read(self, model_64: nn.Module) -> None:
        model_64.train()
        (model_64(X_64) * W).sum().backward()
        expected = gradients(model_64)
        model_64.set_grad_checkpointing(True)
        loss = (model_64(X_64) * W).sum()
        with lmgraft.reading_all_tokens(model_64):
            loss.backward()
        assert_same_gradients(gradients(model_64), expected, 1e-10)

    def test_the_whole_model_checkpointed(self, model_64: nn.Module) -> None:
        """Here the recomputation passes through the model's own hooks."""
        model_64.train()
        (model_64(X_64) * W).sum().backward()
        expected = gradients(model_64)
        (checkpoint(model_64, X_64, use_reentrant=False) * W).sum().backward()
        assert_same_gradients(gradients(model_64), expected, 1e-10)

    def test_reentrant_checkpointing(self, model_64: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        model_64.train()
        x = X_64.clone().requires_grad_()
        ((model_64(x) * W).sum() + (model_64.forward_features(x) * W_ALL).sum()).backward()
        expected = gradients(model_64)
        monkeypatch.setattr("timm.models._manipulate.use_reentrant_ckpt", lambda: True)
        model_64.set_grad_checkpointing(True)
        ((model_64(x) * W).sum() + (model_64.forward_features(x) * W_ALL).sum()).backward()
        assert_same_gradients(gradients(model_64), expected, 1e-10)


X2_64 = images(seed=12, dtype=torch.float64)
W = torch.randn(B, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
W_ALL = torch.randn(B, T, V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def two_poolings(model: nn.Module) -> Tensor:
    first = (model(X_64) * W).sum()
    model.global_pool = "avg"
    second = (model(X_64) * W).sum()
    model.global_pool = "token"
    return first + second


def inside_then_outside(model: nn.Module) -> Tensor:
    with lmgraft.reading_all_tokens(model):
        inside = (model(X_64) * W).sum()
    return inside + (model(X2_64) * W).sum()


class Boom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ArithmeticError("boom")


class TestFrames:
    @pytest.mark.parametrize("where", ["head", "blocks.1", "norm", "patch_embed"])
    def test_an_error_leaves_none_behind(self, model_64: nn.Module, where: str) -> None:
        before = model_64(X_64)
        parent, _, name = where.rpartition(".")
        whole = model_64.get_submodule(where)
        setattr(model_64.get_submodule(parent), name, Boom())
        for _ in range(3):
            with pytest.raises(ArithmeticError, match="boom"):
                model_64(X_64)
        assert reads_module._frames.get() is None
        setattr(model_64.get_submodule(parent), name, whole)
        assert model_64.forward_features(X_64).shape == (B, T, V)
        assert torch.equal(model_64(X_64), before)

    def test_an_error_in_another_pre_hook(self, model: nn.Module) -> None:
        def boom(*_: object) -> None:
            raise ArithmeticError("boom")

        handle = model.register_forward_pre_hook(boom)
        with pytest.raises(ArithmeticError, match="boom"):
            model(X)
        handle.remove()
        assert reads_module._frames.get() is None
        assert model.forward_features(X).shape == (B, T, V)

    def test_a_call_leaves_none_behind(self, model: nn.Module) -> None:
        model(X)
        model.forward_features(X)
        assert reads_module._frames.get() is None

    def test_a_teacher_called_inside_the_students_forward(self, model: nn.Module, tiny_block: FrozenBlock) -> None:
        """Two grafts at once: each call is answered for its own model."""
        teacher = lmgraft.graft(make_vit(global_pool="avg"), tiny_block)
        seen: list[Tensor] = []
        model.blocks[0].register_forward_hook(lambda *_: seen.append(teacher(X)) or seen.append(features(teacher)))
        student_normed, teacher_normed = calls_of(model.norm), calls_of(teacher.norm)
        expected_teacher = teacher(X)
        out = model(X)
        assert torch.equal(seen[0], expected_teacher)
        assert seen[1].shape == (B, T, V)
        assert [x.shape[1] for x, _ in student_normed] == [1]
        assert [x.shape[1] for x, _ in teacher_normed] == [T, T, T]
        model.blocks[0]._forward_hooks.popitem()
        assert torch.equal(model(X), out)

    def test_a_copy_called_inside_the_originals_forward(self, model: nn.Module) -> None:
        """An EMA teacher is a deep copy; it is asked for features while the student classifies."""
        teacher = copy.deepcopy(model)
        seen: list[Tensor] = []
        model.blocks[0].register_forward_hook(lambda *_: seen.append(features(teacher)))
        normed = calls_of(model.norm)
        model(X)
        assert seen[0].shape == (B, T, V)
        assert normed[0][0].shape == (B, 1, V)

    def test_a_grafted_model_inside_another(self, tiny_block: FrozenBlock) -> None:
        inner = lmgraft.graft(make_vit().double(), tiny_block)
        outer = lmgraft.graft(make_vit().double(), tiny_block)
        outer.norm = nn.Sequential(outer.norm, Beside(inner))
        inner_normed, outer_normed = calls_of(inner.norm), calls_of(outer.norm[0])
        outer(X_64)
        outer.forward_features(X_64)
        assert [x.shape[1] for x, _ in inner_normed] == [1, 1]
        assert [x.shape[1] for x, _ in outer_normed] == [1, T]


def features(model: nn.Module) -> Tensor:
    return model.forward_features(X)


class Beside(nn.Module):
    """Calls another model and gives its own input back."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        self.other(X_64)
        return x


def test_two_threads(model_64: nn.Module) -> None:
    """One classifies while another asks for features: neither sees the other's reads."""
    logits, everything = model_64(X_64), model_64.forward_features(X_64)
    with lmgraft.reading_all_tokens(model_64):
        pass
    wrong: list[str] = []
    start = threading.Barrier(3)

    def repeat(what: str, call: Callable[[], Tensor], expected: Tensor) -> None:
        start.wait()
        for _ in range(40):
            try:
                found = call()
            except Exception as error:  # noqa: BLE001 - reported by the main thread
                wrong.append(f"{what}: {error!r}")
                return
            if found.shape != expected.shape or relative_error(found, expected) > 1e-12:
                wrong.append(f"{what}: {tuple(found.shape)}")

    def pinned() -> Tensor:
        with lmgraft.reading_all_tokens(model_64):
            return model_64(X_64)

    jobs = [
        ("model", lambda: model_64(X_64), logits),
        ("features", lambda: model_64.forward_features(X_64), everything),
        ("pinned", pinned, logits),
    ]
    threads = [threading.Thread(target=repeat, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Graphs:
    """A dynamo backend that keeps what it was given and runs it as it is."""

    def __init__(self) -> None:
        self.shapes: list[set[tuple[int, ...]]] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        values = [n.meta.get("example_value") for n in graph.graph.nodes]
        self.shapes.append({tuple(v.shape) for v in values if isinstance(v, Tensor)})
        return graph.forward


@pytest.fixture
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
class TestCompile:
    @pytest.mark.long
    def test_equals_eager(self, model: nn.Module) -> None:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert relative_error(compiled(X), model(X)) <= 1e-6
        # Eager calls of the same model are as before, and so is the compiled one after them.
        assert model.forward_features(X).shape == (B, T, V)
        assert relative_error(compiled(X), model(X)) <= 1e-6
        with lmgraft.reading_all_tokens(model):
            assert relative_error(compiled(X), model(X)) <= 1e-6
        model.reset_classifier(7, global_pool="avg")
        assert relative_error(compiled(X), model(X)) <= 1e-6
        assert relative_error(model(X), model.forward_head(model.forward_features(X))) <= 1e-6
        model.reset_classifier(7, global_pool="token")
        assert relative_error(compiled(X), model(X)) <= 1e-6

    def test_narrow_inside_the_trace_and_wide_when_asked(self, model: nn.Module) -> None:
        graphs = Graphs()
        compiled = torch.compile(model, backend=graphs, fullgraph=True)
        compiled(X)
        assert (B, 1, 32) in graphs.shapes[-1]
        with lmgraft.reading_all_tokens(model):
            compiled(X)
        assert len(graphs.shapes) == 2
        assert (B, 1, 32) not in graphs.shapes[-1]
        compiled(X)
        assert len(graphs.shapes) == 2  # the narrow trace still holds
        model.reset_classifier(7, global_pool="avg")
        compiled(X)
        assert (B, 1, 32) not in graphs.shapes[-1]

    @pytest.mark.long
    def test_features(self, model: nn.Module) -> None:
        compiled = torch.compile(model.forward_features, backend="aot_eager", fullgraph=True)
        assert relative_error(compiled(X), model.forward_features(X)) <= 1e-6
        assert model(X).shape == (B, 7)

    @pytest.mark.long
    def test_gradients(self, model: nn.Module) -> None:
        toward = torch.randn(B, 7)
        (model(X) * toward).sum().backward()
        expected = gradients(model)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        (compiled(X) * toward).sum().backward()
        assert_same_gradients(gradients(model), expected, 1e-5)

    def test_export(self, model: nn.Module) -> None:
        program = torch.export.export(model, (X,), strict=False)
        assert relative_error(program.module()(X), model(X)) <= 1e-6
        shapes = {tuple(n.meta["val"].shape) for n in program.graph.nodes if isinstance(n.meta.get("val"), Tensor)}
        assert (B, 1, 32) in shapes
        assert model.graft.read_state.traced is None
        assert model.forward_features(X).shape == (B, T, V)
        model.reset_classifier(7, global_pool="avg")
        program = torch.export.export(model, (X,), strict=False)
        assert relative_error(program.module()(X), model(X)) <= 1e-6

    def test_export_of_a_dynamic_batch(self, model: nn.Module) -> None:
        batch = torch.export.Dim("batch", min=2, max=8)
        program = torch.export.export(model, (X,), dynamic_shapes=({0: batch},), strict=False)
        more = images(5)
        assert relative_error(program.module()(more), model(more)) <= 1e-6


def test_this_timm_still_calls_forward_features(model: nn.Module) -> None:
    """The whole mechanism rests on it; a timm that does otherwise should be looked at."""
    assert timm.__version__
    called: list[bool] = []
    original = model.forward_features
    model.forward_features = lambda *a, **k: called.append(True) or original(*a, **k)
    model(X)
    assert called == [True]
