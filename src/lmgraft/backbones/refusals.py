"""Turn what the libraries raise where they cannot build a model into one error for every factory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError

from lmgraft.checkpoint.hub_http import is_offline, network_errors, reach
from lmgraft.errors import HostError, LmgraftError, SourceError

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


@contextmanager
def in_seconds(name: str) -> Iterator[None]:
    """Have huggingface_hub look only into its cache where the Hub does not answer: it would ask for a minute.

    Raises:
        OSError: If what was looked for is not there either.
    """
    from huggingface_hub import constants

    try:
        if not is_offline() and not Path(name).exists():
            reach(name)
    except SourceError as error:
        asked, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield
        except OSError:
            raise OSError(f"it is in no cache, and {error.message}") from None
        finally:
            constants.HF_HUB_OFFLINE = asked
    else:
        yield


def _error_types(pretrained: bool) -> tuple[type[Exception], ...]:
    types: tuple[type[Exception], ...] = (ValueError, *network_errors())
    return types + _WEIGHT_ERRORS if pretrained else types
