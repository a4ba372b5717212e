"""What each control keeps of the pretrained block and what it destroys; and what would be no control at all."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lmgraft
from lmgraft.block import FrozenBlock
from lmgraft.errors import BlockError
from lmgraft.graft.controls import (
    CONTROLS,
    _orthonormal,
    apply_control,
    philox,
    random_frozen,
    shuffled,
    singular_values,
    spectrum,
)
from tiny import images, make_vit, random_block, randomise_, relative_error


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
        with pytest.raises(BlockError, match="control 'rotated' is not known"):
            apply_control(tiny_block, {"kind": "rotated", "seed": 0, "of": tiny_block.provenance.digest})

    @pytest.mark.parametrize("kind", CONTROLS)
    def test_repeats_each(self, biased: FrozenBlock, kind: str) -> None:
        made = CONTROLS[kind](biased, 3)
        assert made.provenance.control is not None
        again = apply_control(biased, made.provenance.control)
        assert again.provenance == made.provenance
        x = torch.randn(2, 5, 32)
        assert torch.equal(again(x), made(x))

    @pytest.mark.parametrize("kind", CONTROLS)
    def test_comes_back_from_a_file(self, llama_folder: Path, tmp_path: Path, kind: str) -> None:
        """Stored narrow, with the pretrained final norm: digests are not those of the rounded values."""
        block = lmgraft.load_block(str(llama_folder), (1, 2), dtype="bfloat16", final_norm="pretrained")
        model = lmgraft.graft(make_vit(), CONTROLS[kind](block, 3)).eval()
        folder = lmgraft.save_pretrained(model, tmp_path)
        loaded = lmgraft.load_pretrained(folder, randomise_(make_vit(), seed=7))
        assert loaded.graft.block.provenance == model.graft.block.provenance
        assert torch.equal(loaded(images()), model(images()))
        with pytest.raises(BlockError, match="another block"):
            lmgraft.load_pretrained(folder, make_vit(), llm=block)


REARRANGED = {"shuffled": shuffled, "spectrum": spectrum}


def matrices(source: FrozenBlock, control: FrozenBlock) -> list[tuple[Tensor, Tensor]]:
    found = [ab for name, ab in pairs(source, control).items() if "norm" not in name and name.endswith("weight")]
    assert len(found) == 7 * len(source.layers)
    return found


def entries(matrix: Tensor) -> Tensor:
    return matrix.flatten().sort().values


class TestRearranged:
    def test_shuffled_keeps_the_entries_of_each_matrix_and_no_place(self, biased: FrozenBlock) -> None:
        for a, b in matrices(biased, shuffled(biased, seed=1)):
            assert torch.equal(entries(a), entries(b))
            assert float((a == b).float().mean()) < 0.05
            assert relative_error(singular_values(b), singular_values(a)) > 0.01

    def test_spectrum_keeps_the_singular_values_and_no_entry(self, biased: FrozenBlock) -> None:
        for a, b in matrices(biased, spectrum(biased, seed=1)):
            reference = torch.linalg.svdvals(a.double())
            assert relative_error(torch.linalg.svdvals(b.double()), reference) < 1e-6
            assert relative_error(singular_values(a), reference) < 1e-7
            assert relative_error(entries(b), entries(a)) > 0.01
            assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.15

    @pytest.mark.parametrize("kind", [*REARRANGED, "random_frozen"])
    def test_all_keep_the_frobenius_norm(self, biased: FrozenBlock, kind: str) -> None:
        for a, b in matrices(biased, CONTROLS[kind](biased, 1)):
            assert float(b.double().norm()) == pytest.approx(float(a.double().norm()), rel=1e-5)

    @pytest.mark.parametrize("kind", REARRANGED)
    def test_gains_shifts_and_biases_stay(self, kind: str) -> None:
        source = random_block(bias=True, layers=2, final_norm="pretrained", norm="layer", norm_bias=True)
        made = REARRANGED[kind](source, 1)
        own = source.provenance.tensors
        assert {n for n, d in made.provenance.tensors.items() if d == own[n]} == {
            n for n in own if "norm" in n or n.endswith("bias")
        }
        for name, (a, b) in pairs(source, made).items():
            assert torch.equal(a, b) == ("norm" in name or name.endswith("bias")), name

    def test_gains_of_each_head_are_no_matrix(self) -> None:
        source = random_block(qk_norm="per_own_head", norm="layer", parallel="shared_norm")
        for make in REARRANGED.values():
            made = make(source, 1)
            assert torch.equal(made.layers[0].attention.q_norm.weight, source.layers[0].attention.q_norm.weight)

    @pytest.mark.parametrize("kind", REARRANGED)
    def test_a_seed_is_a_block(self, biased: FrozenBlock, kind: str) -> None:
        torch.manual_seed(1)
        first = REARRANGED[kind](biased, 4)
        torch.manual_seed(2)  # torch's generator has no part in it
        again, other = REARRANGED[kind](biased, 4), REARRANGED[kind](biased, 5)
        assert first.provenance == again.provenance
        assert len({m.provenance.digest for m in (biased, first, other)}) == 3
        assert first.provenance.control == {
            "kind": kind,
            "seed": 4,
            "of": biased.provenance.digest,
            "stored": "float32",
        }

    def test_every_matrix_has_a_draw_of_its_own(self) -> None:
        """One draw for all of a shape would be a permutation or rotation shared along an axis."""
        block = random_block(num_kv_heads=4)
        same = {n: torch.arange(math.prod(s)).view(s) / 64 for n, s in block.config.tensor_shapes().items()}
        twin = FrozenBlock(block.config, [same, same], provenance=block.provenance)
        for make in REARRANGED.values():
            made = make(twin, 1)
            for layer in made.layers:
                q, k = layer.attention.q.weight, layer.attention.k.weight
                assert not torch.allclose(q, k)
                assert not torch.allclose(layer.mlp.gate.weight, layer.mlp.up.weight)
            assert not torch.allclose(made.layers[0].attention.q.weight, made.layers[1].attention.q.weight)

    @pytest.mark.parametrize(("rows", "columns"), [(40, 32), (32, 40), (32, 32), (7, 1), (1, 7)])
    def test_directions_are_uniform(self, rows: int, columns: int) -> None:
        """Orthonormal, and without LAPACK's preference of signs: the mean over seeds vanishes."""
        shape = (rows, columns)
        drawn = torch.stack([_orthonormal(philox(seed, 0, "q"), max(shape), min(shape)) for seed in range(400)])
        eye = torch.eye(min(shape)).expand(400, -1, -1)
        assert relative_error(drawn.transpose(1, 2) @ drawn, eye) < 1e-5
        spread = drawn.std(0)
        assert float(spread.mean()) == pytest.approx(max(shape) ** -0.5, rel=0.1)
        assert float(drawn.mean(0).abs().max()) < 5 * max(shape) ** -0.5 / 400**0.5

    def test_storage_and_place_follow_the_source(self, llama_folder: Path) -> None:
        wide = lmgraft.load_block(str(llama_folder))
        narrow = lmgraft.load_block(str(llama_folder), dtype="bfloat16")
        x = torch.randn(1, 3, 32)
        for make in REARRANGED.values():
            made = make(narrow, 0)
            assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
            assert not any(p.requires_grad for p in made.parameters())
            assert relative_error(made(x), make(wide, 0)(x)) <= 0.03

    def test_tensors_of_several_dtypes_keep_theirs(self) -> None:
        block = random_block()
        block.layers[0].mlp.to(torch.float16)
        for make in REARRANGED.values():
            made = make(block, 0)
            assert made.provenance.control is not None
            assert made.provenance.control["stored"] is None
            assert made.layers[0].mlp.up.weight.dtype == torch.float16
            assert made.layers[0].attention.q.weight.dtype == torch.float32

    def test_digests_are_the_same_on_every_machine(self) -> None:
        """A fixed number: if this fails, every recorded control is refused from now on."""
        block = random_block()
        counting = {n: torch.arange(math.prod(s)).view(s) / 64 for n, s in block.config.tensor_shapes().items()}
        plain = FrozenBlock(block.config, [counting], provenance=block.provenance)
        assert (
            shuffled(plain, seed=7).provenance.digest
            == "d7986ddfc025ae8c740bb9eb7524aaff78d3f9ac23a93a5bb3abed3b1a91157a"
        )
        assert (
            spectrum(plain, seed=7).provenance.digest
            == "a7889235cb12ae4e7607008d7d7182ae497f547b5e02aae17422acd1dbdc65d0"
        )


V = 12


def function(block: FrozenBlock, w1: Tensor, w2: Tensor, x: Tensor) -> Tensor:
    """The graft by itself: W2 block(W1 x)."""
    out: Tensor = block(x @ w1.T) @ w2.T
    return out


def permuted(block: FrozenBlock, along: str) -> tuple[FrozenBlock, Tensor]:
    """`block` with one permutation shared by all matrices along an axis; and the residual axis's (D,)."""
    c = block.config
    generator = torch.Generator().manual_seed(4)
    order = {
        "residual": torch.randperm(c.dim, generator=generator),
        "ffn": torch.randperm(c.mlp_dim, generator=generator),
        "groups": torch.arange(c.num_kv_heads).roll(1),
    }
    none = {"residual": torch.arange(c.dim), "ffn": torch.arange(c.mlp_dim), "groups": torch.arange(c.num_kv_heads)}
    order = {axis: order[axis] if along in (axis, "all") else none[axis] for axis in order}
    d, f, g = order["residual"], order["ffn"], order["groups"]
    keys = torch.arange(c.num_kv_heads * c.head_dim).view(c.num_kv_heads, -1)[g].flatten()
    queries = torch.arange(c.num_heads * c.head_dim).view(c.num_kv_heads, -1)[g].flatten()
    rows = {"q": queries, "k": keys, "v": keys, "o": d, "gate": f, "up": f, "down": d}
    columns = {"q": d, "k": d, "v": d, "o": queries, "gate": d, "up": d, "down": f}
    layers = []
    for tensors in block.tensors()[0]:
        moved = {}
        for name, tensor in tensors.items():
            part = name.split(".")[-2]
            if "norm" in name:
                moved[name] = tensor[d]
            elif tensor.dim() == 1:
                moved[name] = tensor[rows[part]]
            else:
                moved[name] = tensor[rows[part]][:, columns[part]]
        layers.append(moved)
    norm = {n: t[d] for n, t in (block.tensors()[1] or {}).items()} or None
    return FrozenBlock(c, layers, provenance=block.provenance, final_norm=norm), d


class TestSymmetry:
    """W1 and W2 are trained: what they can undo has destroyed nothing."""

    @pytest.fixture
    def mappers(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        return tuple(
            torch.randn(shape, generator=generator).double() * shape[1] ** -0.5 for shape in ((32, V), (V, 32))
        )  # type: ignore[return-value]

    @pytest.mark.parametrize("along", ["residual", "groups", "ffn", "all"])
    def test_a_shared_permutation_is_undone_by_the_mappers(self, mappers: tuple[Tensor, Tensor], along: str) -> None:
        w1, w2 = mappers
        block = random_block(dtype=torch.float64, bias=True, layers=2, final_norm="pretrained")
        moved, order = permuted(block, along)
        assert moved.provenance.digest != block.provenance.digest
        x = torch.randn(3, 5, V, dtype=torch.float64)
        assert relative_error(function(moved, w1[order], w2[:, order], x), function(block, w1, w2, x)) < 1e-12
        if along in ("residual", "all"):  # without the mappers it is another function
            assert relative_error(function(moved, w1, w2, x), function(block, w1, w2, x)) > 0.3

    @pytest.mark.parametrize("kind", REARRANGED)
    def test_no_mappers_undo_the_controls(self, mappers: tuple[Tensor, Tensor], kind: str) -> None:
        """Neither one permutation for both, nor the best W2, nor both fitted to the pretrained function."""
        w1, w2 = mappers
        block = random_block(dtype=torch.float64)
        made = REARRANGED[kind](block, 1)
        seen, other = (torch.randn(n, 5, V, dtype=torch.float64) for n in (150, 50))
        wanted, held_out = function(block, w1, w2, seen), function(block, w1, w2, other)
        orders = [torch.randperm(32) for _ in range(50)]
        assert min(relative_error(function(made, w1[o], w2[:, o], other), held_out) for o in orders) > 0.2
        best = torch.linalg.lstsq(made(seen @ w1.T).flatten(0, 1), wanted.flatten(0, 1)).solution.T
        assert relative_error(function(made, w1, best, other), held_out) > 0.15
        fitted = [w1.clone().requires_grad_(), best.clone().requires_grad_()]
        optimizer = torch.optim.LBFGS(fitted, max_iter=50, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            error = (function(made, *fitted, seen) - wanted).square().mean()
            error.backward()  # type: ignore[no-untyped-call]
            return error

        optimizer.step(loss)  # type: ignore[arg-type]
        assert relative_error(function(made, *fitted, other), held_out) > 0.08


@pytest.mark.parametrize("kept", ["attention", "mlp"])
def test_a_random_half_is_the_half_of_the_random_block(biased: FrozenBlock, kept: str) -> None:
    half = CONTROLS[f"random_{kept}_only"](biased, 3)
    expected = CONTROLS[f"{kept}_only"](random_frozen(biased, 3))
    assert {n for n, _ in half.named_parameters()} == {n for n, _ in expected.named_parameters()}
    assert all(torch.equal(p, expected.get_parameter(n)) for n, p in half.named_parameters())
    assert half.provenance.digest == expected.provenance.digest
    assert half.provenance.control is not None
    assert half.provenance.control["of"] == biased.provenance.digest  # from which it is made again
