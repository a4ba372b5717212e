"""Calls that are written down as a program, in place of being run for their numbers."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def is_traced() -> bool:
    """Whether a compiler or tracer looks on (torch.compile, torch.export, torch.jit.trace, either ONNX exporter).

    Sizes may be symbols or tensors then, and what is kept between calls would become a constant of the program.
    """
    return torch.compiler.is_compiling() or is_jit_traced()


def is_jit_traced() -> bool:
    """Whether torch.jit.trace or the older ONNX exporter looks on: code runs on an example, and sizes are tensors."""
    return not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None


def sizes(x: Tensor) -> tuple[int, ...]:
    """The shape of `x` in numbers, also where `is_jit_traced`; for sizes that are the same for all inputs."""
    if not is_jit_traced():
        return x.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants, as is meant
        return tuple(int(size) for size in x.shape)
