"""How a layer of transformers is called so that nothing positional or causal is left in it.

    positions        all 0; cosine 1 and sine 0 wherever a rotary embedding is used; ALiBi and relative bias 0
    mask             every token visible, or all but the padded ones
    caches           none

What a layer wants is known from the names of its arguments. An argument that is not in the table and has no
default is a reason to refuse the layer, never to guess. That the rules are complete is tested on each
block that is loaded (`check_neutral`): its output has to permute with its tokens, and each has to see the others
but for padded ones.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.block.opaque import OpaqueBlock, OpaqueLayer, as_tokens
from lmgraft.borrowed.skeleton import Skeleton, fill_buffers
from lmgraft.errors import BlockError, first_line

_LENGTHS = (11, 13)
"""Numbers of tokens with which a rotary embedding is asked for its shape; no other axis is that long."""


@dataclass(frozen=True)
class Given:
    """What the arguments of one call are made from."""

    x: Tensor
    visible: Tensor
    """(B, 1, T, T) bool."""
    heads: int
    code: str
    """Class of the layer."""
    rotary: Any
    """Shapes of what the rotary embedding gives; see `_shapes`."""

    @property
    def tokens(self) -> int:
        return self.x.shape[1]

    def added(self) -> Tensor:
        """(B, 1, T, T) added to scores: 0, or the least number where a key is padded."""
        least = torch.finfo(self.x.dtype).min
        return torch.zeros_like(self.visible, dtype=self.x.dtype).masked_fill(~self.visible, least)

    def positions(self) -> Tensor:
        return torch.zeros(self.x.shape[:2], dtype=torch.long, device=self.x.device)


_MASKS: dict[str, Callable[[Given], Any]] = {
    "added": lambda g: g.added(),
    "seen": lambda g: g.visible,
    "hidden": lambda g: ~g.visible,
}
_MASK_OF = {
    "CpmAntTransformerBlock": "seen",
    "DebertaLayer": "seen",
    "DebertaV2Layer": "seen",
    "MptBlock": "hidden",
}
"""What a layer's attention mask is where it is not added to the scores, by its class."""

_ROTARY = (
    "position_embeddings",
    "position_embeddings_global",
    "position_embeddings_local",
    "freqs_ci",
    "freqs_cis",
    "rotary_pos_emb",
)
_ARGUMENTS: dict[str, Callable[[Given], Any]] = {
    **dict.fromkeys(_ROTARY, lambda g: neutral_rotary(g.rotary, g.x)),
    "position_ids": lambda g: g.positions(),
    "alibi": lambda g: g.x.new_zeros(g.x.shape[0] * g.heads, 1, g.tokens),
    "position_bias": lambda g: g.x.new_zeros(*(() if g.code == "MptBlock" else (1,)), g.heads, g.tokens, g.tokens),
}
_NOTHING = (
    *("cache", "layer_past", "past_key_values", "cache_position", "head_mask", "layer_head_mask", "sinusoidal_pos"),
    *("encoder_hidden_states", "encoder_attention_mask", "causal_attention_mask", "relative_pos", "rel_embeddings"),
)
_FIXED: dict[str, Any] = {
    **dict.fromkeys(_NOTHING),
    **dict.fromkeys(("use_cache", "output_attentions", "output_hidden_states"), False),
    "cache_offset": 0,
    "per_layer_input": None,
}
"""Arguments that are the same in every call."""
_ATTENTION_MASKS = ("attention_mask", "causal_mask", "mask", "attn_mask")
_ATTENDS = re.compile(r"attention|mla$", re.IGNORECASE)
"""Of the class of a part that mixes tokens by attention."""
_KNOWN = {*_ARGUMENTS, *_FIXED, *_ATTENTION_MASKS, "shared_kv_states"}


@dataclass(frozen=True)
class CallLayer:
    """Calls a layer with neutral arguments; plain data, so that a block pickles."""

    wanted: tuple[str, ...]
    """Names of the arguments after the tokens."""
    mask: str = "added"
    """See `_MASKS`; "none" for a layer without attention."""
    heads: int = 1
    rotary: Any = None
    per_layer: int = 0
    """Width of Gemma's input per layer, which is zero here: it comes from the identity of a text token."""
    causal: bool = False
    """Whether the layer is run in the order of its tokens, as one that is recurrent by nature has to be."""

    @property
    def takes_mask(self) -> bool:
        return not set(self.wanted).isdisjoint(_ATTENTION_MASKS)

    def __call__(self, module: nn.Module, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        batch, tokens = x.shape[:2]
        visible = torch.ones(batch, 1, tokens, tokens, dtype=torch.bool, device=x.device)
        if key_padding_mask is not None:
            if self.mask != "none" and not self.takes_mask:
                raise BlockError(
                    f"{type(module).__name__} takes no mask, and tokens are padded", "use a block of a language model"
                )
            visible = visible & ~key_padding_mask[:, None, None, :]
        if self.causal:
            visible = visible.tril()
            x = x if key_padding_mask is None else x.masked_fill(key_padding_mask.unsqueeze(-1), 0.0)
        given = Given(x, visible, self.heads, type(module).__name__, self.rotary)
        arguments = {name: self._argument(name, given) for name in self.wanted}
        return as_tokens(module(x, **arguments), x, type(module).__name__)

    def _argument(self, name: str, given: Given) -> Any:
        if name in _ATTENTION_MASKS:
            return None if self.mask == "none" else _MASKS[self.mask](given)
        if name == "per_layer_input" and self.per_layer:
            return given.x.new_zeros(*given.x.shape[:2], self.per_layer)
        if name == "shared_kv_states":
            return {}
        return _FIXED[name] if name in _FIXED else _ARGUMENTS[name](given)


def neutral_rotary(shapes: Any, x: Tensor) -> Any:
    """What a rotary embedding gives at position 0: cosines 1, sines 0, complex numbers 1."""
    if isinstance(shapes, Mapping):
        return {name: neutral_rotary(value, x) for name, value in shapes.items()}
    if shapes is None:
        return None
    if not isinstance(shapes, Shape):
        return tuple(neutral_rotary(value, x) for value in shapes)
    sizes = [x.shape[1] if size is None else size for size in shapes.sizes]
    dtype = torch.complex64 if shapes.is_complex else x.dtype
    return torch.full(sizes, 0 if shapes.is_sine else 1, dtype=dtype, device=x.device)


@dataclass(frozen=True)
class Shape:
    """Of one tensor; None stands for the number of tokens."""

    sizes: tuple[int | None, ...]
    is_complex: bool
    is_sine: bool
    """Whether it is 0 at position 0; cosines are not, and which of them comes first differs."""


def call_of(skeleton: Skeleton, layer: nn.Module, causal: bool) -> CallLayer:
    """How `layer` is called.

    Raises:
        BlockError: If it needs an argument that a block has nothing for.
    """
    config = skeleton.config
    _, *parameters = inspect.signature(type(layer).forward).parameters.values()
    wanted, kind = [], type(layer).__name__
    for parameter in parameters[1:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.name in _KNOWN:
            wanted.append(parameter.name)
        elif parameter.default is parameter.empty:
            raise BlockError(
                f"{kind} needs {parameter.name!r} beside the tokens, which a block has nothing for",
                "use another layer or model; docs/families.md lists what is read",
            )
    attends = any(_ATTENDS.search(type(m).__name__) for m in layer.modules())
    needs_rotary = not set(wanted).isdisjoint(_ROTARY) and bool(_rotary_modules(skeleton))
    return CallLayer(
        wanted=tuple(wanted),
        mask=_MASK_OF.get(kind, "added") if attends else "none",
        heads=heads_of(config),
        rotary=rotary_shapes(skeleton, layer) if needs_rotary else None,
        per_layer=int(getattr(config, "hidden_size_per_layer_input", 0) or 0),
        causal=causal,
    )


def heads_of(config: Any) -> int:
    """Query heads, by the keys that configs have for them; 1 where there is none."""
    keys = (
        "num_attention_heads",
        "n_head",
        "num_heads",
        "n_heads",
        "encoder_attention_heads",
        "decoder_attention_heads",
    )
    return next((v for k in keys if isinstance(v := getattr(config, k, None), int)), 1)


def rotary_shapes(skeleton: Skeleton, layer: nn.Module) -> Any:
    """Shapes of what the model's rotary embedding gives for its layers, found by running it at position 0.

    Raises:
        BlockError: If the model has none that could be asked.
    """
    kinds = getattr(skeleton.config, "layer_types", None) or ()
    errors = []
    for module in (_real(skeleton, m) for m in _rotary_modules(skeleton)):
        for more in ((), *((kind,) for kind in dict.fromkeys([*kinds, "full_attention"]))):
            for axes in ((1,), (3, 1), (4, 1)):
                try:
                    a, b = (_run_rotary(module, length, axes, more) for length in _LENGTHS)
                    return _shapes(a, b)
                except (TypeError, RuntimeError, ValueError, IndexError, AttributeError, KeyError) as error:
                    errors.append(error)
    reason = f": {first_line(errors[0])}" if errors else ""
    raise BlockError(
        f"the rotary positions of {type(layer).__name__} could not be made neutral{reason}", "use another model"
    )


def _rotary_modules(skeleton: Skeleton) -> list[nn.Module]:
    """Rotary embeddings of the model, those nearest to its layers first."""
    parts = skeleton.tower.path.split(".")
    around = [skeleton.model.get_submodule(".".join(parts[:i])) for i in reversed(range(len(parts)))]
    return [m for outer in around for m in outer.modules() if _is_rotary(m)]


def _is_rotary(module: nn.Module) -> bool:
    """Whether it is a rotary embedding: by a word of its class's name (not SolarOpen's), and it holds no weights."""
    named = re.search(r"Rotary|RoPE|Rope", type(module).__name__)
    return bool(named) and not any(True for _ in module.parameters())


def _real(skeleton: Skeleton, module: nn.Module) -> nn.Module:
    """A copy of a rotary embedding with the values of its tables, so that it can be run."""
    made = copy.deepcopy(module)
    fill_buffers(skeleton, made)
    for part in made.modules():  # frequencies that files hold, as ESM's: at position 0 all give the same
        stored = {name: b for name, b in part._buffers.items() if b is not None and b.is_meta and "freq" in name}
        part._buffers |= {name: torch.ones_like(b, device="cpu") for name, b in stored.items()}
    return made


@torch.no_grad()
def _run_rotary(module: nn.Module, length: int, axes: tuple[int, ...], more: tuple[Any, ...]) -> Any:
    """What it gives at position 0."""
    return module(torch.zeros(1, length, 8), torch.zeros(*axes, length, dtype=torch.long), *more)


def _shapes(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        pairs = zip(a.shape, b.shape, strict=True)
        is_sine = not a.is_complex() and not a.any()
        return Shape(tuple(m if m == n else None for m, n in pairs), a.is_complex(), is_sine)
    if isinstance(a, Mapping):
        return {name: _shapes(a[name], b[name]) for name in a}
    return tuple(_shapes(one, other) for one, other in zip(a, b, strict=True))


def neutralise(layer: nn.Module) -> None:
    """Take positions and order out of the parts of a layer that hold them themselves."""
    for module in layer.modules():
        if _is_rotary(module):
            module.register_forward_hook(_rotary_hook)
        if hasattr(module, "relative_attention"):
            setattr(module, "relative_attention", False)  # noqa: B010 - DeBERTa's own flag
        for name, buffer in module._buffers.items():
            if buffer is not None and _is_causal_mask(buffer):
                module._buffers[name] = torch.ones_like(buffer)


def _is_causal_mask(buffer: Tensor) -> bool:
    """Whether a buffer is a square of ones below its diagonal and zeros above it, or a band of them."""
    square = buffer.dim() >= 2 and buffer.shape[-1] == buffer.shape[-2] > 1
    if not square or buffer.is_complex():
        return False
    return bool(((buffer == 0) | (buffer == 1)).all() and not buffer.triu(1).any() and buffer.any())


def _rotary_hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Positions of 0: of rotated queries and keys those that came in, of cosines and sines 1 and 0."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    if isinstance(output, tuple) and len(output) == len(tensors) == 2:
        q, k = tensors
        if (q.shape, k.shape) == (output[0].shape, output[1].shape) and q.is_floating_point() and k.is_floating_point():
            return (q, k)
    if isinstance(output, Tensor):
        return torch.ones_like(output) if output.is_complex() else output
    return tuple(torch.ones_like(o) if o[..., :1, :].any() else torch.zeros_like(o) for o in output)


@torch.no_grad()
def order_error(run: Callable[[Tensor], Tensor], dim: int, like: Tensor) -> float:
    """How much what `run` adds to its tokens fails to permute with them: a relative error, 0 where it does."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 7, dim, generator=generator).to(like.device)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4], device=like.device)
    added, permuted = run(x) - x, run(x[:, order]) - x[:, order]
    return float((permuted - added[:, order]).norm() / added.norm().clamp_min(1e-12))


_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""How far the output may fail to permute with its tokens, by storage; other dtypes round in between."""
_ROUNDED = 2e-2
_LEAST = 1e-6
"""How much attention has at least to change a token when two of the seven that it sees are others."""


def check_neutral(block: OpaqueBlock) -> None:
    """Refuse a block that something causal or positional is left in, or whose attention is not what a mask says.

    What a layer adds to its tokens has to permute with them; where it has attention, each token has to be seen
    by the others, and no padded one. A mask that is meant otherwise than it is given shows here.

    Raises:
        BlockError: Saying by how much, or why a layer could not be run.
    """
    stored = next(block.parameters()).dtype
    allowed = _TOLERANCE.get(stored, _ROUNDED)
    for index, layer in zip(block.provenance.layers, block.opaque_layers(), strict=True):
        name = f"layer {index} ({block.config.code})"
        try:
            error = order_error(layer, block.config.dim, next(block.parameters()))
            seen, padded = _influence(layer, block.config.dim, next(block.parameters()))
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as failure:
            raise BlockError(
                f"{name} could not be run on tokens alone: {first_line(failure)}",
                "it needs more than tokens: use another layer or model; docs/families.md lists what is read",
            ) from failure
        if not error <= allowed:
            raise BlockError(
                f"{name} reads its tokens in order: when they are permuted, its output changes by {error:.2g} of "
                "itself",
                "a layer that is recurrent by nature needs order='causal'; else choose another layer",
            )
        unseen = getattr(layer.call, "mask", "added") != "none" and seen <= _LEAST
        if unseen or padded > allowed:
            what = "does not see its tokens" if unseen else f"sees padded tokens: they change it by {padded:.2g}"
            raise BlockError(f"{name} {what}: how its mask is meant is not known", "use another layer or model")


@torch.no_grad()
def _influence(layer: OpaqueLayer, dim: int, like: Tensor) -> tuple[float, float]:
    """How much the last two tokens change what the others get: as they are, and padded (0 for what takes no mask).

    NaN where a layer adds nothing.
    """
    x = torch.randn(1, 7, dim, generator=torch.Generator().manual_seed(1)).to(like.device)
    other, mask = x.clone(), torch.zeros(1, 7, dtype=torch.bool, device=like.device)
    other[:, -2:], mask[:, -2:] = other[:, -2:].flip(-1), True

    def changed(padded: Tensor | None) -> float:
        one, two = (layer(tokens, padded)[:, :-2] - tokens[:, :-2] for tokens in (x, other))
        return float((one - two).norm() / one.norm())

    return changed(None), changed(mask) if getattr(layer.call, "takes_mask", True) else 0.0


def check_recurrent(layer: OpaqueLayer, index: int, dim: int) -> None:
    """Refuse to run a layer in the order of its tokens that needs none: one of attention.

    Raises:
        BlockError: If its output permutes with its tokens once positions and mask are neutral.
    """
    call = layer.call
    assert isinstance(call, CallLayer)
    module = copy.deepcopy(layer.__dict__["hidden"][0][0], {id(p): p for p in layer.parameters()})
    neutralise(module)
    neutral = OpaqueLayer(module, replace(call, causal=False))
    like = next(layer.parameters())
    try:
        error = order_error(neutral, dim, like)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
        return  # it cannot do without an order
    if error <= _TOLERANCE.get(like.dtype, _ROUNDED):
        raise BlockError(
            f"layer {index} is not recurrent: it reads its tokens in no order, and order='causal' is for those that do",
            "leave order out",
        )
