"""A frozen block inside any backbone: insert, remove, save, controls.

Speaks to backbones only through `contracts.Host`; knows no backbone, no data and no training.
"""

from lmgraft.graft.config import GraftConfig
from lmgraft.graft.insert import graft, ungraft
from lmgraft.graft.layer import GraftLayer, find_graft
from lmgraft.graft.reads import reading_all_tokens
from lmgraft.graft.save import load_pretrained, save_pretrained

__all__ = [
    "GraftConfig",
    "GraftLayer",
    "find_graft",
    "graft",
    "load_pretrained",
    "reading_all_tokens",
    "save_pretrained",
    "ungraft",
]
