"""How alike two sets of features are: linear CKA with unbiased estimates.

Kornblith et al., ICML 2019 (arXiv 1905.00414), with the unbiased HSIC of Song et al., JMLR 2012,
as in Nguyen et al., ICLR 2021 (arXiv 2010.15327): with few samples of wide features the plain
estimate is near one whatever the features are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Similarity of features x (N, P) and y (N, Q) of the same N samples: 1 at most, about 0 for unrelated ones.

    Unchanged by shifting either, by scaling it, and by an orthogonal map of its columns. Computed in
    float64; besides the features it needs min(N, P)², min(N, Q)² and at most P x Q numbers.

    Raises:
        ValueError: If there are fewer than 4 samples, or as many of each; or if the features of one
            do not vary more than chance, so that nothing can be said.
    """
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or len(x) < 4:
        raise ValueError(f"CKA needs the features (N, P) and (N, Q) of 4 samples, got {(*x.shape,)} and {(*y.shape,)}")
    x, y = (_centred(features) for features in (x, y))
    own = unbiased_hsic(x, x) * unbiased_hsic(y, y)
    if not own > 0 or unbiased_hsic(x, x) < 0:
        raise ValueError("CKA of features that do not vary, or not beyond what chance gives so few samples")
    return unbiased_hsic(x, y) / math.sqrt(own)


def unbiased_hsic(x: Tensor, y: Tensor) -> float:
    """The unbiased HSIC with linear kernels of x (N, P) and y (N, Q), without forming an N x N kernel where N is large.

    With K and L the kernels, their diagonals set to zero:
    (tr KL + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)) / (n (n-3)).
    """
    n = len(x)
    k, l = x.square().sum(1), y.square().sum(1)  # noqa: E741 - diagonals of K and L
    k1, l1 = x @ x.sum(0) - k, y @ y.sum(0) - l
    trace = _squared_product(x, y) - k @ l
    value = trace + k1.sum() * l1.sum() / ((n - 1) * (n - 2)) - 2 * (k1 @ l1) / (n - 2)
    return float(value / (n * (n - 3)))


def _squared_product(x: Tensor, y: Tensor) -> Tensor:
    """||x'y||² by the smaller of the two products that give it."""
    if len(x) < min(x.shape[1], y.shape[1]):
        return ((x @ x.T) * (y @ y.T)).sum()
    return (x.T @ y).square().sum()


def _centred(features: Tensor) -> Tensor:
    """In float64 and of size about one: large means and scales would cost digits."""
    wide = features.detach().to(torch.float64)
    wide = wide - wide.mean(0)
    return wide / wide.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
