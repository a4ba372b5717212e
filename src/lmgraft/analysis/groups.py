"""Groups of test items that belong together: questions of one image, captions of one picture, agents of one scene.

Items of a group are alike, so that groups, not items, are the independent sample. A statistic takes them by one form
(`group_values`) and then treats groups as it would items. It knows nothing of seeds, arms or metrics.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from lmgraft.errors import RunError

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.intp]


def group_codes(groups: npt.ArrayLike | None, items: int) -> Codes | None:
    """The group of each item as 0 .. G - 1; None where every item stands alone.

    Args:
        groups: (N,) whole numbers, equal within a group; None for items that stand alone.
        items: N.

    Raises:
        RunError: If they are not one whole number for each item.
    """
    if groups is None:
        return None
    given = np.asarray(groups)
    if given.shape != (items,) or given.dtype.kind not in "iu":
        raise RunError(
            f"groups are {given.dtype} of shape {given.shape}, where {items} whole numbers were expected",
            "give the data's groups as one integer for each test item, in the items' order",
        )
    names, codes = np.unique(given, return_inverse=True)
    return None if len(names) == items else codes


def group_sums(values: npt.NDArray[Any], codes: Codes | None) -> tuple[Array, Array]:
    """(..., N) -> sums by group (..., G), and how many items each group has (G,)."""
    values = values.astype(np.float64)
    if codes is None:
        return values, np.ones(values.shape[-1])
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    sums: Array = np.add.reduceat(values[..., order], np.cumsum(sizes) - sizes, axis=-1)
    return sums, sizes.astype(np.float64)


def group_values(values: npt.NDArray[Any], codes: Codes | None) -> tuple[Array, float]:
    """One number for each group, whose plain mean is the mean over items and whose variance is that mean's.

    m + e_g G/N, where e_g = S_g - m n_g is the influence of a group with sum S_g and n_g of the N items: the mean over
    items is a ratio of two sums over groups. Large groups pull m towards themselves, so that e_g / sqrt(1 - n_g/N) is
    taken (CR2; Bell and McCaffrey, Survey Methodology, 2002), here in the form that changes nothing where groups are
    of one size. Of unequal groups fewer count: their degrees of freedom are those of N^2 / sum n_g^2 equal ones
    (Carter, Schnepel and Steigerwald, Review of Economics and Statistics, 2017).

    Args:
        values: (..., N).
        codes: Of `group_codes`; of at least two groups.

    Returns:
        (..., G), and their degrees of freedom. Without codes: the values themselves, and N - 1.
    """
    sums, sizes = group_sums(values, codes)
    number, items = len(sizes), sizes.sum()
    if codes is None:
        return sums, number - 1.0
    mean = sums.sum(axis=-1, keepdims=True) / items
    share = sizes / items
    influence = (sums - mean * sizes) / np.sqrt((1 - share) * number / (number - 1)) * number / items
    centred = influence - influence.mean(axis=-1, keepdims=True)
    return mean + centred, 1 / math.fsum(share**2) - 1
