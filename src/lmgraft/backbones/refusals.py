"""Turn what the libraries raise where they cannot build a model into one error for every factory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

from safetensors import SafetensorError

from lmgraft.checkpoint.hub_http import network_errors
from lmgraft.errors import HostError, LmgraftError

_WEIGHT_ERRORS: tuple[type[Exception], ...] = (RuntimeError, SafetensorError, UnpicklingError)


@contextmanager
def in_words(what: str, remedy: str, pretrained: bool) -> Iterator[None]:
    """Turn a library's refusal to build a model into `what` and its cause, in one line.

    Args:
        what: What could not be built.
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
    except _error_types(pretrained) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise HostError(f"{what}: {lines[0] if lines else type(error).__name__}", remedy) from error


def _error_types(pretrained: bool) -> tuple[type[Exception], ...]:
    types: tuple[type[Exception], ...] = (ValueError, *network_errors())
    return types + _WEIGHT_ERRORS if pretrained else types
