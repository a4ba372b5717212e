"""Check that a model still goes the way from tokens to output that its adapter has read in the library's code.

An adapter says what a head reads because it knows the methods between the last encoder layer and
the output. A subclass or an instance that overrides one of them may read anything.
"""

from __future__ import annotations

from typing import Any

TIMM_PATH = ("forward", "forward_features", "forward_head")


def is_own(model: Any, cls: type[Any], names: tuple[str, ...]) -> bool:
    """Return whether `names` of `model` are the methods of `cls`, not those of a subclass or of the instance.

    A method that `cls` does not have, as in an older library, must not be there at all.
    """
    # bridge: cls's names are all there once timm 1.0.16 is the oldest, which gave Eva its `pool`
    return all(
        getattr(type(model), name, None) is getattr(cls, name, None) and name not in model.__dict__ for name in names
    )


def timm_class(model: Any, *names: str) -> type[Any]:
    """Return the class of `model`, or its base class, that timm has under one of `names`.

    For classes that timm does not have in all of its versions that lmgraft takes.
    """
    return next(c for c in type(model).__mro__ if c.__name__ in names and c.__module__.startswith("timm."))
