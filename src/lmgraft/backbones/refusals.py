"""What the libraries raise where a model cannot be had, as one error in words for every factory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

from safetensors import SafetensorError

from lmgraft.checkpoint.hub_http import network_errors
from lmgraft.errors import HostError, LmgraftError

_OF_WEIGHTS: tuple[type[Exception], ...] = (RuntimeError, SafetensorError, UnpicklingError)


@contextmanager
def in_words(what: str, remedy: str, pretrained: bool) -> Iterator[None]:
    """Turn a library's refusal to build a model into `what` and its cause, in one line.

    Args:
        what: What was not to be had.
        remedy: What to do about it.
        pretrained: Whether weights are fetched and read. RuntimeErrors then say that there are none, or
            that they do not fit; without weights they are left alone.

    Raises:
        HostError: In place of errors of files, the network, the Hub and of damaged weights.
    """
    try:
        yield
    except LmgraftError:
        raise
    except _kinds(pretrained) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise HostError(f"{what}: {lines[0] if lines else type(error).__name__}", remedy) from error


def _kinds(pretrained: bool) -> tuple[type[Exception], ...]:
    kinds: tuple[type[Exception], ...] = (ValueError, *network_errors())
    return kinds + _OF_WEIGHTS if pretrained else kinds
