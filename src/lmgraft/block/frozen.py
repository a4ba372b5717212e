"""Frozen or trainable: decided here, and only by `requires_grad` and by what was asked to be trained.

A frozen tensor is a Parameter (a buffer would be rebroadcast by DDP at every step) that is
absent from `state_dict()`, so checkpoints hold what was trained and strict loading works. A
block switched to training with `requires_grad_(True)` appears in `state_dict()` by itself; where that was not
called of the block but of the model around it, `thawed` says so, and the graft warns. What
`trained.py` prepared for training stays in it, also where everything is frozen for a while.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.nn import Parameter


class FrozenModule(nn.Module):
    """A module whose parameters with `requires_grad=False` stay out of `state_dict()`.

    `copy.deepcopy` shares the storage of frozen parameters: an EMA copy costs no memory.
    """

    trained: frozenset[str] = frozenset()
    """Own parameters that are in `state_dict()` whatever `requires_grad` says: they were trained."""

    _asked = False
    """Whether `requires_grad_(True)` was called of this module, or of one of the block around it."""

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        for module in self.modules():
            if isinstance(module, FrozenModule):
                module._asked = requires_grad
        return super().requires_grad_(requires_grad)

    def is_trained(self, name: str, parameter: Parameter) -> bool:
        """Whether the own parameter `name` holds, or may come to hold, other values than were loaded."""
        return parameter.requires_grad or name in self.trained

    def put(self, path: str, module: nn.Module) -> None:
        """Replace the module at `path` inside this one."""
        parent, _, name = path.rpartition(".")
        setattr(self.get_submodule(parent), name, module)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        with _only_trained(self):
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with _only_trained(self):
            super()._load_from_state_dict(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenModule:
        for module in self.modules():
            for name, parameter in module._parameters.items():
                if parameter is None or id(parameter) in memo or parameter.requires_grad:
                    continue
                if not (isinstance(module, FrozenModule) and module.is_trained(name, parameter)):
                    # A new Parameter over the old storage: moving the copy must not move the original.
                    memo[id(parameter)] = Parameter(parameter.data, requires_grad=False)
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        for key, value in self.__dict__.items():
            clone.__dict__[key] = copy.deepcopy(value, memo)
        return clone


def thawed(block: nn.Module) -> list[str]:
    """Parameters of a block that require gradients though nobody asked: `requires_grad_(True)` of its host did it."""
    return [
        f"{path}.{name}".lstrip(".")
        for path, module in block.named_modules()
        if isinstance(module, FrozenModule) and not module._asked
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad and name not in module.trained
    ]


class _only_trained:  # noqa: N801 - used as a context manager, like torch.no_grad
    """Inside, `module._parameters` lists only what is trained."""

    def __init__(self, module: FrozenModule) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.all = self.module._parameters
        self.module._parameters = {n: p for n, p in self.all.items() if p is not None and self.module.is_trained(n, p)}

    def __exit__(self, *_: object) -> None:
        self.all.update(self.module._parameters)  # load_state_dict(assign=True) sets new ones
        self.module._parameters = self.all
