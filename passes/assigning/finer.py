"""Which of many items are better left fine, and which may be coarse? A choice of two forms each, by the allocator."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from onnxcomp.passes.assigning.allocate import Allocator, Limits, Option, Problem


def finer(
    noise: Sequence[float], more: Sequence[float], *, room: float = math.inf, allowed: float = math.inf
) -> set[int]:
    """The places of the items that take the finer form.

    Those that together take least for what is allowed to remain; where that does not fit into the room, those that
    leave least.

    Args:
        noise: what each item brings in its coarse form, which nothing of it brings in its fine one; errors add up.
        more: what the fine form takes beyond the coarse one, in bytes or any other unit.
        room: what all of them may take.
        allowed: noise that may remain.
    """
    options: dict[Hashable, tuple[Option, ...]] = {
        place: (Option("fine", 0.0, cost, np.zeros(1)), Option("coarse", 0.0, 0.0, np.array([share])))
        for place, (share, cost) in enumerate(zip(noise, more, strict=True))
    }
    allocator = Allocator(Problem(options))
    found = allocator.best("bytes", Limits(bytes=room, noise=allowed))
    if found is None:
        found = allocator.nearest("noise", Limits(bytes=room))
    return {place for place in range(len(noise)) if found.choice[place] == 0}
