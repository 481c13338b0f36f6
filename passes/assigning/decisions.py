"""How much quieter must the outputs get until decisions hold?"""

from __future__ import annotations

import math

LEAST_STEP_DB, MOST_STEP_DB = 2.0, 6.0
AIMED = 0.5  # of the decisions that may change: what is aimed at, since other samples have others near the edge


def more_db(share: float, wanted: float) -> float:
    """How many dB more to ask for where a share of the decisions is the original's, and another is wanted.

    The share of decisions that change is, near the edge between two of them, as large as the noise.
    """
    aimed = max((1 - wanted) * AIMED, 1e-4)
    step = 20 * math.log10(max(1 - share, aimed) / aimed)
    return min(max(step, LEAST_STEP_DB), MOST_STEP_DB)
