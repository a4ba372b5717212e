"""A graft in a loop under Accelerate: one file for a CPU, a GPU, or several processes.

python examples/accelerate_loop.py
accelerate launch examples/accelerate_loop.py --llm smollm2-135m
"""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

import lmgraft
import toy


def encoder() -> nn.Module:
    shape: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=toy.CLASSES, **shape)
    return model


def main() -> None:
    options = toy.options(__doc__)
    accelerator = Accelerator()
    set_seed(0)
    model = lmgraft.graft(encoder(), options.llm)  # before `prepare`: DDP then wraps the grafted model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    train = DataLoader(toy.images(1024, seed=0), batch_size=32, shuffle=True)
    test = DataLoader(toy.images(256, seed=1), batch_size=64)
    model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)

    for images, labels in train:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()

    model.eval()
    correct = count = 0
    for images, labels in test:
        with torch.inference_mode():
            logits, labels = accelerator.gather_for_metrics((model(images), labels))
        correct, count = correct + int((logits.argmax(1) == labels).sum()), count + len(labels)
    accelerator.print(f"accuracy {correct / count:.2f}")

    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(model)
        lmgraft.save_pretrained(trained, options.out)
        again = lmgraft.load_pretrained(options.out, model=encoder())
        images, _ = toy.images(8, seed=1).tensors
        with torch.inference_mode():
            torch.testing.assert_close(again(images), trained.cpu()(images))
    accelerator.end_training()


if __name__ == "__main__":
    main()
