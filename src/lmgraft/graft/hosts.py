"""From a model to its `Host`: by the class path of the model, through the table of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from torch import nn

from lmgraft.contracts import Axes, Entry, GraftPoint, Host
from lmgraft.errors import HostError
from lmgraft.registry import HOSTS, find_adapter


def find_host(model: nn.Module) -> Host | None:
    """The description of `model` by the adapter of its class or nearest base class.

    A row "package.*" stands for every class of a package; its adapter may not know a model.
    """
    adapter = find_adapter(model)
    return None if adapter is None else adapter(model)


def locate(model: nn.Module, at: str | int, host_spec: Mapping[str, Any] | None) -> tuple[Host, GraftPoint]:
    """The host as it is at the point that `at` names, and that point; or those made for a dotted module path.

    Raises:
        HostError: If the model is not known and `at` is no module of it, or its width is unknown.
    """
    host = find_host(model)
    point = None if host is None else host.point(at)
    if host is not None and point is not None:
        return host if point.width is None else replace(host, embed_dim=point.width), point
    # "head" is a place of a known host, also where it has none: not its module of that name.
    if isinstance(at, str) and at in dict(model.named_modules()) and (host is None or at != "head"):
        return _by_path(model, at, host or _around(model, at), host_spec or {}), GraftPoint(module=at)
    if host is None:
        raise HostError(
            f"{type(model).__module__}.{type(model).__qualname__} is no backbone whose tokens lmgraft knows",
            "name a module whose output is tokens (B, T, d) or a map with at='dotted.path'; known backbones: "
            + _known(),
        )
    if not host.layers:
        raise HostError(f"{type(model).__qualname__} has no layers, behind which a graft could lie", "make it deeper")
    words = "'tail', 'middle', 'head'" if host.point("head") else "'tail', 'middle'"
    raise HostError(
        f"at={at!r} is no place in {type(model).__qualname__}",
        f"{words}, 0 to {len(host.layers) - 1}, or a path as in model.named_modules()",
    )


def _known() -> str:
    """Rows of the table by their package: "timm: Beit, ..., most others; transformers: ..."."""
    classes: dict[str, list[str]] = {}
    for name in sorted(HOSTS.names(), key=lambda name: name.endswith("*")):
        classes.setdefault(name.split(".")[0], []).append(name.rpartition(".")[2])
    return "; ".join(f"{package}: {', '.join(names)}".replace("*", "most others") for package, names in classes.items())


def _by_path(model: nn.Module, at: str, host: Host | None, host_spec: Mapping[str, Any]) -> Host:
    axes = host_spec.get("axes", "tokens" if host is None else host.axes)
    if axes not in get_args(Axes):
        raise HostError(f"host_spec axes={axes!r} is not known", f"one of {', '.join(get_args(Axes))}")
    if not isinstance(host_spec.get("part"), int | None):
        raise HostError(f"host_spec part={host_spec['part']!r} is no index", "the position of the tokens, as 1")
    output = Entry(host_spec.get("part"))
    if host is None:
        return Host(embed_dim=_width(model, host_spec), layers=(at,), axes=axes, output=output)
    return replace(host, embed_dim=host_spec.get("embed_dim", host.embed_dim), axes=axes, output=output)


def _around(model: nn.Module, at: str) -> Host | None:
    """The innermost encoder of `model` around the module at path `at`, as a host of that place alone.

    What lies behind the place is not known: every token is read there.
    """
    names = at.split(".")
    for count in range(len(names) - 1, 0, -1):
        host = find_host(model.get_submodule(".".join(names[:count])))
        if host is not None:
            widths = dict(zip(host.layers, host.widths[1:], strict=False))
            return Host(
                embed_dim=widths.get(".".join(names[count:])) or host.embed_dim,
                layers=(at,),
                axes=host.axes,
                mapper_init=host.mapper_init,
                padding_mask=host.padding_mask,
                run_before_existing_hooks=host.run_before_existing_hooks,
            )
    return None


def _width(model: nn.Module, host_spec: Mapping[str, Any]) -> int:
    candidates = [
        host_spec.get("embed_dim"),
        getattr(model, "embed_dim", None),
        getattr(model, "num_features", None),
        getattr(getattr(model, "config", None), "hidden_size", None),
    ]
    for width in candidates:
        if isinstance(width, int):
            return width
    raise HostError(
        f"the token width of {type(model).__qualname__} is unknown", "pass it: host_spec={'embed_dim': 384}"
    )
