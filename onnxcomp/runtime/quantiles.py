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


def share_interval(share: float, count: int, level: float) -> tuple[float, float]:
    """Between which shares the true one lies (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212).

    Args:
        share: seen, 0 to 1.
        count: of how many.
        level: the chance that it lies outside, half of it on either side.
    """
    z = NormalDist().inv_cdf(1 - level / 2)
    middle, half = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    width = 1 + z * z / count
    return (middle - half) / width, (middle + half) / width
