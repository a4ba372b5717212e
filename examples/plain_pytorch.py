"""A graft in a plain PyTorch loop, in an encoder of one's own: nothing but torch and lmgraft's core is needed.

python examples/plain_pytorch.py                        # a tiny random LLM, a few seconds
python examples/plain_pytorch.py --llm smollm2-135m
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lmgraft
import toy


class Encoder(nn.Module):
    """Images (B, 3, 32, 32) -> 16 tokens, two transformer layers, their mean -> logits."""

    def __init__(self, embed_dim: int = 48) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, embed_dim, 8, 8)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, embed_dim))
        layer = nn.TransformerEncoderLayer(embed_dim, 4, 2 * embed_dim, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, toy.CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed(images).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.layers(tokens).mean(1)))
        return logits


def main() -> None:
    options = toy.options(__doc__)
    torch.manual_seed(0)
    # lmgraft does not know this encoder: `at` names the module whose output goes through the block, and
    # `reads` what is read of it, so that no more is computed. A ViT of timm needs neither.
    model = lmgraft.graft(Encoder(), options.llm, at="layers", reads="mean :", host_spec={"embed_dim": 48})

    # The frozen block has no gradient and is in no state_dict: train what is left.
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for images, labels in DataLoader(toy.images(1024, seed=0), batch_size=32, shuffle=True):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    images, labels = toy.images(256, seed=1).tensors
    model.eval()
    with torch.inference_mode():
        logits = model(images)
    print(f"accuracy {toy.accuracy(logits, labels):.2f}")

    lmgraft.save_pretrained(model, options.out)  # trained tensors, and a reference to the block
    again = lmgraft.load_pretrained(options.out, model=Encoder())  # reads the block again and verifies it
    with torch.inference_mode():
        torch.testing.assert_close(again(images), logits)


if __name__ == "__main__":
    main()
