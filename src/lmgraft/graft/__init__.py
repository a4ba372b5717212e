"""A frozen block inside any backbone: insert, remove, save, controls.

Speaks to backbones only through `contracts.Host`; knows no backbone, no data and no training.
"""

from lmgraft.graft.approximate import ApproximationReport, approximate, exact
from lmgraft.graft.config import GraftConfig
from lmgraft.graft.insert import graft, ungraft
from lmgraft.graft.layer import GraftLayer, baked, find_graft, find_grafts
from lmgraft.graft.reads import reading, reading_all_tokens
from lmgraft.graft.save import load_pretrained, save_pretrained

__all__ = [
    "ApproximationReport",
    "GraftConfig",
    "GraftLayer",
    "approximate",
    "baked",
    "exact",
    "find_graft",
    "find_grafts",
    "graft",
    "load_pretrained",
    "reading",
    "reading_all_tokens",
    "save_pretrained",
    "ungraft",
]
