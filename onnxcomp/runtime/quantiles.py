"""How far may a figure lie from the truth? Quantiles that the standard library has not."""

from __future__ import annotations

import math
from statistics import NormalDist


def student(level: float, freedom: int) -> float:
    """The two-sided quantile of Student's t, from the normal one's (Abramowitz and Stegun 26.7.5).

    Args:
        level: the chance of a value farther from zero, on either side.
        freedom: degrees of freedom.
    """
    z = NormalDist().inv_cdf(1 - level / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + float(sum(term / freedom**power for power, term in enumerate(terms, 1)))


def chance_of(least: int, count: int, share: float) -> float:
    """The chance of at least so many of `count` independent events that each happen with this share: binomial."""
    if least <= 0 or share >= 1:
        return 1.0
    if share <= 0:
        return 0.0
    log = [math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in range(least)]
    fewer = sum(math.exp(c + i * math.log(share) + (count - i) * math.log1p(-share)) for i, c in enumerate(log))
    return max(0.0, 1.0 - fewer)
