"""Tensors of a layer -> one frozen block that maps (B, T, D) to (B, T, D).

One implementation driven by the fields of `BlockConfig`; an architecture is a file in
`families/` that fills in the fields. Knows no vision model and no training.
"""

from lmgraft.block.block import FrozenBlock, Provenance
from lmgraft.block.config import BlockConfig
from lmgraft.block.load import SourceReport, inspect_llm, load_block
from lmgraft.block.opaque import OpaqueBlock, block_of

__all__ = [
    "BlockConfig",
    "FrozenBlock",
    "OpaqueBlock",
    "Provenance",
    "SourceReport",
    "block_of",
    "inspect_llm",
    "load_block",
]
