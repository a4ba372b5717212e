"""Point-BERT: the released layout literally, a plain reference, and what the host says."""

import copy

import pytest
import torch
from torch.nn.functional import batch_norm, gelu, layer_norm, linear

import lmgraft
from lmgraft.backbones.point_bert import PointBert, create, places, token_shares
from lmgraft.errors import HostError
from lmgraft.geometry.points import farthest_points, group_index
from lmgraft.graft.hosts import find_host
from tiny import random_block, randomise_, relative_error

TINY = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_groups": 6, "group_size": 5, "encoder_dims": 16}
TINY |= {"point_widths": (8, 12), "num_classes": 7}

BLOCK = {
    "norm1.weight": (384,), "norm1.bias": (384,), "attn.qkv.weight": (1152, 384), "attn.proj.weight": (384, 384),
    "attn.proj.bias": (384,), "norm2.weight": (384,), "norm2.bias": (384,), "mlp.fc1.weight": (1536, 384),
    "mlp.fc1.bias": (1536,), "mlp.fc2.weight": (384, 1536), "mlp.fc2.bias": (384,),
}  # fmt: skip
ENCODER = {
    "cls_token": (1, 1, 384), "cls_pos": (1, 1, 384),
    "encoder.first_conv.0.weight": (128, 3, 1), "encoder.first_conv.0.bias": (128,),
    "encoder.first_conv.1.weight": (128,), "encoder.first_conv.1.bias": (128,),
    "encoder.first_conv.1.running_mean": (128,), "encoder.first_conv.1.running_var": (128,),
    "encoder.first_conv.1.num_batches_tracked": (),
    "encoder.first_conv.3.weight": (256, 128, 1), "encoder.first_conv.3.bias": (256,),
    "encoder.second_conv.0.weight": (512, 512, 1), "encoder.second_conv.0.bias": (512,),
    "encoder.second_conv.1.weight": (512,), "encoder.second_conv.1.bias": (512,),
    "encoder.second_conv.1.running_mean": (512,), "encoder.second_conv.1.running_var": (512,),
    "encoder.second_conv.1.num_batches_tracked": (),
    "encoder.second_conv.3.weight": (256, 512, 1), "encoder.second_conv.3.bias": (256,),
    "reduce_dim.weight": (384, 256), "reduce_dim.bias": (384,),
    "pos_embed.0.weight": (128, 3), "pos_embed.0.bias": (128,),
    "pos_embed.2.weight": (384, 128), "pos_embed.2.bias": (384,),
    "norm.weight": (384,), "norm.bias": (384,),
} | {f"blocks.blocks.{i}.{name}": shape for i in range(12) for name, shape in BLOCK.items()}  # fmt: skip
HEAD = {
    "cls_head_finetune.0.weight": (256, 768), "cls_head_finetune.0.bias": (256,),
    "cls_head_finetune.3.weight": (40, 256), "cls_head_finetune.3.bias": (40,),
}  # fmt: skip


SHORT = {"depth": 1}
"""A whole Point-BERT takes a second to make: files of one layer load in the same way."""
SHORT_ENCODER = {
    name: shape
    for name, shape in ENCODER.items()
    if not name.startswith("blocks.blocks.") or name.startswith("blocks.blocks.0.")
}


def points(batch=2, size=30):
    return torch.randn(batch, size, 3, generator=torch.Generator().manual_seed(1))


def tiny(**options):
    model = randomise_(PointBert(**(TINY | options)), seed=5)
    for key, buffer in model.named_buffers():
        if key.endswith(("mean", "var")):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=torch.Generator().manual_seed(6)))
    return model.eval()


def test_names_and_shapes_are_the_released_ones():
    with torch.device("meta"):
        model = PointBert(40)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == ENCODER | HEAD
    assert sum(p.numel() for p in model.parameters()) == 22_065_960


def released(tmp_path, names, prefix="", wrap="base_model", **further):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"module.{prefix}{name}": torch.zeros(shape, dtype=torch.int64)
        if name.endswith("tracked")
        else torch.randn(shape, generator=generator) * 0.02
        for name, shape in names.items()
    }
    tensors |= {f"module.{name}": torch.zeros(3) for name in further.pop("others", ())}
    file = tmp_path / "released.pth"
    torch.save({wrap: tensors, "epoch": 3, "metrics": {"acc": 1.0}} | further, file)
    return file, tensors


def test_the_pretrained_encoder_loads_and_leaves_the_head(tmp_path):
    others = ("transformer_q.mask_token", "transformer_q.lm_head.weight", "transformer_q.cls_head.0.weight",
              "transformer_k.norm.weight", "dvae.encoder.first_conv.0.weight", "queue")  # fmt: skip
    file, tensors = released(tmp_path, SHORT_ENCODER, "transformer_q.", others=others)
    model = create("point_bert", SHORT | {"num_classes": 15, "pretrained": True, "weights": str(file)})
    state = model.state_dict()
    for name in SHORT_ENCODER:
        assert torch.equal(state[name], tensors[f"module.transformer_q.{name}"]), name
    assert state["cls_head_finetune.3.weight"].shape == (15, 256)


@pytest.mark.parametrize("wrap", ["base_model", "model"])
def test_a_fine_tuned_file_loads_whole(tmp_path, wrap):
    file, tensors = released(tmp_path, SHORT_ENCODER | HEAD, wrap=wrap)
    model = create("point_bert", SHORT | {"num_classes": 40, "pretrained": True, "weights": str(file)})
    assert all(torch.equal(t, tensors[f"module.{name}"]) for name, t in model.state_dict().items())
    with pytest.raises(HostError, match="num_classes 40"):
        create("point_bert", SHORT | {"num_classes": 15, "pretrained": True, "weights": str(file)})


def test_what_does_not_fit_is_refused(tmp_path):
    file, _ = released(tmp_path, SHORT_ENCODER)
    with pytest.raises(HostError, match="cls_head_finetune"):
        create("point_bert", SHORT | {"pretrained": True, "weights": str(file)})
    torch.save({"base_model": {"a": {}}}, file)
    with pytest.raises(HostError, match="no tensors"):
        create("point_bert", SHORT | {"pretrained": True, "weights": str(file)})
    file.write_bytes(b"no archive")
    for weights in (file, tmp_path / "missing.pth", None):
        with pytest.raises(HostError):
            create("point_bert", SHORT | {"pretrained": True, "weights": weights and str(weights)})
    for name, options in (("point_mae", {}), ("point_bert", {"dept": 3}), ("point_bert", {"head": "mean"})):
        with pytest.raises(HostError):
            create(name, options)
    assert isinstance(create("point_bert", TINY | {"pretrained": False, "weights": "missing.pth"}), PointBert)


def reference(model, cloud):
    """Point-BERT's forward written out for one cloud (N, 3), layer by layer."""
    p = dict(model.state_dict())

    def conv(x, name):
        return linear(x, p[f"{name}.weight"][..., 0], p[f"{name}.bias"])

    def normed(x, name):
        return batch_norm(x, *(p[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    tokens, positions = [model.cls_token[0, 0]], [model.cls_pos[0, 0]]
    for centre in cloud[farthest_points(cloud[None], 6)[0]]:
        index = (cloud - centre).norm(dim=1).argsort()[:5]
        group = cloud[index] - centre
        local = conv(normed(conv(group, "encoder.first_conv.0"), "encoder.first_conv.1").relu(), "encoder.first_conv.3")
        joined = torch.cat([local.max(0).values.expand_as(local), local], 1)
        joined = normed(conv(joined, "encoder.second_conv.0"), "encoder.second_conv.1").relu()
        tokens.append(model.reduce_dim(conv(joined, "encoder.second_conv.3").max(0).values))
        hidden = gelu(linear(centre, p["pos_embed.0.weight"], p["pos_embed.0.bias"]))
        positions.append(linear(hidden, p["pos_embed.2.weight"], p["pos_embed.2.bias"]))
    x, pos = torch.stack(tokens), torch.stack(positions)
    for i in range(3):
        name = f"blocks.blocks.{i}"
        x = x + pos
        h = layer_norm(x, (48,), p[f"{name}.norm1.weight"], p[f"{name}.norm1.bias"], 1e-5)
        q, k, v = linear(h, p[f"{name}.attn.qkv.weight"]).chunk(3, -1)
        heads = []
        for head in range(3):
            part = slice(16 * head, 16 * head + 16)
            heads.append((q[:, part] @ k[:, part].T / 4).softmax(-1) @ v[:, part])
        x = x + linear(torch.cat(heads, -1), p[f"{name}.attn.proj.weight"], p[f"{name}.attn.proj.bias"])
        h = layer_norm(x, (48,), p[f"{name}.norm2.weight"], p[f"{name}.norm2.bias"], 1e-5)
        h = gelu(linear(h, p[f"{name}.mlp.fc1.weight"], p[f"{name}.mlp.fc1.bias"]))
        x = x + linear(h, p[f"{name}.mlp.fc2.weight"], p[f"{name}.mlp.fc2.bias"])
    x = layer_norm(x, (48,), p["norm.weight"], p["norm.bias"], 1e-5)
    return model.cls_head_finetune(torch.cat([x[0], x[1:].max(0).values]))


def test_outputs_are_those_of_the_plain_reference():
    model, clouds = tiny().double(), points().double()
    expected = torch.stack([reference(model, cloud) for cloud in clouds])
    assert relative_error(model(clouds), expected) < 1e-10


@pytest.mark.parametrize("head", ["all", "cls"])
@pytest.mark.parametrize("at", ["tail", "middle", "head"])
def test_a_graft_computes_what_the_dense_one_does(head, at):
    model = lmgraft.graft(tiny(head=head), random_block(), at=at)
    randomise_(model.graft.mapper_in, seed=7), randomise_(model.graft.mapper_out, seed=8)
    dense = copy.deepcopy(model)
    dense.graft.config = copy.copy(dense.graft.config)
    object.__setattr__(dense.graft.config, "form", "dense")
    assert relative_error(model(points()), dense(points())) < 1e-5
    host = find_host(model)
    assert host.reads(model, (), {}) == (None if head == "all" else 0)
    assert relative_error(host.head_from_tokens(model, model.forward_features(points())), model(points())) < 1e-5


def test_places_are_the_centres_of_the_groups():
    model, clouds = tiny(), points()
    assert find_host(model).layout.places is places
    where = places(model, (clouds,))
    assert where.shape == (2, 7, 3)
    assert where[:, 0].isnan().all()
    assert all((clouds[b] == where[b, t]).all(-1).any() for b in range(2) for t in range(1, 7))


def test_the_share_of_a_truth_in_each_token():
    model, clouds = tiny(), points()
    truth = clouds[..., 0] > 0
    shares = token_shares(model, (clouds,), truth)
    assert shares[:, 0].isnan().all()
    expected = [[truth[b, group].float().mean() for group in one] for b, one in enumerate(group_index(clouds, 6, 5))]
    assert torch.equal(shares[:, 1:], torch.tensor(expected))


def test_clouds_that_do_not_fit_are_refused():
    model = tiny()
    for shape in ((2, 5, 3), (2, 30, 6), (30, 3)):
        with pytest.raises(HostError):
            model(torch.zeros(shape))


def test_it_saves_and_loads(tmp_path):
    model = lmgraft.graft(
        tiny(), random_block(), host_spec={"factory": "point_bert", "name": "point_bert", "kwargs": TINY}
    )
    lmgraft.save_pretrained(model, tmp_path / "out")
    again = lmgraft.load_pretrained(tmp_path / "out", llm=random_block()).eval()
    assert torch.equal(again(points()), model(points()))
