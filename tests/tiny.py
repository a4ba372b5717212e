"""What tests build from: shapes, seeded draws, a relative error. Not a test file itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from lmgraft.block import BlockConfig, FrozenBlock, Provenance
from lmgraft.versions import numbers

TINY_LLAMA = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}


def long_but(cases: Iterable[Any], *short: Any) -> list[Any]:
    """Parameters of a test, tuples for several; those not in `short` are marked `long`: `make test-long` runs them."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in short else pytest.mark.long)
        for case in cases
    ]


def relative_error(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b|| in float64; shapes must agree."""
    assert a.shape == b.shape
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def randomise_(module: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter anew, norm gains and biases too: ones and zeros hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            value = noise * parameter.shape[-1] ** -0.5
        else:
            value = (1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.3 * noise
        parameter.data = value.to(parameter.dtype)
    return module


def needs_torch(version: str) -> pytest.MarkDecorator:
    """Skips a test where torch is older; docs/versions.md says what for."""
    return pytest.mark.skipif(numbers(torch.__version__) < numbers(version), reason=f"needs torch {version}")


def of_timm(path: str) -> Any:
    """What timm has at `path`; where the installed timm is older than that, the test is skipped."""
    module, _, name = f"timm.{path}".rpartition(".")
    found = getattr(pytest.importorskip(module), name, None)
    return found or pytest.skip(f"timm {timm.__version__} has no {path}")


def tiny_llama(shape: dict[str, Any], seed: int) -> nn.Module:
    """The parameters of a random LLaMA, named and ordered as transformers does; it computes nothing."""
    width, hidden = shape["hidden_size"], shape["intermediate_size"]
    shared = width // shape["num_attention_heads"] * shape["num_key_value_heads"]

    def matrices(**sizes: tuple[int, int]) -> nn.ModuleDict:
        return nn.ModuleDict({f"{name}_proj": nn.Linear(*size, bias=False) for name, size in sizes.items()})

    def layer() -> nn.ModuleDict:
        parts = {
            "self_attn": matrices(q=(width, width), k=(width, shared), v=(width, shared), o=(width, width)),
            "mlp": matrices(gate=(width, hidden), up=(width, hidden), down=(hidden, width)),
        }
        return nn.ModuleDict(parts | {f"{place}_layernorm": nn.RMSNorm(width) for place in ("input", "post_attention")})

    model = {
        "embed_tokens": nn.Embedding(shape["vocab_size"], width),
        "layers": nn.ModuleList(layer() for _ in range(shape["num_hidden_layers"])),
        "norm": nn.RMSNorm(width),
    }
    head = nn.Linear(width, shape["vocab_size"], bias=False)
    return randomise_(nn.ModuleDict({"model": nn.ModuleDict(model), "lm_head": head}), seed)


def save_llama(folder: Path, shape: dict[str, Any], seed: int, max_shard_size: str = "1GB") -> Path:
    """A folder with `tiny_llama`, as transformers' `save_pretrained` makes one."""
    config = shape | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(config))
    save_torch_state_dict(tiny_llama(shape, seed).state_dict(), folder, max_shard_size=max_shard_size)
    return folder


def make_vit(name: str = "vit_tiny_patch16_224", **kwargs: Any) -> nn.Module:
    """A ViT of 3 layers, 48 wide, on 4 x 4 patches; seeded, with a head that is not zero."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}
    torch.manual_seed(5)
    return randomise_(timm.create_model(name, **(shape | kwargs)), seed=5).eval()


def images(batch: int = 2, seed: int = 11, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_block(
    *, dtype: torch.dtype = torch.float32, layers: int = 1, final_norm: str = "unit", bias: bool = False, **traits: Any
) -> FrozenBlock:
    """Grouped queries, heads wider than D / N, every tensor random; `traits` are fields of `BlockConfig`."""
    shape = {"dim": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 10, "mlp_dim": 40}
    biases = {"qkv_bias": bias, "output_bias": bias, "mlp_bias": bias}
    config = BlockConfig(**(shape | biases | traits))
    generator = torch.Generator().manual_seed(21)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype) * (0.5 if len(shape) == 1 else shape[-1] ** -0.5)

    provenance = Provenance(
        source="test",
        family="llama",
        layers=tuple(range(layers)),
        final_norm=final_norm,  # type: ignore[arg-type]
        num_layers=8,
        file_dtypes=("F32",),
    )
    tensors = [{name: draw(shape) for name, shape in config.tensor_shapes().items()} for _ in range(layers)]
    gain = {n: draw(s) for n, s in config.norm_shapes().items()} if final_norm == "pretrained" else None
    return FrozenBlock(config, tensors, provenance=provenance, final_norm=gain)


def calls_of(module: nn.Module) -> list[tuple[Tensor, Any]]:
    """A list that grows by (first input, output) at every call of `module`."""
    seen: list[tuple[Tensor, Any]] = []
    module.register_forward_hook(lambda *call: seen.append((call[1][0], call[2])))
    return seen
