"""VideoMAE: outputs against transformers' own, and the two layouts that its weights are published in, name by name."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lmgraft
from lmgraft.backbones.inputs import input_shape
from lmgraft.backbones.video_mae import SIZES, VideoMAE, load_pretrained, places, sincos
from lmgraft.errors import CheckpointError, HostError
from lmgraft.registry import FACTORIES
from lmgraft.training.optim import OptimConfig, parameter_groups
from tiny import random_block, randomise_, relative_error
from tiny_hosts import make_videomae

SMALL_PRETRAINED = {  # VideoMAE's released ViT-S, pre-trained on SSv2: the encoder's tubelets and one layer
    "encoder.patch_embed.proj.weight": (384, 3, 2, 16, 16),
    "encoder.patch_embed.proj.bias": (384,),
    "encoder.blocks.0.norm1.weight": (384,),
    "encoder.blocks.0.norm1.bias": (384,),
    "encoder.blocks.0.attn.q_bias": (384,),
    "encoder.blocks.0.attn.v_bias": (384,),
    "encoder.blocks.0.attn.qkv.weight": (1152, 384),
    "encoder.blocks.0.attn.proj.weight": (384, 384),
    "encoder.blocks.0.attn.proj.bias": (384,),
    "encoder.blocks.0.norm2.weight": (384,),
    "encoder.blocks.0.norm2.bias": (384,),
    "encoder.blocks.0.mlp.fc1.weight": (1536, 384),
    "encoder.blocks.0.mlp.fc1.bias": (1536,),
    "encoder.blocks.0.mlp.fc2.weight": (384, 1536),
    "encoder.blocks.0.mlp.fc2.bias": (384,),
}
UNUSED_PRETRAINED = {  # beside it, of the decoder and of the norm that mean pooling does not use
    "mask_token": (1, 1, 192),
    "encoder.norm.weight": (384,),
    "encoder.norm.bias": (384,),
    "encoder_to_decoder.weight": (192, 384),
    "decoder.blocks.0.attn.qkv.weight": (576, 192),
    "decoder.head.weight": (1536, 192),
}
BASE_HF = {  # transformers' files of the base size, fine-tuned on 174 classes
    "videomae.embeddings.patch_embeddings.projection.weight": (768, 3, 2, 16, 16),
    "videomae.embeddings.patch_embeddings.projection.bias": (768,),
    "videomae.encoder.layer.0.layernorm_before.weight": (768,),
    "videomae.encoder.layer.0.layernorm_before.bias": (768,),
    "videomae.encoder.layer.0.attention.attention.q_bias": (768,),
    "videomae.encoder.layer.0.attention.attention.v_bias": (768,),
    "videomae.encoder.layer.0.attention.attention.query.weight": (768, 768),
    "videomae.encoder.layer.0.attention.attention.key.weight": (768, 768),
    "videomae.encoder.layer.0.attention.attention.value.weight": (768, 768),
    "videomae.encoder.layer.0.attention.output.dense.weight": (768, 768),
    "videomae.encoder.layer.0.attention.output.dense.bias": (768,),
    "videomae.encoder.layer.0.layernorm_after.weight": (768,),
    "videomae.encoder.layer.0.layernorm_after.bias": (768,),
    "videomae.encoder.layer.0.intermediate.dense.weight": (3072, 768),
    "videomae.encoder.layer.0.intermediate.dense.bias": (3072,),
    "videomae.encoder.layer.0.output.dense.weight": (768, 3072),
    "videomae.encoder.layer.0.output.dense.bias": (768,),
    "fc_norm.weight": (768,),
    "fc_norm.bias": (768,),
    "classifier.weight": (174, 768),
    "classifier.bias": (174,),
}


def drawn(shapes: dict[str, tuple[int, ...]], depth: int, per: int) -> dict[str, Tensor]:
    """Random tensors of these names, a layer's repeated for each; sizes divided by `per` where they are the width's."""
    width = {384, 768, 1152, 1536, 3072, 192, 576}
    generator, tensors = torch.Generator().manual_seed(3), {}
    for layer in range(depth):
        for name, shape in shapes.items():
            small = [size // per if size in width else size for size in shape]
            tensors[name.replace(".0.", f".{layer}.")] = torch.randn(small, generator=generator) * 0.1
    return tensors


def clips(batch: int = 2, frames: int = 4, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(1))


def small(**options: Any) -> VideoMAE:
    """As the released ones at an eighth of the width: 48 wide, 6 heads, 2 layers, on smaller clips."""
    shape = {"img_size": 32, "num_frames": 4, "embed_dim": 48, "depth": 2, "num_heads": 6, "num_classes": 5}
    return VideoMAE(**(shape | options)).eval()


def from_parts(tensors: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    """VideoMAE's forward written out, from the tensors of its own layout."""
    w = {name.removeprefix("encoder."): tensor for name, tensor in tensors.items()}
    patches = x.unfold(2, 2, 2).unfold(3, 16, 16).unfold(4, 16, 16)  # (B, C, T, H, W, 2, 16, 16)
    tokens = torch.einsum("bcthwijk,dcijk->bthwd", patches, w["patch_embed.proj.weight"]).flatten(1, 3)
    tokens = tokens + w["patch_embed.proj.bias"]
    dim = tokens.shape[-1]
    table = torch.tensor([
        [(math.sin, math.cos)[j % 2](position / 10000 ** (2 * (j // 2) / dim)) for j in range(dim)]
        for position in range(tokens.shape[1])
    ])  # fmt: skip
    tokens = tokens + table
    for layer in range(2):
        p = {name.removeprefix(f"blocks.{layer}."): tensor for name, tensor in w.items()}
        normed = nn.functional.layer_norm(tokens, (dim,), p["norm1.weight"], p["norm1.bias"], 1e-6)
        q, k, v = (normed @ part.T for part in p["attn.qkv.weight"].chunk(3))
        q, v = q + p["attn.q_bias"], v + p["attn.v_bias"]
        outs = []
        for head in range(heads):
            at = slice(head * dim // heads, (head + 1) * dim // heads)
            scores = q[..., at] @ k[..., at].transpose(1, 2) / math.sqrt(dim // heads)
            outs.append(scores.softmax(-1) @ v[..., at])
        tokens = tokens + torch.cat(outs, -1) @ p["attn.proj.weight"].T + p["attn.proj.bias"]
        normed = nn.functional.layer_norm(tokens, (dim,), p["norm2.weight"], p["norm2.bias"], 1e-6)
        hidden = nn.functional.gelu(normed @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"])
        tokens = tokens + hidden @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]
    return tokens


@pytest.mark.parametrize("wrap", ["model", "module"])
def test_its_own_layout(wrap: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A released pre-training file: encoder and decoder, beside the options of its training."""
    encoder = drawn(SMALL_PRETRAINED, 2, 8)
    file = tmp_path / "checkpoint.pth"
    options = argparse.Namespace(model="pretrain_videomae_small_patch16_224", lr=1e-3)
    torch.save({wrap: encoder | drawn(UNUSED_PRETRAINED, 1, 8), "epoch": 2399, "args": options}, file)
    model = small()
    head = model.head.weight.clone()
    load_pretrained(model, str(file))
    assert "fc_norm.weight" in capsys.readouterr().err
    assert torch.equal(model.head.weight, head)
    assert relative_error(model.forward_features(clips()), from_parts(encoder, clips(), 6)) <= 1e-5


def test_a_fine_tuned_file_of_its_own_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {name.removeprefix("encoder."): t for name, t in drawn(SMALL_PRETRAINED, 2, 8).items()}
    tensors |= {"fc_norm.weight": torch.randn(48), "fc_norm.bias": torch.randn(48)}
    tensors |= {"head.weight": torch.randn(5, 48), "head.bias": torch.randn(5)}
    torch.save({"module": tensors}, tmp_path / "mp_rank_00_model_states.pt")
    model = small()
    load_pretrained(model, str(tmp_path / "mp_rank_00_model_states.pt"))
    assert capsys.readouterr().err == ""
    pooled = nn.functional.layer_norm(
        from_parts(tensors, clips(), 6).mean(1), (48,), tensors["fc_norm.weight"], tensors["fc_norm.bias"], 1e-6
    )
    assert relative_error(model(clips()), pooled @ tensors["head.weight"].T + tensors["head.bias"]) <= 1e-5
    other = small(num_classes=9)
    load_pretrained(other, str(tmp_path / "mp_rank_00_model_states.pt"))
    assert "head.weight and no head.bias of this shape" in capsys.readouterr().err
    assert relative_error(other.forward_features(clips()), model.forward_features(clips())) == 0


@pytest.mark.parametrize("biases", ["q_bias", "query.bias"])
def test_transformers_layout(biases: str, tmp_path: Path) -> None:
    """Its files say q_bias; what its version 5 saves says query.bias. Both give its own model's outputs."""
    hf = _hf(num_labels=174)
    state = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    expected = {name.replace(".0.", f".{i}."): shape for i in range(2) for name, shape in BASE_HF.items()}
    renamed = {
        name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): tensor for name, tensor in state.items()
    }
    assert renamed.keys() == expected.keys()
    assert {n: tuple(t.shape) for n, t in drawn(BASE_HF, 2, 16).items()} == {n: t.shape for n, t in renamed.items()}
    save_file(renamed if biases == "q_bias" else state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(hf.config.to_dict()))
    model = small(num_classes=174)
    load_pretrained(model, str(tmp_path))
    with torch.no_grad():
        wanted = hf(clips().transpose(1, 2))
        assert relative_error(model(clips()), wanted.logits) <= 1e-5
    file = small(num_classes=174)
    load_pretrained(file, str(tmp_path / "model.safetensors"))
    assert torch.equal(file(clips()), model(clips()))


def _hf(**options: Any) -> Any:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    shape = {"image_size": 32, "num_frames": 4, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
    config = VideoMAEConfig(**shape, intermediate_size=192, layer_norm_eps=1e-6, use_mean_pooling=True, **options)
    hf = randomise_(VideoMAEForVideoClassification(config), seed=2).eval()
    hf.fc_norm.eps = 1e-6  # torch's default there, 1e-6 in the published code
    return hf


def test_heads_that_the_file_says_otherwise(tmp_path: Path) -> None:
    """transformers' conversion of the small size has 16 heads, VideoMAE's own small models 6."""
    hf = _hf()
    save_file({name: t.clone() for name, t in hf.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(hf.config.to_dict() | {"num_attention_heads": 16}))
    with pytest.raises(HostError, match="says 16 heads, this model has 6") as caught:
        load_pretrained(small(), str(tmp_path))
    assert "num_heads: 6" in caught.value.remedy
    load_pretrained(small(), str(tmp_path), heads_chosen=True)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    tensors = drawn(SMALL_PRETRAINED, 2, 8)
    cases: dict[str, dict[str, Tensor]] = {
        "lacks blocks.1.attn.qkv.weight": {n: t for n, t in tensors.items() if n != "encoder.blocks.1.attn.qkv.weight"},
        "does not know: blocks.2": drawn(SMALL_PRETRAINED, 3, 8),
        r"patch_embed.proj.weight has the shape \(48, 3, 4, 16, 16\)": tensors
        | {"encoder.patch_embed.proj.weight": torch.zeros(48, 3, 4, 16, 16)},
    }
    for words, state in cases.items():
        torch.save({"model": state}, tmp_path / "x.pth")
        with pytest.raises(HostError, match=words):
            load_pretrained(small(), str(tmp_path / "x.pth"))
    torch.save({"model": tensors, "args": nn.Linear(1, 1)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load_pretrained(small(), str(tmp_path / "x.pth"))


@pytest.mark.parametrize(("name", "parameters"), [("videomae_small", 21_946_926), ("videomae_base", 86_361_006)])
def test_paper_sizes(name: str, parameters: int) -> None:
    """Counted by hand: tubelets 3*2*16*16*V + V, a layer 12 V^2 + 12 V without the key's bias, norm 2 V, head."""
    width, depth = SIZES[name]["embed_dim"], SIZES[name]["depth"]
    by_hand = 1536 * width + width + depth * (12 * width**2 + 12 * width) + 2 * width + 174 * width + 174
    with torch.device("meta"):
        model = FACTORIES.find("videomae")(name, {"num_classes": 174})
    assert sum(p.numel() for p in model.parameters()) == by_hand == parameters
    assert input_shape(model) == (3, 16, 224, 224)
    assert model(torch.empty(1, 3, 16, 224, 224, device="meta")).shape == (1, 174)


def test_positions_and_places() -> None:
    table = sincos(5, 6)[0]
    assert table.shape == (5, 6)
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1]
    assert table[2, 0] == pytest.approx(math.sin(2))
    assert table[3, 5] == pytest.approx(math.cos(3 / 10000 ** (4 / 6)))
    model = make_videomae()
    where = places(model, (torch.zeros(2, 3, 4, 16, 24),))
    assert where.shape == (2, 12, 3)
    assert where[0, 0].tolist() == [0.5, 3.5, 3.5]
    assert where[1, -1].tolist() == [2.5, 11.5, 19.5]
    assert where[0, 1].tolist() == [0.5, 3.5, 11.5]  # columns first, then rows, then time


def test_layer_decay_and_weight_decay() -> None:
    """0.7^(13 - i) at 12 layers: the tubelets lowest, head and mappers at the full rate; vectors do not decay."""
    model = lmgraft.graft(make_videomae(depth=12), random_block())
    groups = parameter_groups(model, OptimConfig(layer_decay=0.7))
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert scales["patch_embed.proj.weight"] == pytest.approx(0.7**13)
    assert scales["blocks.0.attn.q_bias"] == pytest.approx(0.7**12)
    assert scales["blocks.11.mlp.fc1.weight"] == pytest.approx(0.7)
    assert scales["head.weight"] == scales["fc_norm.weight"] == scales["graft.mapper_in.weight"] == 1
    assert (decays["blocks.0.attn.q_bias"], decays["blocks.0.attn.qkv.weight"]) == (0, 0.05)


def test_bad_arguments() -> None:
    with pytest.raises(HostError, match="do not fall into tubelets"):
        VideoMAE(num_frames=3)
    with pytest.raises(HostError, match="there is no VideoMAE 'videomae_tiny'"):
        FACTORIES.find("videomae")("videomae_tiny", {})
    with pytest.raises(HostError, match="refused its arguments"):
        FACTORIES.find("videomae")("videomae_small", {"width": 3})
    with pytest.raises(HostError, match=r"takes \(B, C, 4, 16, 24\)"):
        make_videomae()(torch.zeros(1, 3, 4, 24, 16))


def test_frames_of_a_clip_by_themselves() -> None:
    """The mean over frames of what timm's model gives for each; the order of frames does not matter."""
    model = FACTORIES.find("timm_frames")(
        "vit_tiny_patch16_224", {"img_size": 32, "num_frames": 4, "num_classes": 5, "depth": 2, "embed_dim": 48}
    ).eval()
    randomise_(model, seed=1)
    x = clips()
    loop = torch.stack([model.encoder(x[:, :, t]) for t in range(4)]).mean(0)
    assert relative_error(model(x), loop) <= 1e-6
    assert relative_error(model(x.flip(2)), loop) <= 1e-6
    lmgraft.graft(model, random_block())
    scales = {
        name: group["lr_scale"]
        for group in parameter_groups(model, OptimConfig(layer_decay=0.5))
        for name, p in model.named_parameters()
        if any(p is q for q in group["params"])
    }
    assert scales["encoder.patch_embed.proj.weight"] == scales["encoder.cls_token"] == 0.5**3
    assert scales["encoder.blocks.1.attn.qkv.weight"] == 0.5
    assert scales["encoder.head.weight"] == scales["graft.mapper_in.weight"] == 1
