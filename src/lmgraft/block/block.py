"""The frozen block: one or several consecutive layers and the LLM's final norm.

                  queries: read tokens only
    x --+-- norm -- attention --(+)--+-- norm -- mlp --(+)-- ... -- final norm --> y
        |             keys, values |  |                 |
        +--------------------------+  +-----------------+

Everything is differentiable with respect to x; nothing in here is trained by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from lmgraft.block.config import FINAL_NORM_TENSOR, BlockConfig, FinalNorm
from lmgraft.block.frozen import FrozenModule
from lmgraft.block.parts import Attention, GatedMLP, RMSNorm
from lmgraft.checkpoint.digest import json_digest, tensor_digest
from lmgraft.contracts import Reads, take_tokens
from lmgraft.errors import BlockError


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a block comes from and what it holds; plain data that goes into every record."""

    source: str
    """Source string as given to `load_block`, or a sentence for a block made otherwise."""
    family: str
    layers: tuple[int, ...]
    """Layer indices from the first, 0."""
    final_norm: FinalNorm
    num_layers: int
    """Layers of the whole LLM."""
    file_dtypes: tuple[str, ...]
    """Types of the tensors in the file, for instance ("F32", "Q4_1")."""
    revision: str | None = None
    licence: str | None = None
    control: Mapping[str, Any] | None = None
    """How the pretrained weights were replaced, for a control; None for pretrained weights."""
    tensors: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each tensor's values, by canonical name."""
    digest: str = ""
    """SHA-256 over the block's config, final norm and tensors: its identity."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"layers": list(self.layers), "file_dtypes": list(self.file_dtypes)}


class Layer(FrozenModule):
    """One pre-norm transformer layer."""

    def __init__(self, config: BlockConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.norm_eps, tensors["attention_norm.weight"])
        self.attention = Attention(config, tensors)
        self.mlp_norm = RMSNorm(config.norm_eps, tensors["mlp_norm.weight"])
        self.mlp = GatedMLP(config, tensors)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, reads: Reads = None) -> Tensor:
        """(B, T, D) -> (B, R, D): the rows of `reads`, all rows for None."""
        normed = self.attention_norm(x)
        x = take_tokens(x, reads) + self.attention(take_tokens(normed, reads), normed, key_padding_mask)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class FrozenBlock(FrozenModule):
    """Consecutive LLM layers as one frozen module, its final norm included.

    Args:
        config: Shape and behaviour of every layer.
        layers: Canonical tensors of each layer (see `BlockConfig.tensor_shapes`).
        final_norm: `unit` (gain one, as the paper's code), `pretrained` or `none`.
        final_norm_weight: (D,) gain; needed for `pretrained` only.
        provenance: Where the tensors come from; its digests are filled in here.

    Raises:
        BlockError: If tensors are missing, unknown or of another shape than `config` says.
    """

    def __init__(
        self,
        config: BlockConfig,
        layers: Sequence[Mapping[str, Tensor]],
        *,
        provenance: Provenance,
        final_norm_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check_tensors(config, layers, provenance.final_norm, final_norm_weight)
        self.config = config
        self.layers = nn.ModuleList(Layer(config, tensors) for tensors in layers)
        unit = provenance.final_norm == "unit"
        self.final_norm: nn.Module = (
            nn.Identity()
            if provenance.final_norm == "none"
            else RMSNorm(config.norm_eps, None if unit else final_norm_weight)
        )
        self.provenance = _with_digests(provenance, config, layers, final_norm_weight)
        self.eval()

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, *, reads: Reads = None) -> Tensor:
        """Run the block.

        Args:
            x: (B, T, D) tokens in any floating dtype; the output has the same.
            key_padding_mask: (B, T) bool, True = padded: such tokens are not attended to.
            reads: Which tokens' outputs are wanted; None for all.

        Returns:
            (B, T, D), or (B, R, D) for `reads`: equal to those rows of the full output.
        """
        if x.shape[-1] != self.config.dim or x.dim() != 3:
            raise BlockError(
                f"the block takes (B, T, {self.config.dim}), got {tuple(x.shape)}",
                "map your tokens to the block's width first, as graft() does",
            )
        *before, last = self.layers
        for layer in before:
            x = layer(x, key_padding_mask)
        x = last(x, key_padding_mask, reads)
        out: Tensor = self.final_norm(x)
        return out

    def train(self, mode: bool = True) -> FrozenBlock:
        """A frozen block stays in eval mode whatever its host does."""
        trainable = any(p.requires_grad for p in self.parameters())
        super().train(mode and trainable)
        return self

    def tensors(self) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """Canonical tensors of each layer, and the final norm's gain if it has one."""
        layers = [{n: p.detach() for n, p in layer.named_parameters()} for layer in self.layers]
        gain = getattr(self.final_norm, "weight", None)
        return layers, None if gain is None else gain.detach()

    def extra_repr(self) -> str:
        p = self.provenance
        return f"{p.source}, layers={p.layers}, final_norm={p.final_norm}, digest={p.digest[:12]}"


def _check_tensors(
    config: BlockConfig, layers: Sequence[Mapping[str, Tensor]], final_norm: FinalNorm, gain: Tensor | None
) -> None:
    if not layers:
        raise BlockError("a block needs at least one layer")
    expected = config.tensor_shapes()
    for index, tensors in enumerate(layers):
        wrong = [f"missing {n}" for n in expected if n not in tensors]
        wrong += [f"unknown {n}" for n in tensors if n not in expected]
        wrong += [
            f"{n} has shape {tuple(t.shape)}, the config says {expected[n]}"
            for n, t in tensors.items()
            if n in expected and tuple(t.shape) != expected[n]
        ]
        if wrong:
            raise BlockError(f"layer {index} of the block does not fit its config:\n    " + "\n    ".join(wrong))
    if final_norm not in ("unit", "pretrained", "none"):
        raise BlockError(f"final_norm={final_norm!r} is not known", "one of 'unit', 'pretrained', 'none'")
    if (gain is not None) != (final_norm == "pretrained"):
        raise BlockError(f"final_norm={final_norm!r} and a final norm gain of {None if gain is None else 'its own'}")


def _with_digests(
    provenance: Provenance, config: BlockConfig, layers: Sequence[Mapping[str, Tensor]], gain: Tensor | None
) -> Provenance:
    digests = {f"{i}.{n}": tensor_digest(t) for i, layer in enumerate(layers) for n, t in sorted(layer.items())}
    if gain is not None:
        digests[FINAL_NORM_TENSOR] = tensor_digest(gain)
    identity = {"config": config.to_dict(), "final_norm": provenance.final_norm, "tensors": digests}
    return replace(provenance, tensors=digests, digest=json_digest(identity))
