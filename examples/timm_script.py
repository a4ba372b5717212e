"""A graft in a loop like that of timm's training script: timm's optimiser, schedule, mixup loss and EMA.

python examples/timm_script.py
python examples/timm_script.py --llm smollm2-135m
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3
from torch.utils.data import DataLoader

import lmgraft
import toy

NAME = "vit_tiny_patch16_224"
SHAPE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 4}
EPOCHS = 2


def main() -> None:
    options = toy.options(__doc__)
    torch.manual_seed(0)
    model = timm.create_model(NAME, **SHAPE)
    # With `host_spec` the saved folder says how to build the encoder, too.
    lmgraft.graft(model, options.llm, host_spec={"factory": "timm", "name": NAME, "kwargs": SHAPE})

    loader = DataLoader(toy.images(1024, seed=0), batch_size=32, shuffle=True, drop_last=True)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05, layer_decay=0.9)
    schedule, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=EPOCHS, updates_per_epoch=len(loader))
    mixup = Mixup(mixup_alpha=0.1, num_classes=toy.CLASSES)
    loss_of = SoftTargetCrossEntropy()
    averaged = ModelEmaV3(model, decay=0.9)  # shares the frozen block, averages the rest

    updates = 0
    for epoch in range(EPOCHS):
        losses = AverageMeter()
        model.train()
        for images, labels in loader:
            images, targets = mixup(images, labels)
            loss = loss_of(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            averaged.update(model)
            losses.update(loss.item(), len(images))
            updates += 1
            schedule.step_update(updates)
        schedule.step(epoch + 1)
        print(f"epoch {epoch}: loss {losses.avg:.3f}")

    images, labels = toy.images(256, seed=1).tensors
    model = averaged.module.eval()
    with torch.inference_mode():
        logits = model(images)
    print(f"accuracy {toy.accuracy(logits, labels):.2f}")

    lmgraft.save_pretrained(model, options.out)
    again = lmgraft.load_pretrained(options.out)  # builds the encoder, reads the block again and verifies it
    with torch.inference_mode():
        torch.testing.assert_close(again(images), logits)


if __name__ == "__main__":
    main()
