"""A graft in a ViT of transformers, trained by transformers' Trainer.

python examples/transformers_trainer.py
python examples/transformers_trainer.py --llm smollm2-135m
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

import lmgraft
import toy


def encoder() -> ViTForImageClassification:
    """A small ViT; `ViTForImageClassification.from_pretrained(...)` is grafted in the same way."""
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=toy.CLASSES, **shape))


def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    images, labels = zip(*rows, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}


def main() -> None:
    options = toy.options(__doc__)
    set_seed(0)
    trainer = Trainer(
        model=lmgraft.graft(encoder(), options.llm),
        args=TrainingArguments(
            output_dir=str(options.out / "trainer"),
            num_train_epochs=1,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=256,
            learning_rate=2e-3,
            save_strategy="no",  # lmgraft saves the model below, with a reference to the block
            report_to=[],
            disable_tqdm=True,
        ),
        data_collator=collate,
        train_dataset=toy.images(1024, seed=0),
        eval_dataset=toy.images(256, seed=1),
        compute_metrics=lambda found: {
            "accuracy": toy.accuracy(torch.as_tensor(found.predictions), torch.as_tensor(found.label_ids))
        },
    )
    trainer.train()
    print(f"accuracy {trainer.evaluate()['eval_accuracy']:.2f}")

    model = trainer.model.eval()
    lmgraft.save_pretrained(model, options.out)
    again = lmgraft.load_pretrained(options.out, model=encoder())
    images, _ = toy.images(8, seed=1).tensors
    with torch.inference_mode():
        torch.testing.assert_close(again(images).logits, model.cpu()(images).logits)


if __name__ == "__main__":
    main()
