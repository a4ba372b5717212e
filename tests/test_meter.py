"""METER: the published names and shapes literally, a plain reference written from them, its towers against
transformers', and what the host says."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear

import lmgraft
from lmgraft.backbones.meter import MATCH_COLUMNS, SIZES, Meter, create
from lmgraft.backbones.meter_towers import check_tokenizer
from lmgraft.backbones.meter_weights import fit_positions, load_clip, load_meter, load_text, meter_tensors
from lmgraft.backbones.weights import open_weights
from lmgraft.contracts import MeanOf
from lmgraft.errors import CheckpointError, HostError
from lmgraft.graft.hosts import find_host
from tiny import calls_of, random_block, randomise_, relative_error

transformers = pytest.importorskip("transformers")

RESBLOCK = {
    "ln_1.weight": (768,), "ln_1.bias": (768,), "attn.in_proj_weight": (2304, 768), "attn.in_proj_bias": (2304,),
    "attn.out_proj.weight": (768, 768), "attn.out_proj.bias": (768,), "ln_2.weight": (768,), "ln_2.bias": (768,),
    "mlp.c_fc.weight": (3072, 768), "mlp.c_fc.bias": (3072,), "mlp.c_proj.weight": (768, 3072),
    "mlp.c_proj.bias": (768,),
}  # fmt: skip
VISION = {
    "vit_model.visual.class_embedding": (768,), "vit_model.visual.positional_embedding": (50, 768),
    "vit_model.visual.conv1.weight": (768, 3, 32, 32), "vit_model.visual.ln_pre.weight": (768,),
    "vit_model.visual.ln_pre.bias": (768,), "vit_model.visual.ln_post.weight": (768,),
    "vit_model.visual.ln_post.bias": (768,),
}  # fmt: skip


def branch(name: str) -> dict[str, tuple[int, ...]]:
    """An attention of BERT's kind."""
    linears = [f"{name}.self.{part}" for part in ("query", "key", "value")] + [f"{name}.output.dense"]
    shapes = {f"{path}.{part}": shape for path in linears for part, shape in (("weight", (768, 768)), ("bias", (768,)))}
    return shapes | {f"{name}.output.LayerNorm.weight": (768,), f"{name}.output.LayerNorm.bias": (768,)}


FEED_FORWARD = {
    "intermediate.dense.weight": (3072, 768), "intermediate.dense.bias": (3072,), "output.dense.weight": (768, 3072),
    "output.dense.bias": (768,), "output.LayerNorm.weight": (768,), "output.LayerNorm.bias": (768,),
}  # fmt: skip
TEXT_LAYER = branch("attention") | FEED_FORWARD
CROSS_LAYER = branch("attention") | branch("crossattention") | FEED_FORWARD
TEXT = {
    "text_transformer.embeddings.word_embeddings.weight": (50265, 768),
    "text_transformer.embeddings.position_embeddings.weight": (514, 768),
    "text_transformer.embeddings.token_type_embeddings.weight": (1, 768),
    "text_transformer.embeddings.LayerNorm.weight": (768,), "text_transformer.embeddings.LayerNorm.bias": (768,),
}  # fmt: skip
FUSION = {
    "cross_modal_text_transform.weight": (768, 768), "cross_modal_text_transform.bias": (768,),
    "cross_modal_image_transform.weight": (768, 768), "cross_modal_image_transform.bias": (768,),
    "token_type_embeddings.weight": (2, 768),
    "cross_modal_image_pooler.dense.weight": (768, 768), "cross_modal_image_pooler.dense.bias": (768,),
    "cross_modal_text_pooler.dense.weight": (768, 768), "cross_modal_text_pooler.dense.bias": (768,),
}  # fmt: skip
VQA = {
    "vqa_classifier.0.weight": (1536, 1536), "vqa_classifier.0.bias": (1536,), "vqa_classifier.1.weight": (1536,),
    "vqa_classifier.1.bias": (1536,), "vqa_classifier.3.weight": (3129, 1536), "vqa_classifier.3.bias": (3129,),
}  # fmt: skip
ITM = {"itm_score.fc.weight": (2, 1536), "itm_score.fc.bias": (2,)}
RANK = {"rank_output.weight": (1, 1536), "rank_output.bias": (1,)}
UNUSED = {  # remains of CLIP's text encoder, RoBERTa's pooler and buffer, and pre-training's head for masked words
    "vit_model.positional_embedding": (77, 512), "vit_model.ln_final.weight": (512,),
    "vit_model.ln_final.bias": (512,), "text_transformer.embeddings.position_ids": (1, 514),
    "text_transformer.pooler.dense.weight": (768, 768), "text_transformer.pooler.dense.bias": (768,),
    "mlm_score.bias": (50265,), "mlm_score.decoder.weight": (50265, 768),
}  # fmt: skip


def published(vision: int, text: int, fusion: int, *others: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file of METER's code, with so many layers."""
    shapes = VISION | TEXT | FUSION
    for other in others:
        shapes |= other
    repeated = [(f"vit_model.visual.transformer.resblocks.{i}", RESBLOCK) for i in range(vision)]
    repeated += [(f"text_transformer.encoder.layer.{i}", TEXT_LAYER) for i in range(text)]
    repeated += [(f"cross_modal_{kind}_layers.{i}", CROSS_LAYER) for kind in ("image", "text") for i in range(fusion)]
    return shapes | {f"{path}.{name}": shape for path, layer in repeated for name, shape in layer.items()}


SMALL = {768: 48, 3072: 96, 2304: 144, 1536: 96, 512: 8, 50265: 40, 514: 14, 3129: 5, 50: 17, 32: 8}
"""Sizes of the published files -> those of the tests: 16 patches of 8 pixels, 40 words, 12 positions, 5 answers."""
CLIP = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8}
ROBERTA = {
    "model_type": "roberta", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 40, "max_position_embeddings": 14, "type_vocab_size": 1,
    "layer_norm_eps": 1e-5, "pad_token_id": 1,
}  # fmt: skip
TINY: dict[str, Any] = {"vision": {"factory": "clip", **CLIP}, "text": ROBERTA, "img_size": 32, "max_text_len": 12}
TINY |= {"fusion_dim": 48, "fusion_layers": 2, "fusion_heads": 3, "mlp_ratio": 2.0, "num_classes": 5}


def tiny(**options: Any) -> Meter:
    return randomise_(create("meter", TINY | options), seed=5).eval()


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = {name: [SMALL.get(size, size) for size in shape] for name, shape in shapes.items()}
    return {name: torch.randn(size, generator=generator) * 0.3 for name, size in sizes.items()}


def pairs(batch: int = 2, length: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Images, texts and masks; every text but the first is a word shorter than the one before."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 40, (batch, length), generator=generator)
    mask = (torch.arange(length) < length - torch.arange(batch)[:, None]).long()
    return torch.randn(batch, 3, 32, 32, generator=generator), ids * mask + 1 - mask, mask


class OnMeta:
    """A checkpoint of names and shapes alone."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.names, self.read = shapes.keys, lambda name: torch.empty(shapes[name], device="meta")


def test_names_and_shapes_are_the_published_ones() -> None:
    """And the count by hand, of width V: a plain layer has 12 V^2 + 13 V, a fusion layer 16 V^2 + 19 V."""
    with torch.device("meta"):
        model = create("meter", {})
    checkpoint: Any = OnMeta(published(11, 12, 6, VQA, UNUSED))
    wanted = {name: tensor.shape for name, tensor in meter_tensors(checkpoint).items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == wanted
    v = 768
    vision = 3 * 32 * 32 * v + v + 50 * v + 4 * v + 11 * (12 * v * v + 13 * v)
    text = (50265 + 514 + 1) * v + 2 * v + 12 * (12 * v * v + 13 * v)
    fusion = 2 * (v * v + v) + 2 * v + 12 * (16 * v * v + 19 * v) + 2 * (v * v + v)
    head = (2 * v) ** 2 + 2 * v + 4 * v + 2 * v * 3129 + 3129
    assert sum(p.numel() for p in model.parameters()) == vision + text + fusion + head == 327_381_561


def normed(x: Tensor, w: dict[str, Tensor], name: str, eps: float) -> Tensor:
    return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Head by head, of one sample."""
    out, size = [], q.shape[-1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        out.append((q[:, part] @ k[:, part].T / size**0.5).softmax(-1) @ v[:, part])
    return torch.cat(out, -1)


def through(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def bert_branch(x: Tensor, source: Tensor, w: dict[str, Tensor], name: str, heads: int, eps: float) -> Tensor:
    q, k, v = (through(y, w, f"{name}.self.{part}") for part, y in (("query", x), ("key", source), ("value", source)))
    return normed(x + through(attended(q, k, v, heads), w, f"{name}.output.dense"), w, f"{name}.output.LayerNorm", eps)


def bert_end(x: Tensor, w: dict[str, Tensor], name: str, eps: float) -> Tensor:
    hidden = gelu(through(x, w, f"{name}.intermediate.dense"))
    return normed(x + through(hidden, w, f"{name}.output.dense"), w, f"{name}.output.LayerNorm", eps)


def reference(w: dict[str, Tensor], image: Tensor, words: Tensor) -> Tensor:
    """METER's fused features of one image and one text without padding, from the tensors of a published file."""
    patches = image.unfold(1, 8, 8).unfold(2, 8, 8)  # (C, rows, columns, 8, 8)
    y = torch.einsum("crsij,dcij->rsd", patches, w["vit_model.visual.conv1.weight"]).flatten(0, 1)
    y = torch.cat([w["vit_model.visual.class_embedding"][None], y]) + w["vit_model.visual.positional_embedding"]
    y = normed(y, w, "vit_model.visual.ln_pre", 1e-5)
    for i in range(2):
        name = f"vit_model.visual.transformer.resblocks.{i}"
        h = normed(y, w, f"{name}.ln_1", 1e-5)
        stacked = linear(h, w[f"{name}.attn.in_proj_weight"], w[f"{name}.attn.in_proj_bias"])
        y = y + through(attended(*stacked.chunk(3, -1), 4), w, f"{name}.attn.out_proj")
        h = through(normed(y, w, f"{name}.ln_2", 1e-5), w, f"{name}.mlp.c_fc")
        y = y + through(h * torch.sigmoid(1.702 * h), w, f"{name}.mlp.c_proj")
    y = normed(y, w, "vit_model.visual.ln_post", 1e-5)
    table = {part: w[f"text_transformer.embeddings.{part}_embeddings.weight"] for part in ("word", "position")}
    x = table["word"][words] + table["position"][2 : 2 + len(words)]
    x = x + w["text_transformer.embeddings.token_type_embeddings.weight"][0]
    x = normed(x, w, "text_transformer.embeddings.LayerNorm", 1e-5)
    for i in range(2):
        name = f"text_transformer.encoder.layer.{i}"
        x = bert_end(bert_branch(x, x, w, f"{name}.attention", 4, 1e-5), w, name, 1e-5)
    x = through(x, w, "cross_modal_text_transform") + w["token_type_embeddings.weight"][0]
    y = through(y, w, "cross_modal_image_transform") + w["token_type_embeddings.weight"][1]
    for i in range(2):
        before = {"text": x, "image": y}
        after = {}
        for kind, other in (("text", "image"), ("image", "text")):
            name = f"cross_modal_{kind}_layers.{i}"
            z = bert_branch(before[kind], before[kind], w, f"{name}.attention", 3, 1e-12)
            z = bert_branch(z, before[other], w, f"{name}.crossattention", 3, 1e-12)
            after[kind] = bert_end(z, w, name, 1e-12)
        x, y = after["text"], after["image"]
    pooled = [through(z[0], w, f"cross_modal_{kind}_pooler.dense").tanh() for z, kind in ((x, "text"), (y, "image"))]
    return torch.cat(pooled)


def references(w: dict[str, Tensor]) -> Tensor:
    images, ids, mask = pairs()
    return torch.stack([reference(w, images[b], ids[b, : int(mask[b].sum())]) for b in range(len(images))])


def test_a_fine_tuned_file_of_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = drawn(published(2, 2, 2, VQA, UNUSED, ITM))
    torch.save({"state_dict": w, "epoch": 9, "global_step": 3, "hyper_parameters": {"seed": 1}}, tmp_path / "vqa.ckpt")
    model = create("meter", TINY | {"pretrained": str(tmp_path / "vqa.ckpt")}).eval()
    assert capsys.readouterr().err == ""
    h = normed(through(references(w), w, "vqa_classifier.0"), w, "vqa_classifier.1", 1e-5)
    assert relative_error(model(*pairs()), through(gelu(h), w, "vqa_classifier.3")) <= 1e-5
    other = create("meter", TINY | {"num_classes": 9, "pretrained": str(tmp_path / "vqa.ckpt")}).eval()
    assert "vqa_classifier.3.weight and no vqa_classifier.3.bias of this shape" in capsys.readouterr().err
    assert other(*pairs()).shape == (2, 9)
    again = tmp_path / "own.safetensors"
    save_file(model.state_dict(), again)
    assert torch.equal(create("meter", TINY | {"pretrained": str(again)}).eval()(*pairs()), model(*pairs()))


@pytest.mark.parametrize("is_pretraining", [True, False])
def test_a_file_of_pairs(is_pretraining: bool, tmp_path: Path) -> None:
    """rank_output is the row of "match" where only pre-training's head is there."""
    w = drawn(published(2, 2, 2, ITM, UNUSED, {} if is_pretraining else RANK))
    torch.save({"state_dict": w}, tmp_path / "irtr.ckpt")
    model = create("meter", TINY | {"head": "matching", "pretrained": str(tmp_path / "irtr.ckpt")}).eval()
    pooled, itm = references(w), through(references(w), w, "itm_score.fc")
    rank = itm[:, 1:] if is_pretraining else through(pooled, w, "rank_output")
    assert relative_error(model(*pairs()), torch.cat([rank, itm], 1)) <= 1e-5
    assert MATCH_COLUMNS == ("rank", "no_match", "match")
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == list(ITM)


def test_a_file_that_lightning_wrote_in_those_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning 1.3, with which METER trained, keeps the state of callbacks under their classes."""
    path = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": path})
    for name in (path.split(".")[0], path.rpartition(".")[0], path):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules[path], "ModelCheckpoint", callback, raising=False)
    state = {"monitor": "val/the_metric", "best_model_score": torch.tensor(0.7), "dirpath": "result"}
    torch.save({"state_dict": {"x": torch.ones(2)}, "callbacks": {callback: state}}, tmp_path / "x.ckpt")
    monkeypatch.undo()
    assert torch.equal(open_weights(str(tmp_path / "x.ckpt")).read("x"), torch.ones(2))


def clip_file(folder: Path, layout: str) -> Any:
    """A CLIP of 3 layers on images of 32 pixels, saved by transformers' names or its own; the model in transformers."""
    model = randomise_(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP, image_size=32)), seed=2)
    state = {f"vision_model.{name}": tensor for name, tensor in model.state_dict().items()}
    state["visual_projection.weight"], state["text_model.x"] = torch.zeros(3, 48), torch.zeros(3)
    if layout == "clip":
        s, state = model.state_dict(), {"visual.proj": torch.zeros(3, 48), "token_embedding.weight": torch.zeros(3)}
        state["visual.conv1.weight"] = s["embeddings.patch_embedding.weight"]
        state["visual.class_embedding"] = s["embeddings.class_embedding"]
        state["visual.positional_embedding"] = s["embeddings.position_embedding.weight"]
        linears = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
        linears |= {"ln_1": "layer_norm1", "ln_2": "layer_norm2"}
        for part in ("weight", "bias"):
            state[f"visual.ln_pre.{part}"] = s[f"pre_layrnorm.{part}"]
            state[f"visual.ln_post.{part}"] = s[f"post_layernorm.{part}"]
            for i in range(3):
                ours, theirs = f"visual.transformer.resblocks.{i}", f"encoder.layers.{i}"
                stacked = torch.cat([s[f"{theirs}.self_attn.{letter}_proj.{part}"] for letter in "qkv"])
                state[f"{ours}.attn.in_proj_{part}"] = stacked
                state |= {f"{ours}.{a}.{part}": s[f"{theirs}.{b}.{part}"] for a, b in linears.items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    config = {"model_type": "clip", "vision_config": CLIP | {"image_size": 32, "model_type": "clip_vision_model"}}
    (folder / "config.json").write_text(json.dumps(config))
    return model.eval()


@pytest.mark.parametrize(("layout", "size"), [("transformers", 32), ("clip", 32), ("transformers", 48)])
def test_the_vision_tower_is_clip_without_its_last_layer(layout: str, size: int, tmp_path: Path) -> None:
    """Also on larger images, where transformers itself resizes the positions."""
    clip = clip_file(tmp_path, layout)
    options = {"vision": {"name": str(tmp_path)}, "img_size": size, "pretrained": {"vision": True}}
    model = create("meter", TINY | options).eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        out = clip(images, output_hidden_states=True, interpolate_pos_encoding=True)
        wanted = clip.post_layernorm(out.hidden_states[-2])
        assert relative_error(model.vision(images), wanted) <= 1e-5
        tokens = model.cross_modal_image_transform(wanted) + model.token_type_embeddings(torch.tensor(1))
        assert relative_error(model.encode_image(images), tokens) <= 1e-5
    assert find_host(model).layout.grid == (size // 8, size // 8)


def test_positions_of_no_square_are_left() -> None:
    table = torch.randn(17, 4)
    assert fit_positions(table, 20) is table
    assert fit_positions(table[:16], 50).shape == (16, 4)
    assert torch.equal(fit_positions(table, 50)[0], table[0])


@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_the_text_tower_is_transformers(kind: str, tmp_path: Path) -> None:
    """With the head of masked words on top and its names, or bare with the first names of norms."""
    fields = {name: value for name, value in ROBERTA.items() if name != "model_type"}
    if kind == "roberta":
        whole = randomise_(transformers.RobertaForMaskedLM(transformers.RobertaConfig(**fields)), seed=2).eval()
        text, state = whole.roberta, {n: t.clone() for n, t in whole.state_dict().items()}
    else:
        text = randomise_(transformers.BertModel(transformers.BertConfig(**fields)), seed=2).eval()
        state = {n.replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in text.state_dict().items()}
        state["embeddings.position_ids"] = torch.arange(14)[None]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(ROBERTA | {"model_type": kind, "auto_map": {"AutoModel": "x.Y"}}))
    vocab = {"vocab_size": 38, "pad_token_id": 1}
    options = {"text": str(tmp_path), "pretrained": {"text": True}, "text_vocab": vocab}
    model = create("meter", TINY | options).eval()
    assert model.text.pooler is None
    _, ids, mask = pairs()
    with torch.no_grad():
        wanted = text(input_ids=ids, attention_mask=mask).last_hidden_state
        tokens = model.cross_modal_text_transform(wanted) + model.token_type_embeddings(torch.tensor(0))
        assert relative_error(model.encode_text(ids, mask), tokens) <= 1e-5
    for wrong, words in (({"vocab_size": 41}, "41 words.*embeds 40"), ({"pad_token_id": 0}, "pads with 0.*with 1")):
        with pytest.raises(HostError, match=words):
            create("meter", TINY | options | {"text_vocab": vocab | wrong})


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    w, model, file = drawn(published(2, 2, 2, VQA)), tiny(), tmp_path / "x.ckpt"
    conv = "vit_model.visual.conv1.weight"
    cases = {
        "lacks cross_modal_text_pooler.dense.bias": {n: t for n, t in w.items() if "text_pooler.dense.b" not in n},
        "does not know: vision.model.encoder.layers.2": drawn(published(3, 2, 2, VQA)),
        r"patch_embedding.weight has the shape \(48, 3, 4, 4\)": w | {conv: torch.zeros(48, 3, 4, 4)},
    }
    for words, state in cases.items():
        torch.save({"state_dict": state}, file)
        with pytest.raises(HostError, match=words):
            load_meter(model, str(file))
    torch.save({"state_dict": w, "callbacks": nn.Linear(1, 1)}, file)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load_meter(model, str(file))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError):
        load_meter(model, str(file))
    save_file({"embeddings.x": torch.zeros(3)}, tmp_path / "model.safetensors")
    for load, tower in ((load_text, model.text), (load_clip, model.vision)):
        with pytest.raises(HostError, match=r"lacks embeddings|does not know"):
            load(tower, {}, str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "ranking"}, "one of vqa, matching"),
        ({"fusion_heads": 5}, "in 5 heads"),
        ({"max_text_len": 13}, "has 12 positions"),
        ({"img_size": (32, 40)}, "no square"),
        ({"text": {"model_type": "bertt"}}, "no model_type"),
        ({"text": {"model_type": "gpt2"}}, "both ways"),
        ({"text": {"model_type": "bart"}}, "both ways"),
        ({"text": {"hidden_size": 48}, "vision": {"factory": "timn"}}, "no vision tower"),
        ({"text": ROBERTA | {"width": 3}}, "RobertaConfig has no width"),
        ({"text": ROBERTA | {"num_attention_heads": 5}}, "cannot be made"),
        ({"vision": {"factory": "timm", "name": "resnet18"}}, "img_size"),
        ({"vision": {"factory": "timm", "name": "swin_tiny_patch4_window7_224", "depths": (1, 1)}}, "no tokens"),
        ({"vision": {"factory": "clip", "pretrained": True}}, "says pretrained"),
        ({"pretrained": {"text": True}}, "no name to load from"),
        ({"pretrained": {"image": True}}, "names no weights"),
        ({"width": 3}, "refused its arguments"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(HostError, match=words):
        create("meter", TINY | options)
    with pytest.raises(HostError, match="no METER"):
        create("metre", {})


def test_inputs_that_do_not_belong_together() -> None:
    model, (images, ids, mask) = tiny(), pairs()
    long = torch.ones(2, 13, dtype=torch.long)
    calls = (
        (images[:1], ids, mask), (images, ids, mask[:, :3]), (images[..., :16], ids, mask), (images, long, long),
        (images, ids[0], mask[0]),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(HostError):
            model(*call)


@pytest.mark.parametrize("head", ["vqa", "matching"])
def test_texts_of_an_image(head: str) -> None:
    """K texts of each image are K calls; padding changes nothing, encoded tokens stand for images and texts."""
    model, (images, _, _) = tiny(head=head), pairs()
    _, ids, mask = (t.view(2, 3, -1) for t in pairs(6))
    with torch.no_grad():
        out = model(images, ids, mask)
        assert out.shape == (2, 3, 5 if head == "vqa" else 3)
        for k in range(3):
            assert relative_error(out[:, k], model(images, ids[:, k], mask[:, k])) <= 1e-5
        short = mask[1, 2].sum()
        assert relative_error(out[1, 2], model(images[1:], ids[1:, 2, :short], mask[1:, 2, :short])[0]) <= 1e-5
        tokens = model.encode_text(ids.flatten(0, 1), mask.flatten(0, 1))
        cached = model(model.encode_image(images), tokens.unflatten(0, (2, 3)), mask)
        assert relative_error(cached, out) <= 1e-6
        pooled = model.fuse(model.encode_image(images), tokens.view(2, 3, 6, -1)[:, 0], mask[:, 0])
        if head == "matching":
            assert relative_error(model.match(pooled), out[:, 0]) <= 1e-5
        assert model(images, ids, torch.zeros_like(mask)).isfinite().all()


@pytest.mark.parametrize("head", ["vqa", "matching"])
def test_every_trained_parameter_has_a_gradient(head: str) -> None:
    """DDP waits for each. Copies are equal and apart."""
    model = tiny(head=head).train()
    model(*pairs()).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not torch.equal(model(*pairs()), model(*pairs()))  # dropout
    model.eval()
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own bytes
        assert torch.equal(clone(*pairs()), model(*pairs()))
    other = tiny(head=head)
    randomise_(other, seed=9).load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(*pairs()), model(*pairs()))


@pytest.mark.parametrize(("given", "std"), [({}, 0.02), ({"init_std": 0.1}, 0.1)])
def test_first_weights(given: dict[str, float], std: float) -> None:
    torch.manual_seed(0)
    model = create("meter", TINY | {"head": "matching"} | given)
    assert torch.equal(model.rank_output.weight, model.itm_score["fc"].weight[1:])
    for weight in (model.cross_modal_text_layers[1].crossattention.self["key"].weight, model.rank_output.weight):
        assert 0.8 * std < weight.std() < 1.2 * std
    norm = model.cross_modal_image_layers[0].output
    assert (norm.LayerNorm.weight == 1).all()
    assert norm.LayerNorm.eps == 1e-12
    assert (norm.dense.bias == 0).all()


def grafted(at: Any = "tail", **options: Any) -> Meter:
    model = lmgraft.graft(tiny(**options), random_block(), at=at)
    randomise_(model.graft.mapper_in, seed=7)
    randomise_(model.graft.mapper_out, seed=8)
    return model


@pytest.mark.parametrize("at", ["tail", "middle", "head"])
def test_a_graft_computes_what_the_dense_one_does(at: str) -> None:
    model = grafted(at)
    dense = copy.deepcopy(model)
    object.__setattr__(dense.graft.config, "form", "dense")
    assert relative_error(model(*pairs()), dense(*pairs())) <= 1e-5
    plain = tiny()
    path = {"tail": "cross_modal_image_layers.1", "middle": "cross_modal_image_layers.0", "head": "vision"}[at]

    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return model.graft.block(out @ model.graft.mapper_in.weight.T) @ model.graft.mapper_out.weight.T

    plain.get_submodule(path).register_forward_hook(hook)
    assert relative_error(model(*pairs()), plain(*pairs())) <= 1e-5


def test_one_token_is_computed() -> None:
    """The image pooler's: in calls of the model, of encoded tokens too; `fuse` alone computes all, to the same end."""
    model, (images, ids, mask) = grafted(head="matching"), pairs()
    computed = calls_of(model.graft)
    with torch.no_grad():
        whole = model(images, ids, mask)
        tokens = model.encode_image(images), model.encode_text(ids, mask)
        assert relative_error(model(*tokens, mask), whole) <= 1e-6
        assert relative_error(model.match(model.fuse(*tokens, mask)), whole) <= 1e-5
    assert [out.shape[1] for _, out in computed] == [1, 1, 17]
    host = find_host(model)
    assert (host.reads(model, (), {}), host.layout.num_prefix_tokens, host.layout.grid) == (0, 1, (4, 4))
    assert (host.embed_dim, host.widths, host.mapper_init) == (48, (48, 48, 48), "trunc_normal")

    class Other(Meter):
        def fuse(self, *args: Tensor) -> Tensor:
            return super().fuse(*args)

    assert find_host(Other(**TINY)).reads(Other(**TINY), (), {}) is None


@pytest.mark.parametrize("prefix", [1, 0])
def test_a_tower_of_timm(prefix: int) -> None:
    """All its tokens behind its norm; without a class token the pooler reads the mean."""
    name = "vit_tiny_patch16_224" if prefix else "vit_base_patch16_siglip_224"
    words = {"factory": "timm", "name": name, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model, (images, ids, mask) = grafted(vision=words, text={"model_type": "bert"} | ROBERTA), pairs()
    features = model.vision.model.forward_features(images)
    assert torch.equal(model.vision(images), features)
    assert features.shape == (2, 16 + prefix, 24)
    host = find_host(model)
    assert host.reads(model, (), {}) == (0 if prefix else MeanOf())
    assert (host.layout.num_prefix_tokens, host.layout.grid, host.widths) == (prefix, (4, 4), (24, 48, 48))
    dense = copy.deepcopy(model)
    object.__setattr__(dense.graft.config, "form", "dense")
    assert relative_error(model(images, ids, mask), dense(images, ids, mask)) <= 1e-5
    model.train()(images, ids, mask).sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_weights_of_a_tower_of_timm(tmp_path: Path) -> None:
    """A file that timm reads, by timm's own rules: its classifier is left, its positions are resized."""
    shape = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    vit = randomise_(timm.create_model("vit_tiny_patch16_224", img_size=48, **shape), seed=2).eval()
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    words = {"factory": "timm", "name": "vit_tiny_patch16_224", **shape}
    options = {"vision": words, "pretrained": {"vision": str(tmp_path / "vit.safetensors"), "text": False}}
    images = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(4))
    same = create("meter", TINY | options | {"img_size": 48}).eval()
    assert torch.equal(same.vision(images), vit.forward_features(images))
    assert create("meter", TINY | options).vision.model.pos_embed.shape == (1, 17, 24)


def test_words_of_the_data_make_a_small_tower() -> None:
    """A tower whose words are not given has those of the data's tokenizer; one with more keeps its own."""
    vocab = {"vocab_size": 11, "pad_token_id": 3}
    model = create("meter_tiny", {"text_vocab": vocab, "img_size": 32, "vision": {"num_hidden_layers": 2}})
    words = model.text.embeddings.word_embeddings
    assert (words.num_embeddings, words.padding_idx) == (11, 3)
    assert len(model.vision.model.encoder.layers) == 1
    assert SIZES["meter_tiny"]["text"].keys().isdisjoint(vocab)


def test_it_saves_and_loads(tmp_path: Path) -> None:
    spec = {"factory": "meter", "name": "meter", "kwargs": TINY}
    model = lmgraft.graft(tiny(), random_block(), host_spec=spec)
    lmgraft.save_pretrained(model, tmp_path / "out")
    again = lmgraft.load_pretrained(tmp_path / "out", llm=random_block()).eval()
    assert torch.equal(again(*pairs()), model(*pairs()))


def test_a_tokenizer_that_is_not_the_pretrained_encoder_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HostError, match=r"pretrained \(minilm-l6\), and data\.tokenizer=words"):
        check_tokenizer({"vocab_size": 9, "tokenizer": "words"}, "minilm-l6")
    check_tokenizer({"vocab_size": 9, "tokenizer": "minilm-l6"}, "minilm-l6")
    check_tokenizer(None, "minilm-l6")
    assert capsys.readouterr().err == ""
    check_tokenizer({"tokenizer": "other"}, "minilm-l6")
    assert "both must number words alike" in capsys.readouterr().err
