"""From a model to its `Host`: by the class path of the model, through the table of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lmgraft.contracts import GraftPoint, Host
from lmgraft.errors import HostError
from lmgraft.registry import HOSTS


def find_host(model: nn.Module) -> Host | None:
    """The description of `model` by the adapter of its class or nearest base class."""
    for cls in type(model).__mro__:
        path = f"{cls.__module__}.{cls.__qualname__}"
        if path in HOSTS:
            host: Host = HOSTS.load(path)(model)
            return host
    return None


def locate(model: nn.Module, at: str | int, host_spec: Mapping[str, Any] | None) -> tuple[Host, GraftPoint]:
    """The host and the point that `at` names, or one made for a dotted module path.

    Raises:
        HostError: If the model is not known and `at` is no module of it, or its width is unknown.
    """
    host = find_host(model)
    point = None if host is None else host.point(at)
    if host is not None and point is not None:
        return host, point
    if isinstance(at, str) and at in dict(model.named_modules()):
        host = host or Host(embed_dim=_width(model, host_spec), layers=(at,))
        return host, GraftPoint(module=at)
    if host is None:
        raise HostError(
            f"{type(model).__module__}.{type(model).__qualname__} is no backbone whose tokens lmgraft knows",
            "name a module whose output is tokens (B, T, d) with at='dotted.path'; known backbones: "
            + ", ".join(HOSTS.names()),
        )
    raise HostError(
        f"at={at!r} is no place in {type(model).__qualname__}",
        f"'tail', 'middle', 'head', 0 to {len(host.layers) - 1}, or a path as in model.named_modules()",
    )


def _width(model: nn.Module, host_spec: Mapping[str, Any] | None) -> int:
    candidates = [
        (host_spec or {}).get("embed_dim"),
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
