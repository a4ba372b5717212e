"""A block whose layers are computed by somebody else's code: transformers', timm's, or a module of one's own.

Only the tensors are lmgraft's: frozen, out of `state_dict()`, shared by copies, known by their digest. The
code that uses them is kept out of the module tree, so that a host's weight initialisation, which walks all
`nn.Linear` and norms, cannot touch them:

    OpaqueBlock.layers[i]   Shell - Shell - Projection ...   the tensors: in the tree
           its code         the module itself                the same tensors, by the same dicts: hidden

Such a block has the dense form alone: every token is computed, whatever is read.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from lmgraft.block.block import FrozenBlock, Provenance, norm_behind, with_digests
from lmgraft.block.config import BlockConfig
from lmgraft.block.frozen import FrozenModule
from lmgraft.block.parts import Projection
from lmgraft.contracts import Tokens, sizes, take_tokens
from lmgraft.errors import BlockError, first_line

Call = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
"""Runs a module on tokens (B, T, D) and a padding mask (B, T) or None; gives (B, T, D)."""


@dataclass(frozen=True, kw_only=True)
class OpaqueConfig(BlockConfig):
    """What is known of a layer that lmgraft does not compute itself; what is not known is 1."""

    num_heads: int = 1
    num_kv_heads: int = 1
    head_dim: int = 1
    mlp_dim: int = 1
    """F, or the widest side of its matrices: what a token takes inside."""
    code: str = ""
    """Whose code computes the layer, as "package:Class"."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What that code was configured with."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensors of the first layer by the names that the code gives them."""
    minus_one: tuple[str, ...] = ()
    """Those of them that are gains stored as their distance from one."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise BlockError(f"a block's width is a positive whole number, got {self.dim!r}")

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self.shapes)

    def is_minus_one(self, name: str) -> bool:
        return name in self.minus_one or (name.startswith("norm.") and self.norm == "rms_plus_one")

    def identity(self) -> dict[str, Any]:
        """What the layers compute by; shapes go with the tensors."""
        return {k: getattr(self, k) for k in ("dim", "code", "settings", "norm", "norm_eps")}


class Shell(FrozenModule):
    """The tensors of one module and those inside it, under its names, and none of its code."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._parameters, self._buffers = module._parameters, module._buffers
        self._non_persistent_buffers_set = set(module._buffers)  # frozen: never in a checkpoint
        self.is_norm = "norm" in type(module).__name__.lower()
        for name, child in module._modules.items():
            if child is not None:
                self.add_module(name, child if isinstance(child, FrozenModule) else Shell(child))


class OpaqueLayer(Shell):
    """One layer: its tensors as a tree of shells, and the code that uses them.

    Args:
        module: The layer, taken over: its parameters are frozen and its linear layers replaced by
            `Projection`s of the same tensors. Pass a copy where somebody else has it too.
        call: How it is run on tokens; has to be picklable.
    """

    def __init__(self, module: nn.Module, call: Call) -> None:
        code = nn.Sequential(module).eval().requires_grad_(False)
        for part in code.modules():
            _hold_buffers(part)
            for name, child in part._modules.items():
                if type(child) is nn.Linear:
                    setattr(part, name, Projection.of(child))
        super().__init__(code)
        self.__dict__["hidden"] = (code, call)  # a tuple, so that it is not registered

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, reads: Tokens = None) -> Tensor:
        """(B, T, D) -> (B, R, D): the rows of `reads`, all rows for None; every row is computed."""
        code, call = self.__dict__["hidden"]
        if torch.is_autocast_enabled(x.device.type) or all([p.dtype == x.dtype for p in self.parameters()]):  # noqa: C419
            out = call(code[0], x, key_padding_mask)
        else:
            with _Widen(x.dtype):
                out = call(code[0], x, key_padding_mask)
        return take_tokens(out.to(x.dtype), reads)

    @property
    def call(self) -> Call:
        """How its code is run on tokens."""
        call: Call = self.__dict__["hidden"][1]
        return call

    def named_tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names that the code gives them; without LoRA's part."""
        named = {name.removeprefix("0."): p for name, p in self.named_parameters()}
        return {n: p for n, p in named.items() if not n.rpartition(".")[2].startswith("lora_")}

    def put(self, path: str, module: nn.Module) -> None:
        super().put(path, module)
        parent, _, name = path.rpartition(".")
        setattr(self.__dict__["hidden"][0].get_submodule(parent), name, module)


def _hold_buffers(module: nn.Module) -> None:
    """Turn buffers that files hold into frozen parameters: what a block is made of."""
    for name, buffer in list(module._buffers.items()):
        if buffer is not None and buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
            del module._buffers[name]
            module.register_parameter(name, Parameter(buffer, requires_grad=False))


class OpaqueBlock(FrozenBlock):
    """Consecutive layers of somebody else's code as one frozen module, a final norm included.

    Args:
        config: What is known of the layers.
        layers: The layers with their tensors.
        provenance: Where the tensors come from; its digests are filled in here.
        final_norm: As of `FrozenBlock`.
        digests: As of `FrozenBlock`.
    """

    config: OpaqueConfig

    def __init__(
        self,
        config: OpaqueConfig,
        layers: Sequence[OpaqueLayer],
        *,
        provenance: Provenance,
        final_norm: Mapping[str, Tensor] | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        FrozenModule.__init__(self)
        self.config = config
        self.layers = nn.ModuleList(layers)
        self.final_norm = norm_behind(config, provenance.final_norm, final_norm)
        tensors, _ = self.tensors()
        self.provenance = with_digests(provenance, config, tensors, final_norm or {}, digests or {})
        self.eval()

    @property
    def opaque(self) -> bool:
        return True

    @property
    def tokenwise(self) -> bool:
        return False

    def tensors(self) -> tuple[list[dict[str, Tensor]], dict[str, Tensor] | None]:
        layers = [{n: p.detach() for n, p in layer.named_tensors().items()} for layer in self.opaque_layers()]
        return layers, {n: p.detach() for n, p in self.final_norm.named_parameters()} or None

    def with_tensors(
        self,
        layers: Sequence[Mapping[str, Tensor]],
        *,
        provenance: Provenance,
        final_norm: Mapping[str, Tensor] | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> OpaqueBlock:
        made = copy.deepcopy(self)
        for layer, tensors in zip(made.opaque_layers(), layers, strict=True):
            for name, parameter in layer.named_tensors().items():
                parameter.data = tensors[name]
        return OpaqueBlock(
            self.config, made.opaque_layers(), provenance=provenance, final_norm=final_norm, digests=digests
        )

    def opaque_layers(self) -> list[OpaqueLayer]:
        return [layer for layer in self.layers if isinstance(layer, OpaqueLayer)]


_MULTIPLIES = {
    F.linear,
    F.layer_norm,
    F.rms_norm,
    F.group_norm,
    F.conv1d,
    F.conv2d,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
    torch.einsum,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.bmm,
}
"""What takes numbers of one dtype only."""


class _Widen(TorchFunctionMode):
    """Inside, weights stored in another dtype than the tokens are converted where they are multiplied with."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MULTIPLIES:
            args = [self._as_used(a) for a in args]
            kwargs = {name: self._as_used(a) for name, a in kwargs.items()}
        return func(*args, **kwargs)

    def _as_used(self, value: Any) -> Any:
        is_number = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(self.dtype) if is_number else value


MODULE = "module "
"""What the source of a block that lies in no file begins with."""


def block_of(module: nn.Module, dim: int | None = None) -> OpaqueBlock:
    """Any module that maps (B, T, D) to (B, T, D), as a frozen block.

    Args:
        module: Left alone; its tensors are shared. Its `forward` takes tokens, and a mask (B, T), True = padded,
            as `key_padding_mask` or `src_key_padding_mask` where it knows padding.
        dim: D; None finds it out by trying the widths of its tensors.

    Raises:
        BlockError: If it changes the shape of tokens, or its width cannot be found out.
    """
    kept = {id(p): Parameter(p.data, requires_grad=False) for p in module.parameters()}
    layer = OpaqueLayer(copy.deepcopy(module, dict(kept)), call_module)
    width = _width(layer, dim, type(module).__name__)
    name = f"{type(module).__module__}:{type(module).__qualname__}"
    shapes = {n: tuple(t.shape) for n, t in layer.named_tensors().items()}
    config = OpaqueConfig(
        dim=width, code=name, shapes=shapes, mlp_dim=max([width, *(max(s, default=1) for s in shapes.values())])
    )
    provenance = Provenance(
        source=f"{MODULE}{name}",
        family="module",
        layers=(0,),
        final_norm="none",
        num_layers=1,
        file_dtypes=tuple(sorted({str(p.dtype).removeprefix("torch.") for p in layer.parameters()})),
    )
    return OpaqueBlock(config, [layer], provenance=provenance)


_MASKS = ("key_padding_mask", "src_key_padding_mask")


def call_module(module: nn.Module, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """`module(x)`, with the padding mask under the name that the module has for it."""
    if key_padding_mask is None:
        out: Any = module(x)
    else:
        known = inspect.signature(module.forward).parameters
        name = next((n for n in _MASKS if n in known), None)
        if name is None:
            raise BlockError(
                f"{type(module).__name__} takes no padding mask, and tokens are padded",
                f"let its forward take {_MASKS[0]}=(B, T), True = padded",
            )
        out = module(x, **{name: key_padding_mask})
    return as_tokens(out, x, "Linear" if isinstance(module, Projection) else type(module).__name__)


def as_tokens(out: Any, x: Tensor, name: str) -> Tensor:
    """The tokens in what a layer returned, which are shaped as `x` is.

    Raises:
        BlockError: If they are not.
    """
    tokens = out[0] if isinstance(out, tuple | list) and out else out
    if not isinstance(tokens, Tensor) or sizes(tokens) != sizes(x):
        got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise BlockError(
            f"{name} maps {tuple(x.shape)} to {got}",
            "a block maps (B, T, D) to (B, T, D): give one that keeps the shape",
        )
    return tokens


@torch.no_grad()
def _width(layer: OpaqueLayer, dim: int | None, name: str) -> int:
    parameters = list(layer.parameters())
    like = parameters[0] if parameters else torch.empty(0)
    tried = [dim] if dim is not None else list(dict.fromkeys(p.shape[-1] for p in parameters if p.dim()))
    fits, errors = [], []
    for width in tried:
        try:
            layer(torch.zeros(1, 2, width, device=like.device, dtype=like.dtype))
            fits.append(width)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            errors.append(error)
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise BlockError(f"{name} takes tokens of any of the widths {fits}", "say which: block_of(module, dim=...)")
    shape_error = next((e for e in errors if isinstance(e, BlockError)), errors[0] if errors else None)
    if isinstance(shape_error, BlockError):
        raise shape_error
    reason = f": {first_line(shape_error)}" if shape_error is not None else ""
    raise BlockError(
        f"{name} could not be run on tokens (1, 2, D) for D in {tried}{reason}",
        "a block maps (B, T, D) to (B, T, D); say its width: block_of(module, dim=...)",
    )
