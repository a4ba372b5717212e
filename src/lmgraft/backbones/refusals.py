"""Turn what the libraries raise where they cannot build a model into one error for every factory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

from safetensors import SafetensorError

from lmgraft.checkpoint.hub_http import is_offline, network_errors, reach
from lmgraft.errors import HostError, LmgraftError, SourceError, first_line

T = TypeVar("T")
_WEIGHT_ERRORS: tuple[type[Exception], ...] = (RuntimeError, SafetensorError, UnpicklingError)
_SIZE_ERRORS = (TypeError, ValueError, ArithmeticError, AssertionError, IndexError, RuntimeError)


def construct(
    make: Callable[..., T], what: str, arguments: Mapping[str, Any], leave: tuple[type[Exception], ...] = ()
) -> T:
    """Call what makes a model with a recipe's arguments.

    Args:
        make: A class or a function.
        what: How messages call it.
        arguments: By name, `backbone.kwargs` above all.
        leave: Errors that say something of weights, where it reads them too, and not of arguments.

    Raises:
        HostError: If it refuses them: one is unknown, is no number, or is a size that cannot be.
    """
    try:
        return make(**arguments)
    except LmgraftError:
        raise
    except _SIZE_ERRORS as error:
        if isinstance(error, leave):
            raise
        raise HostError(f"{what} refused its arguments: {first_line(error)}", "check backbone.kwargs") from error


def at_least_one(**sizes: float) -> None:
    """Refuse sizes below one.

    Raises:
        HostError: If there is one; it names the key.
    """
    for key, size in sizes.items():
        if size < 1:
            raise HostError(f"backbone.kwargs.{key}={size}", "give 1 or more")


def one_of(key: str, value: Any, known: Iterable[str]) -> None:
    """Refuse a word that is not known.

    Raises:
        HostError: Naming the key and the words that are.
    """
    if value not in (words := tuple(known)):
        raise HostError(f"backbone.kwargs.{key}={value!r}", f"one of {', '.join(words)}")


def shares(**rates: float) -> None:
    """Refuse rates, of dropout for instance, outside 0 to 1.

    Raises:
        HostError: If there is one; it names the key.
    """
    for key, rate in rates.items():
        if not 0 <= rate < 1:
            raise HostError(f"backbone.kwargs.{key}={rate}", "give a share from 0 to below 1")


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
        raise HostError(f"{what}: {first_line(error)}", remedy) from error


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
