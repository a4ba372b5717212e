"""A graft in a LightningModule. (`lmgraft train` is built on Lightning too; this is for a module of one's own.)

python examples/lightning_module.py
python examples/lightning_module.py --llm smollm2-135m
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lmgraft
import toy


def encoder() -> nn.Module:
    shape: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=toy.CLASSES, **shape)
    return model


class Classifier(pl.LightningModule):
    """An encoder with a frozen block of an LLM behind its last layer."""

    def __init__(self, llm: str) -> None:
        super().__init__()
        self.model = lmgraft.graft(encoder(), llm)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        self.log("accuracy", toy.accuracy(self.model(images), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=2e-3)


def main() -> None:
    options = toy.options(__doc__)
    pl.seed_everything(0, verbose=False)
    classifier = Classifier(options.llm)
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(
        classifier,
        DataLoader(toy.images(1024, seed=0), batch_size=32, shuffle=True),
        DataLoader(toy.images(256, seed=1), batch_size=256),
    )
    print(f"accuracy {trainer.callback_metrics['accuracy']:.2f}")

    model = classifier.model.eval()
    lmgraft.save_pretrained(model, options.out)
    again = lmgraft.load_pretrained(options.out, model=encoder())
    images, _ = toy.images(8, seed=1).tensors
    with torch.inference_mode():
        torch.testing.assert_close(again(images), model.cpu()(images))


if __name__ == "__main__":
    main()
