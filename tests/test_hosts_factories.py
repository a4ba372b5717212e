"""Backbones by name: from transformers and torchvision, in timm's words, and saved grafts that need no model."""

from __future__ import annotations

import socket
import time
import urllib.error
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.errors
import pytest
import safetensors
import timm
import torch
import torchvision
from torch import nn

import lmgraft
from lmgraft.checkpoint.hub_http import network_errors
from lmgraft.errors import HostError
from lmgraft.graft.hosts import find_host
from lmgraft.registry import FACTORIES
from tiny import images, randomise_
from tiny_hosts import hf

SIZE = {"num_classes": 3, "img_size": 32, "in_chans": 3}


def create(factory: str, name: Any, **kwargs: Any) -> nn.Module:
    model: nn.Module = FACTORIES.load(factory)(str(name), kwargs)
    return model


@pytest.fixture(params=["ViTForImageClassification", "Dinov2ForImageClassification", "CLIPForImageClassification"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model of 7 classes at 32 pixels, as transformers saves it."""
    torch.manual_seed(1)
    model: Any = randomise_(hf(request.param), seed=2)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


RESPONSE: Any = SimpleNamespace(headers={}, request=None, status_code=503)
FAILURES: dict[str, Any] = {
    "not_cached": lambda: huggingface_hub.errors.LocalEntryNotFoundError("the reason\nmore of it"),
    "offline": lambda: huggingface_hub.errors.OfflineModeIsEnabled("the reason"),
    "refused": lambda: huggingface_hub.errors.HfHubHTTPError("the reason\n\nmore of it", response=RESPONSE),
    "connection": lambda: network_errors()[-1]("the reason"),
    "name_lookup": lambda: urllib.error.URLError("the reason"),
    "file": lambda: OSError("the reason"),
    "no_weights": lambda: RuntimeError("the reason"),
    "value": lambda: ValueError("the reason"),
    "damaged": lambda: safetensors.SafetensorError("the reason"),
}


@pytest.mark.parametrize("failure", FAILURES)
class TestWithoutTheHub:
    """Each library fails in its own ways; one line says what and why, another what to do."""

    def _check(self, factory: str, name: Any) -> HostError:
        with pytest.raises(HostError) as caught:
            create(factory, name, pretrained=True, **SIZE)
        message = caught.value.message
        assert str(name) in message
        assert "the reason" in message
        assert "more of it" not in message
        assert "\n" not in message
        assert "--backbone.kwargs.pretrained false" in caught.value.remedy
        return caught.value

    def test_timm(self, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where timm itself asks the Hub: `create_model` passes on what that raises."""

        def fail(*args: Any, **kwargs: Any) -> None:
            raise FAILURES[failure]()

        monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
        error = self._check("timm", "vit_tiny_patch16_224.augreg_in21k_ft_in1k")
        assert "image/photos_scratch" in error.remedy
        monkeypatch.setattr(timm, "create_model", fail)
        self._check("timm", "vit_tiny_patch16_224.augreg_in21k_ft_in1k")

    def test_torchvision(self, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise FAILURES[failure]()

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
        if failure == "value":  # torchvision's word for arguments
            with pytest.raises(HostError, match="torchvision's 'squeezenet1_1' refused its arguments: the reason"):
                create("torchvision", "squeezenet1_1", pretrained=True)
        else:
            self._check("torchvision", "squeezenet1_1")

    def test_transformers(self, failure: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from transformers import AutoConfig, AutoModelForImageClassification

        def fail(*args: Any, **kwargs: Any) -> None:
            raise FAILURES[failure]()

        monkeypatch.setattr(AutoModelForImageClassification, "from_pretrained", fail)
        self._check("transformers", folder)
        monkeypatch.setattr(AutoConfig, "from_pretrained", fail)
        if failure not in ("no_weights", "damaged"):  # a config is fetched: there are no weights to say so of
            with pytest.raises(HostError, match=r"gives no image classifier .*the reason") as caught:
                create("transformers", folder, **SIZE)
            assert "config.json" in caught.value.remedy


@pytest.mark.parametrize(
    ("factory", "name"), [("timm", "vit_tiny_patch16_224"), ("transformers", "google/vit-base-patch16-224")]
)
def test_no_network_is_an_error_in_seconds(factory: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries themselves would ask a silent Hub for a minute."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("lmgraft.checkpoint.hub_http._PATIENCE", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        before = time.perf_counter()
        with pytest.raises(HostError, match="is in no cache, and the Hub could not be asked"):
            create(factory, name, pretrained=True)
        assert time.perf_counter() - before < 5
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_a_wrong_argument_is_not_taken_for_a_missing_hub() -> None:
    with pytest.raises(HostError, match="refused its arguments") as caught:
        create("timm", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained=True, no_such=1)
    assert caught.value.remedy == "check backbone.kwargs"


@pytest.mark.parametrize(
    ("factory", "name", "options", "words"),
    [
        (
            "timm",
            "vit_tiny_patch16_224",
            {"num_heads": 5},
            r"create_model\('vit_tiny_patch16_224'\) refused .*divisible",
        ),
        ("timm", "vit_tiny_patch16_224", {"depth": -1}, "must be non-negative"),
        ("timm", "vit_tiny_patch16_224", {"patch_size": 0}, "by zero"),
        ("torchvision", "vit_b_16", {"img_size": 30}, "vit_b_16.* refused its arguments: Input shape indivisible"),
        ("torchvision", "resnet18", {"groups": 0}, "refused"),
        ("point_bert", "point_bert", {"pretrained": False, "num_heads": 5}, "PointBert refused .*divisible"),
        ("point_bert", "point_bert", {"pretrained": False, "num_heads": 0}, r"backbone\.kwargs\.num_heads=0"),
        ("point_bert", "point_bert", {"pretrained": False, "drop_path_rate": 3}, r"kwargs\.drop_path_rate=3"),
        ("point_bert", "point_bert", {"pretrained": False, "point_widths": [1]}, "not enough values"),
        ("videomae", "videomae_small", {"num_heads": 0}, r"kwargs\.num_heads=0"),
        ("videomae", "videomae_small", {"patch_size": 0}, r"kwargs\.patch_size=0"),
        ("videomae", "videomae_small", {"mlp_ratio": -1}, "VideoMAE refused .*negative dimension"),
        ("vectornet", "vectornet", {"history": 20, "future": 30, "hidden": 2.5}, "VectorNet refused its arguments"),
        ("mmtransformer", "mmtransformer", {"history": 20, "future": 30, "num_heads": 0}, "in 0 heads"),
    ],
)
def test_sizes_that_cannot_be_are_refused(factory: str, name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(HostError, match=words):
        create(factory, name, **options)


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    """What the remedy says: timm reads it in place of the Hub's."""
    small = {"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": 32}
    kept = create("timm", "vit_tiny_patch16_224", num_classes=1000, **small)
    torch.save(kept.state_dict(), tmp_path / "weights.pth")
    given = {"file": str(tmp_path / "weights.pth")}
    model = create(
        "timm", "vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=given, num_classes=3, **small
    )
    assert torch.equal(model.blocks[0].attn.qkv.weight, kept.blocks[0].attn.qkv.weight)


class TestTransformers:
    def test_from_the_config(self, folder: Path) -> None:
        model = create("transformers", folder, num_classes=3, img_size=16, in_chans=1)
        assert model.training
        assert model(images()[:, :1, :16, :16]).logits.shape == (2, 3)
        torch.manual_seed(0)
        first = create("transformers", folder, **SIZE)
        torch.manual_seed(0)
        again = create("transformers", folder, **SIZE)
        assert torch.equal(first.classifier.weight, again.classifier.weight)

    @pytest.mark.parametrize("classes", [7, 3])
    def test_pretrained(self, folder: Path, classes: int) -> None:
        model = create("transformers", folder, pretrained=True, **(SIZE | {"num_classes": classes}))
        kept = type(model).from_pretrained(folder).state_dict()
        own = model.state_dict()
        assert own.keys() == kept.keys()
        assert all(torch.equal(own[n], t) for n, t in kept.items() if classes == 7 or not n.startswith("classifier."))
        assert model.training
        assert model(images()).logits.shape == (2, classes)

    def test_no_head(self, folder: Path) -> None:
        assert isinstance(create("transformers", folder, num_classes=0).classifier, nn.Identity)

    def test_other_images_than_pretrained(self, folder: Path) -> None:
        with pytest.raises(HostError, match="pretrained with num_channels 3, not 1"):
            create("transformers", folder, pretrained=True, in_chans=1)
        if "dinov2" in (folder / "config.json").read_text():
            model = create("transformers", folder, pretrained=True, img_size=48)
            assert model(torch.zeros(1, 3, 48, 48)).logits.shape == (1, 7)
        else:
            with pytest.raises(HostError, match="pretrained with image_size 32, not 48"):
                create("transformers", folder, pretrained=True, img_size=48)

    def test_weights_that_do_not_fit(self, folder: Path) -> None:
        with pytest.raises(HostError, match="lacks weights of"):
            create("transformers", folder, pretrained=True, num_hidden_layers=4)

    def test_further_fields(self, folder: Path) -> None:
        model = create("transformers", folder, num_hidden_layers=1)
        host = find_host(model)
        assert host is not None
        assert len(host.layers) == 1
        with pytest.raises(HostError, match="has no num_layres"):
            create("transformers", folder, num_layres=1)

    def test_no_such_model(self, tmp_path: Path) -> None:
        with pytest.raises(HostError, match="gives no image classifier"):
            create("transformers", tmp_path / "nothing")
        hf("DINOv3ViTModel", False).save_pretrained(tmp_path / "dinov3")
        with pytest.raises(HostError, match="gives no image classifier"):
            create("transformers", tmp_path / "dinov3")

    def test_code_of_strangers_is_not_run(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(
            '{"model_type": "own", "auto_map": {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M"}}'
        )
        (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
        with pytest.raises(HostError, match="gives no image classifier"):
            create("transformers", tmp_path, pretrained=True)

    def test_a_saved_graft_rebuilds_its_host(self, folder: Path, llama_folder: Path, tmp_path: Path) -> None:
        spec = {"factory": "transformers", "name": str(folder), "kwargs": dict(SIZE)}
        model = lmgraft.graft(create("transformers", folder, **SIZE), str(llama_folder), host_spec=spec).eval()
        lmgraft.save_pretrained(model, tmp_path / "out")
        again = lmgraft.load_pretrained(tmp_path / "out")
        assert torch.equal(again(images()).logits, model(images()).logits)


class TestTorchvision:
    def test_a_vit(self) -> None:
        with pytest.raises(HostError, match="torchvision's 'vit_b_16' refused"):
            create("torchvision", "vit_b_16", num_layers=1, **SIZE)
        model = create("torchvision", "vit_b_16", **SIZE)
        assert model.training
        assert model(images()).shape == (2, 3)

    def test_a_convnet(self) -> None:
        model = create("torchvision", "squeezenet1_1", **(SIZE | {"img_size": 64}))
        assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)

    def test_pretrained_with_a_new_head(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, Any] = {}

        def get_model(name: str, **options: Any) -> nn.Module:
            asked.update(options, name=name)
            return torchvision.models.VisionTransformer(16, 8, 1, 2, 8, 8)

        monkeypatch.setattr(torchvision.models, "get_model", get_model)
        model = create("torchvision", "vit_b_16", pretrained=True, num_classes=3, img_size=16)
        assert asked == {"name": "vit_b_16", "weights": "DEFAULT", "image_size": 16}
        assert model.heads.head.weight.shape == (3, 8)
        assert model.heads.head.weight.std() > 0
        monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: nn.Identity())
        with pytest.raises(HostError, match="has 1000 classes, not 3"):
            create("torchvision", "resnet18", pretrained=True, num_classes=3)

    def test_refusals(self) -> None:
        with pytest.raises(HostError, match="images of 3 channels"):
            create("torchvision", "vit_b_16", in_chans=1)
        with pytest.raises(HostError, match="no classifier 'vit_b_17'") as caught:
            create("torchvision", "vit_b_17")
        assert "vit_b_16" in caught.value.remedy
