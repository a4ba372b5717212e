"""lmgraft: one frozen LLM block as one more layer of any vision encoder.

Importing this package imports torch and nothing heavier.
"""

from importlib import metadata as _metadata

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

__version__ = _metadata.version("lmgraft")

__all__ = [
    "BlockConfig",
    "FrozenBlock",
    "GraftConfig",
    "approximate",
    "baked",
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
