"""What tokens and attention are like, one number an item: spread of attention, dimensions in use.

Functions on tensors, as `activations`; they know no model and no data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmgraft.analysis.activations import mean_of_tokens


def attention_entropy(attention: Tensor, padded: Tensor | None = None) -> Tensor:
    """How evenly attention is spread: its entropy over that of an even spread, the mean over heads.

    Args:
        attention: (B, heads, T), not negative; a row that does not sum to 1, as prefix tokens are left out, is scaled.
        padded: (B, T) bool, tokens that count for nothing.

    Returns:
        (B,) in [0, 1]: 0 where each head looks at one token, 1 where it looks at all alike. nan with a single token.
    """
    weights = attention.float() if padded is None else attention.float().masked_fill(padded[:, None], 0.0)
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    count = torch.full(attention.shape[:1], attention.shape[-1]) if padded is None else (~padded).sum(1)
    most = count.to(weights).log()
    share = torch.special.entr(weights).sum(-1).mean(1) / most
    return torch.where(most > 0, share, share.new_tensor(math.nan))


def effective_rank(tokens: Tensor, padded: Tensor | None = None) -> Tensor:
    """How many directions the tokens of an item use (Roy and Vetterli, EUSIPCO 2007).

    The exponential of the entropy of the singular values of the centred tokens, scaled to sum to one.

    Args:
        tokens: (B, T, V).
        padded: (B, T) bool, tokens that count for nothing.

    Returns:
        (B,) from 1 to min(T - 1, V); 0 where all tokens are equal.
    """
    values = tokens.float()
    centred = values - mean_of_tokens(values, padded)
    if padded is not None:
        centred = centred.masked_fill(padded.unsqueeze(-1), 0.0)
    singular = torch.linalg.svdvals(centred)
    total = singular.sum(1, keepdim=True)
    shares = singular / total.clamp_min(torch.finfo(torch.float32).tiny)
    # What rounding leaves of equal tokens is no direction.
    some = total.squeeze(1) > 1e-6 * values.flatten(1).norm(dim=1)
    return torch.where(some, torch.special.entr(shares).sum(1).exp(), 0.0)
