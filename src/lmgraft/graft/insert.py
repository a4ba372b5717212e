"""`graft` and its exact inverse `ungraft`.

The graft hangs on one module of the host by a hook, and on the host itself by the two hooks of
`reads.py`. Nothing of the host is replaced, renamed or renumbered: `blocks` keep their indices,
so layer-wise lr decay and intermediates count the encoder's own layers, and the last
intermediate is the encoder's output behind the graft.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.block import FrozenBlock, load_block
from lmgraft.block.config import FinalNorm
from lmgraft.block.load import place, storage
from lmgraft.contracts import GraftPoint, Reads, reads_everything
from lmgraft.errors import HostError
from lmgraft.graft.config import Form, GraftConfig, MapperInit, Residual, parse_reads, plain_reads
from lmgraft.graft.hosts import locate
from lmgraft.graft.layer import NAME, GraftLayer, find_graft
from lmgraft.graft.reads import CloseReads, OpenReads


class RunAfter:
    """Forward hook on the module at the graft point: its output goes through the graft."""

    def __init__(self, graft: GraftLayer, last: bool) -> None:
        self.graft, self.last = graft, last

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        tokens, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        _check_tokens(tokens, self.graft, module)
        mask = self.graft.host.padding_mask(module, args, kwargs)
        reads = self.graft.read_state.current(_first_tensor(args, tokens)) if self.last else None
        out = self.graft(tokens, mask, reads=reads)
        return out if rest is None else (out, *rest)


class RunBefore:
    """Forward pre-hook on the module at the graft point: its first input goes through the graft."""

    def __init__(self, graft: GraftLayer) -> None:
        self.graft = graft

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        _check_tokens(args[0] if args else None, self.graft, module)
        mask = self.graft.host.padding_mask(module, args, kwargs)
        return (self.graft(args[0], mask), *args[1:]), kwargs


def graft(
    model: nn.Module,
    llm: str | FrozenBlock,
    layer: int | tuple[int, ...] = -1,
    *,
    at: str | int = "tail",
    reads: Reads | str = None,
    residual: Residual = "none",
    form: Form = "auto",
    read_token: bool = False,
    mapper_init: MapperInit | None = None,
    final_norm: FinalNorm | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    host_spec: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Put a frozen LLM block into `model`, in place, as one more encoder layer.

    Args:
        model: A backbone lmgraft knows (any timm VisionTransformer), or any module with `at`
            naming a submodule whose output is (B, T, d) tokens.
        llm: A source for `load_block`, or a block.
        layer: Layer of the LLM; negative counts from the end.
        at: "tail" (behind the last encoder layer, before the encoder's norm), "middle", "head",
            an index (behind that encoder layer), or a dotted module path.
        reads: Tokens that are read behind the graft: an index, several, or a slice; None asks the
            host at each call. For tokens that differ by sample see `reading`.
        residual: How the graft is wired; "none" as published. See `GraftConfig`.
        form: "auto" computes what is read in the quickest exact way; "dense" is the readable
            reference. See `GraftConfig`.
        read_token: Add a learnable token, read only that one from the block, and give its output
            to every token: for heads that read all tokens.
        mapper_init: Initialisation of W1 and W2; None follows the host.
        final_norm: The LLM's final norm: "unit" (default), "pretrained" or "none".
        dtype: Storage of the frozen weights; None keeps the file's own.
        device: Where the graft lies; None follows the host.
        revision: Revision of a Hub source.
        host_spec: Recorded by `save_pretrained` to rebuild the host without it at hand:
            {"factory": "timm", "name": ..., "kwargs": {...}}; and {"embed_dim": d} where the
            width of an unknown host cannot be found out.

    Returns:
        `model` itself, grafted.

    Raises:
        HostError: If the model is already grafted, is not known, or has no such place.
        SourceError, CheckpointError, BlockError: As `load_block`.
    """
    if find_graft(model) is not None:
        raise HostError("this model is grafted already", "call lmgraft.ungraft(model) first")
    if isinstance(model, nn.Sequential):
        raise HostError("an nn.Sequential would run the graft as one more layer", "wrap it in a module of your own")
    if hasattr(model, NAME):
        raise HostError(f"this model has an attribute {NAME!r} of its own", "rename it: the graft lies there")
    config = GraftConfig(
        llm=llm if isinstance(llm, str) else llm.provenance.source,
        layer=layer if isinstance(llm, str) else _own_layer(llm),
        at=at,
        reads=reads if isinstance(reads, str) else plain_reads(reads),
        residual=residual,
        form=form,
        read_token=read_token,
        mapper_init=mapper_init,
        final_norm=final_norm or ("unit" if isinstance(llm, str) else llm.provenance.final_norm),
        dtype=_storage(llm, dtype),
        revision=revision,
    )
    host, point = locate(model, at, host_spec)
    if reads is not None and host.point(at) is not None and not point.last:
        raise HostError(f"reads={reads!r} with at={at!r}", "later encoder layers read every token: leave reads out")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    device = device or like.device
    block = _block(llm, layer, config, device, final_norm, revision)
    inserted = GraftLayer(block, host, config, host_spec)
    for trained in (p for p in inserted.parameters() if p.requires_grad):
        trained.data = trained.data.to(device=device, dtype=like.dtype)
    inserted.train(model.training)
    _attach(model, inserted, point, host.point(at) is not None)
    return model


def ungraft(model: nn.Module) -> nn.Module:
    """Take the graft out again; the model is then what it was, bit for bit.

    Raises:
        HostError: If the model is not grafted.
    """
    if find_graft(model) is None:
        raise HostError("this model is not grafted", "there is nothing to take out")
    if NAME not in model._modules:  # torch.compile's wrapper passes attributes on
        raise HostError(f"this {type(model).__name__} only wraps a grafted model", "ungraft the model inside")
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [k for k, hook in hooks.items() if isinstance(hook, _HOOKS)]:
                del hooks[key]
                for flags in _hook_flags(module):
                    flags.pop(key, None)
    delattr(model, NAME)
    return model


_HOOKS = (RunAfter, RunBefore, OpenReads, CloseReads)


def _hook_flags(module: nn.Module) -> list[dict[int, Any]]:
    return [
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
        module._forward_pre_hooks_with_kwargs,
    ]


def _attach(model: nn.Module, inserted: GraftLayer, point: GraftPoint, known: bool) -> None:
    """Hook the graft on; `known` where the host itself names the point, and so what follows it."""
    module = model.get_submodule(point.module)
    reads_apply = point.when == "after" and (point.last or not known)
    if point.when == "before":
        module.register_forward_pre_hook(RunBefore(inserted), with_kwargs=True)
    else:
        module.register_forward_hook(RunAfter(inserted, reads_apply), with_kwargs=True)
    inserted.read_state.applies = reads_apply
    if reads_apply:
        asked = inserted.host.reads if point.last else reads_everything
        model.register_forward_pre_hook(OpenReads(inserted.read_state, asked, parse_reads(inserted.config.reads)))
        model.register_forward_hook(CloseReads(inserted.read_state), always_call=True)
    model.add_module(NAME, inserted)


def _block(
    llm: str | FrozenBlock,
    layer: int | tuple[int, ...],
    config: GraftConfig,
    device: Any,
    final_norm: FinalNorm | None,
    revision: str | None,
) -> FrozenBlock:
    if isinstance(llm, str):
        return load_block(
            llm, layer, dtype=config.dtype, device=device, revision=revision, final_norm=config.final_norm
        )
    given = {"layer": layer != -1, "final_norm": final_norm is not None, "revision": revision is not None}
    if any(given.values()):
        names = ", ".join(name for name, is_given in given.items() if is_given)
        raise HostError(f"a block was given, and {names} too", "a block has its own: give these to load_block")
    return place(llm, config.dtype, device)


def _storage(llm: str | FrozenBlock, dtype: torch.dtype | str | None) -> str | None:
    """What the record says about storage: a block that was given keeps its own when loaded again."""
    if dtype is not None:
        return str(dtype).removeprefix("torch.")
    return None if isinstance(llm, str) else storage(llm)


def _own_layer(block: FrozenBlock) -> int | tuple[int, ...]:
    layers = block.provenance.layers
    return layers[0] if len(layers) == 1 else layers


def _first_tensor(args: tuple[Any, ...], default: Tensor) -> Tensor:
    return next((a for a in args if isinstance(a, Tensor)), default)


def _check_tokens(tokens: Any, inserted: GraftLayer, module: nn.Module) -> None:
    width = inserted.host.embed_dim
    if not isinstance(tokens, Tensor) or tokens.dim() != 3 or tokens.shape[-1] != width:
        got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise HostError(
            f"at {inserted.config.at!r} the graft needs tokens (B, T, {width}), {type(module).__name__} gave {got}",
            "choose another place with at=, or the right width with host_spec={'embed_dim': d}",
        )
