"""The frozen block by itself: what it computes, and that it stays frozen in every way."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lmgraft
from lmgraft.block import BlockConfig, FrozenBlock
from lmgraft.contracts import Reads, take_tokens
from lmgraft.errors import BlockError
from tiny import random_block, relative_error

D = 32


BLOCK_64 = random_block(dtype=torch.float64, bias=True)
STACK_64 = random_block(dtype=torch.float64, layers=2, final_norm="pretrained")


class TestNoOrder:
    def test_the_last_token_reaches_the_first(self) -> None:
        block = random_block()
        x = torch.randn(1, 5, D)
        changed = x.clone()
        changed[:, -1] += 1.0
        assert relative_error(block(changed)[:, 0], block(x)[:, 0]) > 1e-3

    @given(st.permutations(range(7)), st.integers(0, 2**16))
    def test_permuting_tokens_permutes_outputs(self, order: list[int], seed: int) -> None:
        x = torch.randn(2, 7, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        padded = torch.zeros(2, 7, dtype=torch.bool)
        padded[1, 3:] = True
        for mask in (None, padded):
            moved = None if mask is None else mask[:, order]
            assert relative_error(STACK_64(x[:, order], moved), STACK_64(x, mask)[:, order]) <= 1e-12


@st.composite
def reads_and_shape(draw: st.DrawFn) -> tuple[int, int, Reads]:
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    index = st.integers(0, tokens - 1)
    kind = draw(st.sampled_from(["all", "int", "negative", "slice", "tuple", "same", "own"]))
    reads: Reads = None
    if kind == "int":
        reads = draw(index)
    elif kind == "negative":
        reads = draw(index) - tokens
    elif kind == "slice":
        start = draw(index)
        reads = slice(start, draw(st.integers(start + 1, tokens)), draw(st.integers(1, 3)))
    elif kind == "tuple":
        reads = tuple(draw(st.lists(st.integers(-tokens, tokens - 1), min_size=1, max_size=5)))
    elif kind == "same":
        reads = torch.tensor(draw(st.lists(index, min_size=1, max_size=5)))
    elif kind == "own":
        rows = draw(st.integers(1, 4))
        row = st.lists(index, min_size=rows, max_size=rows)
        reads = torch.tensor(draw(st.lists(row, min_size=batch, max_size=batch)))
    return batch, tokens, reads


def rows_by_hand(x: Tensor, reads: Reads) -> Tensor:
    """One token at a time, so that `take_tokens` is not its own judge."""
    if reads is None:
        return x
    batch, tokens, _ = x.shape
    samples = []
    for b in range(batch):
        if isinstance(reads, Tensor):
            wanted = reads.tolist() if reads.dim() == 1 else reads[b].tolist()
        elif isinstance(reads, int):
            wanted = [reads]
        else:
            wanted = list(range(tokens))[reads] if isinstance(reads, slice) else list(reads)
        samples.append(torch.stack([x[b, t] for t in wanted]))
    return torch.stack(samples)


class TestReads:
    @given(reads_and_shape(), st.booleans(), st.booleans())
    def test_rows_equal_those_of_the_full_output(
        self, case: tuple[int, int, Reads], stacked: bool, masked: bool
    ) -> None:
        batch, tokens, reads = case
        block = STACK_64 if stacked else BLOCK_64
        generator = torch.Generator().manual_seed(batch * 100 + tokens)
        x = torch.randn(batch, tokens, D, dtype=torch.float64, generator=generator)
        mask = torch.rand(batch, tokens, generator=generator) < 0.4 if masked else None
        rows = block(x, mask, reads=reads)
        expected = rows_by_hand(block(x, mask), reads)
        assert rows.shape == expected.shape
        assert relative_error(rows, expected) <= 1e-12
        assert torch.equal(take_tokens(x, reads), rows_by_hand(x, reads))

    def test_gradients_equal_those_of_the_full_output(self) -> None:
        x = torch.randn(2, 5, D, dtype=torch.float64)
        toward = torch.randn(2, 2, D, dtype=torch.float64)
        grads = []
        for narrow in (True, False):
            leaf = x.clone().requires_grad_()
            out = BLOCK_64(leaf, reads=(0, 3)) if narrow else BLOCK_64(leaf)[:, [0, 3]]
            (grad,) = torch.autograd.grad((out * toward).sum(), leaf)
            grads.append(grad)
        assert relative_error(*grads) <= 1e-12


class TestPadding:
    def test_padded_tokens_are_not_seen(self) -> None:
        x = torch.randn(2, 6, D, dtype=torch.float64)
        mask = torch.tensor([[False] * 4 + [True] * 2] * 2)
        assert relative_error(BLOCK_64(x, mask)[:, :4], BLOCK_64(x[:, :4])) <= 1e-12

    def test_a_mask_without_padding_changes_nothing(self) -> None:
        x = torch.randn(2, 6, D, dtype=torch.float64)
        assert relative_error(BLOCK_64(x, torch.zeros(2, 6, dtype=torch.bool)), BLOCK_64(x)) <= 1e-12

    def test_all_keys_padded_means_no_attention_at_all(self) -> None:
        """Value and output bias are part of what must vanish; the other sample is untouched."""
        x = torch.randn(2, 4, D, dtype=torch.float64, requires_grad=True)
        mask = torch.zeros(2, 4, dtype=torch.bool)
        mask[1] = True
        out = BLOCK_64(x, mask)
        layer = BLOCK_64.layers[0]
        alone = x[1:] + layer.mlp(layer.mlp_norm(x[1:]))
        assert torch.equal(out[1:], BLOCK_64.final_norm(alone))
        assert relative_error(out[:1], BLOCK_64(x[:1])) <= 1e-12
        out.square().sum().backward()
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        # Without attention a token's output depends on that token only.
        (from_first,) = torch.autograd.grad(BLOCK_64(x, mask)[1, 0].sum(), x)
        assert from_first[1, 0].abs().sum() > 0
        assert from_first[1, 1:].abs().sum() == 0

    def test_all_keys_padded_with_reads(self) -> None:
        x = torch.randn(2, 4, D, dtype=torch.float64)
        mask = torch.tensor([[True] * 4, [False, True, False, False]])
        for reads in (0, (0, 2), torch.tensor([[1], [3]])):
            assert relative_error(BLOCK_64(x, mask, reads=reads), rows_by_hand(BLOCK_64(x, mask), reads)) <= 1e-12


class TestDtypes:
    def test_bfloat16_block_in_a_float32_host(self) -> None:
        block = random_block(bias=True)
        wide = copy.deepcopy(block).to(torch.bfloat16).to(torch.float32)
        narrow = copy.deepcopy(block).to(torch.bfloat16)
        x = torch.randn(2, 5, D)
        out = narrow(x)
        assert out.dtype == torch.float32
        assert next(narrow.parameters()).dtype == torch.bfloat16
        assert relative_error(out, wide(x)) <= 1e-6  # rounded weights, float32 computing
        assert relative_error(out, block(x)) > 1e-5

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_computes_in_the_dtype_of_x(self, dtype: torch.dtype) -> None:
        block = random_block(bias=True, final_norm="pretrained")
        x = torch.randn(2, 5, D)
        out = block(x.to(dtype))
        assert out.dtype == dtype
        assert relative_error(out, block(x)) <= 0.03

    def test_dtype_of_load_block(self, llama_folder: Path) -> None:
        block = lmgraft.load_block(str(llama_folder), dtype="bfloat16")
        assert {p.dtype for p in block.parameters()} == {torch.bfloat16}
        assert block.provenance.digest == lmgraft.load_block(str(llama_folder)).provenance.digest
        with pytest.raises(BlockError, match="dtype 'int3' is not known"):
            lmgraft.load_block(str(llama_folder), dtype="int3")


class TestErrors:
    @pytest.mark.parametrize("shape", [(2, 5, D + 1), (5, D), (1, 2, 5, D)])
    def test_wrong_width(self, tiny_block: FrozenBlock, shape: tuple[int, ...]) -> None:
        with pytest.raises(BlockError) as caught:
            tiny_block(torch.zeros(shape))
        assert f"the block takes (B, T, {D}), got {shape}" in str(caught.value)
        assert "map your tokens to the block's width first" in caught.value.remedy

    def test_all_misfits_at_once(self, tiny_block: FrozenBlock) -> None:
        (tensors,), _ = tiny_block.tensors()
        tensors["attention.q.weight"] = torch.zeros(3, 3)
        tensors["mlp.side.weight"] = tensors.pop("mlp.up.weight")
        with pytest.raises(BlockError) as caught:
            FrozenBlock(tiny_block.config, [tensors], provenance=tiny_block.provenance)
        for part in ("missing mlp.up.weight", "unknown mlp.side.weight", "attention.q.weight has shape (3, 3)"):
            assert part in str(caught.value)

    def test_no_layers(self, tiny_block: FrozenBlock) -> None:
        with pytest.raises(BlockError, match="at least one layer"):
            FrozenBlock(tiny_block.config, [], provenance=tiny_block.provenance)

    def test_final_norm_and_its_gain_must_agree(self, tiny_block: FrozenBlock) -> None:
        layers, _ = tiny_block.tensors()
        with pytest.raises(BlockError, match="final_norm='unit'"):
            FrozenBlock(
                tiny_block.config, layers, provenance=tiny_block.provenance, final_norm={"weight": torch.ones(D)}
            )

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("dim", 0, "BlockConfig.dim must be a positive integer"),
            ("mlp_dim", 2.5, "BlockConfig.mlp_dim must be a positive integer"),
            ("num_kv_heads", 3, "4 query heads cannot share 3"),
            ("activation", "tanhish", "activation 'tanhish' is not known"),
        ],
    )
    def test_contradictory_config(self, field: str, value: object, message: str) -> None:
        fields = {"dim": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 2, "mlp_dim": 8} | {field: value}
        with pytest.raises(BlockError) as caught:
            BlockConfig(**fields)  # type: ignore[arg-type]
        assert message in str(caught.value)

    def test_num_params_counts_biases(self) -> None:
        config = random_block(bias=True).config
        assert config.num_params() == sum(p.numel() for p in random_block(bias=True, final_norm="none").parameters())


class TestFrozen:
    def test_stays_in_eval_mode(self, tiny_block: FrozenBlock) -> None:
        host = torch.nn.Sequential(tiny_block).train()
        assert host.training
        assert not any(m.training for m in tiny_block.modules())
        tiny_block.requires_grad_(True)
        host.train()
        assert all(m.training for m in tiny_block.modules())

    def test_parameters_but_not_in_state_dict(self, tiny_block: FrozenBlock) -> None:
        names = {n for n, _ in tiny_block.named_parameters()}
        assert names == {f"layers.0.{n}" for n in tiny_block.config.tensor_shapes()}
        assert not any(p.requires_grad for p in tiny_block.parameters())
        assert not list(tiny_block.buffers())
        assert tiny_block.state_dict() == {}

    def test_unfrozen_block_is_saved_and_restored(self, tiny_block: FrozenBlock) -> None:
        tiny_block.requires_grad_(True)
        names = {n for n, _ in tiny_block.named_parameters()}
        assert set(tiny_block.state_dict()) == names
        with torch.no_grad():
            for p in tiny_block.parameters():
                p.add_(1.0)
        saved = {n: t.clone() for n, t in tiny_block.state_dict().items()}
        fresh = random_like(tiny_block).requires_grad_(True)
        x = torch.randn(1, 3, D)
        assert relative_error(fresh(x), tiny_block(x)) > 1e-3
        fresh.load_state_dict(saved)
        assert torch.equal(fresh(x), tiny_block(x))

    def test_assign_reaches_an_unfrozen_block(self, tiny_block: FrozenBlock) -> None:
        """`load_state_dict(assign=True)` replaces parameters instead of copying into them."""
        tiny_block.requires_grad_(True)
        wanted = {n: torch.full_like(t, 0.5) for n, t in tiny_block.state_dict().items()}
        tiny_block.load_state_dict(wanted, assign=True)
        assert all(torch.equal(p, torch.full_like(p, 0.5)) for p in tiny_block.parameters())
        assert all(p.requires_grad for p in tiny_block.parameters())

    def test_partly_unfrozen(self, tiny_block: FrozenBlock) -> None:
        tiny_block.layers[0].mlp_norm.requires_grad_(True)
        assert set(tiny_block.state_dict()) == {"layers.0.mlp_norm.weight"}

    def test_strict_loading_both_ways(self, tiny_block: FrozenBlock) -> None:
        tiny_block.load_state_dict({}, strict=True)
        full = {n: p.detach().clone() for n, p in tiny_block.named_parameters()}
        with pytest.raises(RuntimeError, match="Unexpected key"):
            tiny_block.load_state_dict(full, strict=True)
        tiny_block.requires_grad_(True)
        tiny_block.load_state_dict(full, strict=True)
        with pytest.raises(RuntimeError, match="Missing key"):
            tiny_block.load_state_dict({}, strict=True)

    def test_gradient_passes_through_without_reaching_the_weights(self, tiny_block: FrozenBlock) -> None:
        x = torch.randn(1, 3, D, requires_grad=True)
        tiny_block(x)[:, 0].sum().backward()
        assert x.grad is not None
        assert (x.grad.norm(dim=-1) > 0).all()  # through keys and values too
        assert all(p.grad is None for p in tiny_block.parameters())


def random_like(block: FrozenBlock) -> FrozenBlock:
    layers, gain = block.tensors()
    drawn = [{n: torch.randn_like(t) for n, t in tensors.items()} for tensors in layers]
    return FrozenBlock(block.config, drawn, provenance=block.provenance, final_norm=gain)


class TestCopies:
    def test_deepcopy_shares_storage(self, tiny_block: FrozenBlock) -> None:
        clone = copy.deepcopy(tiny_block)
        for mine, theirs in zip(tiny_block.parameters(), clone.parameters(), strict=True):
            assert mine is not theirs
            assert mine.data_ptr() == theirs.data_ptr()
            assert not theirs.requires_grad
        x = torch.randn(1, 3, D)
        assert torch.equal(clone(x), tiny_block(x))
        assert clone.provenance == tiny_block.provenance

    def test_moving_the_copy_leaves_the_original(self, tiny_block: FrozenBlock) -> None:
        clone = copy.deepcopy(tiny_block).to(torch.float64)
        assert {p.dtype for p in clone.parameters()} == {torch.float64}
        assert {p.dtype for p in tiny_block.parameters()} == {torch.float32}

    def test_deepcopy_does_not_share_what_is_trained(self, tiny_block: FrozenBlock) -> None:
        tiny_block.layers[0].mlp_norm.requires_grad_(True)
        clone = copy.deepcopy(tiny_block)
        shared = {n for n, p in clone.named_parameters() if p.data_ptr() == tiny_block.get_parameter(n).data_ptr()}
        assert {n for n, _ in clone.named_parameters()} - shared == {"layers.0.mlp_norm.weight"}
        assert clone.layers[0].mlp_norm.weight.requires_grad

    def test_pickle(self, tiny_block: FrozenBlock) -> None:
        clone = pickle.loads(pickle.dumps(tiny_block))  # noqa: S301 - our own bytes
        x = torch.randn(1, 3, D)
        assert torch.equal(clone(x), tiny_block(x))
        assert clone.provenance == tiny_block.provenance
        assert clone.state_dict() == {}


class TestProvenance:
    def test_plain_data(self, llama_folder: Path) -> None:
        block = lmgraft.load_block(str(llama_folder), (1, 2), final_norm="pretrained")
        said = block.provenance.to_dict()
        assert said["layers"] == [1, 2]
        assert said["source"] == str(llama_folder)
        assert said["family"] == "llama"
        assert said["num_layers"] == 3
        assert said["file_dtypes"] == ["F32"]
        assert len(said["tensors"]) == 2 * 9 + 1
        assert said["digest"][:12] in repr(block)

    @pytest.mark.parametrize(
        "load",
        [
            lambda folder: lmgraft.load_block(folder, 0),
            lambda folder: lmgraft.load_block(folder, (1, 2)),
            lambda folder: lmgraft.load_block(folder, final_norm="none"),
            lambda folder: lmgraft.load_block(folder, final_norm="pretrained"),
        ],
    )
    def test_another_block_has_another_digest(
        self, llama_folder: Path, tiny_block: FrozenBlock, load: Callable[[str], FrozenBlock]
    ) -> None:
        assert load(str(llama_folder)).provenance.digest != tiny_block.provenance.digest

    def test_every_tensor_counts(self) -> None:
        block = random_block(final_norm="pretrained", bias=True, layers=2)

        def made() -> FrozenBlock:
            return FrozenBlock(block.config, layers, provenance=block.provenance, final_norm=gain)

        layers, gain = block.tensors()
        layers = [{n: t.clone() for n, t in tensors.items()} for tensors in layers]
        assert gain is not None
        gain = {n: t.clone() for n, t in gain.items()}
        seen = {made().provenance.digest}
        changed = [t for tensors in layers for t in tensors.values()] + [*gain.values()]
        for tensor in changed:
            tensor.view(-1)[-1] += 0.5
            seen.add(made().provenance.digest)
        assert len(seen) == len(changed) + 1 == 34

    def test_negative_layer_is_the_same_layer(self, llama_folder: Path, tiny_block: FrozenBlock) -> None:
        assert lmgraft.load_block(str(llama_folder), 2).provenance == tiny_block.provenance

    def test_stack_is_its_layers_in_turn(self, llama_folder: Path) -> None:
        source = str(llama_folder)
        x = torch.randn(2, 5, D)
        first = lmgraft.load_block(source, 0, final_norm="none")
        second = lmgraft.load_block(source, 1, final_norm="pretrained")
        stack = lmgraft.load_block(source, (0, 1), final_norm="pretrained")
        assert torch.equal(stack(x), second(first(x)))
