"""lmgraft: one frozen LLM block as one more layer of any vision encoder.

Importing this package imports torch and nothing heavier.
"""

from importlib import metadata as _metadata
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from lmgraft.block import BlockConfig, FrozenBlock, inspect_llm, load_block
from lmgraft.graft import (
    GraftConfig,
    approximate,
    baked,
    exact,
    graft,
    load_pretrained,
    reading,
    reading_all_tokens,
    save_pretrained,
    ungraft,
)

if _TYPE_CHECKING:
    from lmgraft.studies.study.compare import compare

__version__ = _metadata.version("lmgraft")

__all__ = [
    "BlockConfig",
    "FrozenBlock",
    "GraftConfig",
    "approximate",
    "baked",
    "compare",
    "exact",
    "graft",
    "inspect_llm",
    "load_block",
    "load_pretrained",
    "reading",
    "reading_all_tokens",
    "save_pretrained",
    "ungraft",
]


def __getattr__(name: str) -> _Any:
    """`compare` needs the extra `image`, and is imported when it is asked for."""
    if name != "compare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from lmgraft.studies.study.compare import compare
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lmgraft"):
            raise
        raise ModuleNotFoundError(
            f'lmgraft.compare needs the package {error.name!r}: pip install "lmgraft[image]"', name=error.name
        ) from None
    return compare
