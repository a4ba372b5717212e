"""`graft` and its exact inverse `ungraft`.

The graft hangs on one module of the host by a hook, and on the host itself by the two hooks of
`reads.py`. Nothing of the host is replaced, renamed or renumbered: `blocks` keep their indices,
so layer-wise lr decay and intermediates count the encoder's own layers, and the last
intermediate is the encoder's output behind the graft.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.block import FrozenBlock, load_block
from lmgraft.block.config import FinalNorm, Order
from lmgraft.block.load import place, source_text
from lmgraft.block.opaque import block_of
from lmgraft.block.trained import TrainBlock
from lmgraft.contracts import (
    Axes,
    Entry,
    GraftPoint,
    Host,
    MeanOf,
    Reads,
    from_tokens,
    map_axes,
    reads_everything,
    to_tokens,
)
from lmgraft.errors import HostError
from lmgraft.graft.attention import BeginWatch, EndWatch, received_attention
from lmgraft.graft.budget import Rule, check_place
from lmgraft.graft.config import Form, GraftConfig, MapperInit, Precision, Residual, parse_reads, plain_reads
from lmgraft.graft.hosts import locate
from lmgraft.graft.layer import NAME, GraftLayer, find_grafts
from lmgraft.graft.reads import CloseReads, OpenReads
from lmgraft.graft.wrappers import forget_compiled, inner_path, inside


class RunAfter:
    """Forward hook on the module at the graft point: its output goes through the graft."""

    def __init__(self, graft: GraftLayer, last: bool, axes: Axes = "tokens") -> None:
        self.graft, self.state, self.last, self.axes = graft, graft.read_state, last, axes

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        host = self.graft.host
        if self.axes == "any" and host.output == Entry() and isinstance(output, tuple) and len(output) > 1:
            raise HostError(
                f"{type(module).__name__} gives more than tokens, which would pass the graft by",
                "choose another place with at=, or say how its first output lies: host_spec={'axes': 'tokens'}",
            )
        tokens, axes = _checked(host.output.take(output), self.axes, self.graft, module)
        mask = host.padding_mask(module, args, kwargs)
        reads = self.state.current(_first_tensor(args, kwargs, tokens)) if self.last else None
        if axes != "tokens" and reads is not None and not isinstance(reads, MeanOf):
            raise HostError(f"reads={reads!r} of a map", "a map is read whole, or as a mean: MeanOf()")
        received = received_attention() if _watches(self.graft.config) else None
        out = self.graft(to_tokens(tokens, axes), mask, reads=reads, received=received)
        out = from_tokens(out, tokens, axes)
        return host.output.put(output, out)


class RunBefore:
    """Forward pre-hook on the module at the graft point: its first input goes through the graft."""

    def __init__(self, graft: GraftLayer, axes: Axes = "tokens") -> None:
        self.graft, self.state, self.axes = graft, graft.read_state, axes

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # bridge: lists here and below, as the compiler of torch 2.6 refuses next(generator, default)
        names = [] if args else [n for n, value in kwargs.items() if isinstance(value, Tensor)]
        name = names[0] if names else None
        given = args[0] if args else kwargs.get(name or "")
        tokens, axes = _checked(given, self.axes, self.graft, module)
        mask = self.graft.host.padding_mask(module, args, kwargs)
        out = from_tokens(self.graft(to_tokens(tokens, axes), mask), tokens, axes)
        return ((out, *args[1:]), kwargs) if name is None else (args, kwargs | {name: out})


def graft(
    model: nn.Module,
    llm: str | FrozenBlock | None = None,
    layer: int | tuple[int, ...] = -1,
    *,
    at: str | int = "tail",
    reads: Reads | str = None,
    residual: Residual = "none",
    form: Form = "auto",
    read_token: bool = False,
    budget: int | None = None,
    budget_rule: Rule = "every",
    precision: Precision = "host",
    train_block: TrainBlock = "none",
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_targets: Sequence[str] | None = None,
    mapper_init: MapperInit | None = None,
    final_norm: FinalNorm | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    host_spec: Mapping[str, Any] | None = None,
    tower: str | None = None,
    order: Order = "none",
    block: nn.Module | None = None,
) -> nn.Module:
    """Put a frozen LLM block into `model`, in place, as one more encoder layer.

    Call it again, with another `at`, for several grafts in one model. Where a model holds several encoders,
    graft the one that is meant, `graft(model.encoder_a, ...)`, or name a layer of it,
    `graft(model, ..., at="encoder_a.blocks.3")`.

    Args:
        model: A backbone lmgraft knows (docs/hosts.md), or any module with `at` naming a submodule
            whose output is (B, T, d) tokens or a map.
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
        budget: At most so many tokens are computed where more are read; each other one gets the output of the
            computed one that is most like it. See `GraftConfig`.
        budget_rule: Which: "every" k-th, "mean" (means of tokens alike), largest "norm", or most "attention".
        precision: "bfloat16" computes mappers and block by autocast, "host" as the encoder.
        train_block: Train "all" of the block, its "norms", or low-rank additions to its projections
            ("lora") too; "none" is the published frozen block. A block that was given is left alone.
        lora_rank: Rank of those additions.
        lora_alpha: They are multiplied by lora_alpha / lora_rank.
        lora_targets: Projections, of q, k, v, o, gate, up, down; None for all.
        mapper_init: Initialisation of W1 and W2; None follows the host.
        final_norm: The LLM's final norm: "unit" (default), "pretrained" or "none".
        dtype: Storage of the frozen weights; None keeps the file's own.
        device: Where the graft lies; None follows the host.
        revision: Revision of a Hub source.
        host_spec: Recorded by `save_pretrained` to rebuild the host without it at hand:
            {"factory": "timm", "name": ..., "kwargs": {...}}; and for a dotted path {"embed_dim": d}
            where the width cannot be found out, {"axes": "NHWC"} or "NCHW" where it gives a map,
            {"part": i} where it gives a tuple or list whose entry i holds the tokens.
        tower: Which layers of a model that holds several towers; see `load_block`.
        order: See `load_block`.
        block: In place of `llm`: any module that maps (B, T, D) to (B, T, D), taken as a frozen block
            (`block.opaque.block_of`; use that where D cannot be found out), or a block.

    Returns:
        `model` itself, grafted.

    Raises:
        HostError: If the model is already grafted there, is not known, or has no such place.
        SourceError, CheckpointError, BlockError: As `load_block`; BlockError too if `llm` is neither source nor block.
    """
    llm = _one_of(llm, block)
    given = {
        "layer": layer != -1,
        "final_norm": final_norm is not None,
        "revision": revision is not None,
        "tower": tower is not None,
        "order": order != "none",
    }
    if isinstance(llm, FrozenBlock) and any(given.values()):
        names = ", ".join(name for name, is_given in given.items() if is_given)
        raise HostError(f"a block was given, and {names} too", "a block has its own: give these to load_block")
    config = GraftConfig(
        llm=llm.provenance.source if isinstance(llm, FrozenBlock) else source_text(llm),
        layer=layer,
        at=at,
        reads=reads if isinstance(reads, str) else plain_reads(reads),
        residual=residual,
        form=form,
        read_token=read_token,
        budget=budget,
        budget_rule=budget_rule,
        precision=precision,
        train_block=train_block,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_targets=tuple(lora_targets) if lora_targets is not None else None,
        mapper_init=mapper_init,
        final_norm=final_norm or "unit",
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        revision=revision,
        tower=tower,
        order=order,
    )
    return insert(model, config, llm if isinstance(llm, FrozenBlock) else None, host_spec=host_spec, device=device)


def _one_of(llm: str | FrozenBlock | None, block: nn.Module | None) -> str | FrozenBlock:
    """The source or the block that was given, one of the two.

    Raises:
        BlockError: If neither was given, or what is no source.
        HostError: If both were given.
    """
    if block is None:
        return llm if isinstance(llm, FrozenBlock) else source_text(llm)
    if llm is not None:
        raise HostError("llm= and block= were both given", "give one of them")
    return block if isinstance(block, FrozenBlock) else block_of(block)


def insert(
    model: nn.Module,
    config: GraftConfig,
    block: FrozenBlock | None = None,
    *,
    host_spec: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    name: str | None = None,
) -> nn.Module:
    """Put a block into `model`, in place, as `config` says: what `graft` does with its keywords packed.

    Args:
        model: See `graft`.
        config: Every choice. Where `block` is given, its `llm`, `layer`, `final_norm` and `revision` count
            for nothing: the record has those of the block.
        block: The block to insert; None loads the one that `config` names.
        host_spec: See `graft`.
        device: See `graft`.
        name: Attribute of `model` under which the graft is to lie; None takes the next one that is free.

    Raises:
        LmgraftError: As `graft`.
    """
    wrapper, model = model, inside(model)
    config = replace(config, at=inner_path(wrapper, model, config.at))
    name = _free_name(model) if name is None else name
    host, point = locate(model, config.at, host_spec)
    if any(isinstance(hook, _AT_POINT[point.when]) for hook in _hooks_at(model, point).values()):
        raise HostError(
            f"this model is grafted already at {config.at!r}",
            "call lmgraft.ungraft(model) first, or give another at=",
        )
    known, reads = host.point(config.at) is not None, parse_reads(config.reads)
    if reads is not None and known and not point.last:
        raise HostError(
            f"reads={reads!r} with at={config.at!r}", "later encoder layers read every token: leave reads out"
        )
    if reads is not None and host.axes in ("NHWC", "NCHW") and not isinstance(reads, MeanOf):
        raise HostError(f"reads={reads!r} of a map", "a map is read whole, or as a mean: leave reads out, or MeanOf()")
    check_place(model, host, point, config.budget, config.budget_rule, asks=reads is None)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0, device="cpu"))
    with _real():
        inserted = _made(model, host, config, block, host_spec, device or ("cpu" if like.is_meta else like.device))
    for trained in (p for p in inserted.parameters() if p.requires_grad):
        trained.data = trained.data.to(dtype=like.dtype)
    inserted.train(model.training)
    _attach(model, name, inserted, point, known)
    return wrapper


def _made(
    model: nn.Module,
    host: Host,
    config: GraftConfig,
    block: FrozenBlock | None,
    host_spec: Mapping[str, Any] | None,
    device: torch.device | str,
) -> GraftLayer:
    """The graft on `device`, as `insert` describes it.

    Raises:
        HostError: If it would lie on the meta device, where it had no values.
    """
    _refuse_meta(torch.device(device).type == "meta")
    if block is None:
        block = load_block(
            config.llm,
            config.layer,
            dtype=config.dtype,
            device=device,
            revision=config.revision,
            final_norm=config.final_norm,
            tower=config.tower,
            order=config.order,
        )
    else:
        block = place(block, config.dtype, device)
        config = config.describing(block)
    inserted = GraftLayer(_not_shared(block, model), host, config, host_spec)
    _refuse_meta(any(p.is_meta for p in inserted.parameters()))
    for trained in (p for p in inserted.parameters() if p.requires_grad):
        trained.data = trained.data.to(device)
    return inserted


def _watches(config: GraftConfig) -> bool:
    return config.budget is not None and config.budget_rule == "attention"


def _refuse_meta(is_meta: bool) -> None:
    if is_meta:
        raise HostError(
            "the graft would lie on the meta device, and its block's values, which no state dict has, be lost",
            "leave device= out, and graft outside of init_empty_weights: a host on the meta device is grafted as any",
        )


def _real() -> AbstractContextManager[Any]:
    """Makes tensors with values also inside of `torch.device("meta")`."""
    return torch.device("cpu") if torch.get_default_device().type == "meta" else nullcontext()


def ungraft(model: nn.Module, at: str | int | None = None) -> nn.Module:
    """Take grafts out again; the model is then what it was, bit for bit.

    Args:
        model: Grafted, or a model that holds grafted ones.
        at: Take out only what lies at this place, see `find_grafts`; None takes out all grafts.

    Raises:
        HostError: If the model is not grafted, or not there.
    """
    wrapper, model = model, inside(model)
    grafts = find_grafts(model, None if at is None else inner_path(wrapper, model, at))
    if not grafts:
        where = "" if at is None else f" at {at!r}"
        raise HostError(f"this model is not grafted{where}", "there is nothing to take out")
    states = [inserted.read_state for inserted in grafts.values()]
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(hook, _HOOKS) and hook.state in states:
                    del hooks[key]
                    for flags in _hook_flags(module):
                        flags.pop(key, None)
    for path in grafts:
        host, _, name = path.rpartition(".")
        delattr(model.get_submodule(host), name)
    forget_compiled()
    return wrapper


_HOOKS = (RunAfter, RunBefore, OpenReads, CloseReads, BeginWatch, EndWatch)
_AT_POINT = {"before": RunBefore, "after": RunAfter}


def _hooks_at(model: nn.Module, point: GraftPoint) -> Mapping[int, Any]:
    module = model.get_submodule(point.module)
    return module._forward_hooks if point.when == "after" else module._forward_pre_hooks


def _free_name(model: nn.Module) -> str:
    """The attribute for the next graft of `model`.

    Raises:
        HostError: If the first one's is taken by something else.
    """
    first = getattr(model, NAME, None)
    if first is not None and not isinstance(first, GraftLayer):
        raise HostError(f"this model has an attribute {NAME!r} of its own", "rename it: the graft lies there")
    further = (f"{NAME}_{i}" for i in itertools.count(2))
    return NAME if first is None else next(name for name in further if not hasattr(model, name))


def _not_shared(block: FrozenBlock, model: nn.Module) -> FrozenBlock:
    """`block`, unless another graft of `model` trains its very tensors: those are one graft's alone.

    Raises:
        HostError: If so.
    """
    if block.provenance.trained is not None and any(module is block for module in model.modules()):
        raise HostError("this block is trained, and lies in another graft of the model", "give a copy.deepcopy of it")
    return block


def _hook_flags(module: nn.Module) -> list[dict[int, Any]]:
    return [
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
        module._forward_pre_hooks_with_kwargs,
    ]


def _attach(model: nn.Module, name: str, inserted: GraftLayer, point: GraftPoint, known: bool) -> None:
    """Hook the graft on; `known` where the host itself names the point, and so what follows it."""
    module = model.get_submodule(point.module)
    reads_apply = point.when == "after" and (point.last or not known)
    host, state = inserted.host, inserted.read_state
    if point.when == "before":
        module.register_forward_pre_hook(RunBefore(inserted, host.axes), with_kwargs=True)
    else:
        run = RunAfter(inserted, reads_apply, host.axes)
        module.register_forward_hook(run, with_kwargs=True, prepend=host.run_before_existing_hooks)
        if _watches(inserted.config):
            module.register_forward_pre_hook(BeginWatch(inserted.read_state))
            module.register_forward_hook(EndWatch(inserted.read_state), always_call=True)
    state.applies = reads_apply
    if reads_apply:
        asked = host.reads if point.last else reads_everything
        model.register_forward_pre_hook(OpenReads(state, asked, parse_reads(inserted.config.reads)), with_kwargs=True)
        model.register_forward_hook(CloseReads(inserted.read_state), always_call=True)
    model.add_module(name, inserted)
    forget_compiled()


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any], default: Tensor) -> Tensor:
    flat = [x for a in (*args, *kwargs.values()) for x in (a if isinstance(a, (tuple, list)) else [a])]
    tensors = [x for x in flat if isinstance(x, Tensor)]
    return tensors[0] if tensors else default


def _checked(given: Any, axes: Axes, inserted: GraftLayer, module: nn.Module) -> tuple[Tensor, Axes]:
    """`given` and how it lies; what is not as it should be is refused."""
    width = inserted.host.embed_dim
    actual = map_axes(given, axes, width) if isinstance(given, Tensor) else None
    if actual is None:
        got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        wanted = _SHAPES[axes].format(width=width)
        raise HostError(
            f"at {inserted.config.at!r} the graft needs {wanted}, {type(module).__name__} gave {got}",
            "choose another place with at=, or the right width with host_spec={'embed_dim': d}, "
            "or for a map host_spec={'axes': 'NCHW'} or 'NHWC', or for one of several outputs host_spec={'part': 1}",
        )
    return given, actual


_SHAPES: dict[Axes, str] = {
    "tokens": "tokens (B, T, {width})",
    "NHWC": "a map (B, H, W, {width})",
    "NCHW": "a map (B, {width}, H, W)",
    "any": "tokens (B, T, {width}) or a map {width} wide",
}
