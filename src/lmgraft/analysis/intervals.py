"""Intervals for shares of test items."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (JASA 1927): good coverage near 0 and 1 too.

    It speaks of other test items from the same source, with this one trained model. It says
    nothing of what another seed would give.

    Raises:
        ValueError: If `correct` is not between 0 and `total`, or `total` is 0.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} of {total} is no share")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # Exact at the ends, where rounding would leave 1e-17 or miss 1.
    return 0.0 if correct == 0 else middle - half, 1.0 if correct == total else middle + half
