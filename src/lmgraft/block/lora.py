"""A frozen projection with a trained low-rank part beside it (LoRA, Hu et al. 2021, section 4.1).

    x (W + s B A)^T + b = x W^T + b + s (x A^T) B^T        s = alpha / rank

The sum is never formed: W stays frozen, 16-bit where it is stored so, and keeps its quick
products, and B A costs what its rank costs. Every way to multiply with a projection is here, so
whoever folds or absorbs one (`graft/forms`) gets the low-rank part and its gradients with it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from lmgraft.block.parts import Projection, at_least_float32
from lmgraft.block.products import grouped, linear


class LoraProjection(Projection):
    """x (W + s B A)^T + b, with W and b frozen.

    Trained: `lora_a` (rank, K), drawn from torch's generator, and `lora_b` (P, rank), zero at the
    start: the output then equals the frozen projection's. Float32 or wider, whatever W is stored in.

    Args:
        base: The projection; its tensors are taken over, not copied.
        rank: Width between A and B.
        alpha: B A is multiplied by alpha / rank.
    """

    trained = frozenset({"lora_a", "lora_b"})

    def __init__(self, base: Projection, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = base.weight, base.bias
        self.scale = alpha / rank
        rows, columns = self.weight.shape
        device, dtype = self.weight.device, at_least_float32(self.weight[:0]).dtype
        # Drawn on the CPU: the same numbers on every device.
        drawn = nn.init.kaiming_uniform_(torch.empty(rank, columns), a=math.sqrt(5))
        self.lora_a = Parameter(drawn.to(device, dtype))
        self.lora_b = Parameter(torch.zeros(rows, rank, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self._low_rank(x)

    def without_bias(self, x: Tensor) -> Tensor:
        return super().without_bias(x) + self._low_rank(x)

    def by_group(self, x: Tensor, groups: int, *, transposed: bool) -> Tensor:
        up = self.lora_b.view(groups, -1, self.lora_b.shape[1])
        if transposed:
            low = grouped(linear(x, self.lora_a), up, transposed=True)
        else:
            low = linear(grouped(x, up, transposed=False), self.lora_a.T)
        return super().by_group(x, groups, transposed=transposed) + self.scale * low

    def _low_rank(self, x: Tensor) -> Tensor:
        return self.scale * linear(linear(x, self.lora_a), self.lora_b)

    def merged(self) -> Projection:
        """One plain projection of the same numbers, W + s B A, in the wider of the two dtypes."""
        with torch.no_grad():
            wide = torch.promote_types(self.weight.dtype, self.lora_a.dtype)
            weight = self.weight.to(wide) + self.scale * (self.lora_b @ self.lora_a).to(wide)
        return Projection(weight, self.bias)


def merge_lora(block: nn.Module) -> None:
    """Replace, in place, every LoRA projection in `block` by a plain one of the same numbers.

    Left as it is where W is stored narrower than the factors: the sum would be rounded, or take
    twice the memory.
    """
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraProjection) and child.weight.dtype == child.lora_a.dtype:
                setattr(parent, name, child.merged())
