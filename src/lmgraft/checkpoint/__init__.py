"""LLM files on disk -> the tensors of one layer.

Opens a source, reads only what is asked for, and says exactly what is wrong with a file.
Knows file formats and where they lie; knows no architecture and no block.
"""

from lmgraft.checkpoint.base import Checkpoint
from lmgraft.checkpoint.digest import tensor_digest
from lmgraft.checkpoint.names import NameMap, read_tensors
from lmgraft.checkpoint.source import open_checkpoint

__all__ = ["Checkpoint", "NameMap", "open_checkpoint", "read_tensors", "tensor_digest"]
