"""Reads given at the call or in the config, and the learnable read token."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import lmgraft
from lmgraft.contracts import MeanOf, Reads, count_tokens, take_tokens
from lmgraft.errors import HostError
from lmgraft.graft.config import GraftConfig, parse_reads, plain_reads
from tiny import calls_of, images, make_vit, random_block, randomise_, relative_error

EVERY_READS = [0, -1, slice(1, None), slice(None, 4, 2), (3, 1), torch.tensor([2, -1]), torch.tensor([[0, 5], [-2, 3]])]


CONFIG_READS = [None, 0, -1, (1, 2), slice(1, None), slice(None, -1), slice(0, 8, 2), MeanOf(slice(1, None))]


class Agents(nn.Module):
    """Scenes of agents: encoder layers, then a head on whatever tokens arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(timm.layers.Mlp(24) for _ in range(2))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture
def scenes() -> Tensor:
    return torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(1))


def make_agents(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = randomise_(Agents(), seed=4)
    lmgraft.graft(model, random_block(), at="layers.1", host_spec={"embed_dim": 24}, **options)
    return model


def scenes_in(model: nn.Module, scenes: Tensor) -> Tensor:
    """What arrives at the graft."""
    seen = calls_of(model.graft)
    model(scenes)
    tokens: Tensor = seen[-1][0]
    return tokens


class TestReading:
    @pytest.mark.parametrize("reads", EVERY_READS, ids=str)
    @pytest.mark.parametrize("residual", ["none", "out", "in", "gated"])
    def test_equals_those_rows_of_all(self, scenes: Tensor, reads: Reads, residual: Any) -> None:
        model = make_agents(residual=residual)
        whole = model(scenes)
        with lmgraft.reading(model, reads):
            found = model(scenes)
        assert found.shape[1] == count_tokens(9, reads)
        assert relative_error(found, take_tokens(whole, reads)) < 1e-5
        assert torch.equal(model(scenes), whole)

    @pytest.mark.parametrize("reads", EVERY_READS[:-1], ids=str)
    def test_said_once_for_all_calls(self, scenes: Tensor, reads: Reads) -> None:
        model, whole = make_agents(reads=reads), make_agents()(scenes)
        assert relative_error(model(scenes), take_tokens(whole, reads)) < 1e-5
        with lmgraft.reading_all_tokens(model):
            assert relative_error(model(scenes), whole) < 1e-5
        for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own bytes
            assert torch.equal(clone(scenes), model(scenes))

    def test_innermost_counts(self, scenes: Tensor) -> None:
        model = make_agents(reads=(0, 1))
        with lmgraft.reading(model, 3):
            with lmgraft.reading(model, slice(0, 3)):
                assert model(scenes).shape[1] == 3
            assert model(scenes).shape[1] == 1
        assert model(scenes).shape[1] == 2

    def test_gradients_of_the_target_agent(self, scenes: Tensor) -> None:
        model, targets = make_agents(), torch.tensor([[4], [7]])
        whole = model(scenes)[torch.arange(2), targets[:, 0]]
        expected = torch.autograd.grad(whole.square().sum(), [p for p in model.parameters() if p.requires_grad])
        with lmgraft.reading(model, targets):
            found = model(scenes)
        grads = torch.autograd.grad(found.square().sum(), [p for p in model.parameters() if p.requires_grad])
        assert all(relative_error(a, b) < 1e-5 for a, b in zip(grads, expected, strict=True))

    def test_a_classifier(self) -> None:
        model = lmgraft.graft(make_vit(), random_block())
        with lmgraft.reading(model, (0, 5)):
            assert relative_error(model(images()), model(images())) < 1e-5  # the head takes the first

    def test_features_are_of_every_token(self) -> None:
        model = lmgraft.graft(make_vit(), random_block())
        expected = model.forward_features(images())
        with lmgraft.reading(model, 3):
            assert torch.equal(model.forward_features(images()), expected)
            assert model.forward_intermediates(images(), output_fmt="NLC")[0].shape[1] == 17

    @pytest.mark.long
    def test_compiled(self, scenes: Tensor) -> None:
        model = make_agents()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for reads in (None, 2, torch.tensor([[4], [7]]), torch.tensor([[1], [0]])):
            with lmgraft.reading(model, reads):
                assert relative_error(compiled(scenes), model(scenes)) < 1e-5
                assert compiled(scenes).shape[1] == count_tokens(9, reads)

    def test_nothing_after_an_error(self, scenes: Tensor) -> None:
        model = make_agents()
        with pytest.raises(HostError, match="reads=9 of 9 tokens"), lmgraft.reading(model, 9):
            model(scenes)
        assert model(scenes).shape[1] == 9

    def test_another_number_of_samples(self, scenes: Tensor) -> None:
        model = make_agents()
        with (
            pytest.raises(IndexError, match="3 samples, but there are 2"),
            lmgraft.reading(model, torch.zeros(3, 1).long()),
        ):
            model(scenes)

    @pytest.mark.parametrize("reads", [torch.zeros(2), torch.tensor([True]), torch.zeros(1, 1, 1).long()], ids=str)
    def test_no_indices(self, reads: Tensor) -> None:
        with pytest.raises(HostError, match="give indices"), lmgraft.reading(make_agents(), reads):
            pass

    def test_where_layers_follow(self) -> None:
        model = lmgraft.graft(make_vit(), random_block(), at="middle")
        with pytest.raises(HostError, match="need every token"), lmgraft.reading(model, 0):
            pass
        with lmgraft.reading_all_tokens(model):
            assert model(images()).shape == (2, 7)


class TestConfig:
    @pytest.mark.parametrize(
        "reads", [None, 0, -1, (1, 2), slice(1, None), slice(None, -1), slice(0, 8, 2), MeanOf(slice(1, None))], ids=str
    )
    def test_there_and_back(self, reads: Any) -> None:
        assert parse_reads(plain_reads(reads)) == reads

    @pytest.mark.parametrize("text", ["", "1", "a:", "1:2:3:4", "0:4:0", "3:0:-1", "mean", "mean 1"])
    def test_no_slice(self, text: str) -> None:
        with pytest.raises(HostError, match="no slice"):
            GraftConfig(reads=text)

    def test_a_mean_of_all(self, scenes: Tensor) -> None:
        model = make_agents(reads=MeanOf())
        assert model.graft.config.reads == "mean :"
        assert (
            relative_error(model(scenes).mean(1), model.head(make_agents().graft(scenes_in(model, scenes)).mean(1)))
            < 1e-5
        )
        with pytest.raises(HostError, match="give a slice"):
            make_agents(reads=MeanOf((1, 2)))

    def test_by_sample_is_for_the_call(self) -> None:
        with pytest.raises(HostError, match=r"lmgraft\.reading"):
            make_agents(reads=torch.zeros(2, 1).long())

    def test_saved(self, scenes: Tensor, tmp_path: Any) -> None:
        model = make_agents(reads=slice(2, 5))
        lmgraft.save_pretrained(model, tmp_path)
        torch.manual_seed(1)
        again = lmgraft.load_pretrained(tmp_path, model=make_agents(reads=slice(2, 5)))
        assert torch.equal(again(scenes), model.eval()(scenes))


class TestReadToken:
    def by_hand(self, model: nn.Module, x: Tensor) -> Tensor:
        graft = model.graft
        tokens = torch.cat([x, graft.read_token.expand(x.shape[0], 1, -1)], dim=1)
        return graft.mapper_out(graft.block(graft.mapper_in(tokens))[:, -1:])

    @pytest.mark.parametrize("form", ["auto", "dense"])
    @pytest.mark.parametrize("residual", ["none", "out"])
    def test_every_token_gets_its_output(self, form: Any, residual: Any) -> None:
        model = lmgraft.graft(
            make_vit(global_pool="avg"), random_block(), read_token=True, form=form, residual=residual
        )
        encoder = lmgraft.ungraft(copy.deepcopy(model))
        encoder.norm = nn.Identity()
        x = encoder.forward_features(images())
        expected = self.by_hand(model, x).expand_as(x) + (x if residual == "out" else 0)
        model.norm = nn.Identity()
        features = model.forward_features(images())
        assert relative_error(features, expected) < 1e-5
        assert relative_error(model(images()), model.forward_head(expected)) < 1e-5

    def test_trains_and_is_saved(self, tmp_path: Any) -> None:
        model = lmgraft.graft(make_vit(global_pool="avg"), random_block(), read_token=True)
        model(images()).square().sum().backward()
        assert model.graft.read_token.grad.norm() > 0
        assert "graft.read_token" in model.state_dict()
        lmgraft.save_pretrained(model, tmp_path)
        plain = lmgraft.graft(make_vit(global_pool="avg"), random_block())
        with pytest.raises(lmgraft.errors.CheckpointError, match="read_token=False"):
            lmgraft.load_pretrained(tmp_path, model=plain)

    def test_padding(self, scenes: Tensor) -> None:
        graft = make_agents(read_token=True).graft
        mask = torch.zeros(2, 9, dtype=torch.bool)
        mask[:, 4:] = True
        assert relative_error(graft(scenes, mask), graft(scenes[:, :4]).repeat(1, 3, 1)[:, :9]) < 1e-5

    def test_one_token_is_computed(self) -> None:
        model = lmgraft.graft(make_vit(global_pool="avg"), random_block(), read_token=True)
        seen = calls_of(model.graft.block.layers[0].mlp)
        model(images())
        assert [out.shape[1] for _, out in seen] == [1]
