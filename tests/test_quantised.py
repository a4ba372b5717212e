"""Quantised weights: what is read is what each format's own package reads, and what does not fit is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import lmgraft
from lmgraft.checkpoint import open_checkpoint
from lmgraft.checkpoint.quantised.form import unpack
from lmgraft.errors import CheckpointError
from tiny import relative_error

REFERENCE = Path(__file__).parent / "fixtures" / "quantised" / "reference.safetensors"
LAYER = "model.layers.1.mlp.up_proj"


def _cases() -> dict[str, dict[str, Any]]:
    with safe_open(REFERENCE, "pt") as file:
        settings: dict[str, dict[str, Any]] = json.loads(file.metadata()["settings"])
    return settings


CASES = _cases()


def parts_of(case: str) -> dict[str, Tensor]:
    """Ending of the name -> tensor, `expected` among them."""
    return {n.partition("/")[2]: t for n, t in load_file(REFERENCE).items() if n.partition("/")[0] == case}


def write(folder: Path, parts: dict[str, Tensor], settings: Any, stem: str = "x") -> Path:
    """A checkpoint of one weight, so called."""
    folder.mkdir(exist_ok=True)
    save_file({stem + ending: tensor for ending, tensor in parts.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_as_the_formats_own_package_reads_it(case: str, tmp_path: Path) -> None:
    parts = parts_of(case)
    expected = parts.pop("expected")
    checkpoint = open_checkpoint(str(write(tmp_path / "model", parts, CASES[case])))
    (name,) = checkpoint.names()
    assert name == ("x" if case == "mxfp4" else "x.weight")
    assert checkpoint.shape(name) == tuple(expected.shape)
    assert checkpoint.nbytes(name) == sum(t.nbytes for t in parts.values())
    values = checkpoint.read(name)
    assert values.dtype == torch.float32
    # The packages multiply in the scales' 16 bits, lmgraft in 32.
    exact = case.startswith(("mxfp4", "fp8", "bitsandbytes-nf4", "bitsandbytes-fp4"))
    assert relative_error(values, expected) <= (1e-6 if exact else 4e-3)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("axis", [0, 1])
def test_unpacking_is_reading_a_stream_of_bits(bits: int, axis: int) -> None:
    words = torch.randint(-(2**31), 2**31 - 1, (6, bits * 2), dtype=torch.int32)
    words = words if axis == 1 else words.T
    for line, numbers in zip(words.movedim(axis, 0).T, unpack(words, bits, axis).movedim(axis, 0).T, strict=True):
        stream = sum((int(word) & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(line))
        count = len(line) * 32 // bits
        assert numbers.tolist() == [stream >> (bits * place) & ((1 << bits) - 1) for place in range(count)]


def test_first_gptq_stores_zeros_less_one(tmp_path: Path) -> None:
    """The formula of the format as it was published: scale * (q - (zero + 1))."""
    parts = parts_of("gptq-4")
    expected = parts.pop("expected")
    parts[".qzeros"] = parts[".qzeros"] - 0x11111111
    settings = CASES["gptq-4"] | {"checkpoint_format": "gptq"}
    values = open_checkpoint(str(write(tmp_path / "model", parts, settings))).read("x.weight")
    assert relative_error(values, expected) <= 1e-3


def test_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    parts = parts_of("gptq-4-reordered")
    expected = parts.pop("expected")
    folder = write(tmp_path / "model", parts, None)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    settings = {k: v for k, v in CASES["gptq-4-reordered"].items() if k != "quant_method"}
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    assert relative_error(open_checkpoint(str(folder)).read("x.weight"), expected) <= 1e-3


@pytest.mark.parametrize("rows", [1, 4, 64])
@pytest.mark.parametrize("case", ["gptq-3", "awq", "bitsandbytes-nf4-double", "compressed-fp8-block", "mxfp4"])
def test_a_few_rows_at_a_time(case: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of(case)
    parts.pop("expected")
    checkpoint = open_checkpoint(str(write(tmp_path / "model", parts, CASES[case])))
    (name,) = checkpoint.names()
    at_once = checkpoint.read(name)
    monkeypatch.setattr("lmgraft.checkpoint.quantised.reader.CHUNK", 4 * rows * at_once[0].numel())
    monkeypatch.setattr(type(checkpoint._weights[name].format), "step", 8, raising=False)  # type: ignore[attr-defined]
    assert torch.equal(checkpoint.read(name), at_once)


class TestBlock:
    """A whole model with each projection quantised."""

    @pytest.fixture
    def quantise(self, llama_folder: Path, tmp_path: Path) -> Callable[..., Path]:
        """Make a copy whose layers' matrices `to_parts` stores; beside it what they then are."""

        def make(to_parts: Callable[[Tensor], tuple[dict[str, Tensor], Tensor]], settings: Any) -> Path:
            folder = Path(shutil.copytree(llama_folder, tmp_path / "quantised"))
            plain = Path(shutil.copytree(llama_folder, tmp_path / "plain"))
            state = load_file(folder / "model.safetensors")
            exact = dict(state)
            for name in [n for n in state if n.endswith("_proj.weight")]:
                parts, exact[name] = to_parts(state.pop(name))
                state |= {name.removesuffix(".weight") + ending: tensor for ending, tensor in parts.items()}
            save_file({n: t.contiguous() for n, t in state.items()}, folder / "model.safetensors")
            save_file({n: t.contiguous() for n, t in exact.items()}, plain / "model.safetensors")
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
            return folder

        return make

    @staticmethod
    def fp8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        scale = weight.abs().amax(1, keepdim=True) / 448
        stored = (weight / scale).to(torch.float8_e4m3fn)
        parts = {".weight": stored, ".weight_scale": scale, ".input_scale": torch.ones(1)}
        return parts, stored.float() * scale

    @staticmethod
    def gptq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Eight bits, one group, zeros of 128; a bias of zeros, as early quantisers add."""
        outputs, inputs = weight.shape
        scale = weight.abs().amax(1) / 127
        integers = torch.round(weight / scale[:, None]) + 128
        words = integers.T.reshape(inputs // 4, 4, outputs).long()
        packed = sum(words[:, place] << (8 * place) for place in range(4))
        signed = torch.where(torch.as_tensor(packed) >= 1 << 31, packed - (1 << 32), packed).int()
        zeros = torch.full((1, outputs // 4), 0x7F7F7F7F, dtype=torch.int32)
        parts = {".qweight": signed, ".qzeros": zeros, ".scales": scale[None], ".bias": torch.zeros(outputs)}
        return parts, (integers - 128) * scale[:, None]

    @pytest.mark.parametrize(
        ("way", "settings"),
        [
            ("fp8", {"quant_method": "compressed-tensors", "format": "float-quantized"}),
            ("gptq", {"quant_method": "gptq", "bits": 8, "group_size": -1}),
        ],
    )
    def test_one_layer(self, quantise: Callable[..., Path], way: str, settings: dict[str, Any]) -> None:
        folder = quantise(getattr(self, way), settings)
        block, exact = lmgraft.load_block(str(folder), 1), lmgraft.load_block(str(folder.with_name("plain")), 1)
        (tensors,), _ = block.tensors()
        (expected,), _ = exact.tensors()
        assert tensors.keys() == expected.keys()
        assert all(relative_error(tensors[name], expected[name]) <= 1e-6 for name in tensors)
        report = lmgraft.inspect_llm(str(folder), 1)
        assert any("scaled F8_E4M3" in kind or "gptq I32" in kind for kind in report.file_dtypes)
        assert report.layer_bytes < 4 * block.config.num_params() / 3

    def test_a_bias_that_is_not_zero(self, quantise: Callable[..., Path]) -> None:
        folder = quantise(self.gptq, {"quant_method": "gptq", "bits": 8, "group_size": -1})
        state = load_file(folder / "model.safetensors")
        state[f"{LAYER}.bias"][3] = 0.5
        save_file(state, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=rf"unknown {LAYER}\.bias"):
            lmgraft.load_block(str(folder), 1)
        lmgraft.load_block(str(folder), 0)


class TestBadInput:
    @pytest.mark.parametrize(
        ("case", "ending", "shape", "match"),
        [
            ("gptq-4", ".scales", (3, 32), r"\.scales has shape \(3, 32\), its weights need \(2, 32\)"),
            ("gptq-4", ".qzeros", (2, 5), r"\.qzeros has shape \(2, 5\), its weights need \(2, 4\)"),
            ("gptq-4", ".g_idx", (63,), r"\.g_idx has shape \(63,\), its weights need \(64,\)"),
            ("awq", ".scales", (4, 64), r"\.scales has shape \(4, 64\), its weights need \(2, 64\)"),
            (
                "bitsandbytes-nf4",
                ".weight.absmax",
                (3,),
                r"\.weight\.absmax has shape \(3,\), its weights need \(32,\)",
            ),
            ("bitsandbytes-int8", ".SCB", (7,), r"\.SCB has shape \(7,\), its weights need \(32,\)"),
            ("fp8-block", ".weight_scale_inv", (3, 2), r"\.weight_scale_inv has shape \(3, 2\).*blocks of 16 x 32"),
            ("fp8-row", ".weight_scale", (31, 1), r"\.weight_scale has shape \(31, 1\).*weight_block_size"),
            ("compressed-int4-group", ".weight_scale", (32, 3), r"\.weight_scale has shape \(32, 3\)"),
            ("compressed-int4-zeros", ".weight_zero_point", (1, 2), r"\.weight_zero_point has shape \(1, 2\)"),
            ("compressed-int4-group", ".weight_shape", (3,), r"\.weight_shape has shape \(3,\)"),
            ("compressed-nvfp4", ".weight_scale", (32, 3), r"\.weight_scale has shape \(32, 3\)"),
            ("compressed-nvfp4", ".weight_scale", (32, 8), r"\.weight_scale .* FP4 has groups of 16 or 32"),
            ("mxfp4", "_scales", (3, 24, 3), r"_scales has shape \(3, 24, 3\), its weights need \(3, 24, 2\)"),
        ],
    )
    def test_scales_of_another_shape(self, case: str, ending: str, shape: Any, match: str, tmp_path: Path) -> None:
        parts = parts_of(case)
        parts.pop("expected")
        parts[ending] = torch.zeros(shape).to(parts[ending].dtype)
        checkpoint = open_checkpoint(str(write(tmp_path / "model", parts, CASES[case])))
        (name,) = checkpoint.names()
        with pytest.raises(CheckpointError, match=match) as caught:
            checkpoint.read(name)
        assert f"{name} in " in caught.value.message

    @pytest.mark.parametrize("case", ["gptq-4", "awq"])
    @pytest.mark.parametrize("size", [48, 0, 128])
    def test_group_size_that_does_not_divide(self, case: str, size: int, tmp_path: Path) -> None:
        parts = parts_of(case)
        parts.pop("expected")
        checkpoint = open_checkpoint(str(write(tmp_path / "model", parts, CASES[case] | {"group_size": size})))
        with pytest.raises(CheckpointError, match=f"group size {size} does not divide its 64 inputs"):
            checkpoint.read("x.weight")

    @pytest.mark.parametrize(
        ("case", "ending"),
        [
            ("gptq-4", ".scales"),
            ("awq", ".qzeros"),
            ("bitsandbytes-nf4", ".weight.absmax"),
            ("bitsandbytes-nf4", ".weight.quant_state.bitsandbytes__nf4"),
            ("bitsandbytes-nf4-double", ".weight.nested_quant_map"),
            ("bitsandbytes-int8", ".SCB"),
            ("compressed-int4-group", ".weight_scale"),
            ("compressed-int4-group", ".weight_shape"),
        ],
    )
    def test_a_part_is_missing(self, case: str, ending: str, tmp_path: Path) -> None:
        parts = parts_of(case)
        del parts["expected"], parts[ending]
        checkpoint = open_checkpoint(str(write(tmp_path / "model", parts, CASES[case])))
        with pytest.raises(CheckpointError, match=f"its {ending} is missing"):
            checkpoint.read("x.weight")

    def test_group_out_of_range(self, tmp_path: Path) -> None:
        parts = parts_of("gptq-4")
        parts.pop("expected")
        parts[".g_idx"] = parts[".g_idx"] + 9
        checkpoint = open_checkpoint(str(write(tmp_path / "model", parts, CASES["gptq-4"])))
        with pytest.raises(CheckpointError, match=r"\.g_idx names group 10 of 2"):
            checkpoint.read("x.weight")

    @pytest.mark.parametrize(
        ("state", "settings"),
        [
            (b"{}", {}),
            (b"no json", {}),
            (b'{"shape": [1e9, 2], "blocksize": 64}', {}),
            (b'{"shape": [64], "blocksize": 64}', {}),
            (b'{"shape": [-4, -4], "blocksize": 64}', {}),
            (b'{"shape": [64, 64], "blocksize": 0}', {}),
        ],
    )
    def test_damaged_state(self, state: bytes, settings: Any, tmp_path: Path) -> None:
        parts = parts_of("bitsandbytes-nf4")
        parts.pop("expected")
        parts[".weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(state), dtype=torch.uint8)
        checkpoint = open_checkpoint(str(write(tmp_path / "model", parts, CASES["bitsandbytes-nf4"])))
        with pytest.raises(CheckpointError, match="does not say its shape and block size"):
            checkpoint.read("x.weight")

    @pytest.mark.parametrize("method", ["aqlm", "hqq", "quark"])
    def test_a_format_that_is_not_read(self, method: str, tmp_path: Path) -> None:
        folder = write(tmp_path / "model", {".weight": torch.zeros(2, 2)}, {"quant_method": method})
        with pytest.raises(CheckpointError, match=f"quantised by '{method}', which is not read") as caught:
            open_checkpoint(str(folder))
        assert "GGUF" in caught.value.remedy

    def test_values_without_scales(self, llama_folder: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
        state = load_file(folder / "model.safetensors")
        state[f"{LAYER}.weight"] = state[f"{LAYER}.weight"].to(torch.float8_e4m3fn)
        save_file(state, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match="stored as F8_E4M3, and no scales lie beside it"):
            lmgraft.load_block(str(folder), 1)

    @pytest.mark.parametrize("version", ["gemv", "exllama"])
    def test_awq_in_another_layout(self, version: str, tmp_path: Path) -> None:
        parts = parts_of("awq")
        parts.pop("expected")
        checkpoint = open_checkpoint(str(write(tmp_path / "model", parts, CASES["awq"] | {"version": version})))
        with pytest.raises(CheckpointError, match=f"layout '{version}' is not read"):
            checkpoint.read("x.weight")
