"""Backbones by name: from transformers and torchvision, in timm's words, and saved grafts that need no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import lmgraft
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
        with pytest.raises(HostError, match="torchvision refused 'vit_b_16'"):
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
