"""Layers of transformers' and timm's code as blocks: against the layers of a separate model, and in a graft."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

pytest.importorskip("transformers", minversion="5.24")
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import lmgraft
from borrowed_sweep import DOCS, oracle_output, sweep, tiny_config
from lmgraft.block import FrozenBlock, OpaqueBlock, block_of
from lmgraft.borrowed import neutral
from lmgraft.borrowed.neutral import order_error
from lmgraft.borrowed.skeleton import choose_tower
from lmgraft.errors import BlockError, CheckpointError, HostError, SourceError
from lmgraft.graft.controls import CONTROLS
from tiny import images, make_vit, randomise_, relative_error

TYPES = [
    "mixtral",
    "qwen3_moe",
    "deepseek_v2",
    "gpt_oss",
    "qwen3_next",
    "gpt_bigcode",
    "codegen",
    "xglm",
    "gemma4_text",
    "solar_open",  # whose name holds "rope"
    "cpmant",  # whose mask is true where it is seen
    "longcat_flash",  # whose attention is called MLA
]
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64}
TEXT |= {"max_position_embeddings": 64, "pad_token_id": 0}
SEEN = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
SEEN |= {"image_size": 16, "patch_size": 8}
T5 = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2, "vocab_size": 64}
HEARD = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "num_mel_bins": 8}
HEARD |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 6}
HEARD |= {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
WAVES = {k: SEEN[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")}
WAVES |= {"conv_dim": (8, 8), "conv_stride": (4, 4), "conv_kernel": (8, 4), "num_conv_pos_embeddings": 4}
WAVES |= {"num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2, "mask_time_prob": 0}
PAIR = {"text_config": TEXT, "vision_config": SEEN}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
WORDS = {"input_ids": torch.full((2, 6), 7)}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)}

ENCODERS: dict[str, tuple[str, str, dict[str, Any], dict[str, Tensor], str | None]] = {
    "BERT": ("BertForMaskedLM", "BertConfig", TEXT, WORDS, None),
    "RoBERTa": ("RobertaModel", "RobertaConfig", TEXT, WORDS, None),
    "ELECTRA": ("ElectraModel", "ElectraConfig", TEXT | {"embedding_size": 32}, WORDS, None),
    "XLM-R": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", TEXT, WORDS, None),
    "ModernBERT": ("ModernBertModel", "ModernBertConfig", TEXT, WORDS, None),
    "DeBERTa": ("DebertaModel", "DebertaConfig", TEXT | RELATIVE, WORDS, None),
    "DeBERTa-v3": ("DebertaV2Model", "DebertaV2Config", TEXT | RELATIVE | {"position_buckets": 8}, WORDS, None),
    "T5 encoder": ("T5EncoderModel", "T5Config", T5, WORDS, None),
    "T5": ("T5ForConditionalGeneration", "T5Config", T5, WORDS | {"decoder_input_ids": WORDS["input_ids"]}, "encoder"),
    "ESM": ("EsmModel", "EsmConfig", TEXT | {"position_embedding_type": "rotary"}, WORDS, None),
    "Whisper": (
        "WhisperModel",
        "WhisperConfig",
        HEARD,
        {"input_features": torch.ones(2, 8, 12), "decoder_input_ids": WORDS["input_ids"]},
        "encoder",
    ),
    "wav2vec 2.0": ("Wav2Vec2Model", "Wav2Vec2Config", WAVES, {"input_values": torch.ones(2, 200)}, None),
    "ViT": ("ViTModel", "ViTConfig", SEEN, PIXELS, None),
    "DINOv2": ("Dinov2Model", "Dinov2Config", SEEN | {"intermediate_size": 128}, PIXELS, None),
    "CLIP vision": ("CLIPVisionModel", "CLIPVisionConfig", SEEN, PIXELS, None),
    "CLIP": ("CLIPModel", "CLIPConfig", PAIR, PIXELS | WORDS, "vision"),
    "CLIP text": ("CLIPModel", "CLIPConfig", PAIR, PIXELS | WORDS, "text"),
    "SigLIP": ("SiglipModel", "SiglipConfig", PAIR, PIXELS | WORDS, "vision"),
    "SigLIP text": ("SiglipModel", "SiglipConfig", PAIR, PIXELS | WORDS, "text"),
}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def written(folder: Path, class_name: str, config: Any) -> str:
    torch.manual_seed(0)
    randomise_(getattr(transformers, class_name)(config), seed=3).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("moe"), "Qwen2MoeForCausalLM", tiny_config("qwen2_moe"))


@pytest.fixture(scope="module")
def block(moe: str) -> FrozenBlock:
    return lmgraft.load_block(moe)


@pytest.mark.parametrize("name", TYPES)
def test_a_causal_type_is_equivariant_and_equal(name: str) -> None:
    (row,) = sweep([name])
    assert row.is_read, row.reason
    assert row.equal is not None
    assert row.equal <= 1e-5
    assert row.order is not None
    assert row.order <= 1e-5


@pytest.mark.long
def test_the_table_of_all_causal_types_is_true() -> None:
    rows = sweep(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    assert sum(r.is_read for r in rows) >= 0.82 * len(rows)  # 160 of 5.24's 196
    assert not [r for r in rows if "differs" in r.reason], "loads, and is wrong"
    table = DOCS.read_text()
    assert all(f"| `{r.name}` | {r.layer_class} |" in table for r in rows if r.is_read)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_or_another_sense(tmp_path: Path, name: str) -> None:
    class_name, config_name, values, inputs, tower = ENCODERS[name]
    source = written(tmp_path, class_name, getattr(transformers, config_name)(**values))
    model = getattr(transformers, class_name).from_pretrained(source, attn_implementation="eager").eval()
    made = lmgraft.load_block(source, tower=tower, final_norm="none")
    x, theirs = oracle_output(model, choose_tower(model, tower).layers[-1], **inputs)
    assert relative_error(made(x) - x, theirs - x) <= 1e-5
    assert order_error(made, 32, x) <= 1e-5
    assert lmgraft.load_block(source, tower=tower)(x).shape == x.shape


def test_a_layer_that_takes_no_mask_is_refused_where_tokens_are_padded() -> None:
    call, x = neutral.CallLayer(wanted=("cache",)), torch.randn(1, 3, 32)
    with pytest.raises(BlockError, match="Identity takes no mask, and tokens are padded"):
        call(nn.Identity(), x, torch.tensor([[False, False, True]]))


def test_a_layer_that_is_called_wrongly_is_refused(moe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as planted:
        planted.setattr(neutral, "_ATTENDS", re.compile("never"))  # so no mask is given
        with pytest.raises(BlockError, match=r"layer 1 .*sees padded tokens"):
            lmgraft.load_block(moe)
    monkeypatch.setattr("lmgraft.borrowed.load.neutralise", _dull_attention)
    with pytest.raises(BlockError, match=r"layer 1 .*does not see its tokens"):
        lmgraft.load_block(moe)


def _dull_attention(layer: nn.Module) -> None:
    for part in layer.modules():
        if "Attention" in type(part).__name__:
            part.register_forward_hook(lambda *call: (torch.ones_like(call[2][0]), *call[2][1:]))


@pytest.mark.parametrize("name", ["T5", "Whisper"])
def test_a_decoder_is_read_without_its_attention_to_the_encoder(tmp_path: Path, name: str) -> None:
    class_name, config_name, values, _, _ = ENCODERS[name]
    source = written(tmp_path, class_name, getattr(transformers, config_name)(**values))
    made = lmgraft.load_block(source, tower="decoder", final_norm="none")
    layer = choose_tower(getattr(transformers, class_name).from_pretrained(source).eval(), "decoder").layers[-1]
    x = torch.randn(2, 5, 32)
    theirs = layer(x, attention_mask=torch.zeros(2, 1, 5, 5))
    assert relative_error(made(x) - x, (theirs[0] if isinstance(theirs, tuple) else theirs) - x) <= 1e-5
    assert order_error(made, 32, x) <= 1e-5
    crossed = ("encoder_attn", "EncDecAttention", ".layer.1.")
    assert not [n for n, _ in made.named_parameters() if any(part in n for part in crossed)]
    assert 0 < made.config.num_params() < sum(p.numel() for p in layer.parameters())
    assert lmgraft.inspect_llm(source, tower="decoder").layer_bytes == 4 * made.config.num_params()


def test_native_code_and_transformers_give_the_same_numbers(tmp_path: Path) -> None:
    source = written(tmp_path, "LlamaForCausalLM", tiny_config("llama"))
    native, borrowed = lmgraft.load_block(source, (0, 1)), lmgraft.load_block(source, (0, 1), tower="model.layers")
    assert isinstance(borrowed, OpaqueBlock)
    assert not native.opaque
    x = torch.randn(2, 6, 32)
    padded = torch.tensor([[False] * 6, [False, True, False, False, True, True]])
    assert relative_error(borrowed(x), native(x)) <= 1e-5
    assert relative_error(borrowed(x, padded), native(x, padded)) <= 1e-5
    with_gains = [lmgraft.load_block(source, final_norm="pretrained", tower=t)(x) for t in (None, "model.layers")]
    assert relative_error(*with_gains) <= 1e-5


def test_reads_are_rows_and_padded_tokens_are_not_seen(block: FrozenBlock) -> None:
    x = torch.randn(2, 6, 32)
    assert torch.equal(block(x, reads=slice(1, 3)), block(x)[:, 1:3])
    padded = torch.zeros(2, 6, dtype=torch.bool)
    padded[:, 4:] = True
    assert relative_error(block(x, padded)[:, :4], block(x[:, :4])) <= 1e-5


def test_a_block_is_frozen_shared_and_pickles(block: FrozenBlock) -> None:
    assert not block.state_dict()
    assert not any(p.requires_grad for p in block.parameters())
    assert not any(isinstance(m, nn.Linear) for m in block.modules())
    twin = copy.deepcopy(block)
    assert [p.data_ptr() for p in twin.parameters()] == [p.data_ptr() for p in block.parameters()]
    x = torch.randn(2, 4, 32)
    assert torch.equal(pickle.loads(pickle.dumps(block))(x), block(x))  # noqa: S301 - made here
    twin.to(torch.float64)
    assert next(block.parameters()).dtype == torch.float32
    assert relative_error(twin(x.double()), block(x)) <= 1e-6


def test_weights_of_16_bits_are_widened_where_they_are_used(moe: str, block: FrozenBlock) -> None:
    narrow = lmgraft.load_block(moe, dtype="bfloat16")
    x = torch.randn(2, 4, 32)
    assert narrow.provenance.digest == block.provenance.digest
    assert narrow(x).dtype == torch.float32
    assert relative_error(narrow(x), copy.deepcopy(narrow).float()(x)) <= 1e-5


@pytest.mark.parametrize("kind", ["random_frozen", "shuffled", "spectrum", "random_trained", "linear", "mlp"])
def test_controls(block: FrozenBlock, kind: str) -> None:
    control = CONTROLS[kind](block, 3)
    x = torch.randn(2, 4, 32)
    assert control(x).shape == x.shape
    assert relative_error(control(x), block(x)) > 0.1
    if kind in ("random_frozen", "shuffled", "spectrum"):
        matrices = [p for p in zip(block.parameters(), control.parameters(), strict=True) if p[0].dim() > 1]
        for before, after in matrices:
            parts = zip(before, after, strict=True) if before.dim() == 3 else [(before, after)]
            assert all(float(b.norm()) == pytest.approx(float(a.norm()), rel=1e-4) for b, a in parts)
        assert CONTROLS[kind](block, 3).provenance.digest == control.provenance.digest
    with pytest.raises(BlockError, match="no two branches"):
        CONTROLS["attention_only"](block, 0)


@pytest.mark.parametrize("kind", ["lora", "norms", "all"])
def test_a_part_of_it_is_trained_saved_and_loaded(moe: str, tmp_path: Path, kind: str) -> None:
    model = lmgraft.graft(make_vit(), moe, train_block=kind)  # type: ignore[arg-type]
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    trained = [p for n, p in model.named_parameters() if ".block." in n and p.requires_grad]
    assert trained
    assert bool(frozen) == (kind != "all")
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(images()).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    optimiser.step()
    lmgraft.save_pretrained(model, tmp_path)
    again = lmgraft.load_pretrained(tmp_path, model=make_vit())
    assert torch.equal(again(images()), model.eval()(images()))


def test_it_is_saved_by_reference_and_verified(moe: str, tmp_path: Path) -> None:
    model = lmgraft.graft(make_vit(), moe, layer=0).eval()
    lmgraft.save_pretrained(model, tmp_path)
    assert not any(n.startswith("graft.block") for n in load_file(tmp_path / "model.safetensors"))
    again = lmgraft.load_pretrained(tmp_path, model=make_vit())
    assert torch.equal(again(images()), model(images()))
    record = json.loads((tmp_path / "lmgraft.json").read_text())
    assert record["block"]["family"] == "qwen2_moe"


def test_other_forms_than_the_dense_one_are_refused(moe: str) -> None:
    with pytest.raises(BlockError, match="dense form only"):
        lmgraft.graft(make_vit(), moe, form="folded")
    auto, dense = (lmgraft.graft(make_vit(), moe, form=form).eval() for form in ("auto", "dense"))  # type: ignore[arg-type]
    dense.load_state_dict(auto.state_dict())
    assert relative_error(auto(images()), dense(images())) <= 1e-6


def test_inspect_lists_the_kinds_of_layers(tmp_path: Path, moe: str) -> None:
    assert lmgraft.inspect_llm(moe).kinds == ()
    report = lmgraft.inspect_llm(moe)
    assert report.layer_bytes == 4 * report.config.num_params()
    hybrid = written(tmp_path, "Qwen3NextForCausalLM", tiny_config("qwen3_next"))
    kinds = lmgraft.inspect_llm(hybrid).kinds
    assert kinds == ("linear_attention, experts",) * 3 + ("full_attention, experts",)
    with pytest.raises(BlockError, match="order='causal'"):
        lmgraft.load_block(hybrid, 0)
    causal = lmgraft.load_block(hybrid, 0, order="causal")
    x = torch.randn(1, 5, 32)
    assert relative_error(causal(x)[:, :3], causal(x[:, :3])) <= 1e-5  # nothing is seen of what comes later
    assert causal.provenance.order == "causal"


def test_towers_are_named_and_none_is_guessed(tmp_path: Path) -> None:
    source = written(tmp_path, "CLIPModel", transformers.CLIPConfig(text_config=TEXT, vision_config=SEEN))
    with pytest.raises(BlockError, match=r"2 towers.*text_model\.encoder\.layers.*vision_model\.encoder\.layers"):
        lmgraft.load_block(source)
    with pytest.raises(BlockError, match="no tower"):
        lmgraft.load_block(source, tower="audio")
    with pytest.raises(BlockError, match="2 towers"):
        lmgraft.load_block(source, tower="encoder")
    text, vision = (lmgraft.load_block(source, tower=t) for t in ("text", "vision"))
    assert text.provenance.digest != vision.provenance.digest
    saved = lmgraft.save_pretrained(lmgraft.graft(make_vit(), source, tower="vision").eval(), tmp_path / "saved")
    assert isinstance(lmgraft.load_pretrained(saved, model=make_vit()), nn.Module)


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "language_model."])
@pytest.mark.parametrize("name", ["BERT", "a mixture"])
def test_a_layer_is_read_under_any_prefix_that_holds_it_once(moe: str, tmp_path: Path, name: str, prefix: str) -> None:
    source = moe
    if name == "BERT":
        source = written(tmp_path / "bert", "BertForMaskedLM", transformers.BertConfig(**TEXT))
    plain = lmgraft.load_block(source, final_norm="none")
    wrapped = _renamed(source, tmp_path / "wrapped", [prefix])
    assert lmgraft.load_block(wrapped, final_norm="none").provenance.digest == plain.provenance.digest
    assert lmgraft.inspect_llm(wrapped).layer_bytes == lmgraft.inspect_llm(source).layer_bytes
    twice = _renamed(source, tmp_path / "twice", [prefix, "ema."])
    with pytest.raises(CheckpointError, match=rf"layer 1 is there 2 times: under 'ema\.' and '{prefix.split('.')[0]}"):
        lmgraft.load_block(twice)


def _renamed(source: str, folder: Path, prefixes: list[str]) -> str:
    folder.mkdir()
    (folder / "config.json").write_text((Path(source) / "config.json").read_text())
    state = load_file(Path(source) / "model.safetensors")
    save_file({p + n: t.clone() for p in prefixes for n, t in state.items()}, folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize("key", [{"tower": 3}, {"tower": ""}, {"order": "any"}, {"final_norm": "any"}])
def test_what_is_no_word_for_it_is_refused(moe: str, key: dict[str, Any]) -> None:
    with pytest.raises(BlockError, match=f"^{next(iter(key))}="):
        lmgraft.load_block(moe, **key)


def test_attention_is_not_run_in_order(moe: str) -> None:
    with pytest.raises(BlockError, match="layer 1 is not recurrent"):
        lmgraft.load_block(moe, order="causal")


def _without(source: str, folder: Path, pattern: str) -> str:
    folder.mkdir()
    (folder / "config.json").write_text((Path(source) / "config.json").read_text())
    state = load_file(Path(source) / "model.safetensors")
    assert any(pattern in name for name in state)
    save_file({n: t for n, t in state.items() if pattern not in n}, folder / "model.safetensors")
    return str(folder)


def test_what_is_missing_is_named(moe: str, tmp_path: Path) -> None:
    expert = _without(moe, tmp_path / "expert", "layers.1.mlp.experts.2.up_proj")
    with pytest.raises(CheckpointError, match=r"3 of 4 experts.*missing 2"):
        lmgraft.load_block(expert)
    norm = _without(moe, tmp_path / "norm", "layers.1.input_layernorm")
    with pytest.raises(CheckpointError, match=r"missing model\.layers\.1\.input_layernorm\.weight"):
        lmgraft.load_block(norm)


def test_a_type_that_transformers_does_not_know(moe: str, tmp_path: Path) -> None:
    values = json.loads((Path(moe) / "config.json").read_text()) | {"model_type": "qwen2_mo"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes((Path(moe) / "model.safetensors").read_bytes())
    with pytest.raises(BlockError, match="knows no model_type 'qwen2_mo'"):
        lmgraft.load_block(str(tmp_path))


def test_a_layer_of_timm(tmp_path: Path) -> None:
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    vit = make_vit(num_classes=7)
    save_file({n: t.contiguous() for n, t in vit.state_dict().items()}, tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 7, "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = lmgraft.load_block(str(tmp_path), 1, final_norm="none")
    x = torch.randn(2, 5, 48)
    assert relative_error(made(x), vit.blocks[1](x)) <= 1e-6
    padded = torch.tensor([[False] * 5, [False, False, True, True, True]])
    assert relative_error(made(x, padded)[1:, :2], vit.blocks[1](x[1:, :2])) <= 1e-5
    normed = lmgraft.load_block(str(tmp_path), final_norm="pretrained")
    assert relative_error(normed(x), vit.norm(vit.blocks[2](x))) <= 1e-5
    assert lmgraft.inspect_llm(str(tmp_path)).num_layers == 3


def test_a_run_of_a_timm_encoder_is_a_source(tmp_path: Path) -> None:
    vit = make_vit()
    arguments = {"pretrained": False, "img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    recipe = {"backbone": {"factory": "timm", "name": "vit_tiny_patch16_224", "kwargs": arguments}}
    (tmp_path / "config.yaml").write_text(json.dumps(recipe))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(SourceError, match=r"best\.ckpt is missing"):
        lmgraft.load_block(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(
        {"state_dict": {f"model.{n}": t for n, t in vit.state_dict().items()}}, tmp_path / "checkpoints" / "best.ckpt"
    )
    made = lmgraft.load_block(str(tmp_path), final_norm="none")
    x = torch.randn(2, 5, 48)
    assert relative_error(made(x), vit.blocks[-1](x)) <= 1e-6


class TestModule:
    """`graft(model, block=module)`."""

    def test_it_is_frozen_and_the_module_is_left_alone(self) -> None:
        module = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True).eval()
        model = lmgraft.graft(make_vit(), block=module).eval()
        assert all(p.requires_grad for p in module.parameters())
        made = model.graft.block
        assert not any(p.requires_grad for p in made.parameters())
        x = torch.randn(2, 5, 32)
        padded = torch.tensor([[False] * 5, [False, False, True, True, True]])
        assert relative_error(made(x), module(x)) <= 1e-5
        assert relative_error(made(x, padded)[:, :2], module(x, src_key_padding_mask=padded)[:, :2]) <= 1e-5

    def test_it_is_saved_and_has_to_be_given_again(self, tmp_path: Path) -> None:
        module = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 24))
        model = lmgraft.graft(make_vit(), block=module).eval()
        lmgraft.save_pretrained(model, tmp_path)
        with pytest.raises(BlockError, match="lies in no file"):
            lmgraft.load_pretrained(tmp_path, model=make_vit())
        again = lmgraft.load_pretrained(tmp_path, model=make_vit(), llm=block_of(module))
        assert torch.equal(again(images()), model(images()))
        with pytest.raises(BlockError, match="another block"):
            lmgraft.load_pretrained(tmp_path, model=make_vit(), llm=block_of(nn.Linear(24, 24)))

    def test_a_module_that_changes_the_shape_is_named(self) -> None:
        with pytest.raises(BlockError, match=r"Linear maps \(1, 2, 24\) to \(1, 2, 30\)"):
            lmgraft.graft(make_vit(), block=nn.Linear(24, 30))
        with pytest.raises(BlockError, match="say its width"):
            block_of(nn.Conv2d(3, 3, 3))

    def test_one_of_the_two_is_given(self) -> None:
        with pytest.raises(BlockError, match="neither"):
            lmgraft.graft(make_vit())
        with pytest.raises(HostError, match="both"):
            lmgraft.graft(make_vit(), "smollm2-135m", block=nn.Linear(4, 4))


def test_a_timm_block_as_a_module() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=2, num_heads=3).eval()
    made = block_of(vit.blocks[0])
    x = torch.randn(2, 5, 48)
    assert relative_error(made(x), vit.blocks[0](x)) <= 1e-6
