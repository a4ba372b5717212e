"""Tiny models that every test shares: an LLM folder, the same LLM as GGUF, a ViT, a block."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import settings
from safetensors.torch import load_file
from torch import Tensor, nn

import lmgraft
from tiny import TINY_LLAMA, make_vit, save_llama

# Examples are the same in every run, and a busy machine is no failure.
settings.register_profile("lmgraft", derandomize=True, deadline=None, database=None, max_examples=30)
settings.load_profile("lmgraft")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests of minutes first: begun last, one of them would keep one process busy and the others waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test may touch the user's caches."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("LMGRAFT_CACHE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")  # nor ask the Hub; the tests of the Hub talk to a server of their own
        patch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        yield folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 3-layer LLaMA with grouped queries. Read only: copy to change."""
    return save_llama(tmp_path_factory.mktemp("llama"), TINY_LLAMA, seed=3)


@pytest.fixture(scope="session")
def llama_state(llama_folder: Path) -> dict[str, Tensor]:
    """The tensors of `llama_folder` under their Hugging Face names."""
    return load_file(llama_folder / "model.safetensors")


@pytest.fixture
def tiny_block(llama_folder: Path) -> lmgraft.FrozenBlock:
    return lmgraft.load_block(str(llama_folder))


@pytest.fixture
def tiny_vit() -> nn.Module:
    return make_vit()


_GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    outside = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if not name.startswith("model.layers."):
        return outside.get(name, "output.weight")
    _, _, layer, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_GGUF_NAMES[part]}.{kind}"


def _permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py: LlamaModel.permute."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


@pytest.fixture
def make_gguf(tmp_path: Path, llama_state: dict[str, Tensor]) -> Callable[..., Path]:
    """Writes the weights of `llama_folder` as llama.cpp's converter does.

    Arguments of the function: `quantization` of the matrices, a name or a mapping from name
    endings to names (norms stay F32); `architecture`; `state` instead of the folder's; `change`,
    called with the writer before it writes.
    """

    def write(
        file: str = "tiny.gguf",
        *,
        quantization: str | Mapping[str, str] = "F32",
        architecture: str = "llama",
        state: Mapping[str, Tensor] | None = None,
        change: Callable[[gguf.GGUFWriter], None] | None = None,
    ) -> Path:
        path = tmp_path / file
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_name("tiny")
        writer.add_license("apache-2.0")
        writer.add_block_count(TINY_LLAMA["num_hidden_layers"])
        writer.add_embedding_length(TINY_LLAMA["hidden_size"])
        writer.add_feed_forward_length(TINY_LLAMA["intermediate_size"])
        writer.add_head_count(TINY_LLAMA["num_attention_heads"])
        writer.add_head_count_kv(TINY_LLAMA["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(TINY_LLAMA["rms_norm_eps"])
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"token{i}é" for i in range(TINY_LLAMA["vocab_size"])])
        writer.add_token_types([1] * TINY_LLAMA["vocab_size"])
        for name, tensor in (llama_state if state is None else state).items():
            values = tensor.float().numpy()
            if ".q_proj." in name:
                values = _permuted(values, TINY_LLAMA["num_attention_heads"])
            if ".k_proj." in name:
                values = _permuted(values, TINY_LLAMA["num_key_value_heads"])
            short = _gguf_name(name)
            _add(writer, short, np.ascontiguousarray(values), quantization)
        if change is not None:
            change(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, quantization: str | Mapping[str, str]) -> None:
    if not isinstance(quantization, str):
        quantization = next((q for ending, q in quantization.items() if name.endswith(ending)), "F32")
    kind = GGMLQuantizationType[quantization if values.ndim > 1 else "F32"]
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


@pytest.fixture(scope="module", autouse=True)
def handlers_of_signals_stay_with_their_file() -> Iterator[None]:
    """Ray leaves a handler of SIGTERM behind, which would end the tests of other files in the same process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
