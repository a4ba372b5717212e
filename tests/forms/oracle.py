"""The dense reference beside every form, and the blocks, mappers and draws that all tests of forms share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import lmgraft
from lmgraft.block import FrozenBlock
from lmgraft.contracts import Reads, count_tokens
from lmgraft.graft.forms.plan import exact_plans
from lmgraft.graft.forms.problem import LayerPlan, Problem
from lmgraft.graft.forms.run import dense, make_folds, planned
from tiny import images, long_but, make_vit, random_block, relative_error

EXPERTS = {"num_experts": 6, "experts_per_token": 2}
GROUPS = {"expert_groups": 3, "groups_per_token": 2, "choice_bias": True, "shares_scale": 1.7}
LATENT = {"kv_rank": 7, "shared_key_dim": 1, "value_dim": 5}
BOUNDED = {"activation": "quick_gelu", "gate_limit": 0.6, "up_shift": 1.0}
TRAITS: dict[str, dict[str, Any]] = {
    "llama": {},
    "one head each": {"num_kv_heads": 4},
    "one for all": {"num_kv_heads": 1},
    "wide heads": {"head_dim": 24},
    "biases": {"qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "opt": {"norm": "layer", "norm_bias": True, "mlp": "plain", "activation": "relu", "qkv_bias": True},
    "olmo": {"norm": "layer", "clip_qkv": 0.4},
    "dbrx": {"norm": "layer", "clip_qkv": 0.4, "norm_bias": True, "qkv_bias": True},
    "gemma": {"norm": "rms_plus_one", "activation": "gelu_tanh"},
    "gemma2": {"norm": "rms_plus_one", "norm_place": "sandwich", "logit_softcap": 0.7},
    "gemma3": {"norm": "rms_plus_one", "norm_place": "sandwich", "qk_norm": "per_head"},
    "softcap and shifts": {"logit_softcap": 0.5, "norm": "layer", "norm_bias": True, "qkv_bias": True},
    "qwen3": {"qk_norm": "per_head"},
    "command r": {"norm": "layer", "qk_norm": "per_own_head", "parallel": "shared_norm"},
    "olmo2": {"norm_place": "post_branch", "qk_norm": "full_width"},
    "opt 350": {"norm": "layer", "norm_bias": True, "norm_place": "post_residual", "qkv_bias": True},
    "neox": {"norm": "layer", "norm_bias": True, "parallel": "own_norm", "qkv_bias": True},
    "phi": {"norm": "layer", "norm_bias": True, "parallel": "shared_norm", "mlp": "plain", "activation": "gelu"},
    "bloom": {"norm": "layer", "norm_bias": True, "residual_after_norm": True, "qkv_bias": True},
    "granite": {"residual_scale": 0.3, "attention_scales": (0.11,)},
    "gpt-oss": {"sinks": True, "qkv_bias": True, "mlp_bias": True, "router_bias": True, **EXPERTS, **BOUNDED},
    "qwen3.5": {"norm": "rms_plus_one", "qk_norm": "per_head", "query_gate": True, "qkv_bias": True},
    "qwen3 next": {"query_gate": True, "shared_mlp_dim": 11, "shared_gate": True, **EXPERTS},
    "gemma4": {"norm_place": "sandwich", "value_norm": True, "qk_norm": "per_head", "output_scale": True},
    "deepseek v2": {**LATENT, **EXPERTS, "shared_mlp_dim": 11, "router_shares": "all", **GROUPS},
    "deepseek v3": {**LATENT, **EXPERTS, "q_rank": 14, "qkv_bias": True, "router_scores": "sigmoid", **GROUPS},
    "gated, parallel": {"query_gate": True, "parallel": "shared_norm", "norm": "layer", "norm_bias": True},
    "latent, parallel": {**LATENT, "parallel": "own_norm", "norm": "layer", "norm_bias": True},
}
SOME_TRAITS = long_but(
    TRAITS, "llama", "biases", "opt", "gemma2", "olmo2", "command r", "phi", "gpt-oss", "qwen3 next", "deepseek v3"
)
"""For tests that take long: `make test` runs them for these kinds of layers, `make test-long` for the others."""
PLANS = list(exact_plans(Problem(config=random_block().config, batch=1, tokens=1, reads=1, narrow=12)))
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def draw(*shape: int, seed: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def problem(block: FrozenBlock, mapper: nn.Linear, x: Tensor, reads: Reads = 0, **more: Any) -> Problem:
    bias = mapper.bias is not None
    return Problem(
        config=block.config,
        batch=x.shape[0],
        tokens=x.shape[1],
        reads=count_tokens(x.shape[1], reads),
        narrow=x.shape[2] + bias,
        mapper_bias=bias,
        **more,
    )


def make_mapper(width: int, dim: int, dtype: torch.dtype, bias: bool = False) -> nn.Linear:
    mapper = nn.Linear(width, dim, bias=bias, dtype=dtype)
    with torch.no_grad():
        mapper.weight.copy_(draw(dim, width, seed=8) * width**-0.5)
        if bias:
            mapper.bias.copy_(draw(dim, seed=9))
    return mapper


def by_plans(
    mapper: nn.Linear,
    block: FrozenBlock,
    x: Tensor,
    mask: Tensor | None,
    reads: Reads,
    plans: list[LayerPlan],
    mean: bool = False,
) -> tuple[Tensor, Tensor]:
    folds = make_folds(mapper, block.layers[0], frozenset(plans[0].folds())) if plans[0].space == "narrow" else None
    return planned(mapper, block, x, mask, reads, plans, folds, mean)


def results(
    compute: Callable[..., tuple[Tensor, Tensor]], mapper: nn.Linear, block: FrozenBlock, x: Tensor, *rest: Any
) -> dict[str, Tensor]:
    """Outputs, and gradients of a random functional of both, by name."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    leaves = {"x": x, **{f"W1 {n}": p for n, p in mapper.named_parameters()}}
    leaves |= {n: p for n, p in block.named_parameters() if p.requires_grad}
    out, h = compute(mapper, block, x, *rest)
    loss = (out * draw(*out.shape, seed=1).to(out.dtype)).sum() + (h * draw(*h.shape, seed=2).to(h.dtype)).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {f"grad {n}": g for n, g in zip(leaves, grads, strict=True) if g is not None}
    return {"out": out, "h": h, **found}


def assert_same(
    block: FrozenBlock,
    mapper: nn.Linear,
    x: Tensor,
    plans: list[LayerPlan],
    mask: Tensor | None = None,
    reads: Reads = 0,
) -> None:
    expected = results(dense, mapper, block, x, mask, reads)
    found = results(by_plans, mapper, block, x, mask, reads, plans)
    scale = max(float(t.detach().double().norm()) for n, t in expected.items() if n.startswith("grad"))
    # A gradient that is zero but for rounding, as of a key bias, which softmax ignores: both forms say nothing.
    named = {n for n, t in expected.items() if float(t.detach().double().norm()) > 1e-9 * scale}
    assert found.keys() >= named
    assert {"out", "h", "grad x", "grad W1 weight"} <= named | {n for n in expected if x.shape[1] == 1}
    errors = {n: relative_error(found[n], expected[n]) for n in named}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= TOLERANCE[x.dtype], (worst, errors[worst], plans)


def exact(block: FrozenBlock, mapper: nn.Linear, x: Tensor) -> list[LayerPlan]:
    return list(exact_plans(problem(block, mapper, x)))


def counted(block: Any, mapper: Any, x: torch.Tensor, reads: Any, plan: LayerPlan) -> int:
    """Multiply-adds of forward and backward pass of a real run."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = by_plans(mapper, block, x, None, reads, [plan])[0]
        if out.requires_grad:
            out.backward(torch.ones_like(out))
    total = counter.get_total_flops()
    assert total % 2 == 0
    return total // 2


FORMS = ["auto", "reads", "folded", "absorbed"]
SHAPE = {"dim": 160, "mlp_dim": 72}
"""Wider than three ViT tokens of 48: folding pays, as with real LLMs."""


def grafted(
    form: str = "auto", block: dict[str, Any] | None = None, vit: dict[str, Any] | None = None, **options: Any
) -> nn.Module:
    torch.manual_seed(3)
    model = make_vit(**(vit or {}))
    lmgraft.graft(model, random_block(**(SHAPE | (block or {}))), form=form, **options)
    return model.eval()


def dense_twin(model: nn.Module) -> nn.Module:
    """The same tensors, computed by the reference."""
    twin = copy.deepcopy(model)
    twin.graft.config = type(twin.graft.config)(**(vars(twin.graft.config) | {"form": "dense"}))
    return twin


def plan_of(model: nn.Module) -> LayerPlan:
    """How an evaluation of its class token would be computed."""
    with torch.no_grad():
        plan: LayerPlan = model.graft.plan(torch.randn(2, 17, 48), 0)[0]
    return plan


def is_kept(model: nn.Module) -> bool:
    return model.graft.compute.fold_cache._kept is not None


def assert_fresh(model: nn.Module) -> None:
    """Predictions are those of the reference with today's tensors."""
    with torch.no_grad():
        assert relative_error(model(images()), dense_twin(model)(images())) < 1e-5
