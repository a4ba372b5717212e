"""Samples that share rows in training: the same numbers, from less padding, and only where that is safe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lmgraft.block.opaque import block_of
from lmgraft.block.tokenwise import TokenwiseBlock
from lmgraft.contracts import Host, MeanOf
from lmgraft.graft import packing
from lmgraft.graft.config import GraftConfig
from lmgraft.graft.layer import GraftLayer
from lmgraft.graft.packing import packed, packing_of
from tiny import random_block

TRAITS: list[dict[str, Any]] = [
    {},
    {"layers": 2},
    {"logit_softcap": 5.0},
    {"qk_norm": "per_head"},
    {"sinks": True},
    {"parallel": "shared_norm"},
]


def make_graft(block: dict[str, Any] | None = None, **options: Any) -> GraftLayer:
    torch.manual_seed(0)
    host = Host(embed_dim=12, layers=("layer",))
    return GraftLayer(random_block(dtype=torch.float64, **(block or {})), host, GraftConfig(**options)).double().train()


def mask_of(counts: list[int], total: int) -> Tensor:
    return torch.arange(total) >= torch.tensor(counts)[:, None]


def mixed_mask() -> Tensor:
    padded = mask_of([1, 9, 2, 0, 3, 2, 12, 1], 12)
    padded[1, 3] = True  # padding among tokens
    return padded


def trained(graft: GraftLayer, x: Tensor, padded: Tensor) -> list[Tensor]:
    """Outputs of what is no padding, and all gradients."""
    graft.zero_grad()
    x = x.clone().requires_grad_()
    out = graft(x, padded)
    (out.cos() * ~padded[..., None]).sum().backward()
    gradients = [p.grad for p in (x, *graft.parameters()) if p.grad is not None]
    return [out.detach()[~padded], *gradients]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each call of the graft's `packed` computed."""
    counts = []

    def counting(compute: Any, x: Tensor, padded: Tensor) -> tuple[Tensor, Tensor]:
        def noted(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            counts.append(tokens.shape[:2].numel())
            out: tuple[Tensor, Tensor] = compute(tokens, mask)
            return out

        return packed(noted, x, padded)

    monkeypatch.setitem(GraftLayer.forward.__globals__, "packed", counting)
    return counts


@pytest.mark.parametrize("block", TRAITS)
@pytest.mark.parametrize("options", [{"form": "dense"}, {}, {"residual": "in"}, {"residual": "gated"}])
def test_numbers_are_those_of_the_whole_batch(
    block: dict[str, Any], options: dict[str, Any], computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    graft, padded = make_graft(block, **options), mixed_mask()
    x = torch.randn(8, 12, 12, dtype=torch.float64)
    if "residual" not in options:
        x[padded] = torch.nan  # nobody looks at padding
    rows = trained(graft, x, padded)
    x[padded] = 0.0
    monkeypatch.setattr(packing, "_WORTH", 0.0)
    whole = trained(graft, x, padded)
    assert computed == [36, 96]
    assert len(rows) == len(whole) >= 4
    for one, other in zip(rows, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_a_control_of_single_tokens(computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    host, plain = Host(embed_dim=12, layers=("layer",)), random_block()
    graft = GraftLayer(TokenwiseBlock("mlp", plain.config, plain.provenance), host, GraftConfig()).double().train()
    x, padded = torch.randn(8, 12, 12, dtype=torch.float64), mixed_mask()
    rows = trained(graft, x, padded)
    monkeypatch.setattr(packing, "_WORTH", 0.0)
    for one, other in zip(rows, trained(graft, x, padded), strict=True):
        torch.testing.assert_close(one, other)
    assert computed == [36, 96]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_each_token_is_in_one_row_with_its_own_sample(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 9))
    flags = st.lists(st.booleans(), min_size=total, max_size=total)
    padded = torch.tensor(data.draw(st.lists(flags, min_size=1, max_size=12)))
    found = packing_of(padded)
    if found is not None:
        rows, length, _ = found.hidden.shape
        assert rows * length <= 0.8 * padded.numel()
        assert found.tokens.tolist() == (~padded).flatten().nonzero().flatten().tolist()
        assert len(set(found.places.tolist())) == len(found.places)
        sample = torch.full((rows * length,), -1)
        sample[found.places] = found.tokens // total
        sample = sample.view(rows, length)
        assert torch.equal(found.hidden, sample[:, :, None] != sample[:, None])
    x = torch.randn(*padded.shape, 2)
    y, h = packed(lambda tokens, _: (2 * tokens, tokens), x, padded)
    assert torch.equal(y[~padded], 2 * x[~padded])
    assert torch.equal(h[~padded], x[~padded])


def test_what_saves_little_is_left_as_it_is() -> None:
    found = packing_of(mask_of([4, 2, 6, 3, 3, 1, 5], 6))
    assert found is not None
    assert found.hidden.shape == (4, 6, 6)  # 24 tokens in 24 places
    assert packing_of(mask_of([10, 11, 12, 12], 12)) is None
    assert packing_of(torch.ones(3, 4, dtype=torch.bool)) is None


def test_only_training_of_its_own_code_that_nobody_watches(computed: list[int]) -> None:
    x, padded = torch.randn(8, 12, 12, dtype=torch.float64), mixed_mask()
    graft = make_graft()
    graft.eval()(x, padded)
    graft.train()
    for reads in (0, MeanOf()):
        graft(x, padded, reads=reads)
    graft(x)
    seen: list[torch.Size] = []
    hook = graft.block.register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    graft(x, padded)
    hook.remove()
    layer = nn.TransformerEncoderLayer(32, 4, 40, batch_first=True).double()
    theirs = GraftLayer(block_of(layer), Host(embed_dim=12, layers=("layer",)), GraftConfig()).double()
    theirs.train()(x, padded)
    assert not computed
    assert seen == [torch.Size([8, 12, 32])]
    graft(x, padded)
    assert computed == [36]


def test_a_compiled_graft_computes_the_padding(computed: list[int]) -> None:
    graft, x, padded = make_graft(), torch.randn(8, 12, 12, dtype=torch.float64), mixed_mask()
    compiled = torch.compile(graft, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, padded)[~padded], graft(x, padded)[~padded], rtol=1e-9, atol=1e-11)
    assert computed[-1] == 36
