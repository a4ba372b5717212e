"""The contract of a host: every row of `tiny_hosts.ROWS` keeps it.

The reference is the plain model with a hook that replaces what its last layer gives by the graft of
all tokens, written out place by place: it knows nothing of reads, points or folding.
"""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lmgraft
from lmgraft.contracts import MeanOf, count_tokens, take_tokens
from lmgraft.errors import HostError
from lmgraft.graft.hosts import find_host
from lmgraft.training.optim import param_groups_layer_decay
from tiny import calls_of, long_but, needs_torch, random_block, randomise_, relative_error
from tiny_hosts import OLD_TIMM, ROWS, make_host, pictures, tensors_of

TIMM = [name for name, row in ROWS.items() if row.timm]
HF = [name for name in ROWS if name.startswith("hf_")]
READING = [name for name, row in ROWS.items() if row.reads is not None]
PLACES = ["tail", "middle", "head"]


def grafted(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """Mappers large enough that tokens matter to a head without a norm."""
    model = lmgraft.graft(make_host(name).to(dtype), random_block(), **options)
    randomise_(model.graft.mapper_in, seed=7)
    randomise_(model.graft.mapper_out, seed=8)
    return model


def call(model: nn.Module, name: str, **kwargs: Any) -> list[Tensor]:
    dtype = next(model.parameters()).dtype
    try:
        return tensors_of(model(pictures(name, dtype=dtype), **kwargs))
    except RuntimeError as error:
        if OLD_TIMM and "expected scalar type Double" in str(error):
            pytest.skip("this timm's mixed rotary positions know no float64")
        raise


def flat(x: Tensor, axes: str) -> Tensor:
    """Tokens of a map, place by place."""
    if axes == "tokens":
        return x
    height, width = x.shape[1:3] if axes == "NHWC" else x.shape[2:]
    places = [(i, j) for i in range(height) for j in range(width)]
    return torch.stack([x[:, i, j] if axes == "NHWC" else x[:, :, i, j] for i, j in places], dim=1)


def unflat(tokens: Tensor, like: Tensor, axes: str) -> Tensor:
    if axes == "tokens":
        return tokens
    x, count = torch.empty_like(like), 0
    for i in range(like.shape[1 if axes == "NHWC" else 2]):
        for j in range(like.shape[2 if axes == "NHWC" else 3]):
            if axes == "NHWC":
                x[:, i, j] = tokens[:, count]
            else:
                x[:, :, i, j] = tokens[:, count]
            count += 1
    return x


def mapped(graft: Any, tokens: Tensor) -> Tensor:
    return graft.block(tokens @ graft.mapper_in.weight.T) @ graft.mapper_out.weight.T


def replaced(name: str, dtype: torch.dtype, change: Callable[[Tensor], Tensor], layer: int = -1) -> nn.Module:
    """The plain host, with `change` of the tokens behind a layer."""
    model, row = make_host(name).to(dtype), ROWS[name]
    host = find_host(model)
    assert host is not None

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if row.prefix_apart:
            places, prefix = output
            tokens = change(torch.cat([prefix, flat(places, "NCHW")], dim=1))
            return unflat(tokens[:, row.prefix :], places, "NCHW"), tokens[:, : row.prefix]
        parts = list(output) if isinstance(output, (tuple, list)) else [output]
        parts[row.part] = unflat(change(flat(parts[row.part], row.axes)), parts[row.part], row.axes)
        return parts[0] if isinstance(output, Tensor) else type(output)(parts)

    model.get_submodule(host.layers[layer]).register_forward_hook(hook)
    return model


def dense_twin(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    twin.graft.config = replace(twin.graft.config, form="dense")
    return twin


def results(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Outputs and every gradient, of the images too."""
    torch.manual_seed(3)
    x = pictures(name).requires_grad_()
    outputs = tensors_of(model(x))
    generator = torch.Generator().manual_seed(2)
    loss = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outputs)
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"images": x.grad, **{f"out {i}": out.detach() for i, out in enumerate(outputs)}, **found}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float = 1e-5) -> None:
    """Relative errors; of a gradient that is zero but for rounding (a key bias), against the largest one."""
    assert found.keys() == expected.keys()
    assert {"graft.mapper_in.weight", "graft.mapper_out.weight"} <= found.keys()
    largest = max(float(t.norm()) for t in expected.values())
    for key, tensor in expected.items():
        assert found[key].shape == tensor.shape
        error = float((found[key] - tensor).norm())
        assert error <= max(bound * float(tensor.norm()), 1e-7 * largest), key


@pytest.mark.parametrize("name", ROWS)
class TestEveryHost:
    def test_description(self, name: str) -> None:
        row, model = ROWS[name], make_host(name)
        host = find_host(model)
        assert host is not None
        assert (host.embed_dim, len(host.layers), host.axes) == (row.width, row.layers, row.axes)
        assert host.layout.num_prefix_tokens == row.prefix
        assert host.layout.grid == (row.grid if row.axes == "tokens" and row.knows_grid else None)
        assert host.reads(model, (), {}) == row.reads
        assert (host.head_from_tokens is not None) == row.rest

    def test_equals_the_reference(self, name: str) -> None:
        model = grafted(name, torch.float64)
        reference = replaced(name, torch.float64, lambda tokens: mapped(model.graft, tokens))
        for found, expected in zip(call(model, name), call(reference, name), strict=True):
            assert relative_error(found, expected) <= 1e-10

    def test_equals_dense_with_gradients(self, name: str) -> None:
        model = grafted(name, residual="out")
        assert_same(results(model, name), results(dense_twin(model), name))

    def test_only_what_is_read_is_computed(self, name: str) -> None:
        model, row = grafted(name), ROWS[name]
        queries, outputs = calls_of(model.graft.block.layers[0].mlp), calls_of(model.graft)
        call(model, name)
        assert [x.shape[1] for x, _ in queries] == [count_tokens(row.tokens, row.reads)]
        rows = row.tokens if isinstance(row.reads, MeanOf) else count_tokens(row.tokens, row.reads)
        assert [out.shape for _, out in outputs] == [(2 * row.samples, rows, row.width)]

    @pytest.mark.parametrize("at", PLACES)
    def test_places(self, name: str, at: Any) -> None:
        model = make_host(name)
        before = call(model, name)
        names, keys = [n for n, _ in model.named_modules()], list(model.state_dict())
        lmgraft.graft(model, random_block(), at=at)
        calls = calls_of(model.graft)
        after = call(model, name)
        assert len(calls) == 1
        assert [a.shape for a in after] == [b.shape for b in before]
        assert max(relative_error(a, b) for a, b in zip(after, before, strict=True)) > 1e-3
        assert all(torch.equal(a, b) for a, b in zip(call(lmgraft.ungraft(model), name), before, strict=True))
        assert ([n for n, _ in model.named_modules()], list(model.state_dict())) == (names, keys)

    def test_no_such_place(self, name: str) -> None:
        model, block = make_host(name), random_block()
        for at in ("tial", ROWS[name].layers, -1 - ROWS[name].layers):
            with pytest.raises(HostError, match="is no place in") as caught:
                lmgraft.graft(model, block, at=at)
            assert f"0 to {ROWS[name].layers - 1}" in caught.value.remedy

    def test_behind_an_earlier_layer(self, name: str) -> None:
        model = grafted(name, torch.float64, at=0)
        reference = replaced(name, torch.float64, lambda tokens: mapped(model.graft, tokens), layer=0)
        for found, expected in zip(call(model, name), call(reference, name), strict=True):
            assert relative_error(found, expected) <= 1e-10

    def test_copies(self, name: str) -> None:
        model = grafted(name)
        expected = call(model, name)
        for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own bytes
            assert all(torch.equal(a, b) for a, b in zip(call(clone, name), expected, strict=True))
            nn.init.zeros_(clone.graft.mapper_out.weight)
            assert relative_error(call(clone, name)[0], expected[0]) > 1e-3
        assert all(torch.equal(a, b) for a, b in zip(call(model, name), expected, strict=True))

    def test_saved_and_loaded(self, name: str, tmp_path: Path) -> None:
        model = grafted(name)
        lmgraft.save_pretrained(model, tmp_path)
        loaded = lmgraft.load_pretrained(tmp_path, model=make_host(name), llm=random_block())
        other = grafted(name, residual="out")
        other.load_state_dict(model.state_dict(), strict=True)
        assert not any(".block." in key for key in model.state_dict())
        for found, expected in zip(call(loaded, name), call(model, name), strict=True):
            assert torch.equal(found, expected)

    def test_rest(self, name: str) -> None:
        model, row = grafted(name), ROWS[name]
        host, seen = model.graft.host, calls_of(model.graft)
        expected = call(model, name)
        with lmgraft.reading_all_tokens(model):
            call(model, name)
        (_, read), (_, everything) = seen
        assert everything.shape == (2 * row.samples, row.tokens, row.width)
        if host.head_from_tokens is not None:
            for tokens in (read, everything):
                for found, wanted in zip(tensors_of(host.head_from_tokens(model, tokens)), expected, strict=True):
                    assert relative_error(found, wanted) <= 1e-5

    def test_checkpointing(self, name: str) -> None:
        if timm.models._manipulate.checkpoint is checkpoint and name.startswith(("eva", "beit")):
            pytest.skip("this timm hands keywords to a checkpoint that takes none")
        model, row = grafted(name).train(), ROWS[name]
        for module in model.modules():
            if isinstance(module, timm.layers.DropPath):
                module.drop_prob = 0.0
        layer = model.get_submodule(model.graft.host.layers[-1])
        computed = [calls_of(module) for module in layer.modules() if not list(module.children())]
        frozen = copy.deepcopy(model.state_dict())  # running statistics move in training
        expected = results(model, name)
        once = [len(calls) for calls in computed]
        model.load_state_dict(frozen)
        names = ("set_grad_checkpointing", "activation_checkpointing_enable", "gradient_checkpointing_enable")
        enable = next((getattr(model, n) for n in names if hasattr(model, n)), None)
        if enable is None or not row.checkpoints:  # torchvision has no switch
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
        else:
            enable()
        assert_same(results(model, name), expected)
        assert any(len(calls) > 2 * count for calls, count in zip(computed, once, strict=True))  # again in backward


@pytest.mark.parametrize("name", READING)
class TestWrongReadsCannotHide:
    """On the plain host, without any graft: tokens that the adapter calls unread do not matter."""

    def test_unread_tokens_do_not_matter(self, name: str) -> None:
        reads = ROWS[name].reads

        def disturb(tokens: Tensor) -> Tensor:
            noise = torch.randn(tokens.shape, dtype=tokens.dtype, generator=torch.Generator().manual_seed(4))
            index = torch.arange(tokens.shape[1])[None, :, None]
            if isinstance(reads, MeanOf):
                read = take_tokens(index, reads.tokens).flatten()
                noise[:, read] -= noise[:, read].mean(1, keepdim=True)
            else:
                noise[:, take_tokens(index, reads).flatten()] = 0
            return tokens + noise

        found = call(replaced(name, torch.float64, disturb), name)
        for a, b in zip(found, call(make_host(name).double(), name), strict=True):
            assert relative_error(a, b) <= 1e-10

    def test_read_tokens_do(self, name: str) -> None:
        reads = ROWS[name].reads
        tokens = reads.tokens if isinstance(reads, MeanOf) else reads
        model = make_host(name).double()
        if name == "pit_distilled" and "head_drop(x_dist)" not in inspect.getsource(type(model).forward_head):
            pytest.skip("this timm reads the class token in the distillation token's place")
        plain = call(model, name)[0]
        for index in take_tokens(torch.arange(ROWS[name].tokens)[None, :, None], tokens).flatten().tolist():

            def disturb(x: Tensor, index: int = index) -> Tensor:
                x = x.clone()
                x[:, index] += x.std() * torch.linspace(-1, 1, x.shape[2], dtype=x.dtype)
                return x

            assert relative_error(call(replaced(name, torch.float64, disturb), name)[0], plain) > 1e-6


@pytest.mark.parametrize("name", TIMM)
class TestTimm:
    def test_features_are_of_all_tokens(self, name: str) -> None:
        model, x, row = grafted(name), pictures(name), ROWS[name]
        features = model.forward_features(x)
        assert relative_error(tensors_of(model.forward_head(features))[0], model(x)) <= 1e-5
        with lmgraft.reading_all_tokens(model):
            seen = calls_of(model.graft)
            model(x)
        assert seen[0][1].shape == (2, row.tokens, row.width)

    def test_intermediates(self, name: str) -> None:
        model, x, row = grafted(name), pictures(name), ROWS[name]
        if not row.intermediates:
            pytest.skip("its head joins the branches, which are the intermediates")
        if not hasattr(model, "forward_intermediates"):
            pytest.skip(f"timm {timm.__version__} has none for it")
        seen = calls_of(model.graft)
        found = model.forward_intermediates(x, intermediates_only=True)
        ((_, out),) = seen
        plain = make_host(name).forward_intermediates(x, intermediates_only=True)
        assert [f.shape for f in found] == [p.shape for p in plain]
        *others, last = found
        assert all(torch.equal(a, b) for a, b in zip(others, plain, strict=False))
        assert relative_error(flat(last, "NCHW"), out[:, row.prefix :]) == 0

    def test_layer_decay_does_not_count_the_graft(self, name: str) -> None:
        if not ROWS[name].groups:
            pytest.skip("by timm's groups it would be one: lmgraft.training.optim has its own")
        plain, model = make_host(name), grafted(name)

        def scales(model: nn.Module) -> dict[str, float]:
            names = {id(p): n for n, p in model.named_parameters()}
            groups = param_groups_layer_decay(model, layer_decay=0.5)
            return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}

        before, after = scales(plain), scales(model)
        assert {n: scale for n, scale in after.items() if not n.startswith("graft.")} == before
        assert after["graft.mapper_in.weight"] == after["graft.mapper_out.weight"] == 1.0

    def test_reset_classifier_afterwards(self, name: str) -> None:
        model = grafted(name)
        model.reset_classifier(5)
        for module in model.get_classifier() if isinstance(model.get_classifier(), tuple) else [model.get_classifier()]:
            randomise_(module, seed=9)
        out = model(pictures(name))
        assert out.shape == (2, 5)
        assert relative_error(out, dense_twin(model)(pictures(name))) <= 1e-5


@pytest.mark.parametrize("name", HF)
class TestTransformers:
    @pytest.mark.parametrize(("when", "how"), [("before", "argument"), ("after", "argument"), ("after", "config")])
    def test_hidden_states(self, name: str, when: str, how: str) -> None:
        """transformers installs its recorders at the first such call, before or after grafting."""
        if int(pytest.importorskip("transformers").__version__.split(".")[0]) < 5:
            pytest.skip("records inside the layers' calls: before the graft")
        model, row, x = make_host(name), ROWS[name], pictures(name)
        if when == "before":
            model(x, output_hidden_states=True)
        lmgraft.graft(model, random_block())
        seen = calls_of(model.graft)
        if how == "config":
            for module in model.modules():
                if hasattr(module, "config") and hasattr(module.config, "hidden_size"):
                    module.config.output_hidden_states = True
            output = model(x)
        else:
            output = model(x, output_hidden_states=True)
        assert len(output.hidden_states) == row.layers + 1
        assert all(state.shape == (2, row.tokens, row.width) for state in output.hidden_states)
        assert torch.equal(output.hidden_states[-1], seen[0][1])
        if how == "argument":
            short = model(x)
            assert short.get("hidden_states") is None
            first = "logits" if "logits" in output else "last_hidden_state"
            assert relative_error(short[first], output[first]) <= 1e-5

    def test_tuples(self, name: str) -> None:
        model = grafted(name)
        tuples = model(pictures(name), return_dict=False)
        assert torch.equal(tuples[0], model(pictures(name))[0])


@pytest.mark.long
@needs_torch("2.6")
@pytest.mark.slow
@pytest.mark.parametrize("name", long_but(["eva_avg", "resnet", "hf_vit_classifier"], "resnet"))
def test_compiled(name: str) -> None:
    torch._dynamo.reset()
    model = grafted(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(
        {n.removeprefix("_orig_mod."): t for n, t in results(compiled, name).items()}, results(model, name), 1e-4
    )
    torch._dynamo.reset()
