"""The random_frozen control keeps a block's shape and scale and nothing that it has learnt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import lmgraft
from lmgraft.block import FrozenBlock
from lmgraft.errors import BlockError
from lmgraft.graft.controls import apply_control, random_frozen
from tiny import random_block, randomise_, relative_error


def pairs(source: FrozenBlock, control: FrozenBlock) -> dict[str, tuple[Tensor, Tensor]]:
    return {n: (p.detach(), control.get_parameter(n).detach()) for n, p in source.named_parameters()}


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@pytest.fixture
def biased() -> FrozenBlock:
    return random_block(bias=True, layers=2, final_norm="pretrained")


def test_matrices_keep_their_frobenius_norm_only(biased: FrozenBlock) -> None:
    matrices = {n: ab for n, ab in pairs(biased, random_frozen(biased, seed=1)).items() if ab[0].dim() == 2}
    assert len(matrices) == 14
    for a, b in matrices.values():
        assert abs(b.double().norm() / a.double().norm() - 1) <= 1e-5
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.15
        # Gaussian: about 4.6 % of the values lie beyond two standard deviations.
        assert 0.02 < float((b.abs() > 2 * b.std()).float().mean()) < 0.08


def test_gains_are_constant_at_the_pretrained_rms(biased: FrozenBlock) -> None:
    gains = {n: ab for n, ab in pairs(biased, random_frozen(biased, seed=1)).items() if "norm" in n}
    assert len(gains) == 5
    for a, b in gains.values():
        assert b.unique().numel() == 1
        assert float(b[0]) == pytest.approx(rms(a), rel=1e-6)


def test_biases_are_zero(biased: FrozenBlock) -> None:
    biases = {n: ab for n, ab in pairs(biased, random_frozen(biased, seed=1)).items() if n.endswith("bias")}
    assert len(biases) == 14
    for a, b in biases.values():
        assert a.abs().sum() > 0
        assert b.abs().sum() == 0


def test_one_seed_one_block(biased: FrozenBlock) -> None:
    torch.manual_seed(1)
    first = random_frozen(biased, seed=4)
    torch.manual_seed(2)  # torch's generator has no part in it
    again = random_frozen(biased, seed=4)
    other = random_frozen(biased, seed=5)
    assert first.provenance == again.provenance
    assert first.provenance.digest != other.provenance.digest
    for a, b in pairs(first, other).values():
        assert a.dim() == 1 or relative_error(a, b) > 1.0


def test_every_tensor_has_its_own_draw(biased: FrozenBlock) -> None:
    control = random_frozen(biased, seed=0)
    gate, up = control.layers[0].mlp.gate.weight, control.layers[0].mlp.up.weight
    below = control.layers[1].mlp.gate.weight
    for a, b in ((gate, up), (gate, below)):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.15


def test_the_digest_is_the_same_on_every_machine() -> None:
    """A fixed number: if this fails, every recorded control is refused from now on."""
    block = random_block()
    quarters = {n: torch.full(shape, 0.25) for n, shape in block.config.tensor_shapes().items()}
    plain = FrozenBlock(block.config, [quarters], provenance=block.provenance)
    digest = "314cb8a50fd0710c0cc77990a4182327ffb5b030b4aeab5c89f1009288e4d4be"
    assert random_frozen(plain, seed=7).provenance.digest == digest


def test_provenance_records_the_control(tiny_block: FrozenBlock) -> None:
    said = random_frozen(tiny_block, seed=3).provenance
    assert said.control == {"kind": "random_frozen", "seed": 3, "of": tiny_block.provenance.digest, "stored": "float32"}
    assert said.digest != tiny_block.provenance.digest
    assert (said.source, said.layers, said.licence) == (
        tiny_block.provenance.source,
        tiny_block.provenance.layers,
        tiny_block.provenance.licence,
    )
    assert tiny_block.provenance.control is None


def test_the_source_is_left_alone(tiny_block: FrozenBlock) -> None:
    before = {n: p.detach().clone() for n, p in tiny_block.named_parameters()}
    control = random_frozen(tiny_block, seed=3)
    randomise_(control, seed=9)
    for name, p in tiny_block.named_parameters():
        assert torch.equal(p, before[name])
    assert not any(p.requires_grad for p in random_frozen(tiny_block, seed=3).parameters())


def test_final_norm_follows_the_source(llama_folder: Path) -> None:
    block = lmgraft.load_block(str(llama_folder), final_norm="pretrained")
    control = random_frozen(block, seed=0)
    assert control.final_norm.weight.unique().numel() == 1
    assert float(control.final_norm.weight[0]) == pytest.approx(rms(block.final_norm.weight.detach()), rel=1e-6)


def test_storage_follows_the_source(llama_folder: Path) -> None:
    wide = lmgraft.load_block(str(llama_folder))
    narrow = lmgraft.load_block(str(llama_folder), dtype="bfloat16")
    control = random_frozen(narrow, seed=0)
    assert {p.dtype for p in control.parameters()} == {torch.bfloat16}
    x = torch.randn(1, 3, 32)
    assert relative_error(control(x), random_frozen(wide, seed=0)(x)) <= 0.03


class TestApplyControl:
    def test_repeats_it(self, tiny_block: FrozenBlock) -> None:
        made = random_frozen(tiny_block, seed=3).provenance
        assert made.control is not None
        assert apply_control(tiny_block, made.control).provenance == made

    def test_refuses_another_block(self, tiny_block: FrozenBlock, llama_folder: Path) -> None:
        made = random_frozen(tiny_block, seed=3).provenance
        assert made.control is not None
        with pytest.raises(BlockError, match=f"made from block {tiny_block.provenance.digest[:12]}"):
            apply_control(lmgraft.load_block(str(llama_folder), 0), made.control)

    def test_refuses_an_unknown_kind(self, tiny_block: FrozenBlock) -> None:
        with pytest.raises(BlockError, match="control 'shuffled' is not known"):
            apply_control(tiny_block, {"kind": "shuffled", "seed": 0, "of": tiny_block.provenance.digest})
