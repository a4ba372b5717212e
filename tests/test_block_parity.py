"""Our block against transformers' own LlamaDecoderLayer: rotary off, every token visible."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", minversion="5.24")
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from lmgraft.block import FrozenBlock, Provenance
from lmgraft.block.families.llama import FAMILY, config_from_hf
from tiny import randomise_, relative_error

SHAPES: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"num_key_value_heads": 2},
    "mqa": {"num_key_value_heads": 1},
    "head_dim": {"head_dim": 12, "num_key_value_heads": 2},
    "attention_bias": {"attention_bias": True, "num_key_value_heads": 2},
    "mlp_bias": {"mlp_bias": True},
    "all_biases_wide_heads": {"attention_bias": True, "mlp_bias": True, "head_dim": 16, "num_key_value_heads": 2},
    "gelu": {"hidden_act": "gelu"},
    "gelu_new": {"hidden_act": "gelu_new"},
    "gelu_pytorch_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
    "large_eps": {"rms_norm_eps": 1e-2},
}
B, T = 2, 7


def llama_config(**changes: Any) -> LlamaConfig:
    base = {"hidden_size": 32, "intermediate_size": 44, "num_attention_heads": 4, "num_hidden_layers": 4}
    return LlamaConfig(**(base | changes))


def hf_layers(config: LlamaConfig, attention: str, dtype: torch.dtype, count: int = 1) -> list[LlamaDecoderLayer]:
    config._attn_implementation = attention
    layers = [randomise_(LlamaDecoderLayer(config, i), seed=10 + i).to(dtype).eval() for i in range(count)]
    for layer in layers:
        layer.requires_grad_(False)
    return layers


def our_block(
    layers: list[LlamaDecoderLayer], config: LlamaConfig, final_norm: str = "none", gain: Tensor | None = None
) -> FrozenBlock:
    ours = config_from_hf(config.to_dict(), ())
    tensors = []
    for layer in layers:
        state = layer.state_dict()
        assert len(ours.tensor_shapes()) == len(state)  # nothing of the oracle is left out
        tensors.append(
            {
                name: state[str(FAMILY.names["hf"].in_file(name, 0, "")).removeprefix("layers.0.")]
                for name in ours.tensor_shapes()
            }
        )
    provenance = Provenance(
        source="test",
        family="llama",
        layers=tuple(range(len(layers))),
        final_norm=final_norm,  # type: ignore[arg-type]
        num_layers=4,
        file_dtypes=("F32",),
    )
    return FrozenBlock(ours, tensors, provenance=provenance, final_norm=None if gain is None else {"weight": gain})


def run_hf(layers: list[LlamaDecoderLayer], x: Tensor, padded: Tensor | None = None) -> Tensor:
    """All tokens visible by an explicit mask: without a mask sdpa would be causal."""
    mask = x.new_zeros(x.shape[0], 1, x.shape[1], x.shape[1])
    if padded is not None:
        mask = mask.masked_fill(padded[:, None, None, :], float("-inf"))
    head_dim = layers[0].self_attn.head_dim
    no_rotation = (x.new_ones(x.shape[0], x.shape[1], head_dim), x.new_zeros(x.shape[0], x.shape[1], head_dim))
    for layer in layers:
        x = layer(x, attention_mask=mask, position_embeddings=no_rotation)
    return x


def assert_parity(
    layers: list[LlamaDecoderLayer],
    block: FrozenBlock,
    tolerance: float,
    padded: Tensor | None = None,
    final: nn.Module | None = None,
) -> None:
    """Outputs and input gradients agree; padded tokens' outputs count too."""
    dtype = next(block.parameters()).dtype
    x = torch.randn(B, T, block.config.dim, dtype=dtype)
    toward = torch.randn(B, T, block.config.dim, dtype=dtype)
    theirs_in, ours_in = x.clone().requires_grad_(), x.clone().requires_grad_()
    theirs = run_hf(layers, theirs_in, padded)
    theirs = theirs if final is None else final(theirs)
    ours = block(ours_in, padded)
    (theirs * toward).sum().backward()
    (ours * toward).sum().backward()
    assert theirs_in.grad is not None
    assert ours_in.grad is not None
    assert ours.dtype == dtype
    assert relative_error(ours, theirs) <= tolerance
    assert relative_error(ours_in.grad, theirs_in.grad) <= tolerance


@pytest.fixture
def wide_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' RMSNorm rounds to float32; the same formula in the input's own precision."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", SHAPES)
def test_float32(shape: str, attention: str) -> None:
    config = llama_config(**SHAPES[shape])
    layers = hf_layers(config, attention, torch.float32)
    assert_parity(layers, our_block(layers, config), 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("wide_oracle")
def test_float64(shape: str) -> None:
    config = llama_config(**SHAPES[shape])
    layers = hf_layers(config, "sdpa", torch.float64)  # eager takes its softmax in float32
    assert_parity(layers, our_block(layers, config), 1e-10)


@pytest.mark.parametrize("shape", ["mha", "gqa", "all_biases_wide_heads"])
def test_padded_keys(shape: str) -> None:
    config = llama_config(**SHAPES[shape])
    layers = hf_layers(config, "sdpa", torch.float32)
    padded = torch.zeros(B, T, dtype=torch.bool)
    padded[0, 4:] = True
    padded[1, [0, 2]] = True
    assert_parity(layers, our_block(layers, config), 1e-5, padded)


@pytest.mark.usefixtures("wide_oracle")
def test_padded_keys_float64() -> None:
    config = llama_config(**SHAPES["all_biases_wide_heads"])
    layers = hf_layers(config, "sdpa", torch.float64)
    padded = torch.arange(T).expand(B, T) >= torch.tensor([[3], [T]])
    assert_parity(layers, our_block(layers, config), 1e-10, padded)


@pytest.mark.parametrize("shape", ["gqa", "all_biases_wide_heads"])
def test_stack_of_two(shape: str) -> None:
    config = llama_config(**SHAPES[shape])
    layers = hf_layers(config, "sdpa", torch.float32, count=2)
    padded = torch.zeros(B, T, dtype=torch.bool)
    padded[1, -1] = True
    assert_parity(layers, our_block(layers, config), 1e-5)
    assert_parity(layers, our_block(layers, config), 1e-5, padded)


def test_stack_order_matters() -> None:
    config = llama_config()
    layers = hf_layers(config, "sdpa", torch.float32, count=2)
    x = torch.randn(B, T, 32)
    assert relative_error(our_block(layers[::-1], config)(x), run_hf(layers, x)) > 1e-2


@pytest.mark.parametrize("final_norm", ["pretrained", "unit"])
def test_final_norm(final_norm: str) -> None:
    config = llama_config(**SHAPES["gqa"])
    layers = hf_layers(config, "sdpa", torch.float32)
    final = LlamaRMSNorm(32, eps=config.rms_norm_eps).requires_grad_(False)
    gain = None
    if final_norm == "pretrained":
        randomise_(final, seed=1)
        final.weight.data += 1.0  # `randomise_` knows norms by their name; here it is only "weight"
        gain = final.weight.detach().clone()
    assert_parity(layers, our_block(layers, config, final_norm, gain), 1e-5, final=final)
