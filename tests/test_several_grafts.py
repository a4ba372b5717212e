"""Several grafts in a model: in one encoder, in several, between two of them; and calls of several inputs."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lmgraft
from lmgraft.contracts import Host, Reads, TokenLayout
from lmgraft.errors import BlockError, CheckpointError, HostError
from lmgraft.graft import find_graft, find_grafts
from lmgraft.graft.export import export_onnx, export_program
from lmgraft.registry import HOSTS
from lmgraft.training.optim import OptimConfig, make_optimizer
from tiny import calls_of, images, make_vit, random_block, randomise_, relative_error

X = images()


class TwoEncoders(nn.Module):
    """Two encoders and a linear layer between them, on tokens: no class of this module is known to lmgraft."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder_a = make_vit(depth=2)
        self.encoder_b = randomise_(make_vit(depth=2, embed_dim=24), seed=9).eval()
        self.adapter = randomise_(nn.Linear(48, 24), seed=4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        bridged = self.adapter(self.encoder_a.forward_features(a)).mean(1)
        return self.encoder_a(a) + self.encoder_b(b) + bridged[:, :7]


class Padded(nn.Module):
    """Tokens (B, T, 16) and a padding mask; the head reads the tokens that the call names."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(2)])
        self.head = nn.Linear(16, 3)
        randomise_(self, seed=6).eval()

    def forward(self, tokens: Tensor, padded: Tensor, first: int = 1) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=padded)
        return self.head(tokens[:, :first])


def reads_of_padded(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    return slice(0, kwargs.get("first", 1))


def padding_of_padded(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    mask: Tensor = kwargs["src_key_padding_mask"]
    # nn.MultiheadAttention's fast path turns bool into numbers that are added to the scores.
    return mask if mask.dtype == torch.bool else mask < 0


def describe_padded(model: Padded) -> Host:
    return Host(embed_dim=16, layers=("layers.0", "layers.1"), reads=reads_of_padded, padding_mask=padding_of_padded)


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    row = {f"{Padded.__module__}.{Padded.__qualname__}": f"{__name__}:describe_padded"}
    monkeypatch.setattr(HOSTS, "_rows", {**HOSTS._rows, **row})
    return Padded()


def tokens_and_mask(batch: int = 3) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(batch, 6, dtype=torch.bool)
    mask[0, 4:] = True
    return torch.randn(batch, 6, 16, generator=torch.Generator().manual_seed(8)), mask


def two_in_one(form: str = "auto", dtype: torch.dtype = torch.float32) -> nn.Module:
    model = make_vit().to(dtype)
    for at in (0, "tail"):
        torch.manual_seed(1)
        lmgraft.graft(model, random_block(), at=at, form=form)
    return model


class TestInOneEncoder:
    def test_what_is_computed(self) -> None:
        model = two_in_one(dtype=torch.float64)
        assert list(find_grafts(model)) == ["graft", "graft_2"]
        x = X.double()
        plain = copy.deepcopy(model)
        lmgraft.ungraft(plain)
        tokens = plain.norm_pre(plain.patch_drop(plain._pos_embed(plain.patch_embed(x))))
        for index, layer in enumerate(plain.blocks):
            tokens = layer(tokens)
            inserted = {0: model.graft, 2: model.graft_2}.get(index)
            if inserted is not None:
                tokens = inserted.mapper_out(inserted.block(inserted.mapper_in(tokens)))
        assert relative_error(model(x), plain.head(plain.norm(tokens)[:, 0])) <= 1e-12
        assert relative_error(model.forward_features(x), plain.norm(tokens)) <= 1e-12

    def test_each_reads_what_it_may(self) -> None:
        model = two_in_one()
        seen = [calls_of(inserted) for inserted in find_grafts(model).values()]
        model(X)
        assert [calls[0][1].shape[1] for calls in seen] == [17, 1]

    def test_taken_out_one_by_one(self) -> None:
        model, plain = two_in_one(), make_vit()
        with pytest.raises(HostError, match="grafted already"):
            lmgraft.graft(model, random_block(), at=2)
        with pytest.raises(HostError, match="not grafted at 1"):
            lmgraft.ungraft(model, at=1)
        lmgraft.ungraft(model, at="blocks.0")
        assert list(find_grafts(model)) == ["graft_2"]
        expected = make_vit()
        torch.manual_seed(1)
        lmgraft.graft(expected, random_block())
        assert torch.equal(model(X), expected(X))
        lmgraft.ungraft(model, at="tail")
        assert torch.equal(model(X), plain(X))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    def test_copies_and_errors_keep_frames_apart(self) -> None:
        model = two_in_one()
        with pytest.raises(RuntimeError):
            model(torch.zeros(2, 4, 32, 32))
        expected = model(X)
        assert torch.equal(copy.deepcopy(model)(X), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(X), expected)  # noqa: S301 - our own bytes
        assert relative_error(expected, two_in_one("dense")(X)) <= 1e-5

    def test_reading(self) -> None:
        model = two_in_one()
        with lmgraft.reading_all_tokens(model):
            assert relative_error(model(X), two_in_one("dense")(X)) <= 1e-5
        everything = model.forward_features(X)
        model.head, model.pool = nn.Identity(), lambda tokens, **_: tokens
        with lmgraft.reading(model, torch.tensor([3, 5])):  # only the last may leave tokens unread
            assert relative_error(model(X), everything[:, [3, 5]]) <= 1e-5

    @pytest.mark.parametrize("shared", [False, True])
    def test_saving(self, llama_folder: Path, tmp_path: Path, shared: bool) -> None:
        model = make_vit()
        block = lmgraft.load_block(str(llama_folder), 0)
        lmgraft.graft(model, block, at="head", residual="gated")
        lmgraft.graft(model, block if shared else str(llama_folder), at="tail", train_block="norms")
        model.graft.gate.data.fill_(0.5)
        folder = lmgraft.save_pretrained(model, tmp_path)
        grafted = copy.deepcopy(model)
        for parameter in (p for p in grafted.parameters() if p.requires_grad):
            parameter.data.zero_()
        for host in (randomise_(make_vit(), seed=7), grafted):
            loaded = lmgraft.load_pretrained(folder, host)
            assert torch.equal(loaded(X), model(X))
            assert [g.config for g in find_grafts(loaded).values()] == [g.config for g in find_grafts(model).values()]
        with pytest.raises(CheckpointError, match="grafted at graft "):
            lmgraft.load_pretrained(folder, lmgraft.graft(make_vit(), block))

    def test_a_block_that_differs_leaves_the_model_plain(self, llama_folder: Path, tmp_path: Path) -> None:
        model = lmgraft.graft(lmgraft.graft(make_vit(), random_block(), at=0), random_block(layers=2))
        folder, host = lmgraft.save_pretrained(model, tmp_path), make_vit()
        with pytest.raises(BlockError):
            lmgraft.load_pretrained(folder, host, {"graft": random_block(), "graft_2": str(llama_folder)})
        assert not find_grafts(host)
        lmgraft.load_pretrained(folder, host, {"graft": random_block(), "graft_2": random_block(layers=2)})
        assert torch.equal(host(X), model(X))

    def test_a_trained_block_is_one_grafts_own(self) -> None:
        block = lmgraft.graft(make_vit(), random_block(), train_block="all").graft.block
        model = lmgraft.graft(make_vit(), block, at=0)
        with pytest.raises(HostError, match="another graft"):
            lmgraft.graft(model, block)
        lmgraft.graft(model, copy.deepcopy(block))

    def test_approximate_and_exact(self) -> None:
        model = two_in_one().requires_grad_(False)
        before = model(X)
        report = lmgraft.approximate(model, X, repeats=1)
        assert [g.compute.approximation.mode for g in find_grafts(model).values()] == ["int8", "int8"]
        assert relative_error(model(X), before) == pytest.approx(report.output_error, rel=1e-3)
        assert torch.equal(lmgraft.exact(model)(X), before)

    @pytest.mark.long
    def test_export_and_compile(self) -> None:
        model = two_in_one()
        assert relative_error(export_program(model, X).module()(images(3)), model(images(3))) <= 1e-5
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        with torch.no_grad(), lmgraft.baked(model):
            assert relative_error(compiled(X), model(X)) <= 1e-5

    def test_optimiser_groups(self) -> None:
        model = two_in_one()
        groups = make_optimizer(model, OptimConfig(lr=1.0, mapper_lr=3.0)).param_groups
        scaled = {id(p) for group in groups if group["lr"] == 3.0 for p in group["params"]}
        mappers = [m.weight for g in find_grafts(model).values() for m in (g.mapper_in, g.mapper_out)]
        assert scaled == {id(p) for p in mappers}


class TestTwoEncoders:
    def grafted(self) -> TwoEncoders:
        model = TwoEncoders()
        torch.manual_seed(2)
        lmgraft.graft(model.encoder_a, random_block())
        lmgraft.graft(model.encoder_b, random_block(), at="middle")
        lmgraft.graft(model, random_block(), at="adapter", host_spec={"embed_dim": 24})
        return model

    def test_each_encoder_as_by_itself(self) -> None:
        model = self.grafted()
        assert set(find_grafts(model)) == {"graft", "encoder_a.graft", "encoder_b.graft"}
        assert find_graft(model, "encoder_b.blocks.0") is model.encoder_b.graft
        assert find_graft(model, "adapter") is model.graft
        seen = calls_of(model.encoder_a.graft)
        out = model(X, X)
        assert [y.shape[1] for _, y in seen] == [17, 1]  # forward_features, then the whole model
        plain = copy.deepcopy(model)
        lmgraft.ungraft(plain, "adapter")
        bridged = model.graft(plain.adapter(plain.encoder_a.forward_features(X))).mean(1)
        expected = plain.encoder_a(X) + plain.encoder_b(X) + bridged[:, :7]
        assert relative_error(out, expected) <= 1e-5
        assert not find_grafts(lmgraft.ungraft(plain))

    def test_saved_from_the_model_around(self, tmp_path: Path) -> None:
        model = self.grafted()
        folder = lmgraft.save_pretrained(model, tmp_path)
        assert json.loads((folder / "lmgraft.json").read_text())["format"] == 2
        loaded = lmgraft.load_pretrained(folder, TwoEncoders(), random_block())
        assert torch.equal(loaded(X, X), model(X, X))
        lmgraft.ungraft(loaded, "encoder_a.graft")
        assert torch.equal(lmgraft.load_pretrained(folder, lmgraft.ungraft(loaded), random_block())(X, X), model(X, X))
        for_root = lmgraft.save_pretrained(lmgraft.ungraft(model, "adapter"), tmp_path / "inside")
        for saved in (folder, for_root):
            with pytest.raises(HostError, match="how to build"):
                lmgraft.load_pretrained(saved)
        with pytest.raises(CheckpointError, match="where a graft was saved"):
            lmgraft.load_pretrained(folder, make_vit(), random_block())

    @pytest.mark.parametrize("path", [None, "forward", "encoder_a.graft", "graft.graft_x", 3])
    def test_a_record_with_a_bad_path(self, tmp_path: Path, path: Any) -> None:
        file = lmgraft.save_pretrained(self.grafted(), tmp_path) / "lmgraft.json"
        record = json.loads(file.read_text())
        record["grafts"][-1]["path"] = path if path != "encoder_a.graft" else record["grafts"][0]["path"]
        file.write_text(json.dumps(record))
        with pytest.raises(CheckpointError, match="path"):
            lmgraft.load_pretrained(tmp_path, TwoEncoders(), random_block())

    def test_a_layer_by_its_path_in_the_model_around(self) -> None:
        model = lmgraft.graft(TwoEncoders(), random_block(), at="encoder_b.blocks.1")
        assert model.graft.mapper_in.in_features == 24
        assert model.graft.host.mapper_init == "trunc_normal"
        with pytest.raises(HostError, match="grafted already"):
            lmgraft.graft(model.encoder_b, random_block())
        inside = TwoEncoders()
        lmgraft.graft(inside.encoder_b, random_block())
        inside.encoder_b.graft.load_state_dict(model.graft.state_dict())
        assert relative_error(model(X, X), inside(X, X)) <= 1e-5

    def test_reads_of_several_encoders_are_named(self) -> None:
        model = self.grafted()
        with pytest.raises(HostError, match="could leave"), lmgraft.reading(model, 0):
            pass
        with lmgraft.reading(model.encoder_a, 0):
            assert relative_error(model.encoder_a(X), self.grafted().encoder_a(X)) <= 1e-6

    @pytest.mark.long
    def test_approximate_and_export(self) -> None:
        model = self.grafted().requires_grad_(False)
        report = lmgraft.approximate(model, (X, X), repeats=1)
        assert 0 < report.output_error < 0.1
        program = export_program(model, (X, X)).module()
        assert relative_error(program(images(3), images(3)), lmgraft.exact(model)(images(3), images(3))) <= 1e-5


class TestCalls:
    def test_reads_depend_on_the_call(self, padded: nn.Module) -> None:
        model = lmgraft.graft(padded, random_block())
        seen = calls_of(model.graft)
        tokens, mask = tokens_and_mask()
        with torch.no_grad():
            model(tokens, mask)
            four = model(tokens, mask, first=4)
            assert [y.shape[1] for _, y in seen] == [1, 4]
            with lmgraft.reading_all_tokens(model):
                assert relative_error(four, model(tokens, mask, first=4)) <= 1e-5
        lmgraft.graft(model, random_block(), at=0, form="dense")
        tokens[0, 4:] = 99.0  # padded ones count for nothing
        assert relative_error(model(tokens, mask), model(tokens_and_mask()[0], mask)) <= 1e-5

    def test_tokens_and_padding_mask(self, padded: nn.Module) -> None:
        model = lmgraft.graft(padded, random_block()).requires_grad_(False)
        expected = model(*tokens_and_mask(5))
        assert 0 < lmgraft.approximate(model, tokens_and_mask(), repeats=1).output_error < 0.1
        lmgraft.exact(model)
        program = export_program(model, tokens_and_mask(1)).module()
        assert relative_error(program(*tokens_and_mask(5)), expected) <= 1e-5

    @pytest.mark.long
    @pytest.mark.slow
    def test_onnx_of_tokens_and_padding_mask(self, padded: nn.Module, tmp_path: Path) -> None:
        model = lmgraft.graft(padded, random_block())
        report = export_onnx(model, tokens_and_mask(), tmp_path / "padded.onnx")  # compares with the model
        assert report.inputs == (("batch", 6, 16), ("batch", 6))

    def test_places_of_tokens(self) -> None:
        layout = TokenLayout(places=_first_three)
        points = torch.rand(2, 9, 6)
        assert layout.places is not None
        assert torch.equal(layout.places(nn.Identity(), (points,)), points[..., :3])


def _first_three(model: nn.Module, args: tuple[Any, ...]) -> Tensor:
    points: Tensor = args[0]
    return points[..., :3]
