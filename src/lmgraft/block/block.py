"""The frozen block: one or several consecutive layers and the LLM's final norm.

                  queries: read tokens only
    x --+-- norm -- attention --(+)--+-- norm -- mlp --(+)-- ... -- final norm --> y
        |             keys, values |  |                 |
        +--------------------------+  +-----------------+

(as llama has it; `BlockConfig` names the other placements of norms and residuals)

Everything is differentiable with respect to x; nothing in here is trained by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from lmgraft.block.config import FINAL_NORM, BlockConfig, FinalNorm, Order
from lmgraft.block.experts import Experts
from lmgraft.block.frozen import FrozenModule
from lmgraft.block.latent import LatentAttention
from lmgraft.block.parts import MLP, Attention, Norm, Scale
from lmgraft.checkpoint.digest import json_digest, tensor_digest
from lmgraft.contracts import Tokens, sizes, take_tokens
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
    tower: str | None = None
    """Which layers of a model that holds several towers, as it was asked for."""
    order: Order = "none"
    """Whether the layers read tokens in order; "causal" of layers that are recurrent by nature."""
    licence: str | None = None
    control: Mapping[str, Any] | None = None
    """How the pretrained weights were replaced, for a control; None for pretrained weights."""
    trained: Mapping[str, Any] | None = None
    """What of the block is trained on from these values, and how (`trained.py`); None where all is frozen."""
    tensors: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each tensor's values, by canonical name."""
    digest: str = ""
    """SHA-256 over the block's config, final norm and tensors, before any training: its identity."""

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self) | {"layers": list(self.layers), "file_dtypes": list(self.file_dtypes)}
        return without_defaults(values)


def without_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """A record without a tower and an order where there are none: as it was before there could be."""
    return {k: v for k, v in values.items() if (k, v) not in (("tower", None), ("order", "none"))}


class Layer(FrozenModule):
    """One transformer layer. Norms that a config does not have are identities.

    Where the config names one of the `branches`, there is no module for the other (`attends`,
    `has_mlp`), and it adds exactly nothing, its post norm included.

    sequential                          parallel
    x = out(x + post(attention(pre x)))     x = x + attention(pre x) + mlp(pre' x)
    x = out(x + post(mlp(pre x)))
    """

    attention: Attention
    mlp: MLP | Experts

    def __init__(self, config: BlockConfig, tensors: Mapping[str, Tensor], scale: float | None = None) -> None:
        super().__init__()

        def norm(name: str, wanted: bool = True) -> nn.Module:
            if not wanted or f"{name}.weight" not in tensors:
                return nn.Identity()
            return Norm(config.norm, config.norm_eps, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

        self.parallel, self.residual_scale = config.parallel, config.residual_scale
        self.residual_after_norm = config.residual_after_norm
        self.post_residual = config.norm_place == "post_residual"
        self.attends, self.has_mlp = config.branches != "mlp", config.branches != "attention"
        self.attention_norm = norm("attention_norm")
        if self.attends:
            self.attention = (LatentAttention if config.kv_rank else Attention)(config, tensors, scale)
        self.attention_post_norm = norm("attention_post_norm")
        self.mlp_norm = norm("mlp_norm")
        if self.has_mlp:
            self.mlp = Experts(config, tensors) if config.num_experts else MLP(config, tensors)
        self.mlp_post_norm = norm("mlp_post_norm")
        self.output_scale = Scale(tensors["output_scale.weight"]) if config.output_scale else nn.Identity()

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, reads: Tokens = None) -> Tensor:
        """(B, T, D) -> (B, R, D): the rows of `reads`, all rows for None."""
        if not self.attends:
            x = take_tokens(x, reads)
            return self.finish(x, self.attention_norm(x), None)
        normed = self.attention_norm(x)
        read = take_tokens(normed, reads)
        return self.finish(take_tokens(x, reads), read, self.attention(read, normed, key_padding_mask))

    @property
    def reuses_normed(self) -> bool:
        """Whether `finish` needs the input's norm again."""
        return self.parallel == "shared_norm" or self.residual_after_norm

    @property
    def ends_linear(self) -> bool:
        """Whether the last steps are linear, so that `finish` can compute them for a mean of tokens."""
        return not self.post_residual and isinstance(self.mlp_post_norm, nn.Identity)

    def finish(self, x: Tensor, normed: Tensor | None, mixed: Tensor | None, mean: bool = False) -> Tensor:
        """All that comes after attention, token by token.

        Args:
            x: (B, R, D) inputs of the layer.
            normed: (B, R, D) their attention norm; may be None unless `reuses_normed`.
            mixed: (B, R, D) attention's output; in a parallel block its mean will do, (B, 1, D). None
                where the layer has no attention.
            mean: Return the mean over R, (B, 1, D); only where the layer `ends_linear`.
        """
        first = normed if self.reuses_normed and normed is not None else x
        if self.parallel != "none":
            own = self._own(first if self.parallel == "shared_norm" else self.mlp_norm(x), mean)
            if mean:
                x, mixed = _mean(x), None if mixed is None else _mean(mixed)
            both = own if mixed is None else mixed if own is None else mixed + own
            assert both is not None  # a layer has at least one branch
            return self.output_scale(x + self.residual_scale * both)  # type: ignore[no-any-return]
        x = self._add(first, mixed, self.attention_post_norm)
        normed = self.mlp_norm(x)
        base = normed if self.residual_after_norm else x
        out = self._add(_mean(base) if mean else base, self._own(normed, mean), self.mlp_post_norm)
        return self.output_scale(out)  # type: ignore[no-any-return]

    def _own(self, x: Tensor, mean: bool) -> Tensor | None:
        return self.mlp(x, mean) if self.has_mlp else None

    def _add(self, x: Tensor, branch: Tensor | None, post: nn.Module) -> Tensor:
        if branch is None:
            alone: Tensor = post(x) if self.post_residual else x
            return alone
        scaled = branch if self.residual_scale == 1 else self.residual_scale * branch
        out: Tensor = post(x + scaled) if self.post_residual else x + post(scaled)
        return out


def _mean(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True)


class FrozenBlock(FrozenModule):
    """Consecutive LLM layers as one frozen module, its final norm included.

    Args:
        config: Shape and behaviour of every layer.
        layers: Canonical tensors of each layer (see `BlockConfig.tensor_shapes`).
        digests: By "<layer>.<tensor>" or "final_norm.<tensor>", where they are not to be those of the
            values here: of the values read, where tensors were narrowed since, or of how they were made.
        final_norm: Its tensors (see `BlockConfig.norm_shapes`); needed for `pretrained` only.
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
        final_norm: Mapping[str, Tensor] | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        _check_tensors(config, layers, provenance.final_norm, final_norm)
        self.config = config
        scales = config.attention_scales or (None,) * len(layers)
        self.layers = nn.ModuleList(
            Layer(config, tensors, scale) for tensors, scale in zip(layers, scales, strict=True)
        )
        self.final_norm = norm_behind(config, provenance.final_norm, final_norm)
        self.provenance = with_digests(provenance, config, layers, final_norm or {}, digests or {})
        self.eval()

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, *, reads: Tokens = None) -> Tensor:
        """Run the block.

        Args:
            x: (B, T, D) tokens in any floating dtype; the output has the same.
            key_padding_mask: (B, T) bool, True = padded: such tokens are not attended to. Or (B, T, T): which tokens
                each does not attend to; lmgraft's own layers know that, not others' code (`opaque`).
            reads: Which tokens' outputs are wanted; None for all.

        Returns:
            (B, T, D), or (B, R, D) for `reads`: equal to those rows of the full output.
        """
        check_input(x, self.config.dim)
        if self.tokenwise:
            x, reads = take_tokens(x, reads), None
        *before, last = self.layers
        for layer in before:
            x = layer(x, key_padding_mask)
        x = last(x, key_padding_mask, reads)
        out: Tensor = self.final_norm(x)
        return out

    @property
    def tokenwise(self) -> bool:
        """Whether it mixes no tokens: those that are not read cost nothing."""
        return self.config.branches == "mlp"

    @property
    def opaque(self) -> bool:
        """Whether its layers are somebody else's code (`opaque.py`): only the dense form computes them."""
        return False

    def train(self, mode: bool = True) -> FrozenBlock:
        """A frozen block stays in eval mode whatever its host does."""
        trainable = any(p.requires_grad for p in self.parameters())
        super().train(mode and trainable)
        return self

    def tensors(self) -> tuple[list[dict[str, Tensor]], dict[str, Tensor] | None]:
        """Canonical tensors of each layer, and the final norm's own if it has any; without LoRA's part."""
        canonical = self.config.tensor_shapes()
        layers = [{n: p.detach() for n, p in layer.named_parameters() if n in canonical} for layer in self.layers]
        return layers, {n: p.detach() for n, p in self.final_norm.named_parameters()} or None

    def with_tensors(
        self,
        layers: Sequence[Mapping[str, Tensor]],
        *,
        provenance: Provenance,
        final_norm: Mapping[str, Tensor] | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> FrozenBlock:
        """A block of the same config with other tensors; the arguments are those of the class."""
        return FrozenBlock(self.config, layers, provenance=provenance, final_norm=final_norm, digests=digests)

    def extra_repr(self) -> str:
        p = self.provenance
        trained = f", trained={p.trained['kind']}" if p.trained else ""
        return f"{p.source}, layers={p.layers}, final_norm={p.final_norm}, digest={p.digest[:12]}{trained}"


def check_input(x: Tensor, dim: int) -> None:
    """Refuse what is not (B, T, D).

    Raises:
        BlockError: Naming the shape.
    """
    if x.dim() != 3 or sizes(x)[-1] != dim:
        raise BlockError(
            f"the block takes (B, T, {dim}), got {tuple(x.shape)}",
            "map your tokens to the block's width first, as graft() does",
        )


def _check_tensors(
    config: BlockConfig,
    layers: Sequence[Mapping[str, Tensor]],
    kind: FinalNorm,
    final_norm: Mapping[str, Tensor] | None,
) -> None:
    if kind not in ("unit", "pretrained", "none"):
        raise BlockError(f"final_norm={kind!r} is not known", "one of 'unit', 'pretrained', 'none'")
    if not layers:
        raise BlockError("a block needs at least one layer")
    if config.attention_scales and len(config.attention_scales) != len(layers):
        raise BlockError(f"{len(config.attention_scales)} attention scales for {len(layers)} layers")
    parts = {f"layer {i} of the block": (config.tensor_shapes(), tensors) for i, tensors in enumerate(layers)}
    parts["the final norm"] = (config.norm_shapes() if kind == "pretrained" else {}, final_norm or {})
    for what, (expected, tensors) in parts.items():
        wrong = [f"missing {n}" for n in expected if n not in tensors]
        wrong += [f"unknown {n}" for n in tensors if n not in expected]
        wrong += [
            f"{n} has shape {tuple(t.shape)}, the config says {expected[n]}"
            for n, t in tensors.items()
            if n in expected and tuple(t.shape) != expected[n]
        ]
        if wrong:
            raise BlockError(f"{what} does not fit its config (final_norm={kind!r}):\n    " + "\n    ".join(wrong))


def norm_behind(config: BlockConfig, kind: FinalNorm, tensors: Mapping[str, Tensor] | None) -> nn.Module:
    """The LLM's final norm of this kind."""
    return nn.Identity() if kind == "none" else Norm(config.norm, config.norm_eps, **(tensors or {}))


def with_digests(
    provenance: Provenance,
    config: BlockConfig,
    layers: Sequence[Mapping[str, Tensor]],
    final_norm: Mapping[str, Tensor],
    known: Mapping[str, str],
) -> Provenance:
    """`provenance` with the digests of these tensors, taken from `known` where they are there."""
    named = {f"{i}.{n}": t for i, layer in enumerate(layers) for n, t in sorted(layer.items())}
    digests = {n: known.get(n) or tensor_digest(t) for n, t in named.items()}
    own = {f"{FINAL_NORM}.{n}": t for n, t in final_norm.items()}
    digests |= {n: known.get(n) or tensor_digest(t) for n, t in own.items()}
    identity = {"config": config.identity(), "final_norm": provenance.final_norm, "tensors": digests}
    return replace(provenance, tensors=digests, digest=json_digest(identity))
