"""A token budget: which tokens are chosen, what every token then gets, and where it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lmgraft
from lmgraft.contracts import Host, MeanOf, TokenLayout
from lmgraft.errors import BlockError, CheckpointError, ExportError, HostError
from lmgraft.graft.attention import received_attention
from lmgraft.graft.budget import RULES, within
from lmgraft.graft.config import GraftConfig
from lmgraft.graft.export import export_program
from lmgraft.graft.layer import GraftLayer
from tiny import images, long_but, make_vit, random_block, relative_error
from tiny_hosts import ROWS, make_host, make_videomae, pictures, tensors_of

READ_ALL = [name for name, row in ROWS.items() if not isinstance(row.reads, int | tuple)]
UNWATCHED = ("beit_avg", "swin", "resnet")
"""Last layers whose attention is not seen: with a bias for each pair of tokens, in windows, none at all."""


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_graft(*, prefix: int = 1, dtype: torch.dtype = torch.float64, **options: Any) -> GraftLayer:
    torch.manual_seed(0)
    host = Host(embed_dim=12, layers=("layer",), layout=TokenLayout(num_prefix_tokens=prefix))
    block = random_block(dtype=dtype, **options.pop("block", {}))
    return GraftLayer(block, host, GraftConfig(**options)).to(dtype)


def padding(counts: list[int], total: int) -> Tensor:
    """Sample i has so many tokens; the class token and every other place first, so that padding is not a tail."""
    order = torch.tensor([*range(0, total, 2), *range(1, total, 2)])
    return torch.stack([order.argsort() >= count for count in counts])


class TestRules:
    @settings(max_examples=30, deadline=None)
    @given(st.data())
    def test_choice(self, data: st.DataObject) -> None:
        rule = data.draw(st.sampled_from(sorted(RULES)))
        prefix = data.draw(st.integers(0, 2))
        total = data.draw(st.integers(prefix + 2, 14))
        budget = data.draw(st.integers(prefix + 1, total - 1))
        kept = data.draw(st.lists(st.integers(prefix, total), min_size=3, max_size=3))
        x, received = tokens(3, total, 4, seed=total), tokens(3, total, seed=budget)
        mask = torch.stack([torch.arange(total).roll(prefix) >= count for count in kept])
        mask[:, :prefix] = False
        chosen = within(x, mask, budget, rule, prefix, received)
        index = within(x, mask, budget, "every", prefix).reads if rule == "mean" else chosen.reads
        assert isinstance(index, Tensor)
        for row, padded, nearest in zip(index.tolist(), mask.tolist(), chosen.nearest.tolist(), strict=True):
            assert len({*row}) == budget
            assert row[:prefix] == [*range(prefix)]
            assert sum(padded[i] for i in row) == max(0, budget - padded.count(False))
            assert [nearest[i] for i in row] == [*range(budget)]
            assert all(n >= prefix for n in nearest[prefix:])
            seen = [i for i, is_padded in enumerate(padded) if not is_padded]
            if any(i >= prefix for i in seen):
                assert not any(padded[row[nearest[i]]] for i in seen)

    def test_evenly_spaced(self) -> None:
        index = within(tokens(1, 13, 4), None, 5, "every", 1).reads
        assert isinstance(index, Tensor)
        assert index.tolist() == [[0, 2, 5, 8, 11]]

    def test_largest_norm(self) -> None:
        x = torch.ones(1, 6, 4)
        x[0, [2, 5]] *= 3
        assert within(x, None, 3, "norm", 1).reads.tolist() == [[0, 2, 5]]  # type: ignore[union-attr]

    def test_most_attention(self) -> None:
        received = torch.tensor([[9.0, 0.0, 3.0, 1.0, 2.0, 0.0]])
        assert within(tokens(1, 6, 4), None, 3, "attention", 1, received).reads.tolist() == [[0, 2, 4]]  # type: ignore[union-attr]

    def test_samples_choose_for_themselves(self) -> None:
        x = tokens(3, 9, 4)
        whole, alone = within(x, None, 4, "norm", 1), within(x[1:2], None, 4, "norm", 1)
        assert torch.equal(whole.nearest[1:2], alone.nearest)


def by_hand(graft: GraftLayer, x: Tensor, mask: Tensor, received: Tensor) -> Tensor:
    """The dense block on each sample's tokens without its padding; what is not chosen is dropped behind the block."""
    config, prefix = graft.config, graft.host.layout.num_prefix_tokens
    out = []
    for sample, padded, attention in zip(x, mask, received, strict=True):
        real = [i for i in range(len(sample)) if not padded[i]]
        patches, count = [i for i in real if i >= prefix], int(config.budget or 0) - prefix
        scores = {"norm": sample.detach().norm(dim=-1), "attention": attention}.get(config.budget_rule)
        if scores is None:
            chosen = [patches[(2 * j + 1) * len(patches) // (2 * count)] for j in range(count)]
        else:
            chosen = sorted(sorted(patches, key=lambda i: -float(scores[i]))[:count])
        unit = (sample / sample.norm(dim=-1, keepdim=True)).detach()
        stands = {
            i: i if i in chosen or i < prefix else max(chosen, key=lambda c: float(unit[i] @ unit[c])) for i in real
        }
        rows = {}
        for i in [*range(prefix), *chosen]:
            query = sample[i]
            if config.budget_rule == "mean":
                query = torch.stack([sample[j] for j in real if stands[j] == i]).mean(0)
            given = torch.stack([*(sample[j] for j in real), query])[None]  # the query sees all others, and no one it
            unseen = torch.tensor([[False] * len(real) + [True]])
            rows[i] = graft.mapper_out(graft.block(graft.mapper_in(given), unseen))[0, -1]
        out.append(torch.stack([rows[stands[i]] for i in real]))
    return torch.cat(out)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["auto", "dense", "folded", "absorbed"])
def test_equals_the_dense_block_with_others_dropped(rule: Any, form: Any) -> None:
    graft = make_graft(budget=4, budget_rule=rule, form=form)
    mask, received = padding([9, 6, 7], 9), tokens(3, 9, seed=5).double()
    results = []
    for compute in (lambda x: graft(x, mask, received=received)[~mask], lambda x: by_hand(graft, x, mask, received)):
        x = tokens(3, 9, 12).double().requires_grad_()
        out = compute(x)
        weights = tokens(*out.shape, seed=2).double()
        leaves = [x, *(p for p in graft.parameters() if p.requires_grad)]
        results.append([out, *torch.autograd.grad((out * weights).sum(), leaves)])
    assert all(relative_error(a, b) < 1e-10 for a, b in zip(*results, strict=True))
    assert (results[0][1].norm(dim=-1)[~mask] > 0).all()  # tokens that are not chosen have a gradient too
    assert not results[0][1][mask].any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("reads", [None, MeanOf(slice(1, None)), slice(1, None), 0], ids=str)
def test_enough_for_all_is_the_exact_graft(rule: Any, reads: Any) -> None:
    x, mask = tokens(2, 7, 12), padding([7, 4], 7)
    bounded, exact = (make_graft(dtype=torch.float32, **kw) for kw in ({"budget": 7, "budget_rule": rule}, {}))
    assert torch.equal(bounded(x, mask, reads=reads), exact(x, mask, reads=reads))


@pytest.mark.parametrize("reads", [None, MeanOf(), slice(2, None), torch.tensor([[1, 2, 3, 5], [6, 5, 4, 0]])], ids=str)
@pytest.mark.parametrize("residual", ["none", "out", "in", "gated"])
def test_what_is_read_of_all(reads: Any, residual: Any) -> None:
    x, graft = tokens(2, 7, 12).double(), make_graft(budget=3, residual=residual)
    if graft.gate is not None:
        nn.init.constant_(graft.gate, 0.7)
    whole, read = graft(x), graft(x, reads=reads)
    rows = whole if isinstance(reads, MeanOf) else lmgraft.contracts.take_tokens(whole, reads)
    assert relative_error(read, rows) < 1e-10
    assert (
        relative_error(graft(x, reads=0), make_graft(residual=residual)(x, reads=0)) < 1e-10 or graft.gate is not None
    )


def test_two_layers_and_the_planner() -> None:
    graft = make_graft(budget=3, block={"layers": 2})
    x = tokens(2, 9, 12).double()
    dense = make_graft(budget=3, block={"layers": 2}, form="dense")
    assert relative_error(graft(x), dense(x)) < 1e-10
    assert [problem.reads for problem in graft.problems(x)] == [9, 3]
    assert [problem.reads for problem in graft.problems(x, 0)] == [9, 1]


class TestHosts:
    @pytest.mark.parametrize(
        "name", long_but(READ_ALL, "vit_siglip", "eva_avg", "swin", "resnet_max", "videomae", "hf_dinov2_classifier")
    )
    def test_every_host_that_reads_all(self, name: str) -> None:
        rule = sorted(RULES)[READ_ALL.index(name) % 3 + 1]
        models = []
        for form in ("auto", "dense"):
            torch.manual_seed(0)
            options = {"budget": ROWS[name].prefix + 2, "budget_rule": rule, "form": form}
            models.append(lmgraft.graft(make_host(name), random_block(), **options))
        with torch.no_grad():
            pairs = zip(*(tensors_of(model(pictures(name))) for model in models), strict=True)
        assert all(relative_error(a, b) < 1e-5 for a, b in pairs)

    @pytest.mark.parametrize("name", UNWATCHED)
    def test_attention_that_is_not_seen(self, name: str) -> None:
        model = lmgraft.graft(make_host(name), random_block(), budget=3, budget_rule="attention")
        with pytest.raises(HostError, match="attention"):
            model(pictures(name))
        assert received_attention() is None

    def test_attention_is_that_of_the_last_layer(self) -> None:
        model = lmgraft.graft(make_videomae(), random_block(), budget=4, budget_rule="attention").eval()
        seen: list[Any] = []
        model.graft.register_forward_pre_hook(lambda *call: seen.append(call), with_kwargs=True)
        last, inputs = model.blocks[-1], []
        last.register_forward_pre_hook(lambda *call: inputs.append(call[1][0]))
        model(pictures("videomae"))
        q, k, _ = last.attn.qkv(last.norm1(inputs[0])).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
        q = q + last.attn.q_bias.view(3, 1, 16)
        expected = (q @ k.transpose(-1, -2) / 4).softmax(-1).mean((1, 2))
        assert relative_error(seen[0][2]["received"], expected) < 1e-5

    def test_a_maximum_is_that_over_the_chosen(self) -> None:
        from lmgraft.backbones.point_bert import PointBert

        shape = {"num_groups": 16, "group_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
        model = lmgraft.graft(PointBert(num_classes=3, **shape), random_block(), budget=6, budget_rule="norm").eval()
        found: list[Any] = []
        model.graft.register_forward_hook(lambda *call: found.append(call), with_kwargs=True)
        logits = model(tokens(2, 64, 3))
        (_, (x, *_), _, out) = found[0]
        kept = within(x, None, 6, "norm", 1).reads
        assert torch.equal(logits, model.forward_head(lmgraft.contracts.take_tokens(out, kept)))

    @pytest.mark.parametrize("rule", ["mean", "attention"])
    def test_checkpointed_layers(self, rule: Any) -> None:
        grads = []
        for checkpointed in (False, True):
            torch.manual_seed(0)
            model = lmgraft.graft(make_vit(global_pool="avg"), random_block(), budget=5, budget_rule=rule).train()
            model.set_grad_checkpointing(checkpointed)
            model(images()).square().sum().backward()
            grads.append(model.graft.mapper_in.weight.grad)
        assert relative_error(*grads) < 1e-5

    def test_nothing_is_watched_after_an_error_or_ungrafting(self) -> None:
        model = make_vit(global_pool="avg")
        before = model(images())
        lmgraft.graft(model, random_block(), budget=5, budget_rule="attention")
        handle = model.blocks[-1].mlp.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(images())
        handle.remove()
        assert received_attention() is None
        assert not torch._C._len_torch_function_stack()
        assert torch.equal(lmgraft.ungraft(model)(images()), before)
        assert not model.blocks[-1]._forward_hooks
        assert not model.blocks[-1]._forward_pre_hooks


class TestRecord:
    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        block, options = random_block(), {"budget": 5, "budget_rule": "mean"}
        model = lmgraft.graft(make_vit(global_pool="avg"), block, **options).eval()
        lmgraft.save_pretrained(model, tmp_path)
        loaded = lmgraft.load_pretrained(tmp_path, model=make_vit(global_pool="avg"), llm=block).eval()
        assert (loaded.graft.config.budget, loaded.graft.config.budget_rule) == (5, "mean")
        assert torch.equal(loaded(images()), model(images()))
        other = lmgraft.graft(make_vit(global_pool="avg"), block)
        with pytest.raises(CheckpointError, match="budget=None"):
            lmgraft.load_pretrained(tmp_path, model=other, llm=block)

    @pytest.mark.long
    @pytest.mark.parametrize("rule", ["every", "mean", "norm"])
    def test_exported(self, rule: Any) -> None:
        model = lmgraft.graft(make_vit(global_pool="avg"), random_block(), budget=5, budget_rule=rule).eval()
        program = export_program(model, images()).module()
        assert relative_error(program(images(3)), model(images(3))) < 1e-5

    def test_attention_is_not_exported(self) -> None:
        model = lmgraft.graft(make_vit(global_pool="avg"), random_block(), budget=5, budget_rule="attention").eval()
        with pytest.raises((HostError, ExportError), match="attention"):
            export_program(model, images())

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"budget": 0}, "no token"),
            ({"budget": 1}, "class and register"),
            ({"budget": 4, "budget_rule": "best"}, "every, mean, norm, attention"),
            ({"budget": 4, "read_token": True}, "read token"),
            ({"budget": 4, "reads": (0, 1)}, "named tokens"),
            ({"budget": 4, "budget_rule": "attention", "at": "head"}, "no encoder layer"),
        ],
        ids=str,
    )
    def test_refused(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(HostError, match=words):
            lmgraft.graft(make_vit(global_pool="avg"), random_block(), **options)

    def test_refused_where_it_would_choose_nothing(self) -> None:
        with pytest.raises(HostError, match="reads token 0 alone"):
            lmgraft.graft(make_vit(), random_block(), budget=4)
        with pytest.raises(BlockError, match="save nothing"):
            lmgraft.graft(make_vit(global_pool="avg"), block=nn.Linear(32, 32), budget=4)


class TestPrecision:
    def test_near_the_exact_graft_in_training(self) -> None:
        x = tokens(2, 9, 12)
        exact, rounded = make_graft(dtype=torch.float32), make_graft(dtype=torch.float32, precision="bfloat16")
        out = rounded(x)
        assert out.dtype == torch.float32
        assert 1e-4 < relative_error(out, exact(x)) < 0.03
        out.square().sum().backward()
        exact(x).square().sum().backward()
        assert relative_error(rounded.mapper_in.weight.grad, exact.mapper_in.weight.grad) < 0.05
