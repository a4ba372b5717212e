"""Words that every room shares: axis letters, tokens and reads, hosts, metrics, batches.

Axis letters, used in docstrings and long tensor names throughout:

    B batch    T tokens   R read tokens
    V vision width (the encoder's embed_dim)    D LLM width
    N query heads   M key/value heads   H head width   F MLP width
"""

from lmgraft.contracts.batch import Batch, BatchWithTruth
from lmgraft.contracts.host import (
    Entry,
    GraftPoint,
    Host,
    Output,
    TokenLayout,
    no_padding,
    reads_everything,
    unseen_keys,
)
from lmgraft.contracts.metric import Metric
from lmgraft.contracts.tokens import (
    Axes,
    MeanOf,
    Reads,
    Tokens,
    count_tokens,
    from_tokens,
    map_axes,
    take_reads,
    take_tokens,
    to_tokens,
)
from lmgraft.contracts.traces import is_jit_traced, is_traced, sizes

__all__ = [
    "Axes",
    "Batch",
    "BatchWithTruth",
    "Entry",
    "GraftPoint",
    "Host",
    "MeanOf",
    "Metric",
    "Output",
    "Reads",
    "TokenLayout",
    "Tokens",
    "count_tokens",
    "from_tokens",
    "is_jit_traced",
    "is_traced",
    "map_axes",
    "no_padding",
    "reads_everything",
    "sizes",
    "take_reads",
    "take_tokens",
    "to_tokens",
    "unseen_keys",
]
