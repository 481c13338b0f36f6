"""How is a front of plans shown? One line a point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

COLUMNS = ("point", "SQNR, predicted", "of the time", "bytes", "layers by form")


def rows(front: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The cells of each point, the fastest first."""
    found: list[tuple[str, ...]] = []
    for place, point in enumerate(front, 1):
        level = point["predicted_sqnr_db"]
        forms = Counter(point["forms"].values())
        found.append(
            (
                str(place),
                "exact" if level is None else f"{level:.1f} dB",
                f"{point['predicted_time']:.2f}",
                f"{point['predicted_bytes']:,}",
                ", ".join(f"{count} {form}" for form, count in forms.most_common()),
            )
        )
    return found
