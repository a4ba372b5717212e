"""What the tokens of a batch are on their way through a model: after the encoder, W1, the block's halves, W2.

One pass of the model as it is and one of the graft in its dense form, which also has the tokens that nobody reads.
Knows no data and no measure: `activations` says which tokens stand out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmgraft.block import FrozenBlock
from lmgraft.block.block import Layer
from lmgraft.block.parts import Attention, see
from lmgraft.contracts import Host, MeanOf, Reads, take_tokens
from lmgraft.contracts.tokens import Axes, map_axes, to_tokens
from lmgraft.errors import HostError
from lmgraft.graft import GraftLayer, find_graft
from lmgraft.graft.attention import CatchAttention, Weights, mean_attention
from lmgraft.graft.hosts import find_host
from lmgraft.graft.layer import with_token

Stage = Literal["encoder", "mapper_in", "attention", "feed_forward", "mapper_out"]
"""F_E, F_L1, F_LM^A, F_LM^F and F_L2 of the paper: what the tokens have passed so far."""


@dataclass(frozen=True)
class Features:
    """Tokens at one stage, prefix tokens (class token, registers) left out."""

    tokens: Tensor
    """(B, T, V)"""
    grid: tuple[int, ...] | None
    """Sizes of the token grid, outermost first; None where tokens lie in none."""


@dataclass
class Observed:
    """What a batch's tokens are on their way through a model."""

    output: Any = None
    """The model's own, as without being looked at."""
    at: dict[str, Features] = field(default_factory=dict)
    """By stage; on request also "layer 0" and so on, behind each layer of the encoder."""
    attention: dict[str, Tensor] = field(default_factory=dict)
    """(B, heads, T), the mean over the tokens that the head reads of their attention to each token: "encoder", of the
    encoder's last layer, and "block", of the block's. What goes to prefix tokens is left out."""
    padded: Tensor | None = None
    """(B, T) bool, True = padded; None where no token is."""


@torch.no_grad()
def observe(model: nn.Module, *inputs: Any, layers: bool = False, call: Callable[[], Any] | None = None) -> Observed:
    """Pass a batch through a model, as in evaluation, and note what its tokens are on the way.

    The model is left as it was: no hook stays, and each module is in the mode it was in.

    Args:
        model: A plain or grafted host that lmgraft knows. Of several grafts, the first is looked at.
        inputs: What it is called with.
        layers: Also note the tokens behind each layer of the encoder.
        call: Calls the model, for a task that makes more of its output than the model does; None: model(*inputs).

    Returns:
        Stages that a model has: a plain one "encoder" only, a control without a block no "attention" nor
        "feed_forward", a block of another library's code no "attention". Attention of the encoder is there
        where it is computed by `torch.nn.functional.scaled_dot_product_attention`.

    Raises:
        HostError: If the model is not known, or its layers give no tokens.
    """
    inserted = find_graft(model)
    host = find_host(model) if inserted is None else inserted.host
    if host is None:
        raise HostError(f"{type(model).__qualname__} is no host that lmgraft knows", "see docs/hosts.md")
    look = _Look(model, host, inserted)
    with in_evaluation(model):
        with look.hooks(layers):
            look.noted.output = model(*inputs) if call is None else call()
        if inserted is None:
            look.keep("encoder", look.tail)
        else:
            look.dense(inserted)
    if look.mask is not None:
        look.noted.padded = look.mask[:, look.prefix :]
    return look.noted


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode; behind it each module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class _Look:
    """What is caught in one pass."""

    def __init__(self, model: nn.Module, host: Host, inserted: GraftLayer | None) -> None:
        self.model, self.host, self.inserted = model, host, inserted
        self.prefix = host.layout.num_prefix_tokens
        self.noted = Observed()
        self.tail: Any = None
        self.reads: Reads = None
        self.mask: Tensor | None = None
        self.given: Tensor | None = None

    @contextmanager
    def hooks(self, layers: bool) -> Iterator[None]:
        """Hooks before those that are there: they see what a layer gives, not what a graft makes of it."""
        paths = self.host.layers
        last = self.model.get_submodule(paths[-1])
        catch = CatchAttention(self._note_attention)
        with ExitStack() as stack:

            def hooked(register: Callable[..., Any], hook: Callable[..., Any], **options: Any) -> None:
                stack.callback(register(hook, prepend=True, **options).remove)

            hooked(self.model.register_forward_pre_hook, self._note_call, with_kwargs=True)
            hooked(last.register_forward_pre_hook, self._note_mask, with_kwargs=True)
            hooked(last.register_forward_hook, self._note_layer(None))
            hooked(last.register_forward_pre_hook, catch.begin)
            hooked(last.register_forward_hook, catch.end, always_call=True)
            for index, path in enumerate(paths if layers else ()):
                hooked(self.model.get_submodule(path).register_forward_hook, self._note_layer(f"layer {index}"))
            if self.inserted is not None:
                hooked(self.inserted.register_forward_pre_hook, self._note_graft, with_kwargs=True)
            yield

    def _note_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.reads = self.host.reads(module, args, kwargs)

    def _note_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.mask = self.host.padding_mask(module, args, kwargs)

    def _note_layer(self, name: str | None) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tokens = self.host.output.take(output)
            if name is None:
                self.tail = tokens
            else:
                self.keep(name, tokens)

        return hook

    def _note_graft(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.given, self.mask = args[0], args[1] if len(args) > 1 else kwargs.get("key_padding_mask")

    def keep(self, name: str, tokens: Any, grid: tuple[int, ...] | None = None) -> None:
        """Note tokens (B, T, V), or a map of them, under a name."""
        if not isinstance(tokens, Tensor) or tokens.dim() not in (3, 4):
            what = f"{tokens.dim()} dimensions" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise HostError(
                f"{name} of {type(self.model).__qualname__} gives {what}: no tokens (B, T, V) and no map",
                "look at another model, or at one of its parts",
            )
        if tokens.dim() == 4:
            grid = self._grid(tokens)
            tokens = to_tokens(tokens, self._axes(tokens))
        elif grid is None:
            tokens = tokens[:, self.prefix :]
            lies = self.host.layout.grid is not None and tokens.shape[1] == math.prod(self.host.layout.grid)
            grid = self.host.layout.grid if lies else None
        self.noted.at[name] = Features(tokens.detach(), grid)

    def _axes(self, tokens: Tensor) -> Axes:
        # Stages before the last are of other widths: then the host's word on its maps counts.
        return map_axes(tokens, self.host.axes, self.host.embed_dim) or self.host.axes

    def _grid(self, tokens: Tensor) -> tuple[int, ...]:
        return tuple(tokens.shape[1:3] if self._axes(tokens) == "NHWC" else tokens.shape[2:])

    def dense(self, inserted: GraftLayer) -> None:
        """Compute the graft in its dense form from what it was given, and note what lies between its parts."""
        if self.given is None:
            raise HostError("the graft was not called in this pass", "is it a model that calls it?")
        x, mask, block = self.given, self.mask, inserted.block
        count = x.shape[1]
        if inserted.read_token is not None:
            x, mask = with_token(x, mask, inserted.read_token)
            self.reads = count
        grid = self._grid(self.tail) if isinstance(self.tail, Tensor) and self.tail.dim() == 4 else None
        h = inserted.mapper_in(x)
        with _catching(block) as caught:
            y = block(h, mask)
        y = y + h if inserted.config.residual == "in" else y
        stages = {"encoder": x, "mapper_in": h, **_halves(block, caught), "mapper_out": inserted.mapper_out(y)}
        for name, tokens in stages.items():
            self.keep(name, tokens[:, :count], grid)
        if "attention" in caught:
            attention: Attention = block.layers[-1].attention  # type: ignore[assignment]
            queries, normed, *_ = caught["attention"][0]
            q, k = attention.split_queries(attention.q(queries)), attention.split_keys(attention.k(normed))
            visible, _ = see(mask)
            share = self.average(q, k, lambda scores: attention.weights(scores, visible))
            self.noted.attention["block"] = share[..., : count - self.prefix]

    def _note_attention(self, q: Tensor, k: Tensor, weights: Weights) -> None:
        self.noted.attention["encoder"] = self.average(q, k, weights)

    def average(self, q: Tensor, k: Tensor, weights: Weights) -> Tensor:
        """Attention of q (B, N, T, H), of read rows, to k (B, M, T, H): (B, N, T) without prefix tokens."""
        reads = self.reads.tokens if isinstance(self.reads, MeanOf) else self.reads
        shape = q.shape[1], q.shape[3]
        rows = take_tokens(q.transpose(1, 2).flatten(2), reads).unflatten(2, shape).transpose(1, 2)  # type: ignore[no-untyped-call]
        return mean_attention(rows, k, weights)[..., self.prefix :]


@contextmanager
def _catching(block: FrozenBlock) -> Iterator[dict[str, tuple[Any, Any]]]:
    """Inside, (arguments, output) of the last layer and its parts and of the final norm, as they are called."""
    parts: dict[str, nn.Module] = {"final_norm": block.final_norm}
    if len(block.layers) and not block.opaque:
        last: Layer = block.layers[-1]  # type: ignore[assignment]
        parts |= {"layer": last, "mlp_norm": last.mlp_norm} | ({"attention": last.attention} if last.attends else {})
    caught: dict[str, tuple[Any, Any]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            caught[name] = (args, output)

        return hook

    with ExitStack() as stack:
        for name, module in parts.items():
            stack.callback(module.register_forward_hook(note(name)).remove)
        yield caught


def _halves(block: FrozenBlock, caught: Mapping[str, tuple[Any, Any]]) -> dict[str, Tensor]:
    """Tokens behind the last layer's attention, and behind its feed-forward, which is its end."""
    if not len(block.layers):
        return {}
    halves: dict[str, Tensor] = {}
    if "attention" in caught:
        last: Layer = block.layers[-1]  # type: ignore[assignment]
        # In a parallel layer both halves start from the layer's input.
        beside = last.parallel != "none"
        added = caught["layer"][0][0] + last.residual_scale * caught["attention"][1] if beside else None
        halves["attention"] = caught["mlp_norm"][0][0] if added is None else added
    return halves | {"feed_forward": caught["final_norm"][0][0]}
